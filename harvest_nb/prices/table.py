"""The price table: which figure holds for a response, of the overrides and of genai-prices."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from genai_prices import types as genai
from genai_prices.data_snapshot import get_snapshot

from harvest_nb.paths import config_dir
from harvest_nb.prices.overrides import Modifier, Overrides, read_overrides
from harvest_nb.prices.rates import COMPONENTS, TOKEN_COMPONENTS, Rates, at_most_12, canonical_model, undated

__all__ = ["PriceTable", "load_prices"]

_GENAI_KEYS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_write_5m": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "cache_read": "cache_read_mtok",
    "web_search": "web_searches_kcount",
}
# What may follow a name that genai-prices matches by its beginning; anything else is another model
# ("claude-opus-4-10" is no "claude-opus-4-1"). The bare digits end a date that its table cut short.
_TAIL = re.compile(r"(?:-v\d+)?(?:-latest|-\d{8}|-\d{4}-\d\d-\d\d|\d{4})?(?:-v\d+)?")
_CACHED = 4096
"""Models and days whose prices are kept; the length of a prompt is no part of it."""

_Listed = tuple[Mapping[str, "Decimal | genai.TieredPrices | None"], str]


class PriceTable:
    """Prices by model, date and conditions; made by `load_prices`."""

    def __init__(self, overrides: Overrides) -> None:
        self._overrides = overrides
        self.edition = overrides.version
        self._package = f"genai-prices {installed_version('genai-prices')}"
        self.version = f"{self._package} + overrides {self.edition}"
        self._listed = lru_cache(maxsize=_CACHED)(self._from_genai)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every price this table can give, first 16 hexadecimal digits."""
        hasher = hashlib.sha256(self._overrides.raw)
        for model in sorted(_anthropic().models, key=lambda item: item.id):
            hasher.update(repr((model.id, model.match, model.prices, model.price_variants)).encode())
        return hasher.hexdigest()[:16]

    def rates(
        self,
        model: str,
        *,
        when: datetime | None = None,
        prompt_tokens: int = 0,
        speed: str | None = None,
        geo: str | None = None,
        tier: str | None = None,
    ) -> Rates | None:
        """The prices of one response, or `None` for a model that is not known.

        Args:
            model: as the response names it, in any form `canonical_model` takes.
            when: the time of the request, in UTC where it names no zone; prices change. Default: now.
            prompt_tokens: input, cache writes and cache reads together: some models cost more
                beyond a size, and then for the whole request.
            speed: `usage.speed`; `"fast"` costs more. Of an overridden model its tokens have no price
                (`None`) unless a modifier says one: what genai-prices has goes with the price it replaces.
            geo: `usage.inference_geo`; `"us"` costs more.
            tier: `usage.service_tier`; `"batch"` costs less.
        """
        name = canonical_model(model)
        conditions = {"speed": speed or "", "geo": geo or "", "tier": tier or ""}
        moment = when or datetime.now(UTC)
        # A time without a zone is UTC, as everywhere here, and not this machine's.
        day = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).date()
        rates = self._override(name, day)
        if rates is not None:
            return self._modified(name, rates, conditions, needs_speed=conditions["speed"] == "fast")
        listed = self._listed(name, day, conditions["speed"])
        return self._modified(name, _for_prompt(listed, prompt_tokens), conditions) if listed else None

    def models(self) -> list[str]:
        """Every model that has a price, by the name of the table that has it."""
        listed = {item.name for item in self._overrides.models}
        listed.update(model.id for model in _anthropic().models)
        return sorted(listed)

    def modifiers(self) -> list[dict[str, str]]:
        """What the overrides multiply prices by: condition, models, factor, source."""
        return [
            {
                "when": ", ".join(f"{key}={value}" for key, value in item.when.items()),
                "models": ", ".join(sorted(item.models)) if item.models is not None else "all",
                "factor": f"{item.factor:f}",
                "source": f"prices.toml: {item.source}",
            }
            for item in self._overrides.modifiers
        ]

    def age_days(self, today: date | None = None) -> int | None:
        """Days since the overrides were last set against the CLI's own accounting; `None` without a date."""
        try:
            edition = date.fromisoformat(self.edition)
        except ValueError:
            return None
        return ((today or datetime.now(UTC).date()) - edition).days

    def rows(self, when: datetime | None = None) -> list[dict[str, Any]]:
        """The table itself: every model, and every condition under which its prices are others.

        Args:
            when: prices of that day. Default: now.
        """
        found: list[dict[str, Any]] = []
        for model in self.models():
            base = self.rates(model, when=when)
            if base is None:
                continue
            found.append(_row(model, "", base))
            shown = {_figures(base)}
            for condition, given in _CONDITIONS.items():
                rates = self.rates(model, when=when, **given)
                if rates is not None and _figures(rates) not in shown:
                    shown.add(_figures(rates))
                    found.append(_row(model, condition, rates))
        return found

    def _override(self, name: str, day: date) -> Rates | None:
        """The entry for just this name before one for its undated form, then the one that began last."""
        for wanted in dict.fromkeys((name, undated(name))):
            holding = [
                item
                for item in self._overrides.models
                if item.name == wanted and (item.start is None or item.start <= day)
            ]
            if holding:
                return max(holding, key=lambda item: item.start or date.min).rates
        return None

    def _modified(
        self, name: str, rates: Rates, conditions: Mapping[str, str], *, needs_speed: bool = False
    ) -> Rates:
        """Prices under all conditions that hold; for each the modifier that names the model most closely.

        `needs_speed`: without a modifier for the speed, tokens have no price.
        """
        chosen: dict[tuple[tuple[str, str], ...], tuple[int, Modifier]] = {}
        for item in self._overrides.modifiers:
            if any(conditions.get(key) != value for key, value in item.when.items()):
                continue
            names = item.models
            close = 0 if names is None else 2 if name in names else 1 if undated(name) in names else None
            when = tuple(sorted(item.when.items()))
            if close is not None and (when not in chosen or close > chosen[when][0]):
                chosen[when] = (close, item)
        for _, (_, item) in sorted(chosen.items(), key=lambda entry: entry[0]):
            scaled = {
                part: at_most_12(value * item.factor)
                for part in TOKEN_COMPONENTS
                if (value := rates.rate(part)) is not None
            }
            rates = replace(rates, **scaled, source=f"{rates.source}; x{item.factor}")
        if needs_speed and not any("speed" in item.when for _, item in chosen.values()):
            source = f"{rates.source}; no modifier for speed={conditions['speed']}"
            return replace(rates, **dict.fromkeys(TOKEN_COMPONENTS), source=source)
        return rates

    def _from_genai(self, name: str, day: date, speed: str) -> _Listed | None:
        try:
            _, model = get_snapshot().find_provider_model(name, None, "anthropic", None)
        except LookupError:
            return None
        if not _is_that_model(model, name):
            return None
        context = {"speed": speed} if speed == "fast" else {}
        moment = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        prices = model.get_prices(moment, context or None)
        values = {part: getattr(prices, key, None) for part, key in _GENAI_KEYS.items()}
        return values, f"{self._package}: {model.id}"


