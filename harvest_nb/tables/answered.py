"""Matches the models that a result names with those that answered.

A gateway may map models. The CLI counts a response under the model that it asked for, a row names the one that
answered: the result tells more of the one by the same tokens by which the rows show more of the other. That is one
response under two names. It is counted once, at the prices of the model that answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

from harvest_nb.prices import canonical_model
from harvest_nb.prices.rates import undated
from harvest_nb.tables.costs import UNITS

__all__ = ["Asked", "Swap", "Tokens", "bare_name", "reassign_to_answering_models", "tokens_of"]

_WRITES = ("cache_write_5m_tokens", "cache_write_1h_tokens")
_COMPARED = ("input_tokens", *_WRITES, "cache_read_tokens", "output_tokens")
_SEARCHES = UNITS["web_search"]
_MOST = 10
"""Models that are tried together; a forged result may name thousands."""

_Figures = tuple[int, int, int, int]
"""Input, cache writes of both kinds, cache reads, output."""
_Names = tuple[str, ...]


@dataclass(frozen=True)
class Tokens:
    """Counts by model, under its undated name: a response may name a date that the request did not."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By column of `usage`."""
    missing: set[tuple[str, str]] = field(default_factory=set)
    """Models and columns of which a row leaves the count out."""
    unsplit: set[str] = field(default_factory=set)
    """Models of which a row has cache writes in sum only; they count as for 5 minutes."""
    names: dict[str, str] = field(default_factory=dict)
    """Names as they were given."""

    def figures(self, model: str) -> _Figures:
        """The counts of `model` by which the same responses are known under another name."""
        found = self.counts.get(model, Counter())
        written = sum(found[units] for units in _WRITES)
        return found["input_tokens"], written, found["cache_read_tokens"], found["output_tokens"]


@dataclass(frozen=True)
class Asked:
    """Holds the models that were asked, and those that answered.

    Args:
        models: models that the main thread was started with.
        answered: models that answered the main thread.
        unfinished: models of which a response has a placeholder for its output.
        complete: whether the result covers all rows: none are of earlier processes, or came after it.
    """

    models: Collection[str]
    answered: Collection[str]
    unfinished: Collection[str]
    complete: bool


@dataclass(frozen=True)
class Swap:
    """Models that were asked for, and those that answered in their place."""

    asked: _Names
    answered: _Names


def bare_name(model: str | None) -> str:
    """The name of a model without its date, and without what clouds put around it."""
    return undated(canonical_model(model or ""))


def tokens_of(rows: Sequence[Mapping[str, Any]]) -> Tokens:
    """The counts of rows of `usage` or of `result_usage`."""
    found = Tokens()
    for row in rows:
        model = bare_name(row["model"])
        found.names[model] = row["model"] or ""
        figures = dict(row)
        if all(row[units] is None for units in _WRITES) and row.get("cache_write_tokens") is not None:
            # An older CLI's `modelUsage`.
            figures |= dict(zip(_WRITES, (row["cache_write_tokens"], 0), strict=True))
            found.unsplit.add(model)
        counter = found.counts.setdefault(model, Counter())
        for units in UNITS.values():
            counter[units] += figures[units] or 0
            if figures[units] is None:
                found.missing.add((model, units))
    return found


def reassign_to_answering_models(
    row_counts: Tokens, result_counts: Tokens, asked: Asked
) -> tuple[Tokens, list[Swap]]:
    """Return the result's counts under the models that answered, and each swap of models.

    Args:
        row_counts: the counts of the responses.
        result_counts: those of the result.
        asked: what is known of the requests.
    """
    counts = {model: Counter(counter) for model, counter in result_counts.counts.items()}
    found = Tokens(
        counts,
        set(result_counts.missing),
        set(result_counts.unsplit),
        {**result_counts.names, **row_counts.names},
    )
    _split_writes(row_counts, found)
    swaps = list(_by_tokens(row_counts, found, asked.unfinished))
    done = {model for swap in swaps for model in (*swap.asked, *swap.answered)}
    swaps += _by_name(row_counts, found, asked, done)
    _split_writes(row_counts, found)
    named = [
        Swap(*(tuple(found.names[model] for model in group) for group in (swap.asked, swap.answered)))
        for swap in swaps
    ]
    return found, named


