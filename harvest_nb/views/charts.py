"""Charts as static SVG: no script, no network, the same in Lab, nbconvert and on paper."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

__all__ = ["PALETTE", "Chart", "scale"]

# Okabe and Ito's colours, which stay apart in the common kinds of colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")

_ID = re.compile(r'\bid="([^"]+)"')
# Text is measured with another font than a reader may have: room in legends, and labels may leave the frame.
_CONFIG: dict[str, Any] = {
    "font": "sans-serif",
    "background": "#ffffff",
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "fontSize": 15,
        "subtitleFontSize": 12,
        "subtitleColor": "#555555",
        "offset": 12,
    },
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "gridColor": "#e6e6e6", "labelLimit": 240},
    "legend": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "orient": "bottom",
        "symbolStrokeWidth": 0,
        "columnPadding": 36,
    },
}


class Chart:
    """A picture that a notebook shows as SVG, with a sentence for those who cannot see it.

    Args:
        spec: the Altair chart.
        description: what the picture shows, in words.
    """

    def __init__(self, spec: alt.TopLevelMixin, description: str) -> None:
        self.spec = spec
        self.description = description

    @property
    def svg(self) -> str:
        """The SVG; its ids are its own, so that several may stand on one page."""
        spec = self.spec.to_dict()
        spec["config"] = {**spec.get("config", {}), **_CONFIG}
        text: str = vl_convert.vegalite_to_svg(spec)
        label = _escape(self.description)
        return _with_own_ids(text).replace(
            "<svg ", f'<svg role="img" aria-label="{label}" style="overflow: visible" ', 1
        )

    def save(self, path: Path) -> Path:
        """Write the SVG to `path`."""
        path.write_text(self.svg, encoding="utf-8")
        return path

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.description}


def _with_own_ids(svg: str) -> str:
    """`svg` with ids made from its content: the renderer numbers them on and on through a process."""
    names = list(dict.fromkeys(_ID.findall(svg)))
    # Longest first, so that `clip1` does not touch `clip12`.
    for place, name in sorted(enumerate(names), key=lambda item: -len(item[1])):
        svg = re.sub(rf'(\bid="|url\(#|href="#){re.escape(name)}(?=["\)])', rf"\g<1>@{place}", svg)
    mark = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|url\(#|href="#)@(\d+)', rf"\g<1>c{mark}-\g<2>", svg)


def scale(domain: tuple[str, ...], present: Iterable[str] | None = None) -> alt.Scale:
    """The palette over `domain`, so that a thing has the same colour in every chart.

    With `present`, the legend names only those.
    """
    shown = set(domain if present is None else present)
    colours = [(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(domain) if name in shown]
    return alt.Scale(domain=[name for name, _ in colours], range=[colour for _, colour in colours])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
