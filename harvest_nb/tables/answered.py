"""Tokens by model, of rows and of results; and which model answered where another was asked for.

A gateway may map models. The CLI counts a response under the model that it asked for, a row names the one that
answered: the result tells more of the one by the same tokens by which the rows show more of the other. That is one
response under two names. It is counted once, at the prices of the model that answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from harvest_nb.prices import canonical_model
from harvest_nb.prices.rates import undated
from harvest_nb.tables.costs import UNITS

__all__ = ["Asked", "Swap", "Tokens", "bare_name", "tokens_of", "under_answers"]

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
    """What is known of the requests.

    Args:
        models: what the main thread was started with.
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


def under_answers(rows: Tokens, told: Tokens, asked: Asked) -> tuple[Tokens, list[Swap]]:
    """The counts that a result tells, under the models that answered; and each swap of models.

    Args:
        rows: the counts of the responses.
        told: those of the result.
        asked: what is known of the requests.
    """
    counts = {model: Counter(counter) for model, counter in told.counts.items()}
    found = Tokens(counts, set(told.missing), set(told.unsplit), {**told.names, **rows.names})
    _split_writes(rows, found)
    swaps = list(_by_tokens(rows, found, asked.unfinished))
    done = {model for swap in swaps for model in (*swap.asked, *swap.answered)}
    swaps += _by_name(rows, found, asked, done)
    _split_writes(rows, found)
    named = [
        Swap(*(tuple(found.names[model] for model in group) for group in (swap.asked, swap.answered)))
        for swap in swaps
    ]
    return found, named


def _by_tokens(rows: Tokens, told: Tokens, unfinished: Collection[str]) -> Iterator[Swap]:
    """Swaps of the fewest models over which the result tells the same tokens as the rows, but not for each."""
    unknown = {model for model, units in rows.missing | told.missing if units in _COMPARED}
    models = (rows.counts.keys() | told.counts.keys()) - unknown - {""}
    found = {model: _less(told.figures(model), rows.figures(model)) for model in sorted(models)}
    more = {
        model: found[model] for model in sorted(found, key=lambda name: -sum(map(abs, found[name])))[:_MOST]
    }
    more = {model: figures for model, figures in more.items() if any(figures)}
    for size in range(2, len(more) + 1):
        for group in combinations(sorted(more), size):
            if not more.keys() >= set(group):
                continue  # a part of it was found meanwhile
            *prompts, output = map(sum, zip(*(more[model] for model in group), strict=True))
            asked = tuple(model for model in group if max(more[model]) > 0)
            answered = tuple(model for model in group if min(more[model]) < 0)
            # A placeholder is less than what the result tells.
            waiting = [model for model in (*answered, *asked) if model in unfinished]
            fits = output == 0 or (output > 0 and waiting and any(any(more[model][:-1]) for model in group))
            if any(prompts) or not fits or not answered:
                continue
            _tell_as_rows(rows, told, (*answered, *(model for model in asked if model not in answered)))
            if output:
                told.counts[waiting[0]]["output_tokens"] += output
            more = {model: figures for model, figures in more.items() if model not in group}
            yield Swap(asked, answered)


def _tell_as_rows(rows: Tokens, told: Tokens, models: _Names) -> None:
    """Let the result tell of `models` what the rows show; searches that it tells beyond them are the first one's."""
    searches = sum(told.counts.get(model, Counter())[_SEARCHES] for model in models)
    silent = any((model, _SEARCHES) in told.missing for model in models)
    for model in models:
        told.counts[model] = Counter(rows.counts.get(model, Counter()))
        searches -= told.counts[model][_SEARCHES]
        told.unsplit.discard(model)
        if silent:
            told.missing.add((model, _SEARCHES))
    told.counts[models[0]][_SEARCHES] += max(searches, 0)


def _by_name(rows: Tokens, told: Tokens, asked: Asked, done: Collection[str]) -> Iterator[Swap]:
    """Swaps of a model that the main thread asked for and others that answered it.

    The tokens may differ then: requests without a row, or rows of a process without a result.
    """
    for name in sorted((set(asked.models) & told.counts.keys()) - set(done)):
        own = rows.counts.get(name, Counter())
        answered = tuple(
            model
            for model in sorted(set(asked.answered) - set(asked.models) - set(done) - {""})
            if any(count > 0 for count in _less(rows.figures(model), told.figures(model)))
            and not (own and model in told.counts)
        )
        if not answered or (own and not asked.complete):
            continue
        before = sum(told.counts[name].values())
        for model in answered:
            _move(rows, told, name, model, everything=len(answered) == 1 and not own)
        if sum(told.counts[name].values()) < before:
            yield Swap((name,), answered)


def _move(rows: Tokens, told: Tokens, name: str, model: str, *, everything: bool) -> None:
    """Tell under `model` what is told of `name` beyond its rows: `everything`, or as much as `model` has rows for."""
    source, target = told.counts[name], told.counts.setdefault(model, Counter())
    for units in UNITS.values():
        part = source[units] - rows.counts.get(name, Counter())[units]
        if not everything:
            part = min(part, rows.counts[model][units] - target[units])
        source[units] -= max(part, 0)
        target[units] += max(part, 0)
        if (name, units) in told.missing:
            told.missing.add((model, units))
    if name in told.unsplit:
        told.unsplit.add(model)


def _split_writes(rows: Tokens, told: Tokens) -> None:
    """Split cache writes that a result tells in sum only as the rows do; the rest was for 5 minutes."""
    five, hour = _WRITES
    for model in told.unsplit:
        counter = told.counts[model]
        whole = counter[five] + counter[hour]
        counter[hour] = min(rows.counts.get(model, Counter())[hour], whole)
        counter[five] = whole - counter[hour]


def _less(left: _Figures, right: _Figures) -> _Figures:
    return left[0] - right[0], left[1] - right[1], left[2] - right[2], left[3] - right[3]
