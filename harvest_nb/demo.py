"""The main job, end to end: an engine, the image, every notebook through papermill, and the pages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harvest_nb import engine
from harvest_nb.errors import EngineError, TokenError
from harvest_nb.notebooks import NotebookResult, parameters, results_table, run_notebooks
from harvest_nb.paths import notebook_paths
from harvest_nb.settings import load_settings
from harvest_nb.site import build_site
from harvest_nb.snapshot import Snapshot

__all__ = ["AFTER", "BUDGET_USD", "Demo", "demo"]

BUDGET_USD = 1.0
"""What each session of a live demo may cost at most, in US dollars."""

_RECORDING = ("00_tour", "04_run_session")
"""The notebooks whose runs the next ones show."""
_READING = ("01_architecture", "05_message_flow", "06_costs")
AFTER = {
    **dict.fromkeys(_READING, _RECORDING),
    "04_run_session": ("00_tour",),  # the newest run, which is shown in full, is always the same one
    # Both read every layer for secrets; what the first has found clean, the second need not read.
    "03_validate_snapshot": ("00_tour",),
}
"""The notebooks that must have ended before another one starts, by that one's name."""


@dataclass(frozen=True)
class Demo:
    """What a demo made. `index` is the first HTML page."""

    results: list[NotebookResult]
    index: Path
    junit: Path
    seconds: float

    @property
    def ok(self) -> bool:
        """No notebook failed, and at least one ran."""
        outcomes = {result.outcome for result in self.results}
        return "failed" not in outcomes and "ok" in outcomes


def demo(
    out: Path,
    *,
    build: Callable[[], Snapshot],
    live: bool = False,
    max_budget_usd: float = BUDGET_USD,
    jobs: int | None = None,
    console: Console | None = None,
) -> Demo:
    """Run the main job headless.

    Args:
        out: gets `executed/`, `html/`, `runs/` and `junit.xml`.
        build: builds the image, showing its progress.
        live: use Anthropic's endpoint, with `CLAUDE_CODE_OAUTH_TOKEN`.
        max_budget_usd: what each session of a notebook may cost at most.
        jobs: how many notebooks run at the same time (default: as many as there are CPUs, at most four).
        console: where each step is told.

    Raises:
        TokenError: live without a token.
        SourceError, BuildError: the image cannot be built.
    """
    clock = _Clock()
    say = console or Console()
    if live and load_settings().claude_code_oauth_token is None:
        raise TokenError(
            "A live demo needs CLAUDE_CODE_OAUTH_TOKEN",
            hint="set it in the environment, .env or .env.local, or leave --live out",
        )
    if live:
        say.print(f"Live: each session may cost {max_budget_usd:.2f} USD at most", highlight=False)
    missing = _engine(say)
    clock.lap("engine")
    if missing is None:
        snapshot = build()
        clock.lap("image")
        how = f"built in {snapshot.seconds:.0f} s" if snapshot.built else "nothing has changed, reused"
        say.print(
            f"Snapshot {snapshot.tag}: {snapshot.size / 1e9:.2f} GB, {how}", highlight=False, markup=False
        )
    runs = (out / "runs").resolve()
    # A folder for each notebook's runs, so that the pages are the same whichever notebook ends first.
    shown = str(runs / "shown")
    single = {path.stem: {"runs_dir": str(runs / path.stem)} for path in notebook_paths() if _records(path)}
    single |= {name: {"runs_dir": shown} for name in (*_RECORDING, "01_architecture")}
    single |= {name: {"run": shown} for name in ("05_message_flow", "06_costs")}
    results = run_notebooks(
        notebook_paths(),
        out / "executed",
        {
            "provider": "docker" if missing is None else "host",
            "endpoint": "anthropic" if live else "scripted",
            "max_budget_usd": max_budget_usd,
        },
        per_notebook=single,
        requires={"docker": missing},
        after=AFTER,
        jobs=jobs or min(os.cpu_count() or 1, 4),
        live=live,
        console=say,
        junit=out / "junit.xml",
    )
    clock.lap("notebooks")
    index = build_site(results, out / "html")
    clock.lap("pages")
    say.print(results_table(results))
    single_seconds = sum(result.seconds for result in results)
    say.print(f"{clock} (the notebooks' own times add up to {single_seconds:.0f} s)", highlight=False)
    return Demo(results, index, out / "junit.xml", clock.seconds)


class _Clock:
    """What each part of the job took, in seconds."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Record the end of a part."""
        now = time.monotonic()
        self._laps[part], self._last = now - self._last, now

    @property
    def seconds(self) -> float:
        """The total of all parts."""
        return self._last - self._began

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self._laps.items())


def _records(path: Path) -> bool:
    return any(parameter.name == "runs_dir" for parameter in parameters(path))


def _engine(say: Console) -> str | None:
    """None when an engine runs, else why there is none."""
    try:
        engine.ensure(lambda line: say.print(line, highlight=False, markup=False)).close()
    except EngineError as error:
        say.print(
            f"[yellow]No Docker engine:[/] {escape(str(error))}\n"
            "Going on with the host provider, which isolates nothing."
        )
        return error.message
    return None