_CONDITIONS: Mapping[str, dict[str, Any]] = {
    "prompt > 100k": {"prompt_tokens": 100_001},
    "prompt > 200k": {"prompt_tokens": 200_001},
    "fast": {"speed": "fast"},
    "batch": {"tier": "batch"},
    "us": {"geo": "us"},
}


def _figures(rates: Rates) -> tuple[Decimal | None, ...]:
    return tuple(rates.rate(component) for component in COMPONENTS)


def _row(model: str, when: str, rates: Rates) -> dict[str, Any]:
    figures = dict(zip(COMPONENTS, _figures(rates), strict=True))
    return {"model": model, "when": when, **figures, "source": rates.source}


def load_prices(path: Path | None = None) -> PriceTable:
    """The price table, with the overrides of `path` (default: `config/prices.toml`).

    Raises:
        SettingsError: the file is missing, is not TOML, or has an entry that is not a price, or that could
            be taken instead of another; names the file, the entry and the key.
    """
    return PriceTable(read_overrides(path or config_dir() / "prices.toml"))


def _anthropic() -> genai.Provider:
    return next(provider for provider in get_snapshot().providers if provider.id == "anthropic")


def _is_that_model(model: genai.ModelInfo, name: str) -> bool:
    for clause in getattr(model.match, "or_", [model.match]):
        if not clause.is_match(name):
            continue
        if not isinstance(clause, genai.ClauseStartsWith) or _TAIL.fullmatch(name[len(clause.starts_with) :]):
            return True
    return False


def _for_prompt(listed: _Listed, prompt_tokens: int) -> Rates:
    values, source = listed
    return Rates(**{part: _at(value, prompt_tokens) for part, value in values.items()}, source=source)


def _at(price: Decimal | genai.TieredPrices | None, prompt_tokens: int) -> Decimal | None:
    """The price of a model's whole request, which hangs on how long its prompt is."""
    if isinstance(price, genai.TieredPrices):
        reached = [tier for tier in price.tiers if prompt_tokens > tier.start]
        return max(reached, key=lambda tier: tier.start).price if reached else price.base
    return price
