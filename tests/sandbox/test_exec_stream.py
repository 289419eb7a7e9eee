from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from harvest_nb.sandbox.exec_stream import open_exec_stream


async def read(*sent: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    reader, writer = await open_exec_stream(ours)
    for part in sent:
        theirs.sendall(part)
        await asyncio.sleep(0.01)
    theirs.close()
    data = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return data


def frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(payload)) + payload


async def test_only_standard_output_comes_through_wherever_it_is_cut() -> None:
    whole = frame(1, b"one") + frame(2, b"warning") + frame(1, b"two")
    for cut in range(len(whole)):
        assert await read(whole[:cut], whole[cut:]) == b"onetwo"


@pytest.mark.parametrize("before", [b"", frame(1, b"x")])
async def test_the_engines_own_words_end_the_stream_and_are_no_output(before: bytes) -> None:
    assert await read(before + b"OCI runtime exec failed: no such container") == before[8:]
