from __future__ import annotations

import io

import pytest
from rich.console import Console

from harvest_nb.snapshot import BuildProgress
from harvest_nb.views.progress import BuildBar


def told(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with BuildBar(console) as bar:
        bar.show(BuildProgress(0, 0, "base image", "using one that is there", 0.1))
        for line in ("", "a line", "another"):
            bar.show(BuildProgress(3, 12, "RUN npm ci", line, 1.5))
        bar.show(BuildProgress(4, 12, "COPY app/ /app/", "", 2.0, True))
    return out.getvalue()


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def test_without_a_terminal_each_step_is_told_once():
    lines = told(terminal=False).splitlines()
    assert [line.split("s  ", 1)[1] for line in lines] == [
        "base image: using one that is there",
        "step 3 of 12: RUN npm ci",
        "step 4 of 12: COPY app/ /app/ (cached)",
    ]


def test_a_terminal_shows_step_line_and_time():
    shown = told(terminal=True)
    assert "step 4 of 12: COPY app" in shown
    assert "0:00:00" in shown


def test_ci_is_spared(monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert told(terminal=False) == ""


def test_what_a_build_says_is_no_markup() -> None:
    said = io.StringIO()
    with BuildBar(Console(file=said, force_terminal=True, width=120)) as bar:
        bar.show(BuildProgress(1, 3, "RUN test [/etc/x]", "[/not] markup", 1.0))
    assert "[/etc/x]" in said.getvalue()
