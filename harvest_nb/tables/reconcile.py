"""Compares reported with counted cost, run by run, and names a reason for every difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from harvest_nb.prices import PriceTable, Rates
from harvest_nb.tables.answered import Asked, Swap, Tokens, bare_name, reassign_to_answering_models, tokens_of
from harvest_nb.tables.costs import UNITEMISED, UNITS, total

__all__ = ["EXPLAINED_BELOW", "REASONS", "TOLERANCE", "Account", "Reconciled", "reconcile"]

TOLERANCE = Decimal("0.000001")
"""USD; the CLI adds up floats."""
EXPLAINED_BELOW = Decimal("0.01")
"""USD; an unexplained difference above it is a row of `problems`."""

_SPECIAL = (("speed", "fast"), ("geo", "us"), ("tier", "batch"))
"""Columns of `usage` and the value with which prices are others than the standard ones."""

REASONS: Mapping[str, str] = {
    "equal": "reported and counted cost agree to a millionth of a dollar",
    "no_result": "the run ended without a result, so nothing was reported",
    "no_rows": "nothing but the result was recorded, so nothing could be counted",
    "count_missing": "a count is missing that the cost depends on",
    "unpriced_model": "the price table has no price for a model that answered",
    "mixed_prices": "a model's responses had different prices, and the result tells them in sum only",
    "cli_price_unknown": "the CLI did not know a model's price and took another model's",
    "rows_after_result": "responses were recorded after the last result and are not in its figures",
    "answered_by_another_model": "another model answered than was asked for: the CLI's price is that of the one asked",
    "background_model": "the CLI used a model that is in no row (titles, summaries, searches)",
    "placeholder_output": "a response has no final row: its output tokens are a placeholder",
    "subagents_not_recorded": "sub-agents worked whose responses are in no row",
    "requests_not_recorded": "the CLI counted more input than the rows show: requests without a row",
    "resumed_process": "the session was resumed: its rows go further back than the figures of the last process",
    "rows_not_in_result": "the rows show more than the CLI counted",
    "price_table_differs": "the tokens agree; the CLI's prices are not this table's",
    "unexplained": "none of the known reasons holds",
}


@dataclass
class Account:
    """Holds the rows and figures from which one run's cost is told.

    Args:
        usage: its rows of `usage`, those that another run counts included.
        results: its rows of `result_usage`.
        reported: `total_cost_usd` of the last result of each process, added up.
        after_result: whether responses were recorded after the last result.
        resumed: whether rows of earlier processes are in the run.
        lone_agents: whether sub-agents were started of which no response is recorded.
        silent: whether a response does not say what it used.
        searched: whether a tool was called that searches the web.
        asked: models that the main thread was started with.
    """

    usage: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    reported: Decimal | None
    after_result: bool
    resumed: bool
    lone_agents: bool
    silent: bool = False
    searched: bool = False
    asked: Collection[str] = ()

    @property
    def last(self) -> list[Mapping[str, Any]]:
        """The last result's rows of each process: these add up.

        Older CLIs do not count searches. Where all that was recorded shows none, there were 0.
        """
        last = [row for row in self.results if row["is_last"]]
        if not self.usage or self.searched or self.lone_agents:
            return last
        if any(row["web_search_requests"] != 0 for row in self.usage):
            return last
        return [{**row, "web_search_requests": row["web_search_requests"] or 0} for row in last]

    @property
    def unfinished(self) -> set[str]:
        """Models of which a response's output is a placeholder."""
        return {bare_name(row["model"]) for row in self.usage if not row["output_final"]}

    @property
    def requests(self) -> Asked:
        """Return the models that were asked, and those that answered."""
        answered = {bare_name(row["model"]) for row in self.usage if row["agent"] == "main"}
        complete = not self.after_result and not self.resumed
        return Asked({bare_name(model) for model in self.asked}, answered, self.unfinished, complete)


@dataclass(frozen=True)
class Reconciled:
    """The costs of one run from three sources, in USD; `None` where a source is silent."""

    rows: Decimal | None
    model_usage: Decimal | None
    reported: Decimal | None
    repriced: Decimal | None
    reason: str
    parts: Mapping[str, Decimal] = field(default_factory=dict)
    """The residual by reason, as far as tokens and prices explain it."""
    unexplained: Decimal | None = None
    """What no reason accounts for, also where another reason is the larger part; None where nothing was reported."""
    missing: Sequence[Mapping[str, Any]] = ()
    """What the result reports and no row shows, as rows of `costs` without their place."""
    swaps: Sequence[Swap] = ()
    """Models that were asked for, and those that answered."""
    uncounted: Sequence[tuple[str, str]] = ()
    """Models and components of which the result leaves the count out, and `missing` has no amount for it."""

    @property
    def residual(self) -> Decimal | None:
        """Reported less counted."""
        return _less(self.reported, self.rows)

    @property
    def residual_tokens(self) -> Decimal | None:
        """The part of the residual due to tokens that the rows do not show, or show in excess."""
        return _less(self.repriced, self.rows)

    @property
    def residual_prices(self) -> Decimal | None:
        """The part of the residual due to prices."""
        return _less(self.reported, self.repriced)


