"""The outcome of a validation: rows, a typed frame, JUnit XML and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harvest_nb.checks.base import Group

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

__all__ = ["COLUMNS", "UNVERIFIED", "Report", "Row", "Status", "xml_text"]

Status = Literal["pass", "fail", "n/a"]

UNVERIFIED = "unverified"
"""How the observation begins of a check that did not apply because it had nothing to compare with."""

_NO_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")
# Dark text on a light ground, readable in both of JupyterLab's themes.
_COLOURS: dict[str, str] = {
    "pass": "background-color: #d4edda; color: #145523",
    "fail": "background-color: #f8d7da; color: #7a1620; font-weight: bold",
    "n/a": "background-color: #e9ecef; color: #495057",
}

COLUMNS: dict[str, str] = {
    "check": "string",
    "group": "string",
    "expected": "string",
    "observed": "string",
    "ok": "boolean",
    "status": "string",
    "seconds": "float64",
    "hint": "string",
}
"""Column name to pandas dtype, in order. `ok` is missing where `status` is `n/a`; `seconds` is wall time."""


@dataclass(frozen=True)
class Row:
    """One check's outcome. `observed` holds the reason where the check did not apply; `hint` what to do."""

    check: str
    group: Group
    expected: str
    observed: str
    status: Status
    seconds: float
    hint: str

    @property
    def ok(self) -> bool | None:
        """True, False, or None where the check did not apply."""
        return {"pass": True, "fail": False, "n/a": None}[self.status]


class Report:
    """All rows of one validation.

    Args:
        rows: the outcomes.
        subject: what was validated, for JUnit and JSON (a sandbox's or an image's id).
        seconds: wall time of the whole validation.
        notes: what else happened, for example files that could not be removed from the sandbox.
    """

    def __init__(
        self, rows: Iterable[Row], *, subject: str = "", seconds: float = 0.0, notes: Iterable[str] = ()
    ) -> None:
        self.rows = tuple(rows)
        self.subject = subject
        self.seconds = seconds
        self.notes = tuple(notes)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Report) -> Report:
        return Report(
            self.rows + other.rows,
            subject=self.subject or other.subject,
            seconds=self.seconds + other.seconds,
            notes=self.notes + other.notes,
        )

    def __repr__(self) -> str:
        return f"Report({self.subject or 'no subject'}: {self.summary})"

    @property
    def ok(self) -> bool:
        """No check failed, and at least one passed: a validation that tried nothing is not a good one."""
        return not self.failures and any(row.status == "pass" for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows of the checks that failed."""
        return tuple(row for row in self.rows if row.status == "fail")

    @property
    def unverified(self) -> tuple[Row, ...]:
        """The rows of the checks that had nothing to compare with, such as an image that was built elsewhere."""
        return tuple(row for row in self.rows if row.status == "n/a" and row.observed.startswith(UNVERIFIED))

    @property
    def summary(self) -> str:
        """For example `41 passed, 1 failed, 3 n/a in 12.3 s; unverified: image-build`."""
        counts = {
            status: sum(row.status == status for row in self.rows) for status in ("pass", "fail", "n/a")
        }
        names = ", ".join(row.check for row in self.unverified)
        return (
            f"{counts['pass']} passed, {counts['fail']} failed, {counts['n/a']} n/a in {self.seconds:.1f} s"
            + (f"; unverified: {names}" if names else "")
        )

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a check; columns and dtypes as `COLUMNS`."""
        import pandas as pd

        data = {
            name: pd.Series([getattr(row, name) for row in self.rows], dtype=dtype)
            for name, dtype in COLUMNS.items()
        }
        return pd.DataFrame(data, columns=list(COLUMNS))

    @property
    def groups(self) -> pd.DataFrame:
        """One row a group: how many checks passed, failed, did not apply, and their seconds."""
        rows = self.frame.assign(
            passed=self.frame["status"] == "pass",
            failed=self.frame["status"] == "fail",
            not_applicable=self.frame["status"] == "n/a",
        )
        columns = ["passed", "failed", "not_applicable", "seconds"]
        return rows.groupby("group", sort=False)[columns].sum()

    def styled(self, uuid: str = "contract") -> Styler:
        """The frame for a notebook: one colour a status, hints only where something failed.

        `uuid` names the table in the HTML; the same one gives the same bytes at each rendering.
        """
        columns = ["status", "group", "check", "expected", "observed", "seconds"]
        columns += ["hint"] if self.failures else []
        return (
            self.frame[columns]
            .style.hide(axis="index")
            .format({"seconds": "{:.2f}"}, escape="html")
            .map(lambda status: _COLOURS[status], subset=["status"])
            .set_table_styles([{"selector": "td, th", "props": "text-align: left; vertical-align: top"}])
            .set_uuid(uuid)
        )

    def to_json(self) -> str:
        """The report as one JSON object: `subject`, `ok`, `seconds`, `summary`, `notes`, `checks`."""
        checks = [asdict(row) | {"ok": row.ok} for row in self.rows]
        document = {
            "subject": self.subject,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "summary": self.summary,
            "notes": list(self.notes),
            "checks": [{name: check[name] for name in COLUMNS} for check in checks],
        }
        return json.dumps(document, ensure_ascii=False, indent=2)

    def to_junit(self, path: Path | str) -> Path:
        """Write JUnit XML, one suite a group; `n/a` is `skipped` with its reason. Returns the path."""
        # Only this method needs the notebooks extra.
        from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

        document = JUnitXml("harvest-nb validate")
        for group in dict.fromkeys(row.group for row in self.rows):
            suite = TestSuite(group)
            for row in self.rows:
                if row.group != group:
                    continue
                case = TestCase(row.check, f"harvest.contract.{group}", round(row.seconds, 3))
                if row.status == "fail":
                    failure = Failure(
                        xml_text(f"expected {row.expected}; observed {row.observed}"), "CheckFailed"
                    )
                    failure.text = xml_text(row.hint)
                    case.result = [failure]
                elif row.status == "n/a":
                    case.result = [Skipped(xml_text(row.observed))]
                suite.add_testcase(case)
            suite.add_property("subject", self.subject)
            document.add_testsuite(suite)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        document.write(str(target), pretty=True)
        return target


def xml_text(text: str) -> str:
    """`text` without what XML 1.0 cannot hold: control characters, and halves of characters."""
    return "".join(c if c in "\t\n\r" or (c >= " " and not _NO_XML.match(c)) else "\ufffd" for c in text)
