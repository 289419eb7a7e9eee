"""The committed diagrams: `docs/diagrams/*.mmd` and `*.svg`, and the sources in ARCHITECTURE.md.

They are generated and checked, so that they cannot go stale: `write_all` makes them, `check` names those that
differ from what the code gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from harvest_nb.views.diagrams import architecture, inventory, sequences
from harvest_nb.views.diagrams.draw import Diagram
from harvest_nb.views.diagrams.render import to_svg

__all__ = ["DIAGRAMS", "check", "write_all"]

DIAGRAMS: Mapping[str, Callable[[], Diagram]] = {
    "overview": architecture.overview,
    "message_flow": sequences.message_flow,
    "resume": sequences.resume,
    "cancel": sequences.cancel,
    "message_states": inventory.message_states,
    "build": architecture.build,
    "config_map": inventory.config_map,
    "mcp_inventory": inventory.mcp_inventory,
    "floors": inventory.floors,
}
"""Name to what makes the diagram, in the order in which they are shown."""

_MARKED = re.compile(
    r"<!-- diagram (?P<name>\w+) -->\n(?P<body>.*?)<!-- end diagram (?P=name) -->\n", re.DOTALL
)


def _expected(folder: Path) -> dict[Path, str]:
    files: dict[Path, str] = {}
    for name, make in DIAGRAMS.items():
        diagram = make()
        files[folder / f"{name}.mmd"] = diagram.source
        files[folder / f"{name}.svg"] = to_svg(diagram)
    return files


def _body(name: str, link: str) -> str:
    diagram = DIAGRAMS[name]()
    return f"```mermaid\n{diagram.source}```\n\n[{diagram.title} (SVG)]({link}/{name}.svg)\n"


def _filled(text: str, link: str) -> str:
    def body(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in DIAGRAMS:
            return found.group()
        return f"<!-- diagram {name} -->\n{_body(name, link)}<!-- end diagram {name} -->\n"

    return _MARKED.sub(body, text)


def _link(folder: Path, page: Path) -> str:
    return folder.resolve().relative_to(page.resolve().parent).as_posix()


def write_all(folder: Path, page: Path | None = None) -> list[Path]:
    """Write every diagram's `.mmd` and `.svg` to `folder`, and its source between its marks in `page`.

    Returns:
        The files that changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _expected(folder)
    if page is not None:
        wanted[page] = _filled(page.read_text(encoding="utf-8"), _link(folder, page))
    changed = []
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def check(folder: Path, page: Path | None = None) -> list[str]:
    """What is stale, missing or left over, a line each; an empty list when all is as the code says."""
    problems = []
    wanted = _expected(folder)
    for path, text in wanted.items():
        if not path.exists():
            problems.append(f"{path.name} is missing")
        elif path.read_text(encoding="utf-8") != text:
            problems.append(f"{path.name} is stale")
    kept = {*folder.glob("*.mmd"), *folder.glob("*.svg")}
    problems += [f"{path.name} belongs to no diagram" for path in sorted(kept - set(wanted))]
    if page is not None:
        text = page.read_text(encoding="utf-8")
        marked = {found["name"]: found.group() for found in _MARKED.finditer(text)}
        problems += [f"{page.name} has no diagram {name}" for name in DIAGRAMS if name not in marked]
        problems += [f"{page.name} has an unknown diagram {name}" for name in marked if name not in DIAGRAMS]
        link = _link(folder, page)
        problems += [
            f"the diagram {name} in {page.name} is stale"
            for name, found in marked.items()
            if name in DIAGRAMS and _filled(found, link) != found
        ]
    return problems
