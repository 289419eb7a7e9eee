"""What is told about executed notebooks: JUnit XML for CI, a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from rich.markup import escape
from rich.table import Table

from harvest_nb.checks.report import xml_text
from harvest_nb.notebooks.run import NotebookResult

__all__ = ["OUTCOME_WORDS", "results_table", "write_junit"]

OUTCOME_WORDS = {"ok": "ok", "failed": "failed", "skipped": "not run"}
_STYLES = {"ok": "green", "failed": "red", "skipped": "yellow"}


def write_junit(results: Iterable[NotebookResult], path: Path) -> Path:
    """Write `results` as one JUnit test suite, a notebook a test case; returns `path`.

    A cell that ran out of time is an `error`, one that raised a `failure`; both name the cell and end with the
    traceback's last lines; `system-err` is what its kernel said. What was not run is `skipped`, with the reason.
    """
    suite = TestSuite("notebooks")
    for result in results:
        case = TestCase(result.name, classname="notebooks", time=round(result.seconds, 3))
        if result.outcome == "skipped":
            case.result = [Skipped(xml_text(result.reason))]
        elif result.outcome == "failed":
            failure = result.error
            kind = Error if failure is not None and failure.timed_out else Failure
            ename = failure.ename if failure is not None else "NotebookError"
            entry = kind(xml_text(result.reason), xml_text(ename))
            kept = f"\nkept: {result.executed.name}" if result.executed else ""
            told = f"{failure.where}\n{failure.source}\n{failure.tail}" if failure else result.reason
            # A traceback quotes values, which may hold anything: one control character, and CI reads no result.
            entry.text = xml_text(told + kept)
            case.result = [entry]
            if result.stderr:
                case.system_err = xml_text(result.stderr)
        suite.add_testcase(case)
    xml = JUnitXml()
    xml.add_testsuite(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    xml.write(str(path), pretty=True)
    return path


def results_table(results: Iterable[NotebookResult]) -> Table:
    """Notebook, seconds and outcome, with the reason where there is one."""
    table = Table("notebook", title="Notebooks", title_justify="left")
    table.add_column("seconds", justify="right")
    table.add_column("outcome")
    for result in results:
        word = f"[{_STYLES[result.outcome]}]{OUTCOME_WORDS[result.outcome]}[/]"
        why = f": {escape(result.reason)}" if result.reason else ""
        seconds = "" if result.outcome == "skipped" else f"{result.seconds:.1f}"
        table.add_row(escape(result.name), seconds, word + why)
    return table
