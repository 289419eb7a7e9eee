"""The bounds: each can be set, a value that is none is refused, and the page about trust lists them as they are."""

from __future__ import annotations

import json

import pytest

from harvest_nb.bounds import Bounds, bounds, json_within
from harvest_nb.errors import SettingsError
from harvest_nb.paths import data_root

FIELDS = Bounds.model_fields


@pytest.mark.parametrize("name", FIELDS)
def test_a_bound_can_be_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"HARVEST_MAX_{name.upper()}"
    monkeypatch.setenv(variable, "7")
    assert getattr(bounds(), name) == 7
    for wrong in ("0", "-1", "much"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(SettingsError, match=variable):
            bounds()


WIDE = "\U0001f600"


def test_one_wide_character_leaves_the_other_strings_as_they_were() -> None:
    given = {"system": [f"{WIDE} é →"], "images": ["a" * 13_000_000, "\\ud83d" * 2_000_000]}
    for text in (json.dumps(given), json.dumps(given, ensure_ascii=False)):
        assert json_within(text.encode(), 100) == given


@pytest.mark.parametrize("wide", [WIDE, json.dumps(WIDE)[1:-1]], ids=["plain", "escaped"])
def test_a_string_of_wide_characters_has_a_bound(wide: str) -> None:
    with pytest.raises(ValueError, match="HARVEST_MAX_TEXT_BYTES"):
        json_within(f'["{"a" * 13_000_000}{wide}"]'.encode(), 100)


def test_the_page_about_trust_lists_every_bound_with_its_default() -> None:
    page = (data_root() / "docs" / "trust.md").read_text()
    rows = dict(
        line.strip("| ").split(" | ")[:2] for line in page.splitlines() if line.startswith("| `HARVEST_MAX_")
    )
    expected = {}
    for name, field in FIELDS.items():
        default = field.default
        shown = f"{default // 1024**2} MiB" if name.endswith("_bytes") else f"{default:,}".removesuffix(".0")
        expected[f"`HARVEST_MAX_{name.upper()}`"] = shown
    assert rows == expected
