"""Damaged files: nothing crashes, every frame is well formed, and what was lost is told."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import load, validate
from tests.tables.transcripts import (
    MODEL,
    Transcript,
    call,
    model_usage,
    result,
    stream,
    streamed,
    text,
    usage,
)

pytestmark = pytest.mark.slow

SEED = 20261124
_JUNK = [
    b"null",
    b'"x"',
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\\",
    b'"',
]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    float("inf"),
    "",
    "x",
    [],
    {},
    [[]],
    {"a": None},
    "\ud800",
    "2026-13-45",
]


def originals() -> list[bytes]:
    log = Transcript()
    log.user(0, "Is it? äöü 🙂")
    log.answer(1, "msg_1", usage(10, 20, 30, 40, 50), text("Yes."), call("toolu_1"), stop="tool_use")
    log.result(2, "toolu_1", [text("done")], toolUseResult={"agentId": "a1"})
    log.row(3, "system", subtype="compact_boundary")
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in log.rows).encode()
    told = {MODEL: model_usage(30, 500, 0, 1000, 0, 0.01359)}
    lines = stream(log.session, streamed("msg_1", usage(10, 2, 0, 1000)), result(0.01359, told))
    log_lines = "".join(json.dumps(line) + "\n" for line in lines).encode()
    recorded = "".join(
        json.dumps({"seq": seq, "t": 1.8e9 + seq, "dir": "in", "message": line}) + "\n"
        for seq, line in enumerate(lines)
    ).encode()
    return [rows, log_lines, json.dumps(lines, indent=1).encode(), json.dumps(lines[-1]).encode(), recorded]


def mutate(data: bytes, order: random.Random) -> bytes:
    """`data` with up to four kinds of damage, by bytes or by values; now and then packed, then damaged again."""
    if order.random() < 0.3:
        data = _other_values(data, order)
    work = bytearray(data)
    for _ in range(order.randrange(4)):
        at = order.randrange(len(work) + 1)
        kind = order.randrange(6)
        if kind == 0 and at < len(work):
            work[at] = order.randrange(256)
        elif kind == 1:
            del work[at : at + order.randrange(1, 60)]
        elif kind == 2:
            work[at:at] = order.choice(_JUNK)
        elif kind == 3:
            del work[at:]
        elif kind == 4:
            start = order.randrange(len(work) + 1)
            work[at:at] = work[start : start + order.randrange(200)]
        else:
            end = work.find(b"\n", at)
            if end >= 0:
                del work[end]
    if order.random() < 0.08:
        packers: list[Callable[[bytes], bytes]] = [gzip.compress, zstandard.compress]
        work = bytearray(order.choice(packers)(bytes(work)))
        if order.random() < 0.5:
            at = order.randrange(len(work))
            work[at] = order.randrange(256)
    return bytes(work)


def _other_values(data: bytes, order: random.Random) -> bytes:
    lines = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            return data
        spot = value
        while isinstance(spot, dict | list) and spot:
            key = order.choice(list(spot) if isinstance(spot, dict) else range(len(spot)))
            if not isinstance(spot[key], dict | list) or not spot[key] or order.random() < 0.4:
                spot[key] = order.choice(_VALUES)
                break
            spot = spot[key]
        lines.append(json.dumps(value).encode())
    return b"\n".join(lines) + b"\n"


def attack(folder: Path, seed: int, files: int, at_once: int) -> int:
    """Load `files` mutated files, `at_once` together; gives the number of problems told."""
    order, told = random.Random(seed), 0
    whole = originals()
    for start in range(0, files, at_once):
        batch = folder / str(start)
        batch.mkdir()
        for number in range(at_once):
            (batch / f"{number}.jsonl").write_bytes(mutate(order.choice(whole), order))
        frames = load(batch)
        assert [wrong for name, frame in frames for wrong in validate(name, frame)] == []
        assert len(frames.files) == at_once
        assert (
            len(frames.records)
            == frames.files["records"].sum() - frames.problems["reason"].isin(["malformed_record"]).sum()
        )
        told += len(frames.problems)
        bad = set(frames.files.loc[frames.files["bad_lines"] > 0, "path"])
        assert bad <= set(frames.problems["path"])
        for file in batch.iterdir():
            file.unlink()
    return told


def test_five_hundred_mutated_files(tmp_path):
    assert attack(tmp_path, SEED, 500, 50) > 200


@pytest.mark.soak
def test_ten_thousand_mutated_files(tmp_path):
    assert attack(tmp_path, SEED + 1, 10_000, 50) > 4000


def test_strict_raises_at_whatever_would_be_a_problem(tmp_path):
    order, whole = random.Random(SEED + 2), originals()
    path = tmp_path / "a.jsonl"
    for _ in range(60):
        path.write_bytes(mutate(order.choice(whole), order))
        problems = load(path).problems
        if problems.empty:
            load(path, strict=True)
        else:
            with pytest.raises(RunFolderError) as caught:
                load(path, strict=True)
            assert caught.value.reason in set(problems["reason"])


def test_a_line_of_two_hundred_megabytes(tmp_path):
    log = Transcript()
    log.answer(1, "msg_1", usage(1, 2))
    path = log.write(tmp_path / "a.jsonl")
    with path.open("ab") as file:
        file.write(
            b'{"type": "user", "uuid": "u", "sessionId": "s", "message": {"role": "user", "content": "'
        )
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b'"}}\n')
    log.rows.clear()
    log.answer(2, "msg_2", usage(3, 4))
    path.write_bytes(path.read_bytes() + json.dumps(log.rows[0]).encode())
    frames = load(path)
    assert frames.usage["input_tokens"].sum() == 4
    assert frames.blocks["chars"].max() == 200_000_000
    assert frames.problems[["reason", "line", "salvaged"]].values.tolist() == [["huge_line", 2, True]]
