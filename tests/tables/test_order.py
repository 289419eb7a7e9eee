"""Whatever is read first, the frames are the same."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import Frames, load
from tests.tables.test_properties import corpus
from tests.tables.transcripts import MODEL, Transcript, call, text, usage, write_lines

pytestmark = pytest.mark.slow


def same(one: Frames, other: Frames) -> None:
    for name, frame in one:
        assert frame.equals(getattr(other, name)), name


@settings(max_examples=8)
@given(order=st.randoms(use_true_random=False))
def test_shuffled_arguments_give_equal_frames(new_run_anywhere, order: random.Random):
    with tempfile.TemporaryDirectory() as top:
        paths = [write_lines(Path(top) / name, rows) for name, rows in corpus(order).items()]
        paths.append(new_run_anywhere(Path(top) / "one").two_turns().write())
        paths.append(Path(top) / "copy" / "run-1")
        shutil.copytree(paths[-2], paths[-1])
        cut = paths[-1] / "stream.jsonl"
        cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-2]))
        first = load(*paths, view="session")
        assert first.runs["n_records"].sum() == len(first.records)
        for _ in range(2):
            order.shuffle(paths)
            same(load(*paths, view="session"), first)
        assert str(cut.parent) in set(first.problems.loc[first.problems["reason"] == "duplicate_run", "path"])


def rows_that_disagree(order: random.Random) -> list[dict[str, object]]:
    """Rows of one response that rank alike and say different things, some of which name only the request."""
    log = Transcript()
    for number, ident in enumerate(["msg_1", None, "msg_1", None]):
        spent = usage(
            100, 10, *order.choice([(0, 1000), (1000, 0)]), speed=order.choice(["fast", "standard"])
        )
        stop = order.choice(["end_turn", "tool_use", "max_tokens"])
        block = order.choice([text(f"Yes {number}."), call(f"t{number}")])
        model = order.choice([MODEL, "claude-haiku-4-5"])
        log.answer(1 + order.randrange(3), ident, spent, block, stop=stop, model=model, request="req_1")
        log.rows[-1]["isSidechain"] = order.random() < 0.3
    return log.rows


@settings(max_examples=25)
@given(order=st.randoms(use_true_random=False))
def test_rows_of_one_response_in_any_file_give_the_same_usage(order: random.Random):
    rows = rows_that_disagree(order)
    seen = set()
    for names in itertools.islice(itertools.permutations("abcd"), 0, 24, 5):
        with tempfile.TemporaryDirectory() as top:
            for name, row in zip(names, rows, strict=True):
                write_lines(Path(top) / f"{name}.jsonl", [row])
            frames = load(top)
        assert len(frames.usage) == 1
        seen.add(
            frames.usage.to_json(orient="records", date_format="iso", default_handler=str)
            + frames.costs.drop(columns=["turn"]).to_json(
                orient="records", date_format="iso", default_handler=str
            )
        )
    assert len(seen) == 1


def test_a_row_that_names_only_its_request_brings_all_it_says(tmp_path):
    """The better row decides alone: its place, model and stop reason go with its counts."""
    log = Transcript()
    log.answer(5, "msg_1", usage(100, 2), stop=None, request="req_1", model="claude-haiku-4-5")
    log.answer(3, None, usage(100, 80), stop="end_turn", request="req_1", model=MODEL, isSidechain=True)
    frames = load(log.write(tmp_path / "a.jsonl"))
    row = frames.usage.iloc[0]
    assert (row["model"], row["output_tokens"], bool(row["output_final"])) == (MODEL, 80, True)
    assert row["time"].second == 3
    assert bool(row["is_sidechain"])
    assert row["n_rows"] == 2


def test_a_folder_that_holds_nothing_is_told_wherever_it_stands(tmp_path):
    good = Transcript()
    good.answer(1, "msg_1", usage(1, 1))
    path = good.write(tmp_path / "good" / "a.jsonl")
    (tmp_path / "empty").mkdir()
    for paths in itertools.permutations([path, tmp_path / "empty"]):
        with pytest.raises(RunFolderError, match="nothing that can be read"):
            load(*paths)
    # A folder within one that was named already holds what it holds.
    same(load(tmp_path / "good", path), load(path, tmp_path / "good"))


@pytest.mark.parametrize("name", ["tasks", "cache", "debug", "uploads", "plans"])
def test_a_folder_of_the_users_may_be_called_like_one_of_the_clis(tmp_path, name):
    log = Transcript()
    log.answer(1, "msg_1", usage(1000, 0))
    log.write(tmp_path / "projects" / "-p" / f"{log.session}.jsonl")
    mine = Transcript("22222222-0000-4000-8000-000000000002")
    mine.answer(1, "msg_2", usage(1000, 0))
    mine.write(tmp_path / name / "deep" / "a.jsonl")
    # What the CLI keeps in such folders.
    beside = tmp_path / name / "x"
    beside.mkdir()
    (beside / "todo.json").write_text(json.dumps([{"content": "x", "status": "pending", "activeForm": "x"}]))
    (beside / "1.json").write_text(json.dumps({"id": "1", "subject": "x", "status": "pending"}))
    event = {"event_type": "ClaudeCodeInternalEvent", "event_data": {"session_id": log.session}}
    (beside / "1p_failed_events.json").write_text(json.dumps(event) + "\n")
    (beside / "notes.txt").write_text("nothing")
    frames = load(tmp_path)
    assert set(frames.usage["message_id"]) == {"msg_1", "msg_2"}
    assert len(frames.files) == 2
    assert frames.problems.empty


def test_the_clis_copies_of_files_count_nothing(tmp_path):
    log = Transcript()
    log.answer(1, "msg_1", usage(1000, 0))
    log.write(tmp_path / "projects" / "-p" / f"{log.session}.jsonl")
    edited = Transcript("22222222-0000-4000-8000-000000000002")
    edited.answer(1, "msg_2", usage(1000, 0))
    edited.write(tmp_path / "file-history" / log.session / "0123456789abcdef@v2")
    (tmp_path / "history.jsonl").write_text('{"display": "hi", "timestamp": 1, "sessionId": "s"}\n')
    assert list(load(tmp_path).usage["message_id"]) == ["msg_1"]
