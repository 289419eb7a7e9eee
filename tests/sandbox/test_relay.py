from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.errors import RelayError, SandboxError, SandboxGone
from harvest_nb.sandbox.relay import Relay, Stream
from harvest_nb.sandbox.relayd.frames import Kind, Link
from tests.sandbox.conftest import alive, daemon

ENV: dict[str, str] = {}
AWKWARD = bytes(range(256)) * 80_000  # 20 MB with NULs and invalid UTF-8, not one character of text


async def output(relay: Relay, *argv: str, given_input: bytes | None = None) -> tuple[int, bytes, bytes]:
    done = await relay.run(argv, env=ENV, cwd="/", input=given_input, timeout=60)
    return done.exit_code, done.stdout, done.stderr


async def test_a_program_runs_with_its_arguments_environment_and_folder(relay: Relay, tmp_path: Path) -> None:
    done = await relay.run(
        ["sh", "-c", 'printf "%s|%s|" "$1" "$EXTRA"; pwd; echo no >&2; exit 7', "sh", "a b'\"$\n"],
        env={"EXTRA": "ü"}, cwd=tmp_path.as_posix(), input=None, timeout=10,
    )  # fmt: skip
    assert done.stdout.decode() == f"a b'\"$\n|ü|{tmp_path}\n"
    assert (done.exit_code, done.stderr) == (7, b"no\n")


async def test_twenty_megabytes_come_back_byte_exact(relay: Relay) -> None:
    code, out, _ = await output(relay, "cat", given_input=AWKWARD)
    assert code == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(AWKWARD).digest()


async def test_a_signal_is_an_exit_code_above_128(relay: Relay) -> None:
    process = await relay.spawn(["sleep", "60"], ENV, "/")
    await process.kill(signal.SIGTERM)
    assert await process.wait() == 128 + signal.SIGTERM
    await process.kill()  # it has ended: left alone


async def test_kill_ends_the_whole_group(relay: Relay) -> None:
    process = await relay.spawn(["sh", "-c", "sleep 60 & echo $!; wait"], ENV, "/")
    child = int(await anext(process.stdout))
    await process.kill()
    assert await process.wait() == 137
    for _ in range(100):
        if not alive(child):
            break
        await asyncio.sleep(0.02)
    assert not alive(child)


@pytest.mark.slow
async def test_a_grandchild_that_holds_the_output_does_not_hide_the_exit_code(relay: Relay) -> None:
    code, out, _ = await output(relay, "sh", "-c", "echo before; sleep 60 & exit 3")
    assert (code, out) == (3, b"before\n")


async def test_input_to_a_process_that_has_ended_is_a_broken_pipe(relay: Relay) -> None:
    process = await relay.spawn(["true"], ENV, "/")
    await process.wait()
    with pytest.raises(BrokenPipeError):
        await process.stdin.send(b"x")


async def test_a_program_that_is_not_there_is_named(relay: Relay) -> None:
    with pytest.raises(SandboxError, match="no-such-program") as caught:
        await relay.spawn(["no-such-program"], ENV, "/")
    assert caught.value.errno == errno.ENOENT


async def test_a_timeout_ends_the_program(relay: Relay) -> None:
    with pytest.raises(TimeoutError, match="sleep 60"):
        await relay.run(["sleep", "60"], env=ENV, cwd="/", input=None, timeout=0.2)


