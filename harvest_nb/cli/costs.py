"""Commands about money: what recorded runs cost, and the price table."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harvest_nb.cli.common import Json, err, out, print_json
from harvest_nb.errors import RunFolderError

app = typer.Typer()
_WIDE = 180


class By(StrEnum):
    """What rows are made for."""

    model = "model"
    day = "day"
    session = "session"
    tool = "tool"
    project = "project"


class View(StrEnum):
    """Each response once, or each session whole."""

    corpus = "corpus"
    session = "session"


@app.command()
def costs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, stream logs, transcripts, or folders of them (default: this machine's "
            "Claude Code transcripts)."
        ),
    ] = None,
    by: Annotated[By, typer.Option(help="One row for each of these.")] = By.model,
    view: Annotated[
        View, typer.Option(help="corpus: each response once. session: each session whole, copies included.")
    ] = View.corpus,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links that lead out of a folder, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add up tokens and cost of what was recorded, each API response once."""
    from harvest_nb.prices import load_prices
    from harvest_nb.tables import load
    from harvest_nb.tables.totals import totals

    table = load_prices()
    frames = load(*(paths or own_transcripts()), view=view.value, prices=table, follow_links=follow_links)
    found = totals(frames, by.value)
    if as_json:
        print_json(
            {
                "rows": [{**row, "cost_usd": _number(row["cost_usd"])} for row in found.rows],
                "total_usd": _number(found.total_usd),
                "priced_usd": _number(found.priced_usd),
                "problems": len(frames.problems),
                "prices": {"version": table.version, "digest": table.digest},
            }
        )
        return
    shown = Table(box=None, header_style="bold")
    shown.add_column(by.value, no_wrap=True)
    for column in ("responses", "input", "output", "not final", "write 5m", "write 1h", "read", "USD"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        unknown = row.get("counts_unknown", {})
        cost = "no price" if row["cost_usd"] is None else f"{row['cost_usd']:.4f}"
        counts = (
            f"≥{count:,}" if key in unknown else f"{count:,}"
            for key, count in row.items()
            if key not in (by.value, "cost_usd", "counts_unknown")
        )
        shown.add_row(escape(str(row[by.value])), *counts, cost)
    _print_wide(shown)
    amount = f"{found.priced_usd:.4f} USD"
    if found.total_usd is None:
        amount = f"at least {amount}" if found.priced_usd else "no price"
    out.print(f"total {amount}; prices: {table.version}, digest {table.digest}", highlight=False)
    for model, count in found.unpriced.items():
        whose = f"{count} responses" if count else "what a result tells"
        err.print(f"not in the total: {whose} of {model}, without a price or a count", highlight=False)
    if found.uncounted:
        err.print(
            f"at least: {found.uncounted} responses do not say all their counts; sums with ≥ are lower bounds",
            highlight=False,
        )
    if found.not_final:
        err.print(
            f"at least: {found.not_final} responses have no final output figure; theirs is a lower bound",
            highlight=False,
        )
    for reason, count in frames.problems["reason"].value_counts().items():
        if count:
            err.print(f"{count} times {reason} (frames.problems says where)", highlight=False)


@app.command()
def prices(
    model: Annotated[list[str] | None, typer.Argument(help="Only models with these words in them.")] = None,
    date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Prices of that day (default: today).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the price table, its age, and where each figure comes from. USD per million tokens."""
    from harvest_nb.prices import COMPONENTS, load_prices

    table = load_prices()
    when = date.replace(hour=12, tzinfo=UTC) if date else None
    rows = [row for row in table.rows(when) if not model or any(word in row["model"] for word in model)]
    if as_json:
        print_json(
            {
                "version": table.version,
                "digest": table.digest,
                "edition": table.edition,
                "age_days": table.age_days(),
                "rows": [{**row, **{key: _number(row[key]) for key in COMPONENTS}} for row in rows],
                "modifiers": table.modifiers(),
            }
        )
        return
    shown = Table("model", "when", box=None, header_style="bold")
    for column in ("input", "output", "write 5m", "write 1h", "read", "search"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("source", justify="right", no_wrap=True)
    sources: dict[str, int] = {}
    for row in rows:
        figures = ("-" if row[key] is None else f"{row[key].normalize():f}" for key in COMPONENTS)
        number = sources.setdefault(row["source"].split("; ")[0], len(sources) + 1)
        shown.add_row(escape(row["model"]), escape(row["when"]), *figures, str(number))
    _print_wide(shown)
    for source, number in sources.items():
        out.print(f"{number:>3}  {source}", highlight=False, soft_wrap=True)
    for item in table.modifiers():
        said = f"{item['when']}: x{item['factor']} ({item['models']}): {item['source']}"
        out.print(f"     {said}", highlight=False, soft_wrap=True)
    age = table.age_days()
    since = "of no date" if age is None else f"{age} days old"
    out.print(
        f"{table.version}, digest {table.digest}; overrides of {table.edition}, {since}", highlight=False
    )
    out.print("USD per million tokens; searches in USD per 1,000.", highlight=False)


def own_transcripts() -> list[Path]:
    """Where Claude Code keeps this user's transcripts.

    Raises:
        RunFolderError: there are none.
    """
    named = os.environ.get("CLAUDE_CONFIG_DIR")
    homes = (
        [Path(part.strip()) for part in named.split(",") if part.strip()]
        if named
        else [Path.home() / ".config" / "claude", Path.home() / ".claude"]
    )
    found = [home / "projects" for home in homes if (home / "projects").is_dir()]
    if not found:
        raise RunFolderError(
            "There are no Claude Code transcripts in " + " or ".join(str(home) for home in homes),
            hint="name files or folders, or set CLAUDE_CONFIG_DIR",
        )
    return found


def _print_wide(table: Table) -> None:
    """Print a table in full, however narrow the terminal: a figure that is cut off is a wrong figure."""
    Console(width=max(out.width, _WIDE)).print(table)


def _number(amount: Any) -> float | None:
    return None if amount is None else float(amount)
