"""`harvest-nb chat`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from harvest_nb.cli.common import Image, ProviderName, do, interrupted, out, quiet
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
    endpoint_of,
    wanted,
)
from harvest_nb.errors import SettingsError

app = typer.Typer()


@app.command()
def chat(
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
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask before a tool is used that needs permission.")
    ] = False,
    max_turns: MaxTurns = None,
    max_budget_usd: MaxBudget = None,
    mcp_server: McpServer = None,
    runs_dir: RunsDir = None,
    network: Network = None,
    one: Annotated[
        bool, typer.Option("--one", help="Standard input that is no terminal is one prompt, not one a line.")
    ] = False,
) -> None:
    """Talk with an agent in one session. From a pipe: exit code 1 when a prompt does not succeed, 130 after Ctrl-C."""
    person = sys.stdin.isatty()
    if ask and not person:
        raise SettingsError("There is nobody to ask for permission", hint="allow tools with --allow instead")
    arguments: dict[str, Any] = {
        "provider": provider,
        "snapshot": image,
        "endpoint": endpoint_of(endpoint, live),
        "scenario": scenario,
        "record": record,
        "model": model,
        "allowed_tools": allow or (),
        "disallowed_tools": disallow or (),
        "max_turns": max_turns,
        "max_budget_usd": max_budget_usd,
        "mcp_servers": mcp_server,
        "runs_dir": runs_dir,
        "network": network,
    }
    with quiet() if person else contextlib.nullcontext():  # from now on: the rest takes a second or two
        from harvest_nb.cli.keyboard import piped_lines
        from harvest_nb.cli.terminal import Terminal
        from harvest_nb.session.chat import Chat
        from harvest_nb.views.permission import TerminalQuestions

        setup = wanted(resume, fork=fork, at=at, talk=True, **arguments)

        async def talk() -> tuple[bool, bool, list[Path]]:
            conversation = Chat(setup)
            terminal = Terminal(conversation, out, TerminalQuestions(console=out) if ask else None)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, terminal.interrupt)
            async with conversation:
                if person:
                    ok = await terminal.talk()
                elif one:
                    ok = await terminal.read(_whole(), commands=False)
                else:
                    ok = await terminal.read(piped_lines())
            return ok, terminal.interrupted, conversation.folders

        ok, stopped, folders = do(talk())
    for folder in folders:
        out.print(f"run folder: {folder}", highlight=False, soft_wrap=True, markup=False)
    if stopped:
        raise interrupted()
    raise typer.Exit(0 if ok else 1)


async def _whole() -> AsyncIterator[str]:
    from harvest_nb.cli.keyboard import piped_lines

    yield "".join([line async for line in piped_lines()])
