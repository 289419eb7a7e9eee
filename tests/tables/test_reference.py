from __future__ import annotations

from harvest_nb.tables.columns import COLUMNS
from harvest_nb.tables.reference import main, page, path


def test_the_page_of_columns_is_what_the_code_gives():
    assert path().read_text("utf-8") == page(), "python -m harvest_nb.tables.reference --write"
    assert main(["--check"]) == 0


def test_every_column_is_on_it_with_a_meaning():
    text = page()
    for frame, columns in COLUMNS.items():
        section = text.split(f"\n## {frame}\n")[1].split("\n## ")[0]
        for column in columns:
            assert f"| `{column.name}` |" in section
            assert len(column.meaning) > 5


def test_units_are_given_where_numbers_have_one():
    without = {
        column.name
        for columns in COLUMNS.values()
        for column in columns
        if column.kind in ("float", "usd", "time") and not column.unit
    }
    assert without == set()
