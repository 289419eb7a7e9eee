"""Options that the commands about sessions share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harvest_nb.cli.common import err
from harvest_nb.errors import EndpointError, RunFolderError, SessionError, SettingsError

if TYPE_CHECKING:
    from harvest_nb.session.open import Setup

Live = Annotated[bool, typer.Option("--live", help="Use Anthropic's endpoint; costs money.")]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint", help="scripted, anthropic, a .cassette file to play back, or a gateway's base URL."
    ),
]
ScenarioName = Annotated[
    str | None,
    typer.Option("--scenario", help="What the scripted endpoint says: a shipped name or a .yaml file."),
]
Record = Annotated[Path | None, typer.Option("--record", help="A .cassette file to write.")]
Resume = Annotated[
    str | None,
    typer.Option("--resume", help="Go on with a run: its folder, its id, a session's id, or latest."),
]
Fork = Annotated[bool, typer.Option("--fork", help="With --resume: under a session id of its own.")]
At = Annotated[str | None, typer.Option("--at", help="With --resume: UUID of the last message that counts.")]
Model = Annotated[str | None, typer.Option(help="The model's name.")]
Allow = Annotated[list[str] | None, typer.Option("--allow", help="A tool that may be used; may be repeated.")]
Disallow = Annotated[
    list[str] | None, typer.Option("--disallow", help="A tool that may not be used; may be repeated.")
]
MaxTurns = Annotated[int | None, typer.Option(min=1)]
MaxBudget = Annotated[
    float | None,
    typer.Option(
        "--max-budget-usd", min=0.0, help="End when it has cost more (live: 5 unless told otherwise)."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.001,
        metavar="SECONDS",
        help="End a prompt after so long, with its session's start; what it has is kept.",
    ),
]
McpServer = Annotated[list[str] | None, typer.Option(help="Only these MCP servers; may be repeated.")]
RunsDir = Annotated[Path | None, typer.Option(help="Where the run folder is made.")]
Network = Annotated[str | None, typer.Option(help="none or open.")]


def wanted(resume: str | None, *, fork: bool, at: str | None, talk: bool = False, **arguments: Any) -> Setup:
    """The session that the options ask for, as `harvest_nb.sessions.plan`; nothing has been started yet.

    Raises:
        SettingsError: an option names what is not there; a call that is wrong costs nothing, not even a sandbox.
    """
    from harvest_nb.endpoint.library import load_scenario  # with what it imports it takes a second
    from harvest_nb.sessions import plan

    if (fork or at) and not resume:
        raise SettingsError("--fork and --at need --resume", hint="name the run to go on with")
    if arguments["network"] not in (None, "none", "open"):
        raise SettingsError(f"Unknown network {arguments['network']!r}", hint='use "none" or "open"')
    record: Path | None = arguments["record"]
    if record is not None and (record.is_dir() or not os.access(record.absolute().parent, os.W_OK)):
        raise SettingsError(
            f"Cannot write cassette {record}", hint="name a file in a directory that you may write to"
        )
    try:
        setup = plan(resume, fork=fork, at=at, talk=talk, **arguments).checked()
        if isinstance(setup.scenario, str | Path):
            load_scenario(setup.scenario)
    except (EndpointError, RunFolderError, SessionError) as error:
        raise SettingsError(error.message, hint=error.hint) from error
    if setup.endpoint == "anthropic":
        most = (
            f"live: this session may cost {setup.options.max_budget_usd:.2f} USD at most (--max-budget-usd)"
        )
        err.print(most, highlight=False, soft_wrap=True)
    return setup


def endpoint_of(endpoint: str | None, live: bool) -> str:
    """The endpoint that `--endpoint` and `--live` ask for.

    Raises:
        SettingsError: they contradict each other.
    """
    if live and endpoint not in (None, "anthropic"):
        raise SettingsError(
            f"--live and --endpoint {endpoint} contradict each other", hint="give one of them"
        )
    return "anthropic" if live else endpoint or "scripted"
