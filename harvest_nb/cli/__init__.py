"""`harvest-nb`: the same verbs with the same words as in a notebook.

Exit codes: 0 done, 1 it ran and something is wrong, 2 the call or a setting is wrong, 3 no engine, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from harvest_nb.cli.ctrl_c import ending

if TYPE_CHECKING:
    from harvest_nb.cli.commands import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harvest_nb.cli.commands import app

    return app


def main() -> None:
    """Run the command line; errors of this package become one message and an exit code."""
    code: Any = 0
    try:
        with ending.watched():
            code = _run()
    except KeyboardInterrupt:
        code = 130
    if ending.code:
        ending.left()
        code = ending.code if code == 130 else code
    sys.exit(code)


def _run() -> Any:
    # Here, as they take a second or two, in which Ctrl-C is heard too.
    from harvest_nb.cli.commands import app
    from harvest_nb.cli.common import tell_error
    from harvest_nb.errors import HarvestError

    try:
        app()
    except SystemExit as end:
        return end.code
    except HarvestError as error:
        tell_error(error)
        return error.exit_code