def reconcile(account: Account, prices: PriceTable) -> Reconciled:
    """Set the three figures side by side and find the reason why they differ."""
    last, used, row_counts = account.last, _Used.of(account.usage), tokens_of(account.usage)
    rows = total(row["cost_usd"] for row in account.usage)
    if account.silent and account.reported is None:
        rows = None  # with a result, that says the rest
    model_usage = total(row["cost_usd"] for row in last) if last else None
    as_asked = tokens_of(last)
    result_counts, swaps = (
        reassign_to_answering_models(row_counts, as_asked, account.requests) if last else (as_asked, [])
    )
    repriced = _reprice(result_counts, used, prices) if last else None
    parts: dict[str, Decimal] = {}
    missing: list[dict[str, Any]] = []
    uncounted: list[tuple[str, str]] = []
    for reason, amount, row in _differences(account, row_counts, result_counts, used, prices) if last else ():
        if amount is not None:
            parts[reason] = parts.get(reason, Decimal(0)) + amount
        if row is not None:
            missing.append(row)
    if swaps and repriced is not None:
        asked = _reprice(as_asked, used, prices)
        # Where this table has no price for the model that was asked, the CLI's own figure says it.
        amount = _less(model_usage if asked is None else asked, repriced)
        parts["answered_by_another_model"] = amount or Decimal(0)
    reason, unexplained = _reason(account, used, rows, repriced, model_usage, result_counts, parts)
    more = _less(account.reported, rows)
    if reason == "equal" or rows is None:
        missing = []
    elif (
        not last or (as_asked.missing and not swaps and reason != "cli_price_unknown")
    ) and more is not None:
        # There are no tokens to compare, or not all.
        missing = [_unitemised(more)] if more > TOLERANCE else []
    else:
        uncounted = _left_out(as_asked)
        if more is not None and not swaps and not unexplained and _covers(account, row_counts, result_counts):
            missing = _with_reported_rest(missing, more)
    return Reconciled(
        rows, model_usage, account.reported, repriced, reason, parts, unexplained, missing, swaps, uncounted
    )


def _reason(
    account: Account,
    used: _Used,
    rows: Decimal | None,
    repriced: Decimal | None,
    model_usage: Decimal | None,
    result_counts: Tokens,
    parts: Mapping[str, Decimal],
) -> tuple[str, Decimal | None]:
    """The largest reason, and the USD that none accounts for."""
    reported, last = account.reported, account.last
    if reported is None:
        return "no_result", None
    if any(row["cost_basis"] == "unknown" for row in last):
        return "cli_price_unknown", None
    # A total that is not the sum of its own models has no reason that could be known here.
    drift = reported - model_usage if model_usage is not None else Decimal(0)
    if abs(drift) <= TOLERANCE:
        drift = Decimal(0)
    if not account.usage and reported > TOLERANCE:
        return "no_rows", drift
    if rows is None:
        return _without_cost(tokens_of(account.usage)), drift
    residual = reported - rows
    if abs(residual) <= TOLERANCE:
        return "equal", Decimal(0)
    if account.after_result:
        return "rows_after_result", drift
    if not last:
        reason = _reason_without_tokens(account, residual)
        return reason, residual if reason == "unexplained" else Decimal(0)
    if repriced is None:
        if any(used.given(model) is None for model in result_counts.counts):
            return "mixed_prices", drift
        return _without_cost(result_counts), drift  # of a model that only the result names
    # What the same tokens cost at the CLI's prices and at this table's.
    swapped = parts.get("answered_by_another_model", Decimal(0))
    known = {**parts, "price_table_differs": reported - drift - repriced - swapped}
    unexplained = residual - sum(known.values(), Decimal(0))
    if abs(unexplained) > EXPLAINED_BELOW or not any(known.values()):
        known["unexplained"] = unexplained
    return max(known, key=lambda name: abs(known[name])), unexplained


def _without_cost(tokens: Tokens) -> str:
    return "count_missing" if tokens.missing else "unpriced_model"


def _reason_without_tokens(account: Account, residual: Decimal) -> str:
    """Without `modelUsage` there are no tokens to compare."""
    if residual < 0:
        return "resumed_process" if account.resumed else "unexplained"
    if account.lone_agents and not account.unfinished:
        return "subagents_not_recorded"
    return "placeholder_output" if account.unfinished else "unexplained"


