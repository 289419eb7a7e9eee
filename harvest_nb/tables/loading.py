"""`load`: anything that was recorded, to frames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from harvest_nb.errors import SettingsError
from harvest_nb.prices import PriceTable, load_prices
from harvest_nb.tables.beyond import missing_rows, note_rest, note_result, silent_rows
from harvest_nb.tables.columns import COLUMNS, FRAME_NAMES
from harvest_nb.tables.costs import Pricer, total
from harvest_nb.tables.folder import Gathered, Run, gather
from harvest_nb.tables.frames import Frames
from harvest_nb.tables.items import Item
from harvest_nb.tables.messages import block_rows, join, message_rows, place, record_row
from harvest_nb.tables.metered import endpoint_rows, note_difference
from harvest_nb.tables.problems import Problem, Problems
from harvest_nb.tables.reconcile import Account, reconcile
from harvest_nb.tables.results import Report, report, result_rows
from harvest_nb.tables.runs import run_row, session_rows
from harvest_nb.tables.tools import Answer, later_answers, tool_call_rows
from harvest_nb.tables.turns import turn_rows
from harvest_nb.tables.usage import Response, responses, usage_rows
from harvest_nb.tables.values import as_str

__all__ = ["load"]

_Row = dict[str, Any]
_TOO_MUCH = 1_000_000
_AMOUNTS = {
    name: [column.name for column in columns if column.kind == "usd"] for name, columns in COLUMNS.items()
}
_AGENT_TOOLS = frozenset({"Task", "Agent"})
_SEARCH_TOOLS = frozenset({"WebSearch", "web_search"})


def load(
    *paths: str | os.PathLike[str],
    view: Literal["corpus", "session"] = "corpus",
    strict: bool = False,
    prices: PriceTable | None = None,
    follow_links: bool = False,
) -> Frames:
    """Typed frames of everything recorded at or below `paths`, in any mixture.

    Run folders; stream logs of the SDK or the CLI (JSON lines, or a JSON array; several runs in one file);
    Claude Code transcripts and whole `CLAUDE_CONFIG_DIR`s; single results; gzip and zstd of these. What a
    file is, is seen from its content.

    Args:
        paths: files, or folders that hold some at any depth.
        view: `corpus` has each response once, in the run that made it, so that sums over everything are
            right. `session` has each session whole: what a resumed or forked session repeats is there
            too, with `is_copy` true.
        strict: raise at the first thing that cannot be read as it should, instead of listing it.
        prices: a price table other than this package's.
        follow_links: whether links below a path are followed where they lead out of it; by default they are left
            out, each with a problem, as the folder may come from a stranger. A path may itself be a link or a pipe.

    Raises:
        RunFolderError: a path does not exist, or a folder holds nothing that can be read; in strict mode,
            anything that would be in `problems`.
        SettingsError: there is no such view.
    """
    if view not in ("corpus", "session"):
        raise SettingsError(f"There is no view {view!r}", hint='view="corpus" or view="session"')
    problems = Problems(strict=strict)
    gathered = gather(paths, problems, follow_links=follow_links)
    return Frames.from_rows(_Tabulation(gathered, view, prices or load_prices(), problems).rows())


class _Tabulation:
    def __init__(self, gathered: Gathered, view: str, prices: PriceTable, problems: Problems) -> None:
        # In this order, so that a copied response belongs to the run that made it.
        self.runs = sorted(gathered.runs, key=lambda run: run.rank)
        self.files, self.whole, self.problems = gathered.files, view == "session", problems
        self.prices, self.pricer = prices, Pricer(prices)
        self.out: dict[str, list[_Row]] = {name: [] for name in FRAME_NAMES}
        self.owner: dict[str, str] = {}
        self.later: dict[tuple[str, str], Answer] = {}

    def rows(self) -> dict[str, list[_Row]]:
        for run in self.runs:
            place(run)
            self._own(run)
        if not self.whole:
            self.later = later_answers(self.runs, self.owner)
        found = responses(self.runs)
        by_run: dict[str, list[Response]] = {run.run_id: [] for run in self.runs}
        for response in found.values():
            for run_id in response.shares:
                by_run[run_id].append(response)
        for run in sorted(self.runs, key=_beginning):
            self._tabulate(run, by_run[run.run_id])
        for read in self.files:
            for item in read.items:
                if item.source == "unknown":
                    self.out["records"].append(record_row(None, item))
        self.out["sessions"].extend(session_rows(self.out["runs"]))
        self._check_amounts()
        self._count_problems()
        self.out["files"].extend(read.row for read in self.files)
        return self.out

    def _own(self, run: Run) -> None:
        """Mark what an earlier run, or one that ended first, has already."""
        fresh: list[str] = []
        for item in run.items:
            keys = [key for key in (item.key if item.type in _ANSWERS else None, item.uuid) if key]
            item.copy = item.key in run.history or any(key in self.owner for key in keys)
            fresh += keys
        for key in fresh:
            self.owner.setdefault(key, run.run_id)

    def _tabulate(self, run: Run, mine: list[Response]) -> None:
        out = self.out
        notes: list[Problem] = []
        told = report(run)
        results = result_rows(run, told)
        silent = _silent(run, mine, self.whole)
        self._note_events(run, silent, notes)
        usage, costs, copied = self._usage(run, mine, notes)
        owned = [row for row in usage if self.whole or not row["is_copy"]]
        account = Account(
            usage=[row for row in usage if row["response"] not in run.history] if told.results else owned,
            results=results,
            reported=told.cost,
            after_result=_after(run, told, mine),
            resumed=told.processes > 1 or bool(run.history),
            lone_agents=_lone_agents(run),
            searched=_calls(run, _SEARCH_TOOLS),
            silent=bool(silent),
            asked=_asked(run),
        )
        outcome = reconcile(account, self.prices)
        note_result(run, told, outcome, notes)
        for item in told.unclear if outcome.reason != "equal" else ():
            detail = (
                "a result printed alone whose figures are more than its own usage: sub-agents and background "
                "requests, or what the session cost before it was resumed; counted as it is"
            )
            notes.append(
                Problem(item.file, "carried_cost_unclear", detail, item.line, item.offset, run_id=run.run_id)
            )
        messages = join(run)
        if not self.whole:
            messages = [message for message in messages if not message.items[0].copy]
        stops = {response.key: response.stop_reason for response in mine}
        turns = [row for row in turn_rows(run, stops) if self.whole or not row["is_copy"]]
        calls = list(tool_call_rows(run, messages, self.later, whole=self.whole))
        out["records"].extend(record_row(run, item) for item in run.items if item.source != "nested")
        out["messages"].extend(message_rows(run, messages))
        out["blocks"].extend(block_rows(run, messages))
        out["turns"].extend(turns)
        out["tool_calls"].extend(calls)
        costs = [row for row in costs if self.whole or not row["is_copy"]]
        if silent and (told.cost is None or told.lone_state):
            costs += silent_rows(run, silent)
        # A transcript's own account goes back to the sessions it was forked from: the rows say what is new.
        rest = [] if told.lone_state else missing_rows(run, outcome, account)
        note_rest(run, told, outcome, rest, notes)
        costs += rest
        self._check_sum(run, costs, owned, notes)
        out["usage"].extend({k: v for k, v in row.items() if k != "response"} for row in owned)
        out["result_usage"].extend(results)
        out["costs"].extend(costs)
        not_final = {row["response"] for row in owned if not row["output_final"]}
        counts = {
            "n_records": sum(item.source != "nested" for item in run.items),
            "n_messages": len(messages),
            "n_turns": len(turns),
            "n_tool_calls": len(calls),
            "n_tool_errors": sum(call["status"] == "error" for call in calls),
            "n_responses": len({row["response"] for row in owned}),
            "n_not_final": len(not_final),
            "n_copied": len(copied),
            "resumed_from": Counter(copied.values()).most_common(1)[0][0] if copied else None,
        }
        row = run_row(run, counts, outcome, told, self.prices, not_final=len(not_final), costs=costs)
        metered = list(endpoint_rows(run, self.prices, notes))
        note_difference(run, metered, results, notes)
        row["cost_endpoint_usd"] = total(one["cost_usd"] for one in metered) if metered else None
        out["runs"].append(row)
        out["endpoint_usage"].extend(metered)
        self.problems.add_all(notes)

    def _usage(
        self, run: Run, mine: list[Response], notes: list[Problem]
    ) -> tuple[list[_Row], list[_Row], dict[str, str | None]]:
        """Rows of `usage` and `costs`, copies included; and which responses are copies of which run's."""
        usage: list[_Row] = []
        costs: list[_Row] = []
        copied: dict[str, str | None] = {}
        for response in mine:
            owner = self.owner.get(response.key, run.run_id)
            copy = owner != run.run_id or response.key in run.history
            if copy:
                copied[response.key] = owner if owner != run.run_id else None
            # A copy's oddities are told once, where it is counted.
            said: list[Problem] = [] if copy else notes
            for row in usage_rows(response, response.shares[run.run_id], copy=copy, notes=said):
                costs += self.pricer.add_price(row, response, said)
                usage.append(row)
        return usage, costs, copied

    def _note_events(self, run: Run, silent: list[Item], notes: list[Problem]) -> None:
        """Responses of which nothing but events was recorded; a row that lacks its usage is told when it is read."""
        rows = {item.key for item in silent if item.type == "assistant"}
        events = [item for item in silent if item.key not in rows]
        if events:
            first, count = events[0], len({item.key for item in events})
            named = first.key or "a response without an id"
            detail = f"{named}: only events were recorded, and they do not say what it used"
            detail += f" ({count} responses, first here)" if count > 1 else ""
            place = (first.line, first.offset)
            notes.append(Problem(first.file, "missing_usage", detail, *place, run_id=run.run_id))

    def _check_sum(self, run: Run, costs: list[_Row], owned: list[_Row], notes: list[Problem]) -> None:
        """Blank all costs of a run whose sum exceeds 1,000,000 USD, so that all sums agree."""
        amount = sum((row["cost_usd"] or Decimal(0) for row in costs), Decimal(0))
        if amount < _TOO_MUCH:
            return
        for row in (*costs, *owned):
            row["cost_usd"] = None
        detail = f"the run's costs come to {amount:.0f} USD: missing, all of them"
        notes.append(Problem(run.path, "amount_too_large", detail, run_id=run.run_id))

    def _check_amounts(self) -> None:
        """Blank amounts above 1,000,000 USD in all frames: only nonsense in a file, added up, comes to that much."""
        paths = {key: run.path for run in self.runs for key in (run.session_id, run.run_id) if key}
        for name, columns in _AMOUNTS.items():
            for row in self.out[name]:
                for column in columns:
                    amount = row.get(column)
                    if amount is None or abs(amount) < _TOO_MUCH:
                        continue
                    row[column] = None
                    whose = row.get("run_id") or row.get("session_id")
                    path = Path(row.get("path") or paths.get(str(whose)) or next(iter(self.runs)).path)
                    detail = f"{name}.{column} comes to {amount:.0f} USD: missing"
                    self.problems.add(Problem(path, "amount_too_large", detail, run_id=row.get("run_id")))

    def _count_problems(self) -> None:
        runs_of_file: dict[str, set[str]] = {}
        for run in self.runs:
            for path in {item.file for item in run.items}:
                runs_of_file.setdefault(str(path), set()).add(run.run_id)
        per_run: Counter[str] = Counter()
        for problem in self.problems:
            named = runs_of_file.get(str(problem.path), set())
            if problem.run_id is None and len(named) == 1:
                problem.run_id = next(iter(named))
            if problem.run_id:
                per_run[problem.run_id] += 1
        for row in self.out["runs"]:
            row["n_problems"] = per_run[row["run_id"]]
        self.out["problems"].extend(_problem_row(problem) for problem in self.problems)


