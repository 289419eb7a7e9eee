"""`harvest-nb`: the same verbs with the same words as in a notebook.

Exit codes: 0 done, 1 it ran and something is wrong, 2 the call or a setting is wrong, 3 no engine, 130 Ctrl-C.
"""

from __future__ import annotations

import sys

import typer

from harvest_nb.cli import chat, costs, daytona, endpoint, notebook, session, snapshot
from harvest_nb.cli.common import err
from harvest_nb.errors import HarvestError
from harvest_nb.views.plain import plain

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build, check, run, measure and explain the Harvest executor.",
)
# Without a name of its own, a group's commands stand beside the others.
for part in (snapshot, session, chat, endpoint, costs, notebook, daytona):
    app.add_typer(part.app)


def main() -> None:
    """Run the command line; errors of this package become one message and an exit code."""
    try:
        app()
    except HarvestError as error:
        err.print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        err.print(plain(str(error)), markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
