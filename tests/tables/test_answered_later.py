"""A call in one session's file whose result stands only in the file of a session that was resumed or forked from it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.tables import Frames, load
from tests.tables.transcripts import Transcript, call, usage

FIRST = "11111111-0000-4000-8000-000000000001"
SECOND = "22222222-0000-4000-8000-000000000002"
THIRD = "33333333-0000-4000-8000-000000000003"


def asked() -> Transcript:
    log = Transcript(FIRST)
    log.user(0, "Is it?")
    log.answer(1, "msg_1", usage(10, 1), call("t1"), call("t2", "Read"), stop="tool_use")
    return log


def resumed(log: Transcript, session: str) -> Transcript:
    """A session that begins with the rows of another: same ids, its own session."""
    return Transcript(session, rows=[{**row, "sessionId": session} for row in log.rows])


def calls(frames: Frames) -> Any:
    assert not frames.tool_calls["tool_use_id"].duplicated().any()
    return frames.tool_calls.set_index("tool_use_id")


def by_run(frames: Frames) -> Any:
    return frames.tool_calls.set_index(["run_id", "tool_use_id"])


@pytest.mark.parametrize("names", list(itertools.permutations("abc", 2)))
def test_the_answer_is_joined_with_the_original_call(tmp_path, names):
    one = asked()
    two = resumed(one, SECOND)
    two.result(60, "t1", "yes")
    failed = {"type": "tool_result", "tool_use_id": "t2", "content": "no such file", "is_error": True}
    two.user(61, [failed])
    two.answer(62, "msg_2", usage(10, 1))
    one.write(tmp_path / f"{names[0]}.jsonl")
    two.write(tmp_path / f"{names[1]}.jsonl")
    frames = load(tmp_path)
    found = calls(frames)
    assert list(found["run_id"]) == [FIRST, FIRST]
    assert list(found["status"]) == ["ok", "error"]
    assert list(found["result"]) == ["yes", "no such file"]
    assert list(found["duration_s"]) == [59, 60]
    runs = frames.runs.set_index("run_id")
    assert list(runs["n_tool_calls"][[FIRST, SECOND]]) == [2, 0]
    assert list(runs["n_tool_errors"][[FIRST, SECOND]]) == [1, 0]
    # Each session whole: the first ended without an answer, the second has both.
    whole = load(tmp_path, view="session").tool_calls
    assert list(whole.loc[whole["run_id"] == FIRST, "status"]) == ["no_result"] * 2
    assert list(whole.loc[whole["run_id"] == SECOND, "status"]) == ["ok", "error"]


def test_of_several_forks_answers_the_first_holds(tmp_path):
    one = asked()
    for at, session, said in ((90, SECOND, "late"), (30, THIRD, "early")):
        two = resumed(one, session)
        two.result(at, "t1", said)
        # The one that answers late ends first of the two.
        two.answer(200 - at, f"msg_{session[0]}", usage(1, 1))
        two.write(tmp_path / f"{session}.jsonl")
    one.write(tmp_path / f"{FIRST}.jsonl")
    found = calls(load(tmp_path))
    assert found.loc["t1", ["run_id", "status", "result"]].tolist() == [FIRST, "ok", "early"]
    assert found.loc["t2", "status"] == "no_result"


def test_an_answer_of_its_own_stays(tmp_path):
    one = asked()
    two = resumed(one, SECOND)
    one.result(70, "t1", "mine")
    one.result(71, "t2", "mine")
    two.result(2, "t1", "another")
    one.write(tmp_path / "a.jsonl")
    two.write(tmp_path / "b.jsonl")
    # The second ended first, so that the call is counted there.
    found = calls(load(tmp_path))
    assert found.loc["t1", ["run_id", "result"]].tolist() == [SECOND, "another"]
    assert found.loc["t2", ["run_id", "result"]].tolist() == [SECOND, "mine"]


def test_a_copied_pair_stays_once(tmp_path):
    one = asked()
    one.result(2, "t1", "yes")
    two = resumed(one, SECOND)
    two.result(60, "t2", "and yes")
    three = resumed(two, THIRD)
    three.answer(90, "msg_3", usage(1, 1))
    for log in (one, two, three):
        log.write(tmp_path / f"{log.session}.jsonl")
    found = calls(load(tmp_path))
    assert list(found["run_id"]) == [FIRST, FIRST]
    assert list(found["result"]) == ["yes", "and yes"]


def test_a_session_that_only_uses_the_same_id_answers_nothing(tmp_path):
    """Scripted endpoints number their calls: the same id means nothing by itself."""
    asked().write(tmp_path / "a.jsonl")
    other = Transcript(SECOND)
    other.answer(5, "msg_9", usage(1, 1), call("t1"), stop="tool_use")
    other.result(6, "t1", "theirs")
    other.write(Path(tmp_path / "b.jsonl"))
    frames = load(tmp_path)
    assert frames.tool_calls["status"].astype(str).tolist() == ["no_result", "no_result", "ok"]


@pytest.mark.parametrize("names", list(itertools.permutations("abc", 2)))
def test_a_reused_id_does_not_take_the_copied_answer_of_an_older_call(tmp_path, names):
    one = asked()
    one.result(2, "t1", "first's")
    two = resumed(one, SECOND)
    two.answer(11, "msg_2", usage(10, 1), call("t1"), stop="tool_use")
    one.write(tmp_path / f"{names[0]}.jsonl")
    two.write(tmp_path / f"{names[1]}.jsonl")
    found = by_run(load(tmp_path))
    assert found.loc[(FIRST, "t1"), ["status", "result", "duration_s"]].tolist() == ["ok", "first's", 1]
    assert found.loc[(SECOND, "t1"), "status"] == "no_result"
    assert found.loc[(SECOND, "t1"), ["result", "duration_s"]].isna().all()


def test_a_reused_id_does_not_take_a_copied_answer_without_a_time(tmp_path):
    one = asked()
    del one.result(2, "t1", "first's")["timestamp"]
    two = resumed(one, SECOND)
    two.answer(11, "msg_2", usage(10, 1), call("t1"), stop="tool_use")
    one.write(tmp_path / "a.jsonl")
    two.write(tmp_path / "b.jsonl")
    found = by_run(load(tmp_path))
    assert found.loc[(FIRST, "t1"), "result"] == "first's"
    assert found.loc[(SECOND, "t1"), "status"] == "no_result"


@pytest.mark.parametrize("names", list(itertools.permutations("abc", 2)))
def test_the_answer_to_a_reused_id_is_not_that_of_the_copied_call(tmp_path, names):
    one = asked()
    two = resumed(one, SECOND)
    two.answer(11, "msg_2", usage(10, 1), call("t1"), stop="tool_use")
    two.result(12, "t1", "second's")
    two.result(13, "t2", "late")
    one.write(tmp_path / f"{names[0]}.jsonl")
    two.write(tmp_path / f"{names[1]}.jsonl")
    found = by_run(load(tmp_path))
    assert found.loc[(FIRST, "t1"), "status"] == "no_result"
    assert found.loc[(SECOND, "t1"), ["result", "duration_s"]].tolist() == ["second's", 1]
    # An id that is not used again is still answered later.
    assert found.loc[(FIRST, "t2"), ["status", "result"]].tolist() == ["ok", "late"]
    assert found["result"].value_counts().max() == 1


def test_a_late_answer_is_not_that_of_the_same_id_used_again(tmp_path):
    """Both calls are without an answer that is theirs for sure, or that came after them."""
    one = asked()
    two = resumed(one, SECOND)
    two.result(10, "t1", "to the first")
    two.answer(11, "msg_2", usage(10, 1), call("t1"), stop="tool_use")
    one.write(tmp_path / "a.jsonl")
    two.write(tmp_path / "b.jsonl")
    found = by_run(load(tmp_path))
    assert found.loc[(SECOND, "t1"), "status"] == "no_result"
    assert found.loc[(FIRST, "t1"), "status"] == "no_result"
    two.result(12, "t1", "to the second")
    two.write(tmp_path / "b.jsonl")
    found = by_run(load(tmp_path))
    assert found.loc[(SECOND, "t1"), "result"] == "to the second"


def test_of_three_sessions_the_last_answers_the_second(tmp_path):
    """The third has the first's answer too, which is older than the second's call."""
    one = asked()
    one.result(2, "t1", "first's")
    two = resumed(one, SECOND)
    two.answer(11, "msg_2", usage(10, 1), call("t1"), stop="tool_use")
    three = resumed(two, THIRD)
    three.result(20, "t1", "third's")
    for log in (one, two, three):
        log.write(tmp_path / f"{log.session}.jsonl")
    found = by_run(load(tmp_path))
    assert found.loc[(FIRST, "t1"), "result"] == "first's"
    assert found.loc[(SECOND, "t1"), ["result", "duration_s"]].tolist() == ["third's", 9]


def test_the_sub_agent_that_the_later_file_names(tmp_path):
    one = Transcript(FIRST)
    one.answer(1, "msg_1", usage(10, 1), call("t1", "Task"), stop="tool_use")
    two = resumed(one, SECOND)
    two.result(60, "t1", "done", toolUseResult={"agentId": "a7", "status": "completed"})
    one.write(tmp_path / "a.jsonl")
    two.write(tmp_path / "b.jsonl")
    assert calls(load(tmp_path)).loc["t1", "spawned_agent"] == "a7"


@pytest.mark.parametrize("view", ["corpus", "session"])
def test_an_answer_that_only_the_run_folders_transcript_has(writer, view):
    """The stream breaks off when its recorder is killed."""
    writer.initialize(1)
    writer.answer(3, "msg_a", [writer.call("t1", "Bash", command="sleep 1")], writer.usage(100, 50))
    row = {"type": "user", "uuid": "u1", "timestamp": "2026-11-20T12:00:05Z", "sessionId": FIRST}
    block = {"type": "tool_result", "tool_use_id": "t1", "content": "done"}
    writer.rows["main"].append({**row, "message": {"role": "user", "content": [block]}})
    found = calls(load(writer.write(), view=view))
    assert found.loc["t1", ["run_id", "status", "result", "duration_s"]].tolist() == [
        "run-1",
        "ok",
        "done",
        2,
    ]


def test_a_stream_that_lags_behind_its_transcript_takes_the_answer(writer):
    """The desk noted the call after the CLI had its answer: the transcript says when the call was made."""
    writer.initialize(1)
    content = [writer.call("t1", "Read")]
    writer.answer(6, "msg_a", content, writer.usage(100, 50))
    rows: list[dict[str, Any]] = [
        {"type": "assistant", "uuid": "u0", "timestamp": "2026-11-20T12:00:04Z", "sessionId": FIRST},
        {"type": "user", "uuid": "u1", "timestamp": "2026-11-20T12:00:05Z", "sessionId": FIRST},
    ]
    rows[0]["message"] = {
        "role": "assistant",
        "id": "msg_a",
        "model": "claude-sonnet-4-5",
        "content": content,
    }
    block = {"type": "tool_result", "tool_use_id": "t1", "content": "done"}
    rows[1]["message"] = {"role": "user", "content": [block]}
    writer.rows["main"] = rows
    assert calls(load(writer.write())).loc["t1", ["status", "result"]].tolist() == ["ok", "done"]


def test_a_call_left_open_in_one_run_folder_and_answered_in_the_next(new_run, tmp_path):
    first = new_run("run-1")
    first.initialize(1)
    first.answer(3, "msg_a", [first.call("t1", "Bash", command="sleep 1")], first.usage(100, 50))
    first.write()
    second = new_run("run-2")
    second.meta = {"created": "2026-11-20T13:00:00+00:00"}
    row = {"type": "user", "uuid": "u1", "timestamp": "2026-11-20T13:00:05Z", "sessionId": FIRST}
    block = {"type": "tool_result", "tool_use_id": "t1", "content": "interrupted", "is_error": True}
    message = {"role": "user", "content": [block]}
    second.rows["main"] = [*first.rows["main"], {**row, "message": message}]
    second.initialize(3601)
    second.answer(3610, "msg_b", [second.text("Yes.")], second.usage(10, 10))
    second.write()
    found = calls(load(tmp_path))
    assert found.loc["t1", ["run_id", "status", "result"]].tolist() == ["run-1", "error", "interrupted"]
