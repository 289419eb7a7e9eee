"""Diagrams of the executor, built with mermaid-py's classes and rendered offline to SVG.

Those that state facts are generated from the code (`config_map`, `mcp_inventory`, `floors`) or checked against
recorded runs (`message_states`, by `check_transitions`).
"""

from harvest_nb.views.diagrams.architecture import build, overview
from harvest_nb.views.diagrams.draw import Diagram
from harvest_nb.views.diagrams.files import DIAGRAMS, check, write_all
from harvest_nb.views.diagrams.inventory import FLOORS, config_map, floors, mcp_inventory, message_states
from harvest_nb.views.diagrams.render import show, to_svg
from harvest_nb.views.diagrams.sequences import cancel, message_flow, resume
from harvest_nb.views.diagrams.states import STATES, TRANSITIONS, check_run, check_transitions

__all__ = [
    "DIAGRAMS",
    "FLOORS",
    "STATES",
    "TRANSITIONS",
    "Diagram",
    "build",
    "cancel",
    "check",
    "check_run",
    "check_transitions",
    "config_map",
    "floors",
    "mcp_inventory",
    "message_flow",
    "message_states",
    "overview",
    "resume",
    "show",
    "to_svg",
    "write_all",
]
