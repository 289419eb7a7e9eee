"""What cannot be read is a row of `problems`, what can be saved is saved, and nothing else changes."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import load, validate
from harvest_nb.tables.problems import Problems
from harvest_nb.tables.read import read_lines

GOOD = b'{"n": 1}'


def read(
    path: Path, data: bytes
) -> tuple[list[dict[str, Any]], list[tuple[str, int | None, int | None, bool]]]:
    path.write_bytes(data)
    problems = Problems()
    values = [line.value for line in read_lines(path, problems)]
    return values, [(item.reason, item.line, item.offset, item.salvaged) for item in problems]


@pytest.mark.parametrize(
    ("data", "values", "problems"),
    [
        (GOOD + b"\n" + GOOD, [{"n": 1}] * 2, []),
        (GOOD + b"\n" + b'{"n": 2', [{"n": 1}], [("truncated_line", 2, 9, False)]),
        (b'{"n": 2\n' + GOOD, [{"n": 1}], [("not_json", 1, 0, False)]),
        (GOOD + GOOD + b"\n", [{"n": 1}] * 2, [("glued_lines", 1, 0, True)]),
        (GOOD + b'{"n"\n', [{"n": 1}], [("not_json", 1, 0, False)]),
        (b"[1]\n", [], [("not_an_object", 1, 0, False)]),
        (b"\n" + GOOD, [{"n": 1}], [("blank_line", 1, 0, True)]),
        (b"\xef\xbb\xbf" + GOOD, [{"n": 1}], [("byte_order_mark", 1, 0, True)]),
        (GOOD + b"\r\n", [{"n": 1}], [("crlf", 1, 0, True)]),
        (b'{"s": "\xff"}', [{"s": "\ufffd"}], [("invalid_utf8", 1, 0, True)]),
        (b'{"s": \0"x"}', [{"s": "x"}], [("nul_bytes", 1, 0, True)]),
        (b"\0\0\0", [], [("nul_bytes", 1, 0, False)]),
        (rb'{"s": "\ud800"}', [{"s": "?"}], [("not_strict_json", 1, 0, True)]),
        (b'{"x": NaN}', [{"x": None}], [("not_strict_json", 1, 0, True)]),
        (b'{"x":' * 5000, [], [("truncated_line", 1, 0, False)]),
        (b"", [], []),
    ],
)
def test_each_kind_of_bad_line(tmp_path, data, values, problems):
    assert read(tmp_path / "file.jsonl", data) == (values, problems)


def test_a_missing_run_json_and_stream_are_problems(writer):
    folder = writer.two_turns().write()
    (folder / "run.json").unlink()
    frames = load(folder)
    assert frames.problems["reason"].tolist() == ["missing_file"]
    assert frames.runs["run_id"].tolist() == ["run-1"]
    assert frames.usage["output_tokens"].sum() == 80
    writer.write()
    (folder / "stream.jsonl").unlink()
    frames = load(folder)
    assert frames.problems["reason"].tolist() == ["missing_file"]
    assert frames.usage["output_tokens"].sum() == 80


def test_problems_name_file_line_and_offset(writer):
    folder = writer.two_turns().write()
    stream = folder / "stream.jsonl"
    lines = stream.read_bytes().splitlines(keepends=True)
    stream.write_bytes(b"".join([*lines[:3], b"rubbish\n", *lines[3:]]))
    problems = load(folder).problems
    assert len(problems) == 1
    found = problems.iloc[0]
    assert (found["path"], found["line"]) == (str(stream), 4)
    assert found["offset"] == sum(len(line) for line in lines[:3])
    with pytest.raises(RunFolderError, match=r"stream\.jsonl, line 4"):
        load(folder, strict=True)


def test_a_line_that_is_gone_from_the_middle_is_noticed(writer):
    writer.two_turns()
    del writer.lines[4]
    problems = load(writer.write()).problems
    assert problems["reason"].tolist() == ["gap_in_stream"]
    assert "messages 4 are" in problems["detail"].iloc[0]


def test_strict_accepts_a_folder_without_problems(writer):
    assert load(writer.two_turns().write(), strict=True).problems.empty


@settings(max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True), partial=st.booleans())
@pytest.mark.slow
def test_cutting_the_stream_anywhere_loses_at_most_one_line_and_says_so(new_run_anywhere, share, partial):
    with tempfile.TemporaryDirectory() as top:
        folder = new_run_anywhere(Path(top)).two_turns(partial=partial).write()
        stream = folder / "stream.jsonl"
        data = stream.read_bytes()
        cut = int(share * len(data))
        stream.write_bytes(data[:cut])
        frames = load(folder)
    whole = data[:cut].count(b"\n")
    rest = data[data[:cut].rfind(b"\n") + 1 : cut]
    complete = bool(rest) and data[cut : cut + 1] == b"\n"
    assert (frames.records["source"] == "stream").sum() == whole + complete
    expected = ["truncated_line"] if rest and not complete else []
    assert frames.problems["reason"].tolist() == expected


@settings(max_examples=20)
@given(order=st.randoms(use_true_random=False))
@pytest.mark.slow
def test_the_order_of_lines_changes_no_total(new_run_anywhere, order: random.Random):
    with tempfile.TemporaryDirectory() as top:
        folder = new_run_anywhere(Path(top)).two_turns(partial=True).write()
        before = load(folder)
        for file in folder.rglob("*.jsonl"):
            lines = file.read_text().splitlines(keepends=True)
            order.shuffle(lines)
            file.write_text("".join(lines))
        after = load(folder)
    for name, frame in before:
        if name not in ("files", "records"):
            places = [column for column in ("first_line", "last_line", "line") if column in frame]
            again = getattr(after, name)
            assert frame.drop(columns=places).equals(again.drop(columns=places)), name


@settings(max_examples=20)
@given(copies=st.integers(1, 4), spaced=st.booleans(), keys=st.randoms(use_true_random=False))
@pytest.mark.slow
def test_copies_of_rows_and_other_spelling_of_json_change_no_total(new_run_anywhere, copies, spaced, keys):
    with tempfile.TemporaryDirectory() as top:
        folder = new_run_anywhere(Path(top)).two_turns().write()
        before = load(folder)
        for file in (folder / "transcript").rglob("*.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()] * copies
            for row in rows:
                items = list(row.items())
                keys.shuffle(items)
                row.clear()
                row.update(items)
            separators = (", ", ": ") if spaced else (",", ":")
            file.write_text("".join(json.dumps(row, separators=separators) + "\n" for row in rows))
        after = load(folder)
    assert before.costs.equals(after.costs)
    assert before.runs["residual_reason"].tolist() == after.runs["residual_reason"].tolist() == ["equal"]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
@pytest.mark.slow
def test_damaged_files_crash_nothing_and_leave_well_formed_frames(new_run_anywhere, seed):
    order = random.Random(seed)
    with tempfile.TemporaryDirectory() as top:
        folder = new_run_anywhere(Path(top)).two_turns(partial=True).write()
        for file in [folder / "stream.jsonl", *folder.glob("transcript/*.jsonl"), folder / "run.json"]:
            data = bytearray(file.read_bytes())
            for _ in range(order.randrange(4)):
                at = order.randrange(len(data))
                kind = order.randrange(3)
                if kind == 0:
                    data[at] = order.randrange(256)
                elif kind == 1:
                    del data[at : at + order.randrange(1, 40)]
                else:
                    data[at:at] = order.choice([b"null", b'"x"', b"[]", b"{}", b"-1", b"\n", b"\0", b"\xff"])
            file.write_bytes(data)
        try:
            frames = load(folder)
        except RunFolderError as error:
            assert "schema" in str(error)  # noqa: PT017 - the one refusal that damage can bring about
            return
    assert [problem for name, frame in frames for problem in validate(name, frame)] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(data=st.data())
@pytest.mark.slow
def test_any_value_anywhere_crashes_nothing(new_run_anywhere, data):
    """Every field of every message may be anything: the format is somebody else's."""
    with tempfile.TemporaryDirectory() as top:
        writer = new_run_anywhere(Path(top)).two_turns(partial=True)
        rows = [line["message"] for line in writer.lines] + writer.rows["main"]
        for _ in range(data.draw(st.integers(1, 3))):
            spot = data.draw(st.sampled_from(rows))
            while True:
                key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
                inner = spot[key]
                if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                    break
                spot = inner
            spot[key] = data.draw(JSON)
        frames = load(writer.write())
    assert [problem for name, frame in frames for problem in validate(name, frame)] == []


def test_a_folder_behind_a_link_is_read_once(tmp_path: Path) -> None:
    row = {"type": "user", "uuid": "u1", "sessionId": "s", "timestamp": "2026-01-01T00:00:00Z"}
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "a.jsonl").write_text(json.dumps({**row, "message": {"role": "user", "content": "hi"}}) + "\n")
    config = tmp_path / "config"
    config.mkdir()
    (config / "projects").symlink_to(real)
    (real / "back").symlink_to(config)
    frames = load(config, follow_links=True)
    assert len(frames.records) == 1
    assert frames.problems.empty
    with pytest.raises(RunFolderError, match="follow_links"):
        load(config)