def _differences(
    account: Account, row_counts: Tokens, result_counts: Tokens, used: _Used, prices: PriceTable
) -> Iterator[tuple[str, Decimal | None, dict[str, Any] | None]]:
    """Reason, USD and missing row of every count in which the rows and the result differ."""
    unfinished = account.unfinished
    for model in sorted(row_counts.counts.keys() | result_counts.counts.keys()):
        name = result_counts.names[model]
        rates = used.rates(model, name, prices)
        recorded, reported = (side.counts.get(model, Counter()) for side in (row_counts, result_counts))
        for component, units in UNITS.items():
            more = reported[units] - recorded[units]
            if not more or (model, units) in row_counts.missing | result_counts.missing:
                continue
            reason = _why(account, model, component, more, row_counts, unfinished)
            amount = rates.cost(component, abs(more)) if rates else None
            row = None
            if more > 0:
                row = {
                    "model": name,
                    "component": component,
                    "units": more,
                    "rate_usd": rates.rate(component) if rates else None,
                    "cost_usd": amount,
                    "price_source": rates.source if rates else None,
                }
            yield reason, None if amount is None else amount.copy_sign(more), row


def _why(
    account: Account, model: str, component: str, more: int, row_counts: Tokens, unfinished: Collection[str]
) -> str:
    if more < 0:
        return "resumed_process" if account.resumed else "rows_not_in_result"
    if not account.usage:
        return "no_rows"
    if component == "output" and model in unfinished:
        return "placeholder_output"
    if account.lone_agents:
        return "subagents_not_recorded"
    return "background_model" if model not in row_counts.counts else "requests_not_recorded"


@dataclass(frozen=True)
class _Used:
    """Gathers the time and conditions of each model's rows of `usage`, by its undated name."""

    first: Mapping[str, Any]
    """Time of its first response; that of all models is under the empty name."""
    conditions: Mapping[str, set[tuple[tuple[str, str], ...]]]
    """What made the prices of a model's responses others than the standard ones."""

    @staticmethod
    def of(usage: Sequence[Mapping[str, Any]]) -> _Used:
        first: dict[str, Any] = {}
        conditions: dict[str, set[tuple[tuple[str, str], ...]]] = {}
        for row in usage:
            model = bare_name(row["model"])
            for name in {model, ""} if row["time"] is not None else ():
                first[name] = min(first.get(name, row["time"]), row["time"])
            given = tuple(item for item in _SPECIAL if row[item[0]] == item[1])
            conditions.setdefault(model, set()).add(given)
        return _Used(first, conditions)

    def rates(self, model: str, name: str, prices: PriceTable) -> Rates | None:
        """The prices of all of a model's responses; `None` where they had not the same, or it has none."""
        given = self.given(model)
        when = self.first.get(model, self.first.get(""))
        return None if given is None else prices.rates(name, when=when, **given)

    def given(self, model: str) -> dict[str, Any] | None:
        """Return the conditions that set the prices of a model's responses; `None` where they differ."""
        found = self.conditions.get(model, {()})
        return dict(next(iter(found))) if len(found) == 1 else None


def _reprice(result_counts: Tokens, used: _Used, prices: PriceTable) -> Decimal | None:
    """`modelUsage` at this table's prices; `None` where that cannot be said.

    Its figures are sums over requests, so what depends on the single request is unknown: the premium for
    long prompts, and fast mode where not all were in it.
    """
    amounts: list[Decimal | None] = []
    for model, counter in result_counts.counts.items():
        rates = used.rates(model, result_counts.names[model], prices)
        for component, units in UNITS.items():
            if (model, units) in result_counts.missing:
                return None
            if counter[units]:
                amounts.append(rates.cost(component, counter[units]) if rates else None)
    return total(amounts)


def _left_out(result_counts: Tokens) -> list[tuple[str, str]]:
    """Return the models and components of which a result leaves the count out."""
    names = {units: component for component, units in UNITS.items()}
    return sorted((result_counts.names[model], names[units]) for model, units in result_counts.missing)


def _covers(account: Account, row_counts: Tokens, result_counts: Tokens) -> bool:
    """Return whether the reported cost is at list prices and includes every row."""
    return (
        all(row["cost_basis"] == "list" for row in account.last)
        and not account.after_result
        and not any(
            counter - result_counts.counts.get(model, Counter())
            for model, counter in row_counts.counts.items()
        )
    )


def _with_reported_rest(missing: list[dict[str, Any]], more: Decimal) -> list[dict[str, Any]]:
    """Replace rows without a price by one row with the rest of `more`, unless the priced rows exceed it."""
    priced = [row for row in missing if row["cost_usd"] is not None]
    rest = more - sum((row["cost_usd"] for row in priced), Decimal(0))
    if len(priced) == len(missing) or rest < -TOLERANCE:
        return missing
    models = {row["model"] for row in missing if row["cost_usd"] is None}
    model = {"model": models.pop()} if len(models) == 1 else {}
    return [*priced, {**_unitemised(rest), **model}] if rest > TOLERANCE else priced


def _unitemised(amount: Decimal) -> dict[str, Any]:
    return {"component": UNITEMISED, "cost_usd": amount, "price_source": "total_cost_usd of the result"}


def _less(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return None if left is None or right is None else left - right
