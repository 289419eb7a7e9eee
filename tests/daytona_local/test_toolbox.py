from __future__ import annotations

import asyncio
import os
import time
import uuid

import httpx
import pytest
from daytona import AsyncSandbox, DaytonaError, DaytonaNotFoundError, FileUpload, SessionExecuteRequest
from daytona.common.errors import (
    DaytonaCommandAlreadyCompletedError,
    DaytonaConflictError,
    DaytonaFileNotFoundError,
    DaytonaProcessExecutionTimeoutError,
    DaytonaSessionEndedError,
)
from daytona.common.pty import PtySize

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.daytona_local.sessions import split

pytestmark = pytest.mark.docker


async def start(sandbox: AsyncSandbox, command: str, **more: bool) -> tuple[str, str]:
    """A command in the background of a new session."""
    session = uuid.uuid4().hex
    await sandbox.process.create_session(session)
    request = SessionExecuteRequest(command=command, run_async=True, **more)
    return session, (await sandbox.process.execute_session_command(session, request)).cmd_id


async def logs(sandbox: AsyncSandbox, session: str, command: str, out: list[str]) -> None:
    await sandbox.process.get_session_command_logs_async(session, command, out.append, lambda _: None)


async def test_commands_and_code(sandbox: AsyncSandbox) -> None:
    done = await sandbox.process.exec(
        "echo $GIVEN $MORE; pwd; echo no >&2; exit 3", cwd="/", env={"MORE": "c"}
    )
    assert (done.exit_code, done.result) == (3, "a b c\n/\nno\n")
    with pytest.raises(DaytonaProcessExecutionTimeoutError):
        await sandbox.process.exec("sleep 30", timeout=1)
    assert (await sandbox.process.code_run("print(6 * 7)")).result == "42\n"
    assert await sandbox.get_work_dir() == "/app"
    assert await sandbox.get_user_home_dir() == "/home/harvest"


async def test_a_session_keeps_its_shell_and_tells_its_streams_apart(sandbox: AsyncSandbox) -> None:
    process = sandbox.process
    await process.create_session("s")
    with pytest.raises(DaytonaConflictError):
        await process.create_session("s")
    await process.execute_session_command("s", SessionExecuteRequest(command="cd /tmp; X=kept"))
    done = await process.execute_session_command(
        "s", SessionExecuteRequest(command="pwd; echo $X; echo no >&2; false")
    )
    assert (done.exit_code, done.stdout, done.stderr) == (1, "/tmp\nkept\n", "no\n")
    assert done.cmd_id is not None
    said = await process.get_session_command_logs("s", done.cmd_id)
    assert (said.stdout, said.stderr) == ("/tmp\nkept\n", "no\n")
    assert [len(session.commands) for session in await process.list_sessions()] == [2]
    await process.delete_session("s")
    with pytest.raises(DaytonaNotFoundError):
        await process.get_session("s")


async def test_quirk_a_top_level_exit_takes_the_shell_and_the_code_is_never_written(
    sandbox: AsyncSandbox,
) -> None:
    session, command = await start(sandbox, "echo before; exit 3")
    await asyncio.sleep(1)
    assert (await sandbox.process.get_session_command(session, command)).exit_code is None
    with pytest.raises(DaytonaSessionEndedError):
        await sandbox.process.execute_session_command(session, SessionExecuteRequest(command="true"))


async def test_quirk_input_has_no_end_and_a_line_feed_is_added(sandbox: AsyncSandbox) -> None:
    reading = "echo ready; while read -r line; do echo got $line; done"
    session, command = await start(sandbox, reading, suppress_input_echo=True)
    out: list[str] = []
    following = asyncio.create_task(logs(sandbox, session, command, out))
    while not out:
        await asyncio.sleep(0.01)
    for text in ("one", "two\n"):
        await sandbox.process.send_session_command_input(session, command, text)
    await asyncio.sleep(0.5)
    assert "".join(out) == "ready\ngot one\ngot two\n"
    assert (await sandbox.process.get_session_command(session, command)).exit_code is None
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    again: list[str] = []
    following = asyncio.create_task(logs(sandbox, session, command, again))
    await asyncio.sleep(0.5)
    assert "".join(again) == "ready\ngot one\ngot two\n"  # from the first byte
    await sandbox.process.delete_session(session)
    await asyncio.gather(following, return_exceptions=True)


async def test_quirk_input_is_echoed_unless_suppressed_and_refused_after_the_end(
    sandbox: AsyncSandbox,
) -> None:
    session, command = await start(sandbox, "read line; echo got $line")
    for _ in range(100):
        try:
            await sandbox.process.send_session_command_input(session, command, "x")
            break
        except Exception:  # noqa: BLE001 - too early: there is no FIFO yet
            await asyncio.sleep(0.02)
    for _ in range(100):
        if (await sandbox.process.get_session_command(session, command)).exit_code is not None:
            break
        await asyncio.sleep(0.02)
    said = await sandbox.process.get_session_command_logs(session, command)
    assert sorted((said.stdout or "").splitlines()) == ["got x", "x"]
    with pytest.raises(DaytonaCommandAlreadyCompletedError):
        await sandbox.process.send_session_command_input(session, command, "y")


async def test_quirk_nuls_are_lost_and_the_socket_ends_a_second_after_the_command(
    sandbox: AsyncSandbox,
) -> None:
    session, command = await start(sandbox, r"printf 'a\0b\n'; printf 'no end'")
    out: list[str] = []
    began = time.monotonic()
    await logs(sandbox, session, command, out)
    assert "".join(out) == "ab\nno end\n"
    assert time.monotonic() - began > 0.9
    assert (await sandbox.process.get_session_command(session, command)).exit_code == 0


