"""`costs`: what each response cost, component by component, from the price table and in exact decimals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from harvest_nb.prices import COMPONENTS, PriceTable, Rates, canonical_model
from harvest_nb.tables.problems import Problem
from harvest_nb.tables.usage import Response

__all__ = ["UNITEMISED", "UNITS", "Pricer", "cost_rows", "price_usage", "priced", "total"]

UNITS = {name: "web_search_requests" if name == "web_search" else f"{name}_tokens" for name in COMPONENTS}
"""Column of `usage` that holds the units of a component."""
UNITEMISED = "unitemised"
"""Component of an amount that the CLI reported as a sum only."""

_PROMPT = ("input", "cache_write_5m", "cache_write_1h", "cache_read")
_LONGEST = 10**9
_SHARED = ("run_id", "session_id", "message_id", "iteration", "agent", "turn", "model", "time", "is_copy")


class Pricer:
    """Prices rows of `usage`, and notes each model without a price once for each run."""

    def __init__(self, prices: PriceTable) -> None:
        self.prices = prices
        self._unpriced: set[tuple[str, str, str]] = set()

    def add_price(
        self, row: dict[str, Any], response: Response, notes: list[Problem]
    ) -> list[dict[str, Any]]:
        """The rows of `costs` for a row of `usage`, which gets its `cost_usd` and `price_source`."""
        rates = price_usage(row, self.prices)
        rows = list(cost_rows(row, rates))
        row["cost_usd"] = total(item["cost_usd"] for item in rows)
        row["price_source"] = rates.source if rates else None
        # A count that is missing is a problem of its own, told where it was counted.
        counted = None not in (item["units"] for item in rows)
        if not counted and rates is None:
            counted = self.prices.rates(row["model"] or "", when=row["time"]) is None
        missing = next((item["component"] for item in rows if counted and item["cost_usd"] is None), None)
        if missing is not None:
            reason, detail = self._no_price(row, missing)
            spot = (row["run_id"], str(row["model"]), reason)
            if spot not in self._unpriced:
                self._unpriced.add(spot)
                path = response.path or next(iter(response.shares.values())).run.path
                place = (response.line, response.offset)
                notes.append(Problem(path, reason, detail, *place, run_id=row["run_id"]))
        return rows

    def _no_price(self, row: Mapping[str, Any], component: str) -> tuple[str, str]:
        """Reason and detail of a component of a row that has no price."""
        model = row["model"]
        lost = f"no price for {component} of {model or 'a response that names no model'}"
        standard = self.prices.rates(model or "", when=row["time"])
        if row["speed"] == "fast" and standard and standard.rate(component) is not None:
            return "unpriced_fast_mode", (
                f"{lost} in fast mode: its cost is missing, not the standard one. prices.toml has the model's price; "
                f'add [[modifier]] with when = {{ speed = "fast" }}, models = ["{canonical_model(model)}"], '
                'factor and source (factor = "1" if fast mode costs no more)'
            )
        return "unpriced_model", f"{lost}: its cost is missing, not 0"


def cost_rows(row: dict[str, Any], rates: Rates | None) -> Iterator[dict[str, Any]]:
    """Rows of `costs` for a row of `usage`: every component that has units."""
    for component, units in _units(row):
        yield {
            **{key: row[key] for key in _SHARED},
            "component": component,
            "units": units,
            "rate_usd": rates.rate(component) if rates else None,
            "cost_usd": _cost(rates, component, units),
            "is_final": component != "output" or row["output_final"],
            "source": "rows",
            "price_source": rates.source if rates else None,
        }


def price_usage(row: dict[str, Any], prices: PriceTable) -> Rates | None:
    """The rates that hold for a row of `usage`; `None` too where they depend on a count that is missing."""
    given = {"when": row["time"], "speed": row.get("speed"), "geo": row.get("geo"), "tier": row.get("tier")}
    parts = [row[UNITS[part]] for part in _PROMPT]
    least = sum(part or 0 for part in parts)
    rates = prices.rates(row["model"] or "", prompt_tokens=least, **given)
    if None in parts and prices.rates(row["model"] or "", prompt_tokens=_LONGEST, **given) != rates:
        return None
    return rates


def priced(row: Mapping[str, Any], rates: Rates | None) -> Decimal | None:
    """Cost of a row of `usage` or `result_usage` at `rates`; `None` if any of it has no price."""
    return total(_cost(rates, component, units) for component, units in _units(row))


def total(values: Iterable[Decimal | None]) -> Decimal | None:
    """The sum, or `None` if one of them is missing."""
    amount = Decimal(0)
    for value in values:
        if value is None:
            return None
        amount += value
    return amount


def _cost(rates: Rates | None, component: str, units: int | None) -> Decimal | None:
    return rates.cost(component, units) if rates and units is not None else None


def _units(row: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Components and their units, where there are some or nobody knows whether."""
    for component in COMPONENTS:
        units = row[UNITS[component]]
        if units != 0:
            yield component, units
