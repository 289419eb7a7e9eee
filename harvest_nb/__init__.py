"""harvest-nb: build, check, run, measure and explain the Harvest executor.

    from harvest_nb import build, validate, run, chat, resume, load

    snapshot = await build()
    report = await validate(snapshot)
    result = await run("Summarise @docs/ai/shared/git-workflow.md")
    frames = load(result.folder)
    again = await resume(result.folder, "And now the tests")
    talk = chat()  # a view to type into; await chat(prompts=[…]) needs nobody

Each name is loaded at its first use, so that tables need neither Docker nor the agent's SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harvest_nb.machine.late import parse_iris_late

if TYPE_CHECKING:
    from harvest_nb.api import build, chat, resume, run, validate
    from harvest_nb.checks import Report
    from harvest_nb.errors import HarvestError
    from harvest_nb.session.result import RunResult
    from harvest_nb.snapshot import Snapshot
    from harvest_nb.tables import Frames, load

__all__ = [
    "Frames",
    "HarvestError",
    "Report",
    "RunResult",
    "Snapshot",
    "build",
    "chat",
    "load",
    "resume",
    "run",
    "validate",
]

_HOMES = {
    "Frames": "tables",
    "HarvestError": "errors",
    "Report": "checks",
    "RunResult": "session.result",
    "Snapshot": "snapshot",
    "build": "api",
    "chat": "api",
    "load": "tables",
    "resume": "api",
    "run": "api",
    "validate": "api",
}

parse_iris_late()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
