"""Commands about the engine and the snapshot image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harvest_nb.cli.common import Image, Json, ProviderName, SourceRoot, do, err, out, print_json

app = typer.Typer()
pins = typer.Typer(no_args_is_help=True, help="The snapshot's pins.")
app.add_typer(pins, name="snapshot")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is here, what is missing, and how to get it."""
    from harvest_nb.doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.json() for finding in findings])
    else:
        table = Table("", "what", "found", "what to do", box=None, header_style="bold")
        for item in findings:
            mark = "[green]✓[/]" if item.ok else "[red]✗[/]" if item.needed else "[yellow]-[/]"
            table.add_row(mark, escape(item.what), escape(item.found), escape(item.hint))
        out.print(table)
    raise typer.Exit(0 if all(item.ok for item in findings if item.needed) else 1)


@app.command()
def engine() -> None:
    """Find a Docker engine, else start or install one (as root, on Debian and Ubuntu). Exit code 3 without one."""
    from harvest_nb.engine import ensure

    ensure(lambda line: out.print(line, highlight=False, markup=False)).close()


@app.command()
def build(
    image: Image = None,
    source_root: SourceRoot = None,
    node_version: Annotated[str, typer.Option(help="Node's major version.")] = "20",
    pull: Annotated[
        bool, typer.Option("--pull", help="Get the base image anew, with today's packages.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write the image into this tar, to be carried elsewhere.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build the snapshot image."""
    from harvest_nb import api

    show = (lambda _: None) if as_json else None
    snapshot = do(
        api.build(
            image,
            source_root=source_root,
            node_version=node_version,
            pull=pull,
            output=output,
            on_progress=show,
        )
    )
    if as_json:
        print_json(
            {
                "id": snapshot.id,
                "digest": snapshot.digest,
                "tags": snapshot.tags,
                "size_bytes": snapshot.size,
                "built": snapshot.built,
                "seconds": snapshot.seconds,
                "manifest_sha256": snapshot.manifest_hash,
                "labels": dict(snapshot.labels),
            }
        )
        return
    how = f"built in {snapshot.seconds:.1f} s" if snapshot.built else "nothing has changed, reused"
    out.print(
        f"{snapshot.tag}  {snapshot.id[:19]}  {snapshot.size / 1e9:.2f} GB  {how}",
        highlight=False,
        markup=False,
    )
    if output is not None:
        out.print(f"written to {output}: {output.stat().st_size / 1e9:.2f} GB", highlight=False, markup=False)


@app.command()
def sources(
    image: Image = None,
    source_root: SourceRoot = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 unless the image holds them all.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show each config source: where it goes, its SHA-256, and whether the image holds it as it is now."""
    from harvest_nb.errors import BuildError
    from harvest_nb.snapshot import inspect, source_status

    try:
        manifest = inspect(image).manifest
    except BuildError as error:
        err.print(error.message, markup=False, highlight=False)
        manifest = None
    frame = source_status(manifest, source_root)
    if as_json:
        print_json(frame.astype(object).where(frame.notna(), None).to_dict("records"))
    else:
        table = Table("in the image", "source", "sha256", "state", box=None, header_style="bold")
        colours = {"in the image": "green", "drifted": "yellow", "missing": "red", "no source": "red"}
        for row in frame.fillna("").itertuples():
            state = f"[{colours[str(row.state)]}]{row.state}[/]"
            table.add_row(escape(str(row.image_path)), escape(str(row.source)), str(row.sha256)[:12], state)
        out.print(table)
        for row in frame[frame["problem"].notna()].itertuples():
            err.print(f"{row.problem}", markup=False, highlight=False)
    raise typer.Exit(1 if check and (frame["state"] != "in the image").any() else 0)


@app.command()
def inventory(
    image: Image = None,
    cyclonedx: Annotated[
        Path | None, typer.Option(help="Write a CycloneDX 1.6 bill of materials here instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List every apt, npm and pip package in the image, with version and licence."""
    from harvest_nb.settings import load_settings
    from harvest_nb.snapshot.inventory import inventory as look

    found = look(image or load_settings().image)
    if cyclonedx is not None:
        cyclonedx.parent.mkdir(parents=True, exist_ok=True)
        cyclonedx.write_text(found.cyclonedx(), encoding="utf-8")
        out.print(f"{found!r} written to {cyclonedx}", highlight=False, markup=False)
    elif as_json:
        print_json(found.frame.astype(object).where(found.frame.notna(), None).to_dict("records"))
    else:
        table = Table("", "package", "version", "licence", box=None, header_style="bold")
        for row in found.frame.fillna("-").itertuples():
            told = (row.type, row.name, row.version, row.licence)
            table.add_row(*(escape(str(value)) for value in told))
        out.print(table)


@pins.command()
def update(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Move the pins of Node.js and the agent toolchain; the CLI to what the Python SDK bundles. Shows what changed."""
    from harvest_nb.checks.sdk import bundled_cli_version
    from harvest_nb.snapshot.update import update as move

    done = move(
        cli=bundled_cli_version(), write=not dry_run, say=lambda line: err.print(line, highlight=False)
    )
    if as_json:
        print_json({"written": done.written, "changes": done.frame.to_dict("records")})
        return
    table = Table("package", "was", "is", box=None, header_style="bold")
    for change in done.changes:
        name = f"[bold]{change.package}[/]" if change.direct else change.package
        table.add_row(name, change.old or "-", change.new or "-")
    out.print(table if done.changes else "Nothing to move: every pin is what the registry has now.")
    if done.written:
        out.print("Now: harvest-nb build --pull && harvest-nb validate", highlight=False)


@app.command()
def validate(
    snapshot: Annotated[
        str | None, typer.Argument(help="An image's tag or id, or a tar that `build --output` wrote.")
    ] = None,
    image: Image = None,
    provider: ProviderName = "docker",
    group: Annotated[list[str] | None, typer.Option(help="Only these groups; may be repeated.")] = None,
    contract: Annotated[Path | None, typer.Option(help="Another contract than config/contract.toml.")] = None,
    source_root: SourceRoot = None,
    layers: Annotated[bool, typer.Option(help="Read the image's layers for secrets: a gigabyte.")] = True,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    as_json: Json = False,
) -> None:
    """Run the validation contract in a new sandbox. Exit code 1 when a check fails."""
    from harvest_nb import api

    report = do(
        api.validate(
            snapshot or image,
            provider=provider,
            groups=group,
            contract=contract,
            source_root=source_root,
            layers=layers,
        )
    )
    if junit is not None:
        report.to_junit(junit)
    if as_json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        table = Table("", "group", "check", "observed", "s", box=None, header_style="bold")
        marks = {"pass": "[green]✓[/]", "fail": "[red]✗[/]", "n/a": "[dim]n/a[/]"}
        for row in report:
            # What a check saw is text from a sandbox, where [/x] and [x] are no markup.
            observed = escape(row.observed)
            table.add_row(marks[row.status], row.group, row.check, observed, f"{row.seconds:.2f}")
        out.print(table)
        for row in report.failures:
            told = escape(f"expected {row.expected}, observed {row.observed}\n  → {row.hint}")
            out.print(f"[red]{row.check}[/]: {told}")
        out.print(report.summary)
    raise typer.Exit(0 if report.ok else 1)
