"""The commands of `harvest-nb`, all together."""

from __future__ import annotations

import typer

from harvest_nb.cli import chat, costs, daytona, endpoint, lab, notebook, session, snapshot

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build, check, run, measure and explain the Harvest executor.",
)
# Without a name of its own, a group's commands stand beside the others.
for part in (snapshot, session, chat, endpoint, costs, notebook, lab, daytona):
    app.add_typer(part.app)
