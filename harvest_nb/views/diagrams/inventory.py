"""Diagrams that are generated: from the message states, the config map, the MCP servers, the floors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from harvest_nb.mcp_servers import mcp_servers
from harvest_nb.snapshot.sources import read_map
from harvest_nb.views.diagrams.draw import Diagram, flow, group, link, node
from harvest_nb.views.diagrams.states import END, START, STATES, TRANSITIONS

# `draw` has imported mermaid already, quietly.
from mermaid.statediagram import End, Start, State, StateDiagram, Transition  # isort: skip

__all__ = ["FLOORS", "config_map", "floor_of", "floors", "mcp_inventory", "message_states"]

FLOORS: Mapping[int, tuple[tuple[str, ...], str]] = {
    1: (
        (
            "errors",
            "bounds",
            "files",
            "paths",
            "redact",
            "secret_forms",
            "settings",
            "mcp_servers",
            "prices",
            "machine",
        ),
        "errors, settings, secrets, bounds, prices, what is where, programs and locks of this machine",
    ),
    2: (
        ("engine", "snapshot", "sandbox", "providers", "endpoint"),
        "images; sandboxes behind one protocol; who answers",
    ),
    3: (
        ("checks", "memory", "repos", "daytona_local"),
        "the validation contract; the knowledge graph; a stand-in for Daytona",
    ),
    4: (("session",), "one live session: start, stream, cancel, record"),
    5: (("tables",), "run folders and transcripts to typed frames"),
    6: (("views",), "frames to charts, diagrams and live displays"),
    7: (
        ("api", "sessions", "notebooks", "sweep", "scheduler", "site"),
        "the verbs; many runs, many notebooks",
    ),
    8: (("cli", "demo", "doctor", "", "__main__"), "the faces"),
}
"""Floor to its modules (the first name under `harvest_nb`; `""` is the package itself) and what they know.

It may name modules that are yet to come; the diagram shows those that are there.
"""


def floor_of(module: str) -> int | None:
    """The floor of a module such as `harvest_nb.session.run`; None for one outside of the package.

    Raises:
        KeyError: a module of the package that no floor lists.
    """
    package, _, rest = module.partition(".")
    if package != "harvest_nb":
        return None
    top = rest.partition(".")[0]
    for number, (names, _what) in FLOORS.items():
        if top in names:
            return number
    raise KeyError(top)


def floors() -> Diagram:
    """The package's floors: each imports only from floors below and its own."""
    package = Path(__file__).parents[2]
    boxes = []
    for number, (names, what) in sorted(FLOORS.items(), reverse=True):
        here = [name for name in names if name.strip("_") == name != ""]
        here = [name for name in here if any((package / end).exists() for end in (name, f"{name}.py"))]
        boxes.append(node(f"floor_{number}", f"{number}: {', '.join(here)}<br/>{what}", "desk"))
    arrows = [link(upper, lower, "may import") for upper, lower in pairwise(boxes)]
    return flow("floors", "The package's floors: imports go downwards only", boxes, arrows)


def config_map() -> Diagram:
    """`config/sources.toml`: source of truth to path in the image."""
    entries = read_map().source
    sources = [node(f"source_{n}", entry.source, "record") for n, entry in enumerate(entries)]
    images = [node(f"image_{n}", entry.image, "sandbox") for n, entry in enumerate(entries)]
    return flow(
        "config_map",
        "Where the configuration in the image comes from",
        [group("root", "source root", sources), group("app", "snapshot image", images)],
        [link(origin, end) for origin, end in zip(sources, images, strict=True)],
        direction="LR",
    )


def mcp_inventory() -> Diagram:
    """`config/mcp.toml`: servers with their tokens and the number of tools that are relied on."""
    cli = node("cli", "claude CLI", "sandbox")
    boxes, arrows = [cli], []
    for server in mcp_servers():
        box = node(
            server.name, f"{server.name}<br/>{server.command}<br/>{_tools(len(server.tools))}", "sandbox"
        )
        boxes.append(box)
        arrows.append(
            link(cli, box, server.token or "no token", shape="dotted" if server.token else "normal")
        )
    return flow(
        "mcp_inventory",
        "MCP servers: always started (solid), started when their token is given (dotted)",
        boxes,
        arrows,
        direction="LR",
    )


def _tools(count: int) -> str:
    return f"{count} tool{'' if count == 1 else 's'} relied on"


def message_states() -> Diagram:
    """The states of a session's stream; `states.check_transitions` holds recorded runs against it."""
    states = {name: State(name, text) for name, text in STATES.items()}
    ends: dict[str, State] = {START: Start(), END: End()}
    steps = [
        Transition(ends.get(source) or states[source], ends.get(target) or states[target], label)
        for (source, target), label in TRANSITIONS.items()
    ]
    return Diagram.of(
        "message_states",
        StateDiagram("The states of a session's message stream", list(states.values()), [*steps]),
    )
