"""`result_usage`: what the CLI says it all came to.

Figures grow within a process. What the next process of the session begins with depends on the version: 0, or
(seen with 2.1.330) all that the session and those it was forked from have cost before, which its transcript
keeps as `cost-state`. `model_usage_since_last_result`, where a result has it, tells the two apart. A result that
was printed alone (`--output-format json`) has it not: what it carries can be told where the result before it is
loaded too, or where its own `usage` is all there is; else it is a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from operator import le
from typing import Any

from harvest_nb.tables.folder import Run
from harvest_nb.tables.items import Item
from harvest_nb.tables.usage import counts
from harvest_nb.tables.values import as_dict, as_str, as_total, as_usd, to_json

__all__ = ["Report", "Told", "odd_figures", "report", "result_rows"]

_MORE = ("cacheCreationEphemeral5mInputTokens", "cacheCreationEphemeral1hInputTokens", "webSearchRequests")
_KEYS = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")

_NOISE = Decimal("0.000001")

_Carried = Mapping[str, Mapping[str, Any]]
"""Figures of `modelUsage` by model."""
_Sums = tuple[int, ...]
"""Tokens of all models, as `_KEYS` have them."""


@dataclass(frozen=True)
class Told:
    """One result: its process, from 1, and what that process carried over from earlier ones, by model."""

    item: Item
    process: int
    carried: _Carried


@dataclass(frozen=True)
class Report:
    """What the results of one run report in all, less what was carried over; `None` where they are silent."""

    cost: Decimal | None
    processes: int
    results: tuple[Told, ...]
    unclear: tuple[Item, ...] = ()
    """Results whose figures may hold what earlier processes cost."""

    @property
    def last(self) -> Item | None:
        """The last result."""
        return self.results[-1].item if self.results else None

    @property
    def lone_state(self) -> bool:
        """Whether all there is comes from a transcript's `cost-state`, which a fork takes along."""
        return all(told.item.type == "cost-state" for told in self.results)


def report(run: Run) -> Report:
    """The results of `run` by CLI process.

    A new process shows by the SDK's `initialize` request after messages of the old one, by the result's own
    number, by a figure that has become smaller, or by figures that fit the responses since the last result
    without the earlier ones.
    """
    alone = _alone(run)
    if alone:
        return _told_alone(alone)
    results: list[Told] = []
    costs: dict[int, Decimal] = {}
    process, heard, before = 1, False, None
    carried: _Carried = {}
    since: set[str] = set()
    prompted = 0
    for item in _once(run):
        if item.type == "control_request" and item.subtype == "initialize" and heard:
            process, heard, before, prompted = process + 1, False, None, 0
            since.clear()
        heard = heard or item.dir != "out"
        if item.type == "assistant" and item.usage and item.key and item.key not in since:
            since.add(item.key)
            prompted += _prompt_tokens(item)
        if item.type not in ("result", "cost-state") or not item.whole:
            continue
        if before is not None and _begins_again(before, item, prompted):
            process, before = process + 1, None
        if before is None:
            carried = _carried(item)
        before, prompted = item, 0
        since.clear()
        results.append(Told(item, process, carried))
        cost = _since(as_usd(item.whole.get("total_cost_usd")), _cost_of(carried))
        if cost is not None:
            costs[process] = cost
    whole = sum(costs.values(), Decimal(0)) if costs else None
    return Report(whole, process, tuple(results))


def _alone(run: Run) -> list[Item]:
    """Results without the stream they are of, all of a version that carries over and does not say how much."""
    found: list[Item] = []
    for item in _once(run):
        if item.seq is not None or (item.usage and item.source == "stream"):
            return []
        if item.type == "result" and item.whole:
            first = not as_total(item.whole.get("result_index"))
            silent = "model_usage_since_last_result" not in item.whole and "subagent_stats" in item.whole
            if not (first and silent and as_dict(item.whole.get("modelUsage"))):
                return []
            found.append(item)
    return found