@pytest.mark.parametrize("fault", ["log-cut=300", "log-refused"])
async def test_quirk_a_cut_socket_may_look_like_a_clean_end(
    sandbox: AsyncSandbox, daytona: LocalDaytona, fault: str
) -> None:
    session, command = await start(sandbox, "echo one; sleep 5; echo two")
    daytona.faults.parse(fault)
    out: list[str] = []
    ends = []
    for _ in range(2):
        try:
            await logs(sandbox, session, command, out)
            ends.append("clean")
        except DaytonaError as error:
            ends.append("1006" if "1006" in str(error) else str(error))
    assert sorted(ends) == ["1006", "clean"]  # by turns
    assert "two" not in "".join(out)
    assert (await sandbox.process.get_session_command(session, command)).exit_code is None


async def test_files(sandbox: AsyncSandbox) -> None:
    fs, data = sandbox.fs, os.urandom(300_000)
    await fs.create_folder("/app/workspace/deep", "750")
    await fs.upload_files(
        [FileUpload(source=data, destination="/app/workspace/deep/a.bin"),
         FileUpload(source=b"one\ntwo\n", destination="/app/workspace/deep/b.txt")]
    )  # fmt: skip
    assert await fs.download_file("/app/workspace/deep/a.bin") == data
    found = {info.name: info for info in await fs.list_files("/app/workspace/deep")}
    assert {name: info.size for name, info in found.items()} == {"a.bin": 300_000, "b.txt": 8}
    about = await fs.get_file_info("/app/workspace/deep")
    assert (about.is_dir, about.permissions, about.owner) == (True, "0750", "harvest")
    await fs.set_file_permissions("/app/workspace/deep/b.txt", mode="600")
    assert [(hit.line, hit.content) for hit in await fs.find_files("/app/workspace/deep", "two")] == [
        (2, "two")
    ]
    assert (await fs.search_files("/app/workspace", "*.txt")).files == ["/app/workspace/deep/b.txt"]
    await fs.replace_in_files(["/app/workspace/deep/b.txt"], "two", "three")
    await fs.move_files("/app/workspace/deep/b.txt", "/app/workspace/c.txt")
    assert await fs.download_file("/app/workspace/c.txt") == b"one\nthree\n"
    await fs.delete_file("/app/workspace/deep", recursive=True)
    with pytest.raises(DaytonaFileNotFoundError):
        await fs.download_file("/app/workspace/deep/a.bin")
    with pytest.raises(DaytonaError, match="403"):
        await fs.upload_file(b"x", "/app/claude.md")


async def test_a_file_without_end_is_not_read(sandbox: AsyncSandbox, daytona: LocalDaytona) -> None:
    await sandbox.process.exec("mkfifo pipe; truncate -s 1T sparse; echo two > plain", cwd="/app/workspace")
    async with asyncio.timeout(20):
        for name in ("/dev/zero", "/app/workspace/pipe", "/app/workspace/sparse"):
            with pytest.raises(DaytonaError, match=name):
                await sandbox.fs.download_file(name)
        hits = await sandbox.fs.find_files("/app/workspace", "two")
        assert [hit.file for hit in hits] == ["/app/workspace/plain"]
        (outcome,) = await sandbox.fs.replace_in_files(["/app/workspace/pipe"], "a", "b")
        assert not outcome.success


async def test_a_download_ends_when_its_client_has_gone(sandbox: AsyncSandbox, daytona: LocalDaytona) -> None:
    await sandbox.process.exec("head -c 20M /dev/zero > big", cwd="/app/workspace")
    url = daytona.api_url.replace("/api", f"/toolbox/{sandbox.id}/files/bulk-download")
    headers = {"Authorization": f"Bearer {daytona.api_key}"}
    async with httpx.AsyncClient(headers=headers) as client, asyncio.timeout(20):
        # Read one after another: ten thousand of them would never begin, nor end.
        asked = {"paths": ["/app/workspace/big"] * 10_000}
        async with client.stream("POST", url, json=asked) as answer:
            assert answer.status_code == 200
            assert await anext(answer.aiter_raw())
        assert (await sandbox.process.exec("echo still here")).result == "still here\n"


async def test_a_terminal(sandbox: AsyncSandbox) -> None:
    out = bytearray()
    handle = await sandbox.process.create_pty_session(
        "t", out.extend, envs={"MARK": "m"}, pty_size=PtySize(91, 31)
    )
    with pytest.raises(DaytonaConflictError):
        await sandbox.process.create_pty_session("t", out.extend)
    await handle.send_input("stty size; echo $MARK; tty\n")
    await asyncio.sleep(0.5)
    assert (await sandbox.process.get_pty_session_info("t")).cols in (91, 31)
    await sandbox.process.resize_pty_session("t", PtySize(rows=40, cols=100))
    await handle.send_input("stty size; exit 4\n")
    done = await asyncio.wait_for(handle.wait(), 10)
    assert done.exit_code == 4
    text = out.decode()
    assert "\r\nm\r\n" in text
    assert "40 100" in text
    assert await sandbox.process.list_pty_sessions() == []


async def test_the_entrypoint_is_a_session_of_its_own(sandbox: AsyncSandbox) -> None:
    found = await sandbox.process.get_entrypoint_session()
    assert found.commands is not None
    assert "entrypoint.py" in found.commands[0].command
    assert (await sandbox.process.get_entrypoint_logs()).output is not None


def test_a_log_is_split_by_its_marks() -> None:
    assert split(b"\x01\x01\x01a\n\x02\x02\x02b\n\x01\x01\x01c\n") == (b"a\nc\n", b"b\n")