def _by_tokens(row_counts: Tokens, result_counts: Tokens, unfinished: Collection[str]) -> Iterator[Swap]:
    """Yield swaps of the fewest models over which the result tells the same tokens as the rows, but not for each.

    Of as many models, those come first whose output is the same without taking a placeholder for more.
    """
    unknown = {model for model, units in row_counts.missing | result_counts.missing if units in _COMPARED}
    models = (row_counts.counts.keys() | result_counts.counts.keys()) - unknown - {""}
    found = {
        model: _less(result_counts.figures(model), row_counts.figures(model)) for model in sorted(models)
    }
    more = {
        model: found[model] for model in sorted(found, key=lambda name: -sum(map(abs, found[name])))[:_MOST]
    }
    more = {model: figures for model, figures in more.items() if any(figures)}
    for size, exact in product(range(2, len(more) + 1), (True, False)):
        for group in combinations(sorted(more), size):
            if not more.keys() >= set(group):
                continue  # a part of it was found meanwhile
            *prompts, output = map(sum, zip(*(more[model] for model in group), strict=True))
            asked = tuple(model for model in group if max(more[model]) > 0)
            answered = tuple(model for model in group if min(more[model]) < 0)
            # A placeholder is less than what the result tells.
            waiting = [model for model in (*answered, *asked) if model in unfinished]
            late = output > 0 and waiting and any(any(more[model][:-1]) for model in group)
            if any(prompts) or not answered or not (output == 0 if exact else late):
                continue
            _take_row_counts(
                row_counts, result_counts, (*answered, *(model for model in asked if model not in answered))
            )
            if output:
                result_counts.counts[waiting[0]]["output_tokens"] += output
            more = {model: figures for model, figures in more.items() if model not in group}
            yield Swap(asked, answered)


def _take_row_counts(row_counts: Tokens, result_counts: Tokens, models: _Names) -> None:
    """Replace the result's counts of `models` by the rows' counts; add surplus searches to the first."""
    searches = sum(result_counts.counts.get(model, Counter())[_SEARCHES] for model in models)
    silent = any((model, _SEARCHES) in result_counts.missing for model in models)
    for model in models:
        result_counts.counts[model] = Counter(row_counts.counts.get(model, Counter()))
        searches -= result_counts.counts[model][_SEARCHES]
        result_counts.unsplit.discard(model)
        if silent:
            result_counts.missing.add((model, _SEARCHES))
    result_counts.counts[models[0]][_SEARCHES] += max(searches, 0)


def _by_name(
    row_counts: Tokens, result_counts: Tokens, asked: Asked, done: Collection[str]
) -> Iterator[Swap]:
    """Yield swaps of a model that the main thread asked for and others that answered it.

    The tokens may differ then: requests without a row, or rows of a process without a result.
    """
    for name in sorted((set(asked.models) & result_counts.counts.keys()) - set(done)):
        own = row_counts.counts.get(name, Counter())
        answered = tuple(
            model
            for model in sorted(set(asked.answered) - set(asked.models) - set(done) - {""})
            if any(count > 0 for count in _less(row_counts.figures(model), result_counts.figures(model)))
            and not (own and model in result_counts.counts)
        )
        if not answered or (own and not asked.complete):
            continue
        before = sum(result_counts.counts[name].values())
        for model in answered:
            _move(row_counts, result_counts, name, model, everything=len(answered) == 1 and not own)
        if sum(result_counts.counts[name].values()) < before:
            yield Swap((name,), answered)


def _move(row_counts: Tokens, result_counts: Tokens, name: str, model: str, *, everything: bool) -> None:
    """Move the result's surplus of `name` to `model`: `everything`, or as much as `model` has rows for."""
    source, target = result_counts.counts[name], result_counts.counts.setdefault(model, Counter())
    for units in UNITS.values():
        part = source[units] - row_counts.counts.get(name, Counter())[units]
        if not everything:
            part = min(part, row_counts.counts[model][units] - target[units])
        source[units] -= max(part, 0)
        target[units] += max(part, 0)
        if (name, units) in result_counts.missing:
            result_counts.missing.add((model, units))
    if name in result_counts.unsplit:
        result_counts.unsplit.add(model)


def _split_writes(row_counts: Tokens, result_counts: Tokens) -> None:
    """Split cache writes that a result tells in sum only as the rows do; the rest was for 5 minutes."""
    five, hour = _WRITES
    for model in result_counts.unsplit:
        counter = result_counts.counts[model]
        whole = counter[five] + counter[hour]
        counter[hour] = min(row_counts.counts.get(model, Counter())[hour], whole)
        counter[five] = whole - counter[hour]


def _less(left: _Figures, right: _Figures) -> _Figures:
    return left[0] - right[0], left[1] - right[1], left[2] - right[2], left[3] - right[3]