def _told_alone(alone: list[Item]) -> Report:
    """Each is a process, and holds what those before it in its session cost; nothing says their order but that."""

    def size(item: Item) -> tuple[Decimal, int, str]:
        models = as_dict(item.whole.get("modelUsage"))
        return as_usd(item.whole.get("total_cost_usd")) or Decimal(0), _prompts(models), to_json(item.whole)

    results: list[Told] = []
    unclear: list[Item] = []
    costs: list[Decimal] = []
    # What each may have been resumed with, by its tokens in all; nothing, in a session that began anew.
    nothing: _Sums = (0,) * len(_KEYS)
    known: list[tuple[_Sums, _Carried]] = [(nothing, {})]
    by_sum: dict[_Sums, list[tuple[_Sums, _Carried]]] = {nothing: known[:]}
    for item in sorted(alone, key=size):
        models = as_dict(item.whole.get("modelUsage"))
        sums, own = _sums(models), _own_tokens(item)
        before = None if own is None else tuple(whole - mine for whole, mine in zip(sums, own, strict=True))
        # Of what it may hold, that which leaves what its own main thread used; else the largest.
        fitting = by_sum.get(before, ()) if before is not None else ()
        carried = next(
            older
            for its, older in chain(reversed(fitting), reversed(known))
            if all(map(le, its, sums)) and _holds(models, older)
        )
        if _sums(carried) != before:
            unclear.append(item)
        results.append(Told(item, len(results) + 1, carried))
        figures = {model: _figures(as_dict(usage)) for model, usage in models.items()}
        known.append((sums, figures))
        by_sum.setdefault(sums, []).append(known[-1])
        cost = _since(as_usd(item.whole.get("total_cost_usd")), _cost_of(carried))
        if cost is not None:
            costs.append(cost)
    whole = sum(costs, Decimal(0)) if costs else None
    return Report(whole, len(results), tuple(results), tuple(unclear))


def _sums(models: Mapping[str, Any]) -> _Sums:
    return tuple(sum(as_total(as_dict(usage).get(key)) or 0 for usage in models.values()) for key in _KEYS)


def _own_tokens(item: Item) -> _Sums | None:
    """Return the tokens of a result's own main thread, in the order of `_KEYS`; `None` if one is missing."""
    found = counts(as_dict(item.whole.get("usage")))
    own = [found[key] for key in ("input_tokens", "output_tokens", "cache_read_tokens")]
    written = [found[key] for key in ("cache_write_5m_tokens", "cache_write_1h_tokens")]
    known = [count for count in (*own, *written) if count is not None]
    return (*known[:3], known[3] + known[4]) if len(known) == 5 else None


def _holds(models: Mapping[str, Any], older: _Carried) -> bool:
    return not any(_smaller(as_dict(older[model]), as_dict(models.get(model))) for model in older)


def _figures(usage: dict[str, Any]) -> dict[str, Any]:
    known = {key: as_total(usage.get(key)) or 0 for key in (*_KEYS, *_MORE)}
    return {**known, "costUSD": str(as_usd(usage.get("costUSD")) or Decimal(0))}


def _since(cost: Decimal | None, older: Decimal) -> Decimal | None:
    """Return the amount added since `older`; `None` where it is less by more than the CLI's floats may be off."""
    return None if cost is None or older - cost > _NOISE else max(cost - older, Decimal(0))


def _cost_of(carried: _Carried) -> Decimal:
    return sum((as_usd(figures["costUSD"]) or Decimal(0) for figures in carried.values()), Decimal(0))


def _carried(first: Item) -> dict[str, dict[str, Any]]:
    """Return the figures that the first result of a process carried over from earlier ones, by model."""
    step = first.whole.get("model_usage_since_last_result")
    if not isinstance(step, dict):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for model, usage in as_dict(first.whole.get("modelUsage")).items():
        mine = as_dict(step.get(model))
        older = {
            key: (as_total(as_dict(usage).get(key)) or 0) - (as_total(mine.get(key)) or 0)
            for key in (*_KEYS, *_MORE)
        }
        cost = (as_usd(as_dict(usage).get("costUSD")) or Decimal(0)) - (
            as_usd(mine.get("costUSD")) or Decimal(0)
        )
        if any(count > 0 for count in older.values()) and min(older.values()) >= 0:
            found[model] = {**older, "costUSD": str(max(cost, Decimal(0)))}
    return found


def _once(run: Run) -> Iterable[Item]:
    """The story without copies of results; a transcript's `cost-state` counts where there is no result."""
    streamed = any(item.type == "result" for item in run.story)
    seen: set[str] = set()
    for item in run.story:
        if item.type == "cost-state" and streamed:
            continue
        if item.type in ("result", "cost-state"):
            spelled = item.uuid or to_json(item.whole)
            if spelled in seen:
                continue
            seen.add(spelled)
        yield item