_ANSWERS = ("assistant", "stream_event")


def _beginning(run: Run) -> tuple[Any, ...]:
    """Runs go by their start; those that say no time, by their place in the files."""
    first = (str(run.items[0].file), run.items[0].offset) if run.items else (str(run.path), 0)
    return run.origin is None, run.origin, *first, run.run_id


def _after(run: Run, told: Report, mine: Iterable[Response]) -> bool:
    """Whether responses were recorded after the last result."""
    last = told.last
    if last is None or last.seq is None:
        return False
    return any((response.shares[run.run_id].seq or 0) > last.seq for response in mine)


def _silent(run: Run, mine: Iterable[Response], whole: bool) -> list[Item]:
    """Rows of responses that say in none of their rows what they used; `missing_usage` in `problems` names the file."""
    told = {response.key for response in mine}
    told |= {f"request {response.request_id}" for response in mine if response.request_id}
    # A message may have rows under several requests, of which its response names one.
    told |= {f"request {item.request_id}" for item in run.items if item.request_id and item.key in told}
    return [
        item
        for item in run.items
        if (item.type == "assistant" or (item.type == "stream_event" and (item.key or item.usage)))
        and not item.synthetic
        and item.key not in told
        and (whole or not item.copy)
    ]


def _lone_agents(run: Run) -> bool:
    """Whether the main thread started sub-agents of which no response is recorded."""
    if any(item.sender == "model" and item.agent != "main" for item in run.story):
        return False
    return _calls(run, _AGENT_TOOLS)


def _calls(run: Run, tools: frozenset[str]) -> bool:
    return any(block.name in tools for item in run.story for block in item.blocks)


def _asked(run: Run) -> set[str]:
    """Models that the run's sessions were started with."""
    named = [item.model for item in run.story if item.type == "system" and item.subtype == "init"]
    return {model for model in (*named, as_str(run.meta.get("model"))) if model}


def _problem_row(problem: Problem) -> _Row:
    return {
        "run_id": problem.run_id,
        "path": str(problem.path),
        "line": problem.line,
        "offset": problem.offset,
        "reason": problem.reason,
        "salvaged": problem.salvaged,
        "detail": problem.detail,
    }
