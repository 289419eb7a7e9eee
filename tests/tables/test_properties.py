"""What must not change a total: the order and number of files, copies, other spelling of the same JSON."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest_nb.tables import Frames, load
from harvest_nb.tables.totals import BY, totals
from tests.tables.naive import count
from tests.tables.transcripts import (
    MODEL,
    Transcript,
    call,
    model_usage,
    result,
    stream,
    streamed,
    usage,
    write_lines,
)

pytestmark = pytest.mark.slow

Files = dict[str, list[dict[str, Any]]]
STREAMED = "99999999-0000-4000-8000-000000000009"


def corpus(order: random.Random) -> Files:
    """Two sessions, a fork of the first, a sub-agent and a stream log, with figures drawn at random."""
    files: Files = {}
    for number in range(2):
        one = Transcript(f"{number}1111111-0000-4000-8000-000000000001", cwd=f"/home/me/{number}")
        one.user(0, "Is it?")
        for turn in range(order.randrange(1, 4)):
            spent = usage(*(order.randrange(10_000) for _ in range(5)))
            stop = order.choice(["end_turn", None])
            blocks = [call(f"toolu_{number}{turn}{i}", order.choice(["Bash", "Read"])) for i in range(2)]
            one.answer(10 * turn + 1, f"msg_{number}_{turn}", spent, *blocks, stop=stop)
        files[f"projects/-p{number}/{one.session}.jsonl"] = one.rows
        agent = Transcript(one.session, agent=f"a{number}")
        agent.answer(5, f"msg_{number}_agent", usage(order.randrange(1000), 7), model="claude-haiku-4-5")
        files[f"projects/-p{number}/{one.session}/subagents/agent-a{number}.jsonl"] = agent.rows
        if number == 0:
            fork = Transcript("21111111-0000-4000-8000-000000000001")
            fork.rows = [{**row, "sessionId": fork.session} for row in one.rows]
            fork.answer(99, "msg_fork", usage(5, 5))
            files[f"projects/-p0/{fork.session}.jsonl"] = fork.rows
    told = {MODEL: model_usage(30, 500, 0, 1000, 0, 0.01359)}
    lines = [
        streamed("msg_s1", usage(10, 2, 0, 1000)),
        streamed("msg_s2", usage(20, 3)),
        result(0.01359, told),
    ]
    files["log.jsonl"] = stream(STREAMED, *lines)
    return files


def counted(files: Files, spell: Any = json.dumps) -> list[Any]:
    """Every kind of total over `files`, written and loaded."""
    with tempfile.TemporaryDirectory() as top:
        for name, rows in files.items():
            path = Path(top) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(spell(row) + "\n" for row in rows))
        return summed(load(top))


def summed(frames: Frames) -> list[Any]:
    usage_sum = frames.usage.groupby(["session_id", "model"], observed=True).sum(numeric_only=True)
    kept = usage_sum.drop(columns=["n_rows", "turn", "iteration"], errors="ignore").to_dict()
    return [kept, *(sorted(map(str, totals(frames, by).rows)) for by in BY if by != "project")]


@settings(max_examples=12)
@given(order=st.randoms(use_true_random=False))
def test_renaming_and_permuting_files(order):
    files = corpus(order)
    names = list(files)
    order.shuffle(names)
    moved = {f"x/{order.random()}/{number}.jsonl": files[name] for number, name in enumerate(names)}
    assert counted(moved) == counted(files)


@settings(max_examples=12)
@given(order=st.randoms(use_true_random=False))
def test_splitting_and_joining_files(order):
    files = corpus(order)
    before = counted(files)
    split: Files = {}
    for number, (name, rows) in enumerate(files.items()):
        cut = order.randrange(len(rows) + 1)
        stem, _, ending = name.rpartition(".")
        split[f"{stem}.0.{ending}"], split[f"{stem}.1{number}.{ending}"] = rows[:cut], rows[cut:]
    assert counted({name: rows for name, rows in split.items() if rows}) == before
    joined = [row for rows in files.values() for row in rows]
    assert counted({"all.jsonl": joined}) == before


@settings(max_examples=12)
@given(order=st.randoms(use_true_random=False), times=st.integers(1, 3))
def test_appending_copies(order, times):
    files = corpus(order)
    more: Files = {}
    for name, rows in files.items():
        copies = order.sample(rows, order.randrange(len(rows) + 1))
        more[name] = rows + copies * times
        if order.random() < 0.3:
            more[f"copy/{name}"] = rows
    assert counted(more) == counted(files)


@settings(max_examples=12)
@given(order=st.randoms(use_true_random=False))
def test_other_spellings_of_the_same_json(order):
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            order.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    def spell(row: dict[str, Any]) -> str:
        separators = order.choice([(",", ":"), (", ", ": "), (" , ", " :  ")])
        return json.dumps(shuffled(row), separators=separators, ensure_ascii=order.random() < 0.5)

    files = corpus(order)
    assert counted(files, spell) == counted(files)


@settings(max_examples=6)
@given(order=st.randoms(use_true_random=False))
def test_the_session_view_only_adds_copies(order):
    with tempfile.TemporaryDirectory() as top:
        for name, rows in corpus(order).items():
            write_lines(Path(top) / name, rows)
        once, whole = load(top), load(top, view="session")
    originals = whole.usage[~whole.usage["is_copy"]].reset_index(drop=True)
    assert originals.equals(once.usage)
    assert whole.usage["is_copy"].sum() == once.runs["n_copied"].sum()
    for name, frame in once:
        assert len(frame) <= len(getattr(whole, name))


@settings(max_examples=12)
@given(order=st.randoms(use_true_random=False))
def test_a_naive_count_says_the_same(order):
    """By a second path that shares nothing but prices; see `naive`."""
    with tempfile.TemporaryDirectory() as top:
        for name, rows in corpus(order).items():
            if name.startswith("projects/"):
                write_lines(Path(top) / name, rows)
        found = {row["model"]: row for row in totals(load(top)).rows}
        expected = count(Path(top))
    assert found.keys() == expected.keys()
    for model, row in expected.items():
        assert {key: found[model][key] for key in row} == row
