from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from junitparser import Failure, JUnitXml, Skipped

from harvest_nb.checks import COLUMNS, Report, Row

PASS = Row("node", "tools", ">=20", "20.1.0", "pass", 0.25, "")
FAIL = Row("user", "security", "harvest", "root, uid 0", "fail", 0.5, "set USER")
SKIP = Row("image", "security", "an image", "the host has none", "n/a", 0.0, "")


def test_the_frame_is_typed_also_when_it_is_empty():
    for rows in ((), (PASS, FAIL, SKIP)):
        frame = Report(rows).frame
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == COLUMNS
    assert frame["ok"].tolist()[:2] == [True, False]
    assert frame["ok"].isna().tolist() == [False, False, True]
    assert frame["status"].tolist() == ["pass", "fail", "n/a"]


def test_ok_needs_a_pass_and_no_failure():
    assert Report([PASS, SKIP]).ok
    assert not Report([PASS, FAIL]).ok
    assert not Report([SKIP]).ok
    assert not Report([]).ok


def test_reports_add_up():
    both = Report([PASS], subject="a", seconds=1, notes=["x"]) + Report([FAIL], subject="b", seconds=2)
    assert (both.rows, both.subject, both.seconds, both.notes) == ((PASS, FAIL), "a", 3, ("x",))
    assert both.failures == (FAIL,)
    assert both.summary == "1 passed, 1 failed, 0 n/a in 3.0 s"


def test_what_could_not_be_compared_is_said_in_the_summary():
    row = Row("image-build", "security", "as built", "unverified: no record", "n/a", 0.0, "")
    report = Report([PASS, SKIP, row])
    assert report.ok
    assert report.unverified == (row,)
    assert report.summary.endswith("unverified: image-build")


def test_groups_count_each_status_in_the_contracts_order():
    groups = Report([PASS, FAIL, SKIP]).groups
    assert groups.index.tolist() == ["tools", "security"]
    assert groups[["passed", "failed", "not_applicable"]].to_numpy().tolist() == [[1, 0, 0], [0, 1, 1]]


def test_json_says_the_same_as_the_frame():
    document = json.loads(Report([PASS, FAIL, SKIP], subject="docker:1", seconds=1.5).to_json())
    assert document["ok"] is False
    assert document["subject"] == "docker:1"
    assert [check["ok"] for check in document["checks"]] == [True, False, None]
    assert list(document["checks"][0]) == list(COLUMNS)


def test_junit_has_a_suite_a_group(tmp_path):
    path = Report([PASS, FAIL, SKIP], subject="docker:1").to_junit(tmp_path / "out" / "contract.xml")
    suites = {suite.name: suite for suite in JUnitXml.fromfile(str(path))}
    assert list(suites) == ["tools", "security"]
    assert (suites["security"].tests, suites["security"].failures, suites["security"].skipped) == (2, 1, 1)
    failed, skipped = list(suites["security"])
    assert isinstance(failed.result[0], Failure)
    assert "root, uid 0" in failed.result[0].message
    assert failed.result[0].text == "set USER"
    assert isinstance(skipped.result[0], Skipped)
    assert skipped.result[0].message == "the host has none"


@given(st.text(max_size=40))
def test_any_observation_gives_xml_that_can_be_read(tmp_path_factory, text):
    row = Row("c", "tools", text, text, "fail", 0.1, text)
    path = Report([row]).to_junit(tmp_path_factory.mktemp("junit") / "r.xml")
    (case,) = [case for suite in JUnitXml.fromfile(str(path)) for case in suite]
    assert case.name == "c"
