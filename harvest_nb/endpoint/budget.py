"""Adds up what a session spends at its endpoint, through the CLI or past it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

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

    def add(self, model: str, counts: Mapping[str, int]) -> None:
        """Add an answer's counts, by the names of `harvest_nb.endpoint.metering.COUNTS`."""
        prompt = sum(count for name, count in counts.items() if name != "output_tokens")
        rates = self._prices.rates(model, prompt_tokens=prompt)
        if rates is None:
            return
        for name, count in counts.items():
            self.spent += rates.cost(name.removesuffix("_tokens"), count) or 0