async def test_files_cross_whole(relay: Relay, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.bin"
    await relay.write(str(target), AWKWARD)
    assert target.read_bytes() == AWKWARD
    assert await relay.read(str(target)) == AWKWARD
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
    await relay.write(str(target), b"")
    assert await relay.read(str(target)) == b""


async def test_file_errors_name_the_file(relay: Relay, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    for work, number, kind in (
        (relay.read(str(tmp_path / "missing")), errno.ENOENT, FileNotFoundError),
        (relay.read(str(tmp_path)), errno.EISDIR, IsADirectoryError),
        (relay.write(str(tmp_path / "plain" / "below"), b"x"), errno.EEXIST, FileExistsError),
        (relay.read(str(tmp_path / "loop")), errno.ELOOP, OSError),
        (relay.read("a\0b"), errno.EINVAL, OSError),
    ):
        with pytest.raises(kind, match="in the sandbox") as caught:
            await work
        assert caught.value.errno == number


async def test_connections_are_carried_to_the_desk(relay: Relay) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server:
        port = await relay.forward("127.0.0.1", server.sockets[0].getsockname()[1])
        client = (
            "import socket,sys;s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));"
            "s.sendall(b'hello'*100000);s.shutdown(1);n=0\n"
            "while d:=s.recv(65536):n+=len(d);last=d\nprint(n,last[-5:])"
        )
        answers = await asyncio.gather(
            *(output(relay, sys.executable, "-c", client, str(port)) for _ in range(5))
        )
    assert [out for _, out, _ in answers] == [b"500000 b'HELLO'\n"] * 5


async def test_a_server_that_is_not_there_closes_the_connection(relay: Relay) -> None:
    port = await relay.forward("127.0.0.1", 1)
    code, out, _ = await output(
        relay, sys.executable, "-c",
        "import socket,sys;print(socket.create_connection(('127.0.0.1',int(sys.argv[1]))).recv(1))", str(port),
    )  # fmt: skip
    assert (code, out) == (0, b"b''\n")


@pytest.mark.slow
async def test_a_client_that_leaves_before_the_answer_comes_ends_its_connection_alone(relay: Relay) -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"late")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(late, "127.0.0.1", 0)
    async with server:
        port = await relay.forward("127.0.0.1", server.sockets[0].getsockname()[1])
        leave = (
            "import socket,sys,time;s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));"
            "s.send(b'x');s.close();time.sleep(0.5)"
        )
        for _ in range(3):
            assert (await output(relay, sys.executable, "-c", leave, str(port)))[0] == 0
    assert not relay.ended.is_set()


async def test_a_cut_stream_is_taken_up_without_loss_or_repetition(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (server, relay):
        process = await relay.spawn(
            [sys.executable, "-u", "-c", "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line)"],
            ENV, "/",
        )  # fmt: skip
        lines = [b"%d %s\n" % (number, os.urandom(400).hex().encode()) for number in range(6000)]

        async def write() -> None:
            for start in range(0, len(lines), 100):
                await process.stdin.send(b"".join(lines[start : start + 100]))
                await asyncio.sleep(0.005)
            await process.stdin.aclose()

        async def cut() -> None:
            for _ in range(8):
                await asyncio.sleep(0.15)
                server.cut()

        got = bytearray()

        async def read() -> None:
            async for data in process.stdout:
                got.extend(data)

        await asyncio.gather(write(), cut(), read())
        assert await process.wait() == 0
        assert bytes(got) == b"".join(lines)
        assert server.opened > 3


async def test_the_end_of_the_relay_reaches_everybody_who_waits(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (server, relay):
        process = await relay.spawn(["sleep", "60"], ENV, "/")
        assert server.process is not None
        server.process.kill()
        with pytest.raises(SandboxGone, match="the daemon ended with -9"):
            await asyncio.wait_for(process.wait(), 5)
        with pytest.raises(SandboxGone):
            await relay.read("/etc/hostname")
        assert relay.ended.is_set()


@pytest.mark.parametrize("used", [True, False])
async def test_a_relay_in_the_place_of_the_one_that_was_lost_is_the_end(tmp_path: Path, used: bool) -> None:
    async with daemon(tmp_path) as (server, relay):
        process = await relay.spawn(["sleep", "60"], ENV, "/") if used else None
        await server.replace()
        await asyncio.wait_for(relay.ended.wait(), 5)
        with pytest.raises(SandboxGone, match="its relay has ended"):
            await (relay.spawn(["true"], ENV, "/") if process is None else process.wait())


async def test_a_desk_whose_sandbox_another_one_has_taken_up_leaves_it_alone(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (server, first):
        theirs = await first.spawn(["sleep", "60"], ENV, "/")
        second = await Relay.open(server.connect, server.gone, lease=60)
        mine = await second.spawn(["sleep", "60"], ENV, "/")
        with pytest.raises(SandboxGone, match="another desk has taken it up"):
            await asyncio.wait_for(theirs.wait(), 5)
        assert (first.taken, second.taken) == (True, False)
        await first.close()
        assert alive(mine.pid)
        assert (await output(second, "echo", "mine"))[1] == b"mine\n"
        await second.close()


@pytest.mark.parametrize("how", ["send", "write"])
async def test_the_end_of_the_relay_reaches_whoever_waits_for_room(tmp_path: Path, how: str) -> None:
    async with daemon(tmp_path) as (server, relay):
        assert server.process is not None
        process = await relay.spawn(["sleep", "60"], ENV, "/")
        server.process.send_signal(signal.SIGSTOP)
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "send": lambda: process.stdin.send(AWKWARD),
            "write": lambda: relay.write(str(tmp_path / "file"), AWKWARD),
        }
        waiting = asyncio.ensure_future(work[how]())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        server.process.kill()
        with pytest.raises(SandboxGone, match="the daemon ended with -9"):
            await asyncio.wait_for(waiting, 5)


NO_FRAME = b"OCI runtime exec failed: container is not running"


class Words:
    """A stream that says one thing instead of the relay's greeting; `said` counts how often."""

    def __init__(self, words: bytes) -> None:
        self.words, self.said = words, 0
        self.ends: list[socket.socket] = []

    def close(self) -> None:
        for end in self.ends:
            end.close()

    async def connect(self) -> Stream:
        self.said += 1
        ours, theirs = socket.socketpair()
        theirs.sendall(self.words)
        self.ends.append(theirs)
        return await asyncio.open_connection(sock=ours)


async def test_words_that_are_no_frame_from_a_sandbox_that_has_gone_are_its_end() -> None:
    async def gone() -> str | None:
        return "its container ran out of memory"

    with closing(Words(NO_FRAME)) as words, pytest.raises(SandboxGone, match="ran out of memory"):
        await Relay.open(words.connect, gone, lease=60)


async def test_words_that_are_no_frame_from_a_sandbox_that_lives_are_tried_again_and_then_an_error() -> None:
    async def gone() -> str | None:
        return None

    with closing(Words(NO_FRAME)) as words, pytest.raises(RelayError, match="broke the protocol"):
        await Relay.open(words.connect, gone, lease=60)
    assert words.said == 3


async def test_a_fault_of_the_providers_own_reaches_everybody_who_waits() -> None:
    async def connect() -> Stream:
        raise KeyError("surprise")

    async def gone() -> str | None:
        return None

    with pytest.raises(RelayError, match="surprise"):
        await asyncio.wait_for(Relay.open(connect, gone, lease=60), 5)


@pytest.mark.slow
async def test_a_lapsed_lease_ends_the_relay_and_what_it_started(tmp_path: Path) -> None:
    async with daemon(tmp_path, lease=1.0) as (server, relay):
        process = await relay.spawn(["sleep", "60"], ENV, "/")
        await asyncio.sleep(1.5)
        assert alive(process.pid)  # renewed meanwhile
        for task in list(relay._tasks):
            task.cancel()
        assert server.process is not None
        start = time.monotonic()
        await asyncio.wait_for(server.process.wait(), 10)
        assert time.monotonic() - start > 0.3
        assert not alive(process.pid)


@pytest.mark.slow
async def test_a_lease_that_is_made_shorter_lapses_sooner(tmp_path: Path) -> None:
    async with daemon(tmp_path, lease=60) as (server, relay):
        relay.hold(2)
        await relay.run(["true"], env=ENV, cwd="/", input=None, timeout=10)
        for task in list(relay._tasks):
            task.cancel()
        assert server.process is not None
        await asyncio.wait_for(server.process.wait(), 20)


@pytest.mark.slow
async def test_a_shorter_lease_is_renewed_in_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[Kind] = []
    async with daemon(tmp_path, lease=400.0) as (_, relay):
        await asyncio.sleep(0.2)
        post = relay.link.post

        def noted(kind: Kind, number: int, payload: bytes = b"") -> None:
            renewed.append(kind)
            post(kind, number, payload)

        monkeypatch.setattr(relay.link, "post", noted)
        relay.hold(1.0)
        await asyncio.sleep(1.5)
        assert renewed.count(Kind.LEASE) >= 4
        monkeypatch.undo()


def test_a_loop_that_ends_leaves_nobody_waiting(tmp_path: Path) -> None:
    ended: list[str] = []

    async def wait_at_the_end() -> None:
        async with daemon(tmp_path) as (_, relay):
            going_on.set()
            try:
                await asyncio.Event().wait()
            finally:
                with pytest.raises(SandboxGone, match="event loop that held it ended"):
                    await asyncio.wait_for(output(relay, "true"), 30)
                ended.append("told")

    async def main() -> None:
        waiting.append(asyncio.create_task(wait_at_the_end()))
        await going_on.wait()

    going_on = asyncio.Event()
    waiting: list[asyncio.Task[None]] = []
    asyncio.run(main())
    assert ended == ["told"]


async def test_closing_leaves_no_process(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (_, relay):
        # A process in a session of its own, as tools start them, is found too.
        process = await relay.spawn(["sh", "-c", "setsid sleep 60 & echo $!; wait"], ENV, "/")
        await anext(process.stdout)
        await relay.close()
        await relay.close()
        assert not alive(process.pid)


@given(st.lists(st.binary(max_size=300), max_size=40), st.lists(st.integers(1, 5), max_size=8), st.data())
def test_a_link_delivers_each_frame_once_and_in_order_over_any_cuts(
    payloads: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    """Two links and a wire that loses an arbitrary tail at each cut."""

    class Wire:
        def __init__(self) -> None:
            self.sent = bytearray()

        def write(self, frame: bytes) -> None:
            self.sent += frame

        def is_closing(self) -> bool:
            return False

        def close(self) -> None:
            pass

    async def carry() -> list[bytes]:
        got: list[bytes] = []
        sender = Link("x", lambda *_: None)
        receiver = Link("x", lambda _kind, _channel, payload: got.append(payload))
        queue = list(payloads)
        for count in [*cuts, len(queue)]:
            wire, back = Wire(), Wire()
            quiet = asyncio.StreamReader()
            serving = asyncio.ensure_future(sender.serve(quiet, wire, receiver._received))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            for payload in queue[:count]:
                sender.post(Kind.OUT, 1, payload)
            del queue[:count]
            whole = bytes(wire.sent)
            last = not queue and count == len(payloads[len(payloads) - count :])
            kept = len(whole) if last else data.draw(st.integers(0, len(whole)))
            reader = asyncio.StreamReader()
            reader.feed_data(whole[:kept])
            reader.feed_eof()
            await receiver.serve(reader, back, 0)  # type: ignore[arg-type]
            quiet.feed_eof()
            await serving
        wire = Wire()
        quiet = asyncio.StreamReader()
        serving = asyncio.ensure_future(sender.serve(quiet, wire, receiver._received))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        reader = asyncio.StreamReader()
        reader.feed_data(bytes(wire.sent))
        reader.feed_eof()
        await receiver.serve(reader, Wire(), 0)  # type: ignore[arg-type]
        quiet.feed_eof()
        await serving
        sender.close()
        receiver.close()
        return got

    assert asyncio.run(carry()) == payloads


async def test_a_start_that_nobody_waits_for_any_more_leaves_the_stream_whole(relay: Relay) -> None:
    for _ in range(20):
        starting = asyncio.create_task(relay.spawn(["sleep", "61"], ENV, "/"))
        await asyncio.sleep(0)
        starting.cancel()
    assert (await output(relay, "echo", "still here"))[1] == b"still here\n"


async def test_a_start_that_nobody_waits_for_any_more_does_no_harm(relay: Relay) -> None:
    for _ in range(3):
        starting = asyncio.create_task(relay.spawn(["sleep", "60"], ENV, "/"))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert (await (await relay.spawn(["true"], ENV, "/")).wait()) == 0
    relay.check()


async def test_a_name_that_no_system_takes_is_refused_and_the_relay_goes_on(relay: Relay) -> None:
    with pytest.raises(SandboxError, match="embedded null byte"):
        await relay.spawn(["echo", "a\0b"], {}, "/")
    with pytest.raises(OSError, match="embedded null byte"):
        await relay.read("/tmp/a\0b")
    done = await relay.run(["echo", "fine"], env={}, cwd="/", input=None, timeout=10)
    assert done.text == "fine\n"
