"""`harvest-nb chat`."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harvest_nb.cli.common import Image, ProviderName, do, out, quiet
from harvest_nb.cli.ctrl_c import ending
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

if TYPE_CHECKING:
    from harvest_nb.session.chat import Chat

app = typer.Typer()
_NOT_AGAIN = ("resume", "fork", "at", "record", "one")


@app.command()
def chat(
    context: typer.Context,
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
    timeout: Timeout = None,
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
        "timeout": timeout,
        "mcp_servers": mcp_server,
        "runs_dir": runs_dir,
        "network": network,
    }
    with quiet() if person else contextlib.nullcontext():  # from now on: the rest takes a second or two
        from harvest_nb.cli.keyboard import piped_lines
        from harvest_nb.cli.terminal import Terminal
        from harvest_nb.session.chat import Chat
        from harvest_nb.views.permission import TerminalQuestions

        conversation = Chat(wanted(resume, fork=fork, at=at, talk=True, **arguments))

        async def talk() -> tuple[bool, bool]:
            terminal = Terminal(conversation, out, TerminalQuestions(console=out) if ask else None)
            soon = asyncio.get_running_loop().call_soon_threadsafe
            with ending.first(terminal.interrupt, soon):
                async with conversation:
                    if person:
                        ok = await terminal.talk()
                    elif one:
                        ok = await terminal.read(_whole(), commands=False)
                    else:
                        ok = await terminal.read(piped_lines())
            return ok, terminal.interrupted

        try:
            ok, stopped = do(talk())
        finally:
            _tell(conversation, context)
    raise typer.Exit(130 if stopped else 0 if ok else 1)


def _tell(conversation: Chat, context: typer.Context) -> None:
    """Say what the chat has cost, where it is recorded, and the command that goes on with it."""
    lines = [f"run folder: {folder}" for folder in conversation.folders]
    if conversation.results:
        cost, count = conversation.cost_usd, len(conversation.results)
        total = "cost unknown" if cost is None else f"${cost:.4f}"
        lines.append(
            f"{count} prompt{'s' * (count > 1)}, {total} in all, endpoint {conversation.setup.endpoint}"
        )
    begun = [folder for folder in conversation.folders if any(folder.glob("transcript/**/*.jsonl"))]
    if begun:
        lines.append(f"to go on: {_again(context, begun[-1].name)}")
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True, markup=False)


def _again(context: typer.Context, run: str) -> str:
    """Return the command that goes on with a run under the options of this one."""
    words = ["harvest-nb", "chat", "--resume", run]
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if option.name in _NOT_AGAIN or value in (None, option.default, (), []):
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            words += [option.opts[0]] if item is True else [option.opts[0], str(item)]
    return shlex.join(words)


async def _whole() -> AsyncIterator[str]:
    from harvest_nb.cli.keyboard import piped_lines

    yield "".join([line async for line in piped_lines()])
