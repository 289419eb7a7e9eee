"""Commands that run sessions and look after sandboxes."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from harvest_nb.cli.common import Image, Json, ProviderName, decoded, do, out, print_json, readable
from harvest_nb.cli.options import (
    Allow,
    At,
    Disallow,
    Endpoint,
    Fork,
    Live,
    MaxBudget,
    MaxTurns,
    McpServer,
    Model,
    Network,
    Record,
    Resume,
    RunsDir,
    ScenarioName,
    Timeout,
    endpoint_of,
    wanted,
)
from harvest_nb.errors import SettingsError
from harvest_nb.views.plain import plain

if TYPE_CHECKING:
    from harvest_nb.session.result import RunResult

app = typer.Typer()


@app.command()
def run(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-` reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file that holds the prompt.")] = None,
    attach: Annotated[
        list[Path] | None, typer.Option("--attach", help="A file to send along; may be repeated.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="A JSON schema; --json then holds the answer as `structured`."),
    ] = None,
    provider: ProviderName = "docker",
    image: Image = None,
    live: Live = False,
    endpoint: Endpoint = None,
    scenario: ScenarioName = None,
    record: Record = None,
    resume: Resume = None,
    fork: Fork = False,
    at: At = None,
    model: Model = None,
    allow: Allow = None,
    disallow: Disallow = None,
    max_turns: MaxTurns = None,
    max_budget_usd: MaxBudget = None,
    timeout: Timeout = None,
    mcp_server: McpServer = None,
    runs_dir: RunsDir = None,
    network: Network = None,
    port: Annotated[int, typer.Option(help="Port of the loopback endpoint; 0 takes a free one.")] = 0,
    as_json: Json = False,
) -> None:
    """Run one prompt in a new sandbox. Exit code 1 when the run does not succeed, 130 after Ctrl-C."""
    for path in attach or ():
        readable(path)
    said, shape, asked_of = _prompt(prompt, file), schema and _schema(schema), endpoint_of(endpoint, live)
    from harvest_nb.sessions import shown  # takes a second

    arguments: dict[str, Any] = {
        "provider": provider,
        "snapshot": image,
        "endpoint": asked_of,
        "scenario": scenario,
        "record": record,
        "schema": shape,
        "model": model,
        "allowed_tools": allow or (),
        "disallowed_tools": disallow or (),
        "max_turns": max_turns,
        "max_budget_usd": max_budget_usd,
        "timeout": timeout,
        "mcp_servers": mcp_server,
        "runs_dir": runs_dir,
        "network": network,
        "port": port,
    }
    setup = wanted(resume, fork=fork, at=at, **arguments)
    cancelled: list[RunResult] = []
    show = (lambda _: None) if as_json else None
    try:
        result = do(shown(said, setup, attach or (), show, check=False, on_cancelled=cancelled.append))
    except SystemExit:
        for result in cancelled:
            _tell(result, as_json)
        raise
    _tell(result, as_json)
    raise typer.Exit(0 if result.ok else 1)


def _tell(result: RunResult, as_json: bool) -> None:
    if as_json:
        print_json({k: v for k, v in vars(result).items() if k != "messages"} | {"ok": result.ok})
        return
    if result.structured is not None:
        print_json(result.structured)
    style = "green" if result.ok else "yellow" if result.status == "cancelled" else "red"
    cost = "cost unknown" if result.cost_usd is None else f"${result.cost_usd:.4f}"
    told = f", {result.seconds:.1f} s, {cost}, endpoint {result.endpoint}"
    if result.reason != result.status:
        told = f" {result.reason}{told}"
    out.print(Text(result.status, style=style).append(plain(told), style="default"), soft_wrap=True)
    out.print(f"run folder: {result.folder}", markup=False, highlight=False, soft_wrap=True)


def _prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise SettingsError("Give either a prompt or --file", hint="`-` reads the prompt from standard input")
    if file is not None:
        where = f"in {file}"
        try:
            said = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"Cannot read the prompt from {file}: {error}", hint="name a file of UTF-8 text"
            ) from error
    elif prompt == "-":
        said, where = decoded(sys.stdin.buffer.read()), "from standard input"
    else:
        said, where = str(prompt), "on the command line"
    if not said.strip():
        raise SettingsError(f"The prompt {where} is empty", hint="say what the agent should do")
    return said


def _schema(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"Cannot read the schema {path}: {error}", hint="it must hold one JSON object"
        ) from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path} is no JSON schema", hint="it must hold one JSON object")
    return found


@app.command()
def sandboxes(
    provider: ProviderName = "docker",
    reap: Annotated[bool, typer.Option("--reap", help="Remove those that no live process holds.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Those of every namespace, not only of HARVEST_NAMESPACE.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the sandboxes that a provider has in this namespace, or in all."""
    from harvest_nb.providers import get_provider
    from harvest_nb.sandbox.owner import namespace_of

    maker = get_provider(provider)
    removed = do(maker.reap(all_namespaces=every)) if reap else []
    if reap and provider == "docker":
        removed += _sweep(every)
    found = do(maker.list(all_namespaces=every))
    if as_json:
        print_json({"removed": removed, "sandboxes": [vars(item) for item in found]})
        return
    headings = ["id", "state", "held", "created", "run", *(["namespace"] if every else [])]
    table = Table(*headings, box=None, header_style="bold")
    for item in found:
        held, created = "yes" if item.held else "no", f"{item.created:%Y-%m-%d %H:%M:%S}"
        cells = [item.id, item.state, held, created, item.labels.get("harvest.run", "")]
        table.add_row(*cells, *([namespace_of(item.labels)] if every else []))
    out.print(table)
    for ident in removed:
        out.print(f"removed {ident}")


def _sweep(every: bool) -> list[str]:
    """Remove the containers and volumes that a local Daytona server which was killed has left on the engine."""
    if find_spec("socketio") is None:
        return []  # the `daytona` extra is missing, so nobody has run one from here

    from harvest_nb.daytona_local.machine import sweep
    from harvest_nb.engine import connect, engine_errors

    with closing(connect()) as client, engine_errors("remove what a local Daytona server has left"):
        return sweep(client, all_namespaces=every)
