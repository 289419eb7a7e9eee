"""What a token costs: genai-prices, corrected and completed by `config/prices.toml`.

All amounts are `Decimal`. A model that neither source knows has no price at all (`None`), never 0:
Claude Code itself prices such a model at another model's rates (`costBasis: "unknown"`).
"""

from __future__ import annotations

from harvest_nb.prices.rates import COMPONENTS, Rates, canonical_model
from harvest_nb.prices.table import PriceTable, load_prices

__all__ = ["COMPONENTS", "PriceTable", "Rates", "canonical_model", "load_prices"]
