"""mermaid-py's classes with what they lack here: a stable order, one palette, and no sound on import.

mermaid-py keeps the styles of a flow chart in a set, whose order differs from process to process, and prints a
warning where IPython is not installed. Its `Mermaid` class asks a server to render; it is not used.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

with contextlib.redirect_stdout(io.StringIO()):
    from mermaid.flowchart import FlowChart, Link, Node
    from mermaid.graph import Graph
    from mermaid.style import Style

__all__ = ["PALETTE", "Diagram", "flow", "group", "link", "node"]


@dataclass(frozen=True)
class Diagram:
    """A diagram: `name` is its file's, `source` its mermaid text."""

    name: str
    title: str
    source: str

    @classmethod
    def of(cls, name: str, graph: Graph) -> Diagram:
        """The diagram that a mermaid-py graph describes, in a stable order."""
        return cls(name, graph.title, _stable(graph.script))


def _style(name: str, fill: str, stroke: str) -> Style:
    return Style(name, fill=fill, stroke=stroke, color="#1f2328")


# What a box is, by colour; dark enough borders and text for both light and dark surroundings.
PALETTE: Mapping[str, Style] = {
    "desk": _style("desk", "#e3edfb", "#4a6fa5"),
    "sandbox": _style("sandbox", "#e4f4e8", "#3f7d53"),
    "model": _style("model", "#fdf0dc", "#b7791f"),
    "record": _style("record", "#f1eafa", "#7a5aa6"),
    "prod": _style("prod", "#eef0f2", "#6a737d"),
}


def node(ident: str, text: str, kind: str, *, shape: str = "normal") -> Node:
    """A box; `kind` is a key of `PALETTE`, `<br/>` in `text` breaks the line."""
    return Node(ident, text, shape=shape, styles=[PALETTE[kind]])


def group(ident: str, text: str, nodes: Iterable[Node]) -> Node:
    """A frame around boxes."""
    return Node(ident, text, sub_nodes=list(nodes))


def link(origin: Node, end: Node, text: str = "", *, shape: str = "normal", both: bool = False) -> Link:
    """An arrow; `both` gives it two heads."""
    return Link(origin, end, shape=shape, head_left="left-arrow" if both else "none", message=text)


def flow(name: str, title: str, nodes: list[Node], links: list[Link], *, direction: str = "TB") -> Diagram:
    """A flow chart whose styles are those of its boxes, also of those in frames."""
    chart = FlowChart(title, nodes, links, orientation=direction)
    used: dict[str, Style] = {}
    todo = list(nodes)
    while todo:
        current = todo.pop()
        used.update({style.name: style for style in current.styles})
        todo += current.sub_nodes
    declared = "".join(f"\n\t{used[name]}" for name in sorted(used))
    head = f"flowchart {direction}"
    # A frame with a direction of its own is laid out apart, and arrows into it end at its border.
    script = re.sub(r"\n\t(classDef|direction) [^\n]*", "", chart.script).replace(head, head + declared, 1)
    return Diagram(name, title, _stable(script))


def _stable(script: str) -> str:
    # A colon in a title would end YAML's plain text.
    script = re.sub(r"\A---\ntitle: (.*)\n", r'---\ntitle: "\1"\n', script)
    lines = [line.strip("\n").replace("\t", "  ").rstrip() for line in script.splitlines()]
    return "\n".join(lines).strip() + "\n"
