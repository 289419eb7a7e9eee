"""Makes rows of `costs` for what a run cost beyond its rows of usage, and notes the problems of its results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from harvest_nb.tables.costs import UNITEMISED
from harvest_nb.tables.folder import Run
from harvest_nb.tables.items import Item
from harvest_nb.tables.problems import Problem
from harvest_nb.tables.reconcile import EXPLAINED_BELOW, REASONS, Account, Reconciled
from harvest_nb.tables.results import Report, odd_figures

__all__ = ["missing_rows", "note_rest", "note_result", "silent_rows"]

_Row = dict[str, Any]


def silent_rows(run: Run, silent: list[Item]) -> list[_Row]:
    """A row of `costs` without an amount for each response that does not say what it used."""
    first = {item.key or f"{item.file}:{item.line}": item for item in reversed(silent)}
    return [
        {
            "run_id": run.run_id,
            "session_id": item.session or run.session_id,
            "message_id": item.message_id,
            "agent": item.agent or "main",
            "turn": item.turn,
            "model": item.model,
            "time": item.time,
            "component": UNITEMISED,
            "is_final": False,
            "source": "rows",
            "is_copy": item.copy,
            "cost_usd": None,
        }
        for item in first.values()
    ]


def missing_rows(run: Run, outcome: Reconciled, account: Account) -> list[_Row]:
    """Return rows of `costs` for the tokens that the result reports beyond the rows, without naming a response."""
    models = [row["model"] for row in account.usage if row["model"]]
    model = Counter(models).most_common(1)[0][0] if models else next(
        (item.model for item in run.story if item.model), None
    )  # fmt: skip
    times = [item.time for item in run.items if item.time is not None]
    place = {"run_id": run.run_id, "session_id": run.session_id, "time": max(times, default=None)}
    fixed = {"model": model, "is_final": True, "is_copy": False, "source": "result"}
    return [{**place, **fixed, **row} for row in outcome.missing]


def note_rest(run: Run, told: Report, outcome: Reconciled, rest: list[_Row], notes: list[Problem]) -> None:
    """Note each model of which the result reports tokens without a price, and the counts that it leaves out."""
    for model in sorted({str(row["model"]) for row in rest if row["cost_usd"] is None}):
        parts = ", ".join(row["component"] for row in rest if str(row["model"]) == model)
        detail = (
            f"the result reports {parts} of {model} beyond its rows, which has no one price: its cost is missing, "
            "not 0, and so is the run's; `runs.cost_reported_usd` is what was reported"
        )
        path, line, offset = _end(run, told)
        notes.append(Problem(path, "unpriced_rest", detail, line, offset, run_id=run.run_id))
    if outcome.uncounted and not told.lone_state:
        parts = ", ".join(f"{component} of {model}" for model, component in outcome.uncounted)
        detail = (
            f"the result has no count for {parts}: tokens beyond the rows are left out there, and the run's cost is a "
            "lower bound; `runs.cost_reported_usd` is what was reported"
        )
        path, line, offset = _end(run, told)
        notes.append(Problem(path, "count_missing", detail, line, offset, run_id=run.run_id))


def note_result(run: Run, told: Report, outcome: Reconciled, notes: list[Problem]) -> None:
    """Note invalid figures, swapped models and unexplained residuals."""
    for result in told.results:
        for reason, detail in odd_figures(result.item):
            place = (result.item.line, result.item.offset)
            notes.append(Problem(result.item.file, reason, detail, *place, run_id=run.run_id))
    for swap in outcome.swaps:
        detail = (
            f"the result counts {', '.join(swap.asked)}, which was asked for, and {', '.join(swap.answered)} "
            "answered: counted once, at the prices of the model that answered"
        )
        path, line, offset = _end(run, told)
        notes.append(
            Problem(path, "answered_by_another_model", detail, line, offset, True, run_id=run.run_id)
        )
    amount = outcome.unexplained
    if amount is not None and abs(amount) > EXPLAINED_BELOW:
        detail = (
            f"of {outcome.residual or 0:.4f} USD reported less counted, {amount:.4f} have no known reason "
            f"(the largest: {REASONS[outcome.reason]})"
        )
        notes.append(Problem(run.path, "unexplained_residual", detail, run_id=run.run_id))


def _end(run: Run, told: Report) -> tuple[Path, int | None, int | None]:
    """Where the last result stands."""
    last = told.last
    return (last.file, last.line, last.offset) if last else (run.path, None, None)
