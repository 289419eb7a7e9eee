"""Frames in use: SQL over all of them, Parquet and back, filters, and exact money throughout."""

from __future__ import annotations

from decimal import Decimal

import pandas as pd
import pytest

from harvest_nb.errors import RunFolderError, SettingsError
from harvest_nb.tables import Frames, load, validate
from tests.tables.transcripts import Transcript, call, usage


@pytest.fixture
def frames(tmp_path) -> Frames:
    for number, project in enumerate(("-app", "-lib")):
        one = Transcript(f"{number}1111111-0000-4000-8000-000000000001")
        one.user(0, "Is it?")
        one.answer(1, f"msg_{number}", usage(100, 10), call(f"t{number}"), stop="tool_use")
        one.result(2, f"t{number}", "yes")
        one.write(tmp_path / "projects" / project / f"{one.session}.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"type": "user", "sessionId": "odd", "uuid": "u"}\n')
    return load(tmp_path)


def test_sql_sees_every_frame_and_keeps_money_exact(frames):
    for name, frame in frames:
        assert frames.sql(f"select count(*) n from {name}")["n"].tolist() == [len(frame)]
    found = frames.sql(
        "select r.project, sum(c.cost_usd) usd, min(c.time) first from costs c join runs r using (run_id) "
        "group by r.project order by 1"
    )
    assert found["project"].tolist() == ["-app", "-lib"]
    assert found["usd"].tolist() == [Decimal("0.00045")] * 2
    assert str(found["first"].iloc[0]) == "2026-06-01 12:00:01+00:00"


def test_sql_reaches_nothing_but_the_frames(frames, tmp_path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(Exception, match=r"(?i)permission|disabled"):
        frames.sql(f"select * from '{tmp_path / 'x.csv'}'")


def test_parquet_keeps_types_and_values(frames, tmp_path):
    written = frames.to_parquet(tmp_path / "out" / "deep")
    assert [path.stem for path in written] == [name for name, _ in frames]
    again = Frames.from_parquet(tmp_path / "out" / "deep")
    for name, frame in frames:
        assert validate(name, getattr(again, name)) == []
        pd.testing.assert_frame_equal(getattr(again, name), frame)
    written[0].unlink()
    with pytest.raises(RunFolderError, match="holds no frames"):
        Frames.from_parquet(tmp_path / "out" / "deep")


def test_filters_choose_runs_and_all_that_is_theirs(frames):
    app = frames.filter(project="-app")
    assert app.usage["message_id"].tolist() == ["msg_0"]
    assert len(app.runs) == len(app.sessions) == len(app.files) == len(app.tool_calls) == 1
    assert app.problems.empty
    assert len(frames.filter(project=["-app", "-lib"]).usage) == 2
    assert len(frames.filter("n_responses > 0").runs) == 2
    assert len(frames.filter(lambda runs: runs["n_responses"] == 0).problems) == 1
    assert [wrong for name, frame in app for wrong in validate(name, frame)] == []
    with pytest.raises(RunFolderError, match="no column flavour"):
        frames.filter(flavour="x")


def test_there_are_two_views(tmp_path):
    with pytest.raises(SettingsError, match="no view"):
        load(tmp_path, view="everything")  # type: ignore[arg-type]
