"""Tabulates the endpoint proxy's usage and compares it with the CLI's.

Whatever runs in a sandbox can ask the endpoint, and the CLI knows only of what it asked itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harvest_nb.prices import PriceTable
from harvest_nb.tables.costs import price_usage, priced
from harvest_nb.tables.folder import Run
from harvest_nb.tables.problems import Problem
from harvest_nb.tables.values import as_str, as_total, from_epoch

__all__ = ["endpoint_rows", "note_difference"]

_WRITES = ("cache_write_5m_tokens", "cache_write_1h_tokens")
_TOKENS = ("input_tokens", "output_tokens", *_WRITES, "cache_read_tokens")


def endpoint_rows(run: Run, prices: PriceTable, notes: list[Problem]) -> Iterator[dict[str, Any]]:
    """Yield a row for each line of a run folder's `endpoint.jsonl`, and note each count that is none.

    The proxy leaves out the counts that an answer does not name: these are 0.
    """
    for path, line in run.metered:
        counts = {name: as_total(line.value.get(name, 0)) for name in (*_TOKENS, "web_search_requests")}
        for name in (name for name, count in counts.items() if count is None):
            detail = f"{name} is {str(line.value[name])[:40]}: no count, so it is taken as missing"
            notes.append(Problem(path, "bad_count", detail, line.number, line.offset, run_id=run.run_id))
        row = {
            "model": as_str(line.value.get("model")),
            "time": from_epoch(line.value.get("t")),
            **counts,
            **{name: as_str(line.value.get(name)) for name in ("speed", "geo", "tier")},
            "is_final": line.value.get("final") is not False,
        }
        cost = priced(row, price_usage(row, prices))
        yield {"run_id": run.run_id, **row, "cost_usd": cost}


def note_difference(
    run: Run, rows: Sequence[Mapping[str, Any]], results: Iterable[Mapping[str, Any]], notes: list[Problem]
) -> None:
    """Note a problem where the endpoint counted other tokens or searches than the CLI reported.

    Args:
        rows: of `endpoint_usage`.
        results: of `result_usage`; without any nothing was reported, and there is nothing to compare.
    """
    last = [row for row in results if row["is_last"]]
    if not rows or not last:
        return
    columns = {
        "input": (("input_tokens",), "input_tokens"),
        "output": (("output_tokens",), "output_tokens"),
        "cache write": (_WRITES, "cache_write_tokens"),
        "cache read": (("cache_read_tokens",), "cache_read_tokens"),
        "web searches": (("web_search_requests",), "web_search_requests"),
    }
    parts: list[str] = []
    for name, (metered, reported) in columns.items():
        here, there = _sum(rows, *metered), _sum(last, reported)
        if name == "web searches" and not here:
            continue  # an older recording has no such count
        if here is not None and there is not None and here != there:
            parts.append(f"{name} {here:,} against {there:,}")
    if parts:
        detail = (
            f"in {len(rows):,} requests the endpoint counted otherwise than the CLI reports ({', '.join(parts)}): "
            "something else in the sandbox asked the model, or an answer was cut short or repeated"
        )
        notes.append(Problem(run.path, "endpoint_usage_differs", detail, run_id=run.run_id))


def _sum(rows: Sequence[Mapping[str, Any]], *names: str) -> int | None:
    """Return the sum of columns of `rows`; `None` where a count is missing, and nothing can be compared."""
    counts = [row[name] for row in rows for name in names]
    return None if None in counts else sum(counts)
