from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.sandbox.relay_files import RELAY_HERE, relay_digest
from harvest_nb.sandbox.relayd.lines import PAYLOAD, Gap, LineReader, LineWriter
from tests.sandbox.conftest import Daemon

payloads = st.lists(st.binary(max_size=200), max_size=20)


def lines(data: list[bytes]) -> list[bytes]:
    writer = LineWriter()
    return [writer.line(each) for each in data]


@given(payloads, st.lists(st.integers(1, 60), max_size=40))
def test_what_was_packed_comes_out_wherever_the_carrier_cuts(data: list[bytes], sizes: list[int]) -> None:
    whole, reader, got = b"".join(lines(data)), LineReader(), []
    for size in [*sizes, len(whole)]:
        got += reader.feed(whole[:size])
        whole = whole[size:]
    assert got == data


@given(payloads, st.lists(st.integers(0, 4000), max_size=6))
def test_a_replay_from_the_first_byte_brings_nothing_twice(data: list[bytes], cuts: list[int]) -> None:
    whole, reader, got = b"".join(lines(data)), LineReader(), []
    for cut in [*cuts, len(whole)]:
        reader.restart()
        got += reader.feed(whole[:cut])
    assert got == data


@given(payloads, st.data())
def test_a_repeated_write_after_half_a_line_brings_nothing_twice_and_loses_nothing(
    data: list[bytes], draw: st.DataObject
) -> None:
    """An attempt whose answer was lost may have arrived in part; it is sent again after a line end."""
    reader, got = LineReader(), []
    for line in lines(data):
        got += reader.feed(line[: draw.draw(st.integers(0, len(line)))])
        got += reader.feed(b"\n" + line)
    assert got == data


@given(payloads.filter(lambda data: len(data) > 1), st.data())
def test_a_missing_line_is_noticed_and_a_garbled_one_is_a_missing_one(
    data: list[bytes], draw: st.DataObject
) -> None:
    packed = lines(data)
    lost = draw.draw(st.integers(0, len(packed) - 2))
    spoilt = bytearray(packed[lost])
    spoilt[draw.draw(st.integers(0, len(spoilt) - 2))] ^= 0x80
    for instead in (b"", bytes(spoilt)):
        reader = LineReader()
        with pytest.raises(Gap):
            reader.feed(b"".join([*packed[:lost], instead, *packed[lost + 1 :]]))
        assert reader.seen == lost


@given(st.integers(PAYLOAD + 1, 20 * PAYLOAD), st.booleans())
def test_a_line_that_holds_more_than_any_may_is_a_garbled_one(size: int, packed: bool) -> None:
    data = bytes(size)
    text = b"z" + base64.b64encode(zlib.compress(data)) if packed else b"-" + base64.b64encode(data)
    line = b"1:%08x:%s\n" % (zlib.crc32(text), text)
    assert LineReader().feed(line) == []


def test_a_line_without_end_and_a_number_without_end_are_bounded() -> None:
    reader = LineReader()
    reader.feed(b"1" * PAYLOAD)
    with pytest.raises(Gap, match="longer"):
        reader.feed(b"1" * 2 * PAYLOAD)
    assert LineReader().feed(b"1" * 5000 + b":0:-\n" + LineWriter().line(b"a")) == [b"a"]


def test_lines_hold_no_character_that_a_shell_or_a_log_would_touch() -> None:
    packed = b"".join(lines([os.urandom(5000), b"\0" * 5000, b""]))
    assert set(packed) <= set(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/=:-\n")
    assert len(packed) < 7200  # what can be made small is


@contextlib.asynccontextmanager
async def bridge(folder: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *RELAY_HERE, "lines", "--socket", str(folder / "relay.sock"), *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_the_bridge_says_that_it_is_ready_and_an_empty_line_ends_it(tmp_path: Path) -> None:
    server = Daemon(tmp_path)
    await server.start(60)
    try:
        async with bridge(tmp_path) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert LineReader().feed(await process.stdout.readline()) == [b""]
            process.stdin.write(b"not a line\n" + LineWriter().line(b""))
            assert await asyncio.wait_for(process.wait(), 5) == 0
    finally:
        await server.end()


async def test_a_gap_ends_the_bridge(tmp_path: Path) -> None:
    server = Daemon(tmp_path)
    await server.start(60)
    try:
        async with bridge(tmp_path) as process:
            assert process.stdin is not None
            process.stdin.write(lines([b"a", b"b"])[1])
            assert await asyncio.wait_for(process.wait(), 5) == 65
    finally:
        await server.end()


async def test_another_relay_says_so(tmp_path: Path) -> None:
    async with bridge(tmp_path, "--expect", "another") as process:
        assert await asyncio.wait_for(process.wait(), 5) == 68
    assert len(relay_digest()) == 64


async def test_two_daemons_on_one_socket_are_one(tmp_path: Path) -> None:
    server, second = Daemon(tmp_path), Daemon(tmp_path)
    await server.start(60)
    try:
        async with bridge(tmp_path) as process:
            assert process.stdout is not None
            await process.stdout.readline()
            await second.start(60)
            assert second.process is not None
            _, said = await asyncio.wait_for(second.process.communicate(), 5)
            assert (second.process.returncode, b"another one serves" in said) == (0, True)
            assert process.returncode is None
    finally:
        await server.end()


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux")
@pytest.mark.slow
async def test_start_makes_a_daemon_that_survives_the_bridge(tmp_path: Path) -> None:
    pids = set()
    for _ in range(2):
        async with bridge(tmp_path, "--start", "--lease", "3") as process:
            assert process.stdout is not None
            assert LineReader().feed(await process.stdout.readline()) == [b""]
            found = [
                int(entry.name)
                for entry in Path("/proc").glob("[0-9]*")
                if (words := _command(entry)) and "serve" in words and str(tmp_path / "relay.sock") in words
            ]
            pids.update(found)
            process.kill()
    assert len(pids) == 1  # the second bridge found the first one's daemon
    for _ in range(100):
        if not _command(Path(f"/proc/{next(iter(pids))}")):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the daemon outlives its lease")


def _command(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []
