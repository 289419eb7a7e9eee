"""Mermaid text to SVG without a browser or a network, the same bytes each time.

mermaidx runs mermaid itself and takes 1 to 5 seconds a diagram. A rendering carries the hash of everything it
depends on and of its own text, so that the committed ones, and those in the cache folder, serve while they hold.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import mermaidx

from harvest_nb.paths import cache_dir, data_root
from harvest_nb.views.diagrams.draw import Diagram

__all__ = ["render", "show", "to_svg"]

_REVISION = 2  # of what `_finish` does
_CONFIG = {
    "theme": "base",
    "handDrawnSeed": 1,
    "deterministicIds": True,
    "htmlLabels": False,
    "flowchart": {
        "htmlLabels": False,
        "curve": "basis",
        "wrappingWidth": 420,
        "subGraphTitleMargin": {"bottom": 10},
    },
    "sequence": {"actorMargin": 24, "mirrorActors": False, "messageMargin": 28},
    "state": {"htmlLabels": False},
    "themeVariables": {
        "fontFamily": "system-ui, 'DejaVu Sans', Verdana, sans-serif",
        "fontSize": "14px",
        "primaryColor": "#eef0f2",
        "primaryBorderColor": "#6a737d",
        "primaryTextColor": "#1f2328",
        "lineColor": "#57606a",
        "textColor": "#1f2328",
        "clusterBkg": "#f8f9fa",
        "clusterBorder": "#afb8c1",
        "edgeLabelBackground": "#ffffff",
        "noteBkgColor": "#fff8dd",
        "noteBorderColor": "#c9a227",
        "noteTextColor": "#1f2328",
        "sequenceNumberColor": "#ffffff",
    },
}
_BACKGROUND = "#ffffff"


_KEY = re.compile(r"<!-- (?P<key>[0-9a-f]{32}) (?P<digest>[0-9a-f]{32}) -->\n")


@cache
def to_svg(diagram: Diagram) -> str:
    """The diagram as SVG on a light background of its own, its ids prefixed by its name.

    A committed rendering of the same source is used when there is one.
    """
    key = _digest(f"{_REVISION} {version('mermaidx')} {_CONFIG!r} {diagram.name}\n{diagram.source}")
    kept = cache_dir() / "diagrams" / f"{key}.svg"
    for place in (data_root() / "docs" / "diagrams" / f"{diagram.name}.svg", kept):
        if place.exists():
            text = place.read_text(encoding="utf-8")
            found = _KEY.search(text)
            if found and found["key"] == key and found["digest"] == _digest(_KEY.sub("", text)):
                return text
    svg = render(diagram)
    svg = svg.replace("\n", f"\n<!-- {key} {_digest(svg)} -->\n", 1)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Notebooks render side by side: nobody may read half a file.
    handle, name = tempfile.mkstemp(dir=kept.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(svg)
    Path(name).replace(kept)
    return svg


def render(diagram: Diagram) -> str:
    """A fresh rendering, without the comment that says what it was made from."""
    return _finish(mermaidx.render(diagram.source, config=_CONFIG).svg(), diagram)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _finish(svg: str, diagram: Diagram) -> str:
    """Unique ids, a size of its own, and a background: dark pages would swallow the arrows."""
    prefix = f"diagram-{diagram.name.replace('_', '-')}"
    svg = svg.replace("my-svg", prefix)
    # mermaid gives some elements, such as a sequence's symbols, ids of their own.
    bare = re.compile(rf'(\bid="|url\(#|href="#)(?!{prefix})')
    svg = bare.sub(rf"\g<1>{prefix}-", svg)
    box = re.search(r'viewBox="([-\d.]+) ([-\d.]+) ([-\d.]+) ([-\d.]+)"', svg)
    assert box is not None
    x, y, width, height = (float(number) for number in box.groups())
    margin = 12.0
    x, y, width, height = x - margin, y - margin, width + 2 * margin, height + 2 * margin
    view = f'viewBox="{x:g} {y:g} {width:g} {height:g}"'
    svg = svg.replace(box.group(), f'{view} width="{width:g}" height="{height:g}"', 1)
    svg = svg.replace('width="100%" ', "", 1)
    style = f"max-width: 100%; height: auto; background-color: {_BACKGROUND};"
    svg = re.sub(r'style="max-width: [^"]*"', f'style="{style}"', svg, count=1)
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{_BACKGROUND}"/>'
    return re.sub(r"(<svg[^>]*>)", rf"\1\n<title>{diagram.title}</title>{rect}", svg, count=1) + "\n"


def show(diagram: Diagram) -> None:
    """Display a diagram in a notebook: SVG, with the mermaid text for those who cannot see it."""
    from IPython.display import display

    data = {"image/svg+xml": to_svg(diagram), "text/plain": diagram.source}
    display(data, raw=True)  # type: ignore[no-untyped-call]
