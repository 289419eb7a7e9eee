"""What stands whole in a broken text is found, all of it, in time that grows with the text and no faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest_nb.tables import load, rescue
from harvest_nb.tables.problems import Problems
from harvest_nb.tables.read import values_in
from harvest_nb.tables.rescue import whole_records
from tests.tables.transcripts import call, stream, streamed, usage

SESSION = "99999999-0000-4000-8000-000000000001"


def messages(count: int, words: str = "Yes.") -> list[dict[str, Any]]:
    block = {"type": "text", "text": words}
    said = [
        streamed(f"msg_{n}", usage(n, 1), block, call(f"t{n}", command=f'{{"a": [{n}]}} {{'))
        for n in range(count)
    ]
    return stream(SESSION, *said)[1:]


def read(text: str) -> tuple[list[str], list[str]]:
    problems = Problems()
    lines = values_in(Path("log.json"), text.encode(), problems)
    return [line.value.get("uuid", "?") for line in lines], [problem.reason for problem in problems]


@pytest.mark.parametrize("indent", [None, 2])
def test_more_objects_than_any_limit_after_a_break(indent):
    """One record of the array holds thousands of objects and breaks; what follows is all there."""
    many = {**messages(1)[0], "uuid": "broken", "extra": [{"n": n, "x": {"y": n}} for n in range(5000)]}
    rest = messages(50)
    whole = json.dumps([many, *rest], indent=indent)
    at = whole.index('"n": 1,')
    found, reasons = read(whole[:at] + '"n": ' + whole[at:])
    assert found == [row["uuid"] for row in rest]
    assert reasons == ["not_json"]


@settings(max_examples=300)
@given(data=st.data(), indent=st.sampled_from([None, 1]))
def test_a_record_that_breaks_anywhere_takes_no_other_with_it(data, indent):
    rows = messages(
        4, data.draw(st.sampled_from(["Yes.", '"} ]{[ \\', ', "a": {"b":', "", 'é{"type": "user"}']))
    )
    spelled = [json.dumps(row, indent=indent) for row in rows]
    victim = data.draw(st.integers(0, 3))
    broken = spelled[victim]
    start = data.draw(st.integers(1, len(broken) - 1))
    length = data.draw(st.integers(0, len(broken) - start))
    junk = data.draw(st.sampled_from(["", "@", '"', "}", "]", "{", "[", "\\", ",,", ' "x" ', "\x00"]))
    spelled[victim] = broken[:start] + junk + broken[start + length :]
    found, _ = read("[" + ", ".join(spelled) + "]")
    others = [row["uuid"] for n, row in enumerate(rows) if n != victim]
    assert [uuid for uuid in found if uuid in others] == others


def test_several_breaks_in_one_array():
    rows = messages(40)
    spelled = [json.dumps(row) for row in rows]
    for n in range(0, 40, 3):
        spelled[n] = spelled[n][: 60 + 7 * n]
    found, reasons = read("[" + ",".join(spelled) + "]")
    assert found == [row["uuid"] for n, row in enumerate(rows) if n % 3]
    assert set(reasons) <= {"not_json", "truncated_document"}


def test_messages_without_ids_of_their_own_are_found_too():
    rows = [
        {"type": "user", "message": {"role": "user", "content": "Is it?"}},
        {"type": "result", "total_cost_usd": 1},
    ]
    text = '{"type": "assistant", "message": {"content": [{"a": ' + json.dumps(rows)[1:]
    assert [one.value for one in whole_records(text, 0)] == rows


def test_the_message_in_a_broken_record_is_no_record_of_its_own():
    said = messages(1)[0]
    nested = {key: said[key] for key in ("type", "message", "uuid")}  # as `agent_progress` has it
    row = json.dumps({"type": "progress", "data": {"message": nested}, "uuid": "u"})
    assert whole_records(row[:-12], 0) == []
    line = json.dumps({"seq": 1, "dir": "in", "message": said})
    assert whole_records(line[:-1], 0) == []
    # A record that stands where another one broke off, before its message, is one.
    assert [
        one.value for one in whole_records('{"type": "assistant", "message": ' + json.dumps(said), 0)
    ] == [said]


def test_three_records_in_one_line_of_which_the_first_and_last_break_off(tmp_path):
    one, two, three = (json.dumps(row) for row in messages(3))
    (tmp_path / "a.jsonl").write_text(one[:-40] + two + three[:70] + "\n")
    frames = load(tmp_path / "a.jsonl")
    assert list(frames.usage["message_id"]) == ["msg_1"]


@pytest.mark.parametrize(
    "text",
    [
        '{"x": ' * 200_000,
        '{"type": 1, "uuid": ' * 60_000,
        '{"type": 1, "uuid": 2, "x": ' * 20_000 + "@" + "}" * 20_000,
        '{"type": 1, "message": 2, "x": ' * 20_000 + "1" + "}" * 20_000,
        '{"' * 200_000,
        '[{"a": "' + '\\"' * 500_000,
        '{"type": 1, "uuid": "' + "x" * 5_000_000,
        '{"a": 1 ' + '"b" "c"' * 100_000,
        '{"a":[' + '{"b":{"c":1}},' * 60_000,
    ],
)
def test_hostile_texts_are_decoded_a_few_times_at_most(text, monkeypatch):
    """Each of them has so many beginnings that decoding from every one would take hours."""
    decoded: list[int] = []
    decode = rescue._decode

    def counted(part: str) -> Any:
        decoded.append(len(part))
        return decode(part)

    monkeypatch.setattr(rescue, "_decode", counted)
    lines = list(values_in(Path("log.json"), b"[" + text.encode(), Problems()))
    assert lines == []
    assert sum(decoded) <= 10 * len(text)
