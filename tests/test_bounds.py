"""The bounds: each can be set, a value that is none is refused, and the page about trust lists them as they are."""

from __future__ import annotations

import pytest

from harvest_nb.bounds import Bounds, bounds
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
