"""`endpoint_usage`: what passed the proxy before an endpoint, beside what the CLI reports.

Whatever runs in a sandbox can ask the endpoint, and the CLI knows only of what it asked itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harvest_nb.prices import PriceTable
from harvest_nb.tables.costs import priced
from harvest_nb.tables.folder import Run
from harvest_nb.tables.problems import Problem
from harvest_nb.tables.values import as_str, as_total, from_epoch

__all__ = ["endpoint_rows", "note_difference"]

_WRITES = ("cache_write_5m_tokens", "cache_write_1h_tokens")
_TOKENS = ("input_tokens", "output_tokens", *_WRITES, "cache_read_tokens")


def endpoint_rows(run: Run, prices: PriceTable) -> Iterator[dict[str, Any]]:
    """Yield a row for each line of a run folder's `endpoint.jsonl`."""
    for said in run.metered:
        counts = {name: as_total(said.get(name)) or 0 for name in _TOKENS}
        model, time = as_str(said.get("model")), from_epoch(said.get("t"))
        prompt = sum(count for name, count in counts.items() if name != "output_tokens")
        rates = prices.rates(model or "", when=time, prompt_tokens=prompt)
        cost = priced({**counts, "web_search_requests": 0}, rates)
        final = said.get("final") is not False
        yield {
            "run_id": run.run_id,
            "time": time,
            "model": model,
            **counts,
            "is_final": final,
            "cost_usd": cost,
        }


def note_difference(
    run: Run, rows: Sequence[Mapping[str, Any]], results: Iterable[Mapping[str, Any]], notes: list[Problem]
) -> None:
    """Note a problem where the endpoint counted other tokens than the CLI reported.

    Args:
        rows: of `endpoint_usage`.
        results: of `result_usage`; without any nothing was reported, and there is nothing to compare.
    """
    last = [row for row in results if row["is_last"]]
    if not rows or not last:
        return
    pairs = {
        "input": _pair(rows, last, "input_tokens"),
        "output": _pair(rows, last, "output_tokens"),
        "cache write": (
            sum(row[name] for row in rows for name in _WRITES),
            sum(row["cache_write_tokens"] or 0 for row in last),
        ),
        "cache read": _pair(rows, last, "cache_read_tokens"),
    }
    parts = [f"{name} {here:,} against {there:,}" for name, (here, there) in pairs.items() if here != there]
    if parts:
        detail = (
            f"in {len(rows):,} requests the endpoint counted other tokens than the CLI reports ({', '.join(parts)}): "
            "something else in the sandbox asked the model, or an answer was cut short or repeated"
        )
        notes.append(Problem(run.path, "endpoint_usage_differs", detail, run_id=run.run_id))


def _pair(rows: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]], name: str) -> tuple[int, int]:
    return sum(row[name] for row in rows), sum(row[name] or 0 for row in last)
