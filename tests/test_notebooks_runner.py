"""The notebook runner against tiny notebooks, one behaviour each (tests/data/notebooks)."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from junitparser import JUnitXml
from rich.console import Console

from harvest_nb.demo import AFTER
from harvest_nb.errors import NotebookError, ParameterError
from harvest_nb.notebooks import (
    CellFailure,
    NotebookResult,
    assignments,
    emit,
    parameters,
    results_table,
    run_notebook,
    run_notebooks,
    write_junit,
)
from harvest_nb.notebooks.engine import kernel_environment
from harvest_nb.paths import notebook_paths
from harvest_nb.redact import Redactor

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data" / "notebooks"
NOBODY = Redactor()


def book(name: str) -> Path:
    return DATA / f"{name}.ipynb"


def failure_of(result: NotebookResult) -> CellFailure:
    assert result.outcome == "failed"
    assert result.error is not None
    return result.error


def kept(result: NotebookResult) -> Path:
    assert result.executed is not None
    return result.executed


def run(name: str, out: Path, given: dict[str, object] | None = None, **more) -> NotebookResult:
    return run_notebook(book(name), out, given, secrets=more.pop("secrets", NOBODY), **more)


# What a notebook takes


def test_parameters_have_names_types_defaults_and_comments():
    found = parameters(book("fine"))
    assert [(p.name, p.type, p.default, p.help) for p in found] == [
        ("count", "int", 2, "how many"),
        ("name", "str", "a", "a word"),
        ("limit", "Optional[float]", None, "seconds"),
    ]


def test_without_a_parameters_cell_there_are_none():
    assert parameters(book("error")) == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("two_parameters_cells", "2 cells tagged"),
        ("untyped_parameter", "not `name: type = literal`"),
        ("unreadable_parameter", "cannot be used|papermill cannot read"),
        ("wrong_default", "default of a .* is 'one', which is not int"),
        ("absent", "There is no notebook"),
    ],
)
def test_a_parameters_cell_that_cannot_be_relied_on_is_an_error(name, says):
    with pytest.raises(NotebookError, match=says):
        parameters(book(name))


def test_a_notebook_that_names_no_kernel_is_an_error(tmp_path):
    notebook = nbformat.read(book("fine"), as_version=4)
    del notebook.metadata["kernelspec"]
    nbformat.write(notebook, tmp_path / "fine.ipynb")
    with pytest.raises(NotebookError, match="kernel"):
        parameters(tmp_path / "fine.ipynb")


@pytest.mark.parametrize(
    ("given", "parameter", "expected"),
    [
        ({"counts": 2}, "counts", None),
        ({"count": "2"}, "count", "int"),
        ({"count": True}, "count", "int"),
        ({"name": Path("x")}, "name", "str"),
        ({"limit": "soon"}, "limit", "Optional[float]"),
    ],
)
def test_an_unfit_parameter_is_refused_before_anything_runs(tmp_path, given, parameter, expected):
    with pytest.raises(ParameterError) as caught:
        run("fine", tmp_path / "out", given)
    error = caught.value
    assert error.exit_code == 2
    assert (error.notebook, error.parameter, error.data.get("expected")) == ("fine", parameter, expected)
    assert error.allowed == ["count", "name", "limit"]
    for word in ("fine", parameter, "limit: Optional[float]"):
        assert word in str(error)
    assert not (tmp_path / "out").exists()


def test_a_secret_is_not_taken_as_a_parameter(tmp_path):
    redactor = Redactor({"GITHUB_TOKEN": "planted-value-123"})
    with pytest.raises(ParameterError, match="carries a secret") as caught:
        run("fine", tmp_path, {"name": "x planted-value-123"}, secrets=redactor)
    assert "planted" not in str(caught.value)


def test_assignments_are_read_by_the_parameters_types():
    paths = [book("fine"), book("slow")]
    common, single = assignments(paths, ["count=3", "fine.limit=0.5", "name=42", "slow.marker="])
    assert common == {"count": 3, "name": "42"}
    assert single == {"fine": {"limit": 0.5}, "slow": {"marker": ""}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count", "is not `name=value`"),
        ("count=many", "expected int"),
        ("nothing=1", "no parameter nothing"),
        ("slow.count=1", "slow has no parameter count"),
        ("other.count=1", "no notebook other"),
    ],
)
def test_an_assignment_that_fits_nothing_is_an_error(text, says):
    with pytest.raises(ParameterError, match=says):
        assignments([book("fine"), book("slow")], [text])


# What a notebook gives


def test_a_fine_notebook_gives_its_result(tmp_path):
    result = run("fine", tmp_path, {"count": 3, "limit": 2})
    assert result.outcome == "ok", result.reason
    assert result.result == {"words": ["a", "a", "a"], "limit": 2}
    assert result.seconds > 0
    assert result.check() is result
    executed = nbformat.read(result.executed, as_version=4)
    assert executed.metadata.papermill.input_path == "fine.ipynb"
    assert str(tmp_path) not in kept(result).read_text()


def test_emit_refuses_what_is_not_json():
    cases: list[tuple[Any, str]] = [
        ({"a": {"b": [1, {2}]}}, r"result\.a\.b\[1\]"),
        ({"a": float("nan")}, r"result\.a"),
        ({1: 2}, "not text"),
        ({}, "empty"),
    ]
    for value, where in cases:
        with pytest.raises(NotebookError, match=where):
            emit(value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_result", "displayed no result"),
        ("result_not_last", "displayed no result"),
        ("two_results", "displayed 2 results"),
        ("malformed_result", "malformed: list"),
        ("not_json", r"NotebookError: result\.costs\.total is Decimal"),
        ("leaves_early", "displayed no result|SystemExit"),
    ],
)
def test_a_missing_or_malformed_result_fails(tmp_path, name, says):
    result = run(name, tmp_path)
    assert result.outcome == "failed"
    with pytest.raises(NotebookError, match=says):
        result.check()


@pytest.mark.parametrize("given", [None, {"count": 5}])
def test_a_failing_cell_is_named_by_its_place_in_the_source(tmp_path, given):
    name, index = ("error_in_parameters", 2) if given else ("error", 2)
    result = run(name, tmp_path, given)
    failure = failure_of(result)
    assert (result.outcome, failure.index, failure.timed_out) == ("failed", index, False)
    assert failure.count == (3 if given else 2)
    assert failure.ename == ("ZeroDivisionError" if given else "KeyError")
    assert failure.ename in failure.tail
    assert "\x1b" not in failure.tail
    assert f"cell {index} [" in result.reason
    partial = nbformat.read(result.executed, as_version=4)
    assert any("papermill-error-cell-tag" in c.metadata.get("tags", []) for c in partial.cells)
    with pytest.raises(NotebookError) as caught:
        result.check()
    assert (caught.value.notebook, caught.value.cell, caught.value.ename) == (name, index, failure.ename)


def test_a_cell_out_of_time_is_told_apart_and_may_clean_up(tmp_path):
    marker = tmp_path / "marker"
    start = time.monotonic()
    result = run("slow", tmp_path / "out", {"marker": str(marker)}, cell_timeout=2)
    assert time.monotonic() - start < 30
    assert failure_of(result).timed_out
    assert failure_of(result).index == 2
    assert "longer than 2 s" in result.reason
    assert marker.read_text() == "cleaned up"
    assert "started" in kept(result).read_text()


def test_a_kernel_that_dies_fails_its_cell(tmp_path):
    result = run("dies", tmp_path)
    assert (failure_of(result).ename, failure_of(result).index) == ("DeadKernelError", 1)


def test_what_a_kernel_itself_says_is_shown_where_it_has_died(tmp_path):
    shutil.copy(book("speaks"), tmp_path / "alive.ipynb")
    program = (
        "from pathlib import Path; from rich.console import Console; from harvest_nb.notebooks import run_notebooks; "
        "run_notebooks([Path('alive.ipynb'), Path('speaks.ipynb')], Path('out'), console=Console(), "
        "junit=Path('junit.xml'), per_notebook={'speaks': {'die': True, 'lines': 100_000}})"
    )
    shutil.copy(book("speaks"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert "of the kernel" not in done.stderr
    assert "line 0 of the kernel" not in done.stdout
    assert "line 99999 of the kernel" in done.stdout.partition("speaks")[2]
    assert len(done.stdout) < 4096
    alive, died = next(iter(JUnitXml.fromfile(str(tmp_path / "junit.xml"))))
    assert alive.system_err is None
    assert "line 99999 of the kernel" in died.system_err


# Secrets


def test_a_secret_in_what_a_kernel_itself_says_is_shown_to_nobody(tmp_path):
    result = run(
        "speaks", tmp_path, {"die": True, "lines": 9}, secrets=Redactor({"TOKEN": "line 8 of the kernel"})
    )
    assert "[redacted:TOKEN]" in result.stderr
    assert "line 7 of the kernel" in result.stderr
    assert "line 8" not in result.stderr


def test_a_credential_nobody_declared_fails_and_is_redacted_on_disk(tmp_path):
    result = run("leak", tmp_path)
    assert result.outcome == "failed"
    assert "secret in its outputs, redacted: GitHub" in result.reason
    text = kept(result).read_text()
    assert "a1a1a1" not in text
    assert "[redacted:GitHub]" in text


def test_a_secret_in_an_error_is_in_no_file_and_no_message(tmp_path):
    (tmp_path / "secret.txt").write_text("planted-value-123" * 6)
    source = nbformat.v4.new_notebook()
    cell = "import base64\nvalue = open('secret.txt').read()\nraise ValueError(value, base64.b16encode(value.encode()))"
    source.cells = [nbformat.v4.new_code_cell(cell)]
    nbformat.write(source, tmp_path / "raising.ipynb")
    redactor, out = Redactor({"LINEAR_API_KEY": "planted-value-123" * 6}), tmp_path / "out"
    results = run_notebooks(
        [tmp_path / "raising.ipynb"], out, secrets=redactor, cwd=tmp_path, junit=out / "junit.xml"
    )
    assert "LINEAR_API_KEY" in results[0].reason
    written = [repr(results), *(path.read_text() for path in out.iterdir())]
    assert len(written) == 3
    for text in written:
        assert "planted" not in text
        assert b"planted-value".hex().upper() not in text


@pytest.mark.parametrize("name", ["known_leak", "leak_then_error"])
def test_a_known_secret_is_in_no_file_and_no_message(tmp_path, name):
    (tmp_path / "secret.txt").write_text("planted-value-123")
    redactor = Redactor({"LINEAR_API_KEY": "planted-value-123"})
    out = tmp_path / "out"
    results = run_notebooks([book(name)], out, secrets=redactor, cwd=tmp_path, junit=out / "junit.xml")
    assert results[0].outcome == "failed"
    assert "LINEAR_API_KEY" in results[0].reason
    assert "planted" not in repr(results)
    written = [path.read_text() for path in out.iterdir()]
    assert len(written) == 2
    assert all("planted" not in text for text in written)


def test_the_key_of_daytona_is_a_known_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("DAYTONA_API_KEY", "planted-value-123")
    (tmp_path / "secret.txt").write_text("planted-value-123")
    out = tmp_path / "out"
    results = run_notebooks([book("known_leak")], out, cwd=tmp_path, junit=out / "junit.xml")
    assert "DAYTONA_API_KEY" in results[0].reason
    assert all("planted" not in path.read_text() for path in out.iterdir())


def test_the_kernel_is_this_interpreter_without_credentials(tmp_path, monkeypatch):
    planted = [
        "ANTHROPIC_API_KEY",
        "CLAUDE_CONFIG_DIR",
        "CLAUDECODE",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "GITHUB_TOKEN",
    ]
    for name in planted:
        monkeypatch.setenv(name, "planted-value-123")
    monkeypatch.setenv("HARVEST_KEPT", "1")
    result = run("surroundings", tmp_path / "out", cwd=tmp_path)
    assert result.outcome == "ok", result.reason
    seen = dict(result.result or {})
    assert Path(seen["python"]) == Path(sys.executable)
    assert Path(seen["cwd"]) == tmp_path
    assert "HARVEST_KEPT" in seen["names"]
    assert not set(planted) & set(seen["names"])
    assert seen["papermill"] is False  # emit is cheap to import
    assert Path.cwd() != tmp_path


def test_a_live_run_keeps_the_five_tokens_and_nothing_else():
    base = {
        "CLAUDE_CODE_OAUTH_TOKEN": "a",
        "GITHUB_TOKEN": "b",
        "ANTHROPIC_BASE_URL": "c",
        "AWS_PROFILE": "d",
    }
    assert {"CLAUDE_CODE_OAUTH_TOKEN", "GITHUB_TOKEN"} == set(kernel_environment(live=True, base=base)) & set(
        base
    )
    assert not set(kernel_environment(base=base)) & set(base)
    stay = {"DAYTONA_API_KEY", "LANG", "PATH", "PWD", "SSH_AUTH_SOCK", "MAX_THINKING_TOKENS", "KEYBOARD"}
    go = {
        "NPM_TOKEN",
        "OPENAI_API_KEY",
        "OPENAI_KEY",
        "PGPASSWORD",
        "GITHUB_PAT",
        "APIKEY",
        "AWS_ACCESS_KEY_ID",
    }
    assert set(kernel_environment(base=dict.fromkeys(stay | go, "value"))) & (stay | go) == stay


# Many


def test_a_batch_goes_on_after_a_failure_and_reports_all(tmp_path):
    said = io.StringIO()
    results = run_notebooks(
        [book("error"), book("fine"), book("needs_docker")],
        tmp_path,
        {"count": 1},
        per_notebook={"fine": {"name": "z"}},
        requires={"docker": "HARVEST_ENGINE=off"},
        secrets=NOBODY,
        console=Console(file=said, width=200),
        junit=tmp_path / "junit.xml",
    )
    assert [(r.name, r.outcome) for r in results] == [
        ("error", "failed"),
        ("fine", "ok"),
        ("needs_docker", "skipped"),
    ]
    assert results[1].result == {"words": ["z"], "limit": None}
    assert results[2].reason == "it needs docker: HARVEST_ENGINE=off"
    assert not (tmp_path / "needs_docker.ipynb").exists()
    for line in (
        "error failed after",
        "fine in",
        "needs_docker not run: it needs docker: HARVEST_ENGINE=off",
    ):
        assert line in said.getvalue()

    suite = next(iter(JUnitXml.fromfile(str(tmp_path / "junit.xml"))))
    cases = {case.name: case for case in suite}
    assert (suite.tests, suite.failures, suite.skipped) == (3, 1, 1)
    assert cases["needs_docker"].result[0].message == "it needs docker: HARVEST_ENGINE=off"
    assert cases["error"].result[0].type == "KeyError"
    assert 'raise KeyError("no such thing")' in cases["error"].result[0].text
    assert cases["fine"].is_passed

    table = io.StringIO()
    Console(file=table, width=200).print(results_table(results))
    assert "not run: it needs docker" in table.getvalue()


def test_a_failure_that_holds_control_characters_leaves_junit_that_can_be_read(tmp_path):
    odd = "a\x00b\x1b[31m\x08\ud800\uffff <&>"
    results = [
        NotebookResult("one", 1.0, "failed", odd, error=CellFailure("ValueError", odd, 1, 1, odd, odd)),
        NotebookResult("two", 0.0, "skipped", odd),
        NotebookResult("three", 1.0, "failed", odd),
    ]
    write_junit(results, tmp_path / "junit.xml")
    cases = list(next(iter(JUnitXml.fromfile(str(tmp_path / "junit.xml")))))
    assert [case.name for case in cases] == ["one", "two", "three"]
    assert all(case.result[0].message.startswith("a\ufffdb\ufffd[31m") for case in cases)


def test_what_a_notebook_requires_is_run_when_it_is_here(tmp_path):
    results = run_notebooks([book("needs_docker")], tmp_path, requires={"docker": None}, secrets=NOBODY)
    assert results[0].outcome == "ok"


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"parameters": {"nothing": 1}}, ParameterError, "has a parameter nothing"),
        ({"parameters": {"count": "x"}}, ParameterError, "expected int"),
        ({"per_notebook": {"other": {}}}, ParameterError, "no notebook other"),
        ({"requires": {}}, NotebookError, "nobody says whether it is here"),
    ],
)
def test_a_batch_that_is_asked_for_wrongly_runs_nothing(tmp_path, more, error, says):
    out = tmp_path / "out"
    more = {"requires": {"docker": None}, **more}
    with pytest.raises(error, match=says):
        run_notebooks([book("needs_docker"), book("fine")], out, secrets=NOBODY, **more)
    assert not out.exists()


def test_two_notebooks_of_one_name_would_overwrite_each_other(tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(book("fine"), tmp_path / "other" / "fine.ipynb")
    with pytest.raises(NotebookError, match=r"Two notebooks are named fine: .*fine\.ipynb and .*fine\.ipynb"):
        run_notebooks([book("fine"), Path(other)], tmp_path / "out", secrets=NOBODY)
    assert not (tmp_path / "out").exists()


def test_the_source_is_not_overwritten(tmp_path):
    with pytest.raises(NotebookError, match="holds the notebook's source"):
        run("fine", DATA)


# Side by side


def two(folder: Path) -> list[Path]:
    """Two notebooks of two names that do as their parameters say."""
    return [Path(shutil.copy(book("steps"), folder / f"{name}.ipynb")) for name in ("one", "two")]


def test_notebooks_run_side_by_side_and_are_returned_in_their_order(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    # Each waits for the other: one after the other they would never end.
    single = {"one": {"writes": a, "awaits": b}, "two": {"writes": b, "awaits": a}}
    results = run_notebooks(
        two(tmp_path), tmp_path / "out", per_notebook=single, jobs=2, cell_timeout=60, secrets=NOBODY
    )
    assert [(each.name, each.outcome) for each in results] == [("one", "ok"), ("two", "ok")]


def test_a_notebook_waits_for_those_whose_output_it_reads(tmp_path):
    written = str(tmp_path / "written")
    single = {"one": {"needs": written}, "two": {"writes": written}}
    results = run_notebooks(
        two(tmp_path), tmp_path / "out", per_notebook=single, after={"one": ["two"]}, jobs=2, secrets=NOBODY
    )
    assert [(each.name, each.outcome) for each in results] == [("one", "ok"), ("two", "ok")]


def test_a_notebook_that_is_waited_for_must_be_there(tmp_path):
    with pytest.raises(NotebookError, match="no notebook three"):
        run_notebooks(two(tmp_path), tmp_path / "out", after={"one": ["three"]}, secrets=NOBODY)


def test_a_table_in_a_terminal_says_what_each_notebook_is_doing(tmp_path):
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100)
    run_notebooks([book("fine"), book("error")], tmp_path, jobs=2, secrets=NOBODY, console=console)
    shown = terminal.getvalue()
    assert re.search(r"fine .*cell \d of 4", shown)
    assert re.search(r"error .*(starting|cell \d of)", shown)
    assert "fine in" in shown
    assert "error failed after" in shown


def test_the_demo_waits_for_notebooks_that_are_there():
    stems = {path.stem for path in notebook_paths()}
    assert {*AFTER, *(name for names in AFTER.values() for name in names)} <= stems


def test_notebooks_that_wait_for_each_other_are_named(tmp_path):
    with pytest.raises(NotebookError, match="one, two wait for each other"):
        run_notebooks(two(tmp_path), tmp_path / "out", after={"one": ["two"], "two": ["one"]}, secrets=NOBODY)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_the_kernels_and_keeps_the_partial_notebooks(tmp_path):
    for name in ("one", "two"):
        shutil.copy(book("slow"), tmp_path / f"{name}.ipynb")
    program = (
        "from pathlib import Path; from harvest_nb.notebooks import run_notebooks; "
        "run_notebooks([Path('one.ipynb'), Path('two.ipynb')], Path('out'), jobs=2, junit=Path('junit.xml'), "
        "per_notebook={name: {'marker': f'{name}.marker'} for name in ('one', 'two')})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    markers = [tmp_path / "one.marker", tmp_path / "two.marker"]
    deadline = time.monotonic() + 60
    while not all(marker.exists() for marker in markers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children()
    assert len(kernels) == 2
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in stderr
    assert not [kernel for kernel in kernels if kernel.is_running()]
    assert [marker.read_text() for marker in markers] == ["cleaned up"] * 2
    for name in ("one", "two"):
        assert "started" in (tmp_path / "out" / f"{name}.ipynb").read_text()
    cases = next(iter(JUnitXml.fromfile(str(tmp_path / "junit.xml"))))
    assert [case.result[0].message for case in cases] == ["interrupted"] * 2


def test_data_notebooks_hold_no_outputs():
    for path in DATA.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path
