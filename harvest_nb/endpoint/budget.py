"""Adds up what a session spends at its endpoint, through the CLI or past it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from harvest_nb.endpoint.metering import COUNTS, WORDS
from harvest_nb.prices import load_prices

__all__ = ["Budget"]


class Budget:
    """Adds up what answers cost by the package's price table; one of a model without a price costs nothing.

    Args:
        most: US dollars.
    """

    def __init__(self, most: float) -> None:
        self.most, self.spent = Decimal(str(most)), Decimal(0)
        self._prices = load_prices()

    @property
    def is_spent(self) -> bool:
        """Whether more has been spent than the budget."""
        return self.spent > self.most

    def add(self, model: str, usage: Mapping[str, Any]) -> None:
        """Add an answer's usage, by the names of `COUNTS` and `WORDS` of `harvest_nb.endpoint.metering`."""
        prompt = sum(
            usage.get(name, 0) for name in COUNTS if name not in ("output_tokens", "web_search_requests")
        )
        words = {name: usage.get(name) for name in WORDS}
        rates = self._prices.rates(model, prompt_tokens=prompt, **words)
        plain = self._prices.rates(model, prompt_tokens=prompt)
        if rates is None or plain is None:
            return
        for name in COUNTS:
            component = name.removesuffix("_tokens").removesuffix("_requests")
            units = usage.get(name, 0)
            # The speed or the region may have no price of its own.
            cost = rates.cost(component, units)
            self.spent += (plain.cost(component, units) if cost is None else cost) or 0
