"""Commands that look at what a loopback endpoint plays: scenarios and cassettes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harvest_nb.cli.common import Json, out, print_json

app = typer.Typer()


@app.command()
def scenarios(
    scenario: Annotated[
        str | None, typer.Argument(help="A name or a .yaml file: check it, and show it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what the scripted endpoint can play, or check one scenario."""
    from harvest_nb.endpoint.library import load_scenario, scenario_names

    names = [scenario] if scenario else scenario_names()
    found = {name: load_scenario(name) for name in names}
    if as_json:
        print_json([{"name": name, **item.model_dump(exclude_defaults=True)} for name, item in found.items()])
        return
    table = Table("scenario", "prompt", "what it is for", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name, item in found.items():
        about = item.about.strip() if scenario else item.about.split(". ")[0].strip().rstrip(".")
        table.add_row(*map(escape, (name, item.prompt, about)))
    out.print(table)


@app.command()
def cassette(
    path: Annotated[Path, typer.Argument(help="A file that `record=` made.")], as_json: Json = False
) -> None:
    """Show what a cassette holds, exchange by exchange."""
    from harvest_nb.endpoint.cassette import load_cassette

    tape = load_cassette(path)
    rows = [
        {
            "exchange": item.number,
            "agent": item.view.lines[0].key.removeprefix("agent: "),
            "status": item.status,
            "ending": item.ending,
            "events": len(item.events or []),
            "request": item.view.lines[-1].key,
        }
        for item in tape.exchanges
    ]
    if as_json:
        print_json({"created": tape.created, "models": tape.models, "exchanges": rows})
        return
    out.print(f"{path.name}: recorded {tape.created}, {', '.join(tape.models)}", highlight=False)
    table = Table("exchange", "agent", "status", "ending", "events", "the request's last line", box=None)
    for row in rows:
        table.add_row(*(escape(str(value)[:90].replace("\n", " ")) for value in row.values()))
    out.print(table)
