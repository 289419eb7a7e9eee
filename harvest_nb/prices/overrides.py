"""`config/prices.toml`: read, and checked entry by entry when it is read.

A price that is wrong by a typing mistake is worse than none, so that nothing is guessed at and nothing is let pass:
amounts are plain decimals written as strings, every key is a known one, and no two entries hold at the same time.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from harvest_nb.errors import SettingsError
from harvest_nb.prices.rates import COMPONENTS, Rates, canonical_model

__all__ = ["Modifier", "Override", "Overrides", "read_overrides"]

_AMOUNT = re.compile(r"\d{1,9}(?:\.\d{1,12})?")
_CONDITIONS = ("speed", "geo", "tier")
_KEYS = {
    "model": frozenset({"name", "from", "source", *COMPONENTS}),
    "modifier": frozenset({"when", "models", "factor", "source"}),
}


@dataclass(frozen=True)
class Override:
    """Prices of a model from a day on; `start` is `None` for those that have always held."""

    name: str
    start: date | None
    rates: Rates


@dataclass(frozen=True)
class Modifier:
    """What multiplies token prices under a condition; `models` is `None` where it holds for all."""

    when: Mapping[str, str]
    models: frozenset[str] | None
    factor: Decimal
    source: str


@dataclass(frozen=True)
class Overrides:
    """The whole file."""

    version: str
    models: tuple[Override, ...]
    modifiers: tuple[Modifier, ...]
    raw: bytes


class _Entry:
    """One entry of the file, which knows how to say where it is."""

    def __init__(self, path: Path, kind: str, number: int, data: Any) -> None:
        self.path = path
        name = data.get("name") if isinstance(data, dict) else None
        self.label = f"[[{kind}]] number {number}" + (f" ({name})" if isinstance(name, str) else "")
        if not isinstance(data, dict):
            self.refuse("", f"is {_shown(data)}, not a table")
        self.data: Mapping[str, Any] = data
        for key in sorted(data.keys() - _KEYS[kind]):
            self.refuse(key, f"is no key of a [[{kind}]]; those are {', '.join(sorted(_KEYS[kind]))}")

    def refuse(self, key: str, why: str) -> NoReturn:
        _refuse(self.path, f"{self.label}: {key} {why}" if key else f"{self.label} {why}")

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if key not in self.data:
            self.refuse(key, "is missing")
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, f"is {_shown(value)}, not a text")
        return value

    def model(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, f"is {_shown(value)}, not the name of a model")
        if canonical_model(value) != value:
            self.refuse(key, f"is {value!r}, which is looked up as {canonical_model(value)!r}: write that")
        return value

    def amount(self, key: str) -> Decimal:
        value = self.data[key]
        if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
            self.refuse(key, f'is {_shown(value)}, not a decimal written as a string, such as "12.5"')
        return Decimal(value)


def read_overrides(path: Path) -> Overrides:
    """Read and check the file.

    Raises:
        SettingsError: it cannot be read, or an entry cannot be used; names the file, the entry and the key.
    """
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode())
    except OSError as error:
        raise SettingsError(f"Cannot read the price table {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The price table {path} is not TOML: {error}") from error
    for key in sorted(data.keys() - {"version", *_KEYS}):
        _refuse(path, f"{key} is no key of this file; those are version, [[model]] and [[modifier]]")
    version = data.get("version")
    if not isinstance(version, str) or not version.strip():
        _refuse(
            path, "version is missing" if version is None else f"version is {_shown(version)}, not a text"
        )
    models = tuple(_override(entry) for entry in _entries(path, data, "model"))
    modifiers = tuple(_modifier(entry) for entry in _entries(path, data, "modifier"))
    _one_at_a_time(path, models)
    _one_factor(path, modifiers)
    return Overrides(version, models, modifiers, raw)


def _entries(path: Path, data: Mapping[str, Any], kind: str) -> Iterator[_Entry]:
    listed = data.get(kind, [])
    if not isinstance(listed, list):
        _refuse(path, f"{kind} is {_shown(listed)}, not a list of [[{kind}]]")
    return (_Entry(path, kind, number, item) for number, item in enumerate(listed, 1))


def _override(entry: _Entry) -> Override:
    name = entry.model("name", entry.text("name"))
    start = entry.data.get("from")
    if start is not None and (not isinstance(start, date) or isinstance(start, datetime)):
        entry.refuse("from", f"is {_shown(start)}, not a day, such as 2026-06-01")
    amounts = {part: entry.amount(part) if part in entry.data else None for part in COMPONENTS}
    if not any(part in entry.data for part in COMPONENTS):
        entry.refuse("", f"has no price: it needs some of {', '.join(COMPONENTS)}")
    return Override(name, start, Rates(**amounts, source=f"prices.toml: {entry.text('source')}"))


def _modifier(entry: _Entry) -> Modifier:
    when = entry.data.get("when")
    if not isinstance(when, dict) or not when:
        entry.refuse(
            "when", "is missing" if when is None else f"is {_shown(when)}, not a table of conditions"
        )
    for key, value in when.items():
        if key not in _CONDITIONS:
            entry.refuse(f"when.{key}", f"is no condition; those are {', '.join(_CONDITIONS)}")
        if not isinstance(value, str) or not value:
            entry.refuse(f"when.{key}", f"is {_shown(value)}, not a text")
    models = entry.data.get("models")
    if models is not None and (not isinstance(models, list) or not models):
        entry.refuse("models", f"is {_shown(models)}, not a list of models")
    names = None if models is None else frozenset(entry.model("models", name) for name in models)
    if "factor" not in entry.data:
        entry.refuse("factor", "is missing")
    factor = entry.amount("factor")
    if factor == 0:
        entry.refuse("factor", "is 0: what costs nothing needs a price of its own")
    return Modifier(dict(when), names, factor, entry.text("source"))


def _one_at_a_time(path: Path, models: tuple[Override, ...]) -> None:
    seen: dict[tuple[str, date | None], int] = {}
    for number, item in enumerate(models, 1):
        other = seen.setdefault((item.name, item.start), number)
        if other != number:
            day = "without a `from`" if item.start is None else f"from {item.start}"
            _refuse(path, f"[[model]] number {other} and number {number} both price {item.name} {day}")


def _one_factor(path: Path, modifiers: tuple[Modifier, ...]) -> None:
    seen: dict[tuple[tuple[tuple[str, str], ...], str | None], int] = {}
    for number, item in enumerate(modifiers, 1):
        when = tuple(sorted(item.when.items()))
        for name in sorted(item.models) if item.models is not None else [None]:
            other = seen.setdefault((when, name), number)
            if other != number:
                said = ", ".join(f"{key}={value}" for key, value in when)
                holds = name or "all models"
                _refuse(
                    path, f"[[modifier]] number {other} and number {number} both hold for {holds} when {said}"
                )


def _shown(value: Any) -> str:
    return repr(value)[:40]


def _refuse(path: Path, why: str) -> NoReturn:
    raise SettingsError(
        f"The price table {path} has an entry that cannot be used: {why}",
        hint="a [[model]] needs name, source and prices written as strings; see the file's head",
    )