def _begins_again(before: Item, item: Item, prompted: int) -> bool:
    if item.type == "cost-state":
        return False  # the CLI restores it when a session is resumed
    number = as_total(item.whole.get("result_index"))
    if number is not None:
        return number == 0
    old, new = (as_dict(one.whole.get("modelUsage")) for one in (before, item))
    if old and new:
        if any(_smaller(as_dict(old[model]), as_dict(new.get(model))) for model in old):
            return True
        grown, whole = _prompts(new) - _prompts(old), _prompts(new)
        if prompted > 0:
            return abs(whole - prompted) < abs(grown - prompted)
    cost, total = (as_usd(one.whole.get("total_cost_usd")) for one in (before, item))
    if cost is not None and total is not None and total < cost:
        return True
    # Single results of one session, in files of their own: processes, unless of a version that carries over.
    return prompted == 0 and item.file != before.file and "subagent_stats" not in item.whole


def _smaller(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return any((as_total(new.get(key)) or 0) < (as_total(old.get(key)) or 0) for key in _KEYS)


def _prompts(models: dict[str, Any]) -> int:
    keys = [key for key in _KEYS if key != "outputTokens"]
    return sum(as_total(as_dict(usage).get(key)) or 0 for usage in models.values() for key in keys)


def _prompt_tokens(item: Item) -> int:
    found = counts(item.usage or {})
    keys = ("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")
    return sum(found[key] or 0 for key in keys)


def odd_figures(result: Item) -> Iterator[tuple[str, str]]:
    """Reason and detail of every figure in a result that cannot be one: below nothing, or more than anything costs."""
    told = result.whole
    amounts = [("total_cost_usd", told.get("total_cost_usd"))]
    for model, usage in as_dict(told.get("modelUsage")).items():
        amounts.append((f"costUSD of {model}", as_dict(usage).get("costUSD")))
        for key in (*_KEYS, *_MORE):
            count = as_dict(usage).get(key)
            if count is not None and as_total(count) is None:
                yield (
                    "bad_count",
                    f"{key} of {model} is {str(count)[:40]}: no count, so it is taken as missing",
                )
    for name, amount in amounts:
        if amount is not None and as_usd(amount) is None:
            yield "bad_amount", f"{name} is {str(amount)[:40]}: no amount of USD, so it is taken as missing"


def result_rows(run: Run, told: Report) -> list[dict[str, Any]]:
    """Rows of `result_usage`: one per result and model. A result without `modelUsage` gives none."""
    rows: list[dict[str, Any]] = []
    before: dict[str, Decimal] = {}
    current = 0
    for number, one in enumerate(told.results):
        item = one.item
        if one.process != current:
            current, before = one.process, {}
        for model, usage in as_dict(item.whole.get("modelUsage")).items():
            carried = one.carried.get(model, {})
            older = as_usd(carried.get("costUSD")) or Decimal(0)
            own = _since(as_usd(as_dict(usage).get("costUSD")), older)
            rows.append(
                {
                    "run_id": run.run_id,
                    "seq": item.seq,
                    "path": str(item.file),
                    "line": item.line,
                    "result": number,
                    "process": one.process,
                    "is_last": False,
                    "subtype": item.subtype or item.type.replace("-", "_"),
                    "model": model,
                    **_result_counts(as_dict(usage), carried),
                    "cost_usd": own,
                    "cost_step_usd": None if own is None else own - before.get(model, Decimal(0)),
                    "cost_carried_usd": older,
                    "cost_basis": as_str(as_dict(usage).get("costBasis")),
                }
            )
            before[model] = own or Decimal(0)
    last = {row["process"]: row["result"] for row in rows}
    for row in rows:
        row["is_last"] = last[row["process"]] == row["result"]
    return rows


def _result_counts(usage: dict[str, Any], carried: Mapping[str, Any]) -> dict[str, int | None]:
    def since(key: str) -> int | None:
        count, older = as_total(usage.get(key)), int(carried.get(key, 0))
        return None if count is None or count < older else count - older

    return {
        "input_tokens": since("inputTokens"),
        "output_tokens": since("outputTokens"),
        "cache_write_5m_tokens": since("cacheCreationEphemeral5mInputTokens"),
        "cache_write_1h_tokens": since("cacheCreationEphemeral1hInputTokens"),
        "cache_write_tokens": since("cacheCreationInputTokens"),
        "cache_read_tokens": since("cacheReadInputTokens"),
        "web_search_requests": since("webSearchRequests"),
    }
