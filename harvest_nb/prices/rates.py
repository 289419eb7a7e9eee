"""Prices of one model, and what a model is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

__all__ = ["COMPONENTS", "TOKEN_COMPONENTS", "Rates", "at_most_12", "canonical_model", "undated"]

COMPONENTS = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read", "web_search")
"""What a response is charged for; the first five in tokens, the last in searches."""
TOKEN_COMPONENTS = COMPONENTS[:-1]

_MTOK = Decimal(1_000_000)
_PLACES = -12
_LEAST = Decimal("1e-12")
_KCOUNT = Decimal(1_000)
_LONG = re.compile(r"\[1m\]$", re.IGNORECASE)
_DATED = re.compile(r"-\d{8}$")
_BEDROCK = re.compile(r"^(?:[a-z]{2,6}(?:-[a-z]+)?\.)?anthropic\.(?P<name>.+?)(?:-v\d+(?::\d+)?)?$")


@dataclass(frozen=True)
class Rates:
    """Prices of one model under given conditions.

    USD per million tokens; `web_search` in USD per 1,000 searches. `None`: not known. `source` says
    where the figures are from.
    """

    input: Decimal | None
    output: Decimal | None
    cache_write_5m: Decimal | None
    cache_write_1h: Decimal | None
    cache_read: Decimal | None
    web_search: Decimal | None
    source: str

    def rate(self, component: str) -> Decimal | None:
        """The price of `component` (one of `COMPONENTS`)."""
        value: Decimal | None = getattr(self, component)
        return value

    def cost(self, component: str, units: int) -> Decimal | None:
        """USD for `units` tokens (or searches) of `component`; `None` where units cannot be priced."""
        if units == 0:
            return Decimal(0)
        rate = self.rate(component)
        if rate is None:
            return None
        return at_most_12(rate * units / (_KCOUNT if component == "web_search" else _MTOK))


@lru_cache(maxsize=4096)
def canonical_model(name: str) -> str:
    """The name Anthropic's own API uses: without `[1m]`, Bedrock's frame, Vertex's `@` or a path before it.

    >>> canonical_model("us.anthropic.claude-opus-4-5-20251101-v1:0")
    'claude-opus-4-5-20251101'
    """
    name = _LONG.sub("", name.strip()).rpartition("/")[2]
    bedrock = _BEDROCK.match(name)
    if bedrock:
        name = bedrock["name"]
    return name.removesuffix("@default").replace("@", "-")


def at_most_12(amount: Decimal) -> Decimal:
    """An amount to a millionth of a millionth of a dollar: what columns hold."""
    exponent = amount.as_tuple().exponent
    return amount.quantize(_LEAST) if isinstance(exponent, int) and exponent < _PLACES else amount


def undated(name: str) -> str:
    """A canonical name without the date at its end."""
    return _DATED.sub("", name)
