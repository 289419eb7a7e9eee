"""Charts as SVG: readable without colour, without a network, and beside each other."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import altair as alt
import pandas as pd

from harvest_nb.views.charts import PALETTE, Chart, scale


def chart(description: str = "One bar.") -> Chart:
    data = pd.DataFrame({"x": [1], "y": ["a"]})
    return Chart(alt.Chart(data).mark_bar(clip=True).encode(x="x:Q", y="y:N"), description)


def test_a_chart_is_well_formed_svg_with_a_description_and_loads_nothing():
    svg = chart('Costs of "a" & <b>').svg
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("aria-label") == 'Costs of "a" & <b>'
    assert "<script" not in svg
    assert not re.findall(r'(?:href|src)="https?:', svg)


def test_a_notebook_gets_svg_and_the_description():
    bundle = chart()._repr_mimebundle_()
    assert bundle["image/svg+xml"].startswith("<svg")
    assert bundle["text/plain"] == "One bar."


def test_the_same_chart_is_the_same_bytes_and_its_ids_are_its_own(tmp_path):
    first = chart().svg
    assert chart().svg == first
    ids = set(re.findall(r'\bid="([^"]+)"', first))
    other = Chart(alt.Chart(pd.DataFrame({"x": [2]})).mark_bar(clip=True).encode(x="x:Q"), "x").svg
    assert ids
    assert ids.isdisjoint(re.findall(r'\bid="([^"]+)"', other))
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids
    assert chart().save(tmp_path / "c.svg").read_text(encoding="utf-8") == first


def test_a_thing_keeps_its_colour_when_others_are_absent():
    only = scale(("a", "b", "c"), ["c"]).to_dict()
    assert only == {"domain": ["c"], "range": [PALETTE[2]]}
