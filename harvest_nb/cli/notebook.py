"""Commands that execute the notebooks, or open them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harvest_nb.cli.common import Json, do, err, kernels_sandboxes, out, print_json
from harvest_nb.cli.ctrl_c import ending
from harvest_nb.errors import ParameterError

app = typer.Typer()
notebooks_app = typer.Typer(no_args_is_help=True, help="The numbered notebooks.")
app.add_typer(notebooks_app, name="notebooks")


@notebooks_app.command("run")
def notebooks_run(
    notebook: Annotated[list[Path] | None, typer.Argument(help="Notebooks (default: all).")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="name=value or notebook.name=value; may be repeated."),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="For the executed notebooks.")] = Path(
        "build/notebooks"
    ),
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    cell_timeout: Annotated[int, typer.Option(help="Seconds that a cell may take.")] = 600,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="How many run at the same time.")] = 1,
    live: Annotated[bool, typer.Option("--live", help="Let the tokens through to the kernels.")] = False,
    as_json: Json = False,
) -> None:
    """Execute notebooks through papermill. Exit code 1 when one fails."""
    from harvest_nb.doctor import engine_missing
    from harvest_nb.notebooks import assignments, results_table, run_notebooks
    from harvest_nb.paths import notebook_paths

    paths = notebook or notebook_paths()
    for path in paths:
        if not path.is_file():
            raise ParameterError(f"There is no notebook {path}", hint="name .ipynb files, or none for all")
    common, single = assignments(paths, parameter or [])
    with ending.stopping(), kernels_sandboxes():
        results = run_notebooks(
            paths,
            out_dir,
            common,
            per_notebook=single,
            requires={"docker": engine_missing()},
            cell_timeout=cell_timeout,
            jobs=jobs,
            live=live,
            console=err if as_json else out,
            junit=junit,
        )
    if as_json:
        print_json([{k: v for k, v in vars(item).items() if k != "error"} for item in results])
    else:
        out.print(results_table(results))
    raise typer.Exit(1 if any(item.outcome == "failed" for item in results) else 0)


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="For everything that it makes.")] = Path(
        "build/demo"
    ),
    live: Annotated[bool, typer.Option("--live", help="Use Anthropic's endpoint; costs money.")] = False,
    max_budget_usd: Annotated[
        float, typer.Option("--max-budget-usd", min=0.0, help="What each session may cost at most.")
    ] = 1.0,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="How many notebooks run at the same time (default: one a CPU, four at most).",
        ),
    ] = None,
) -> None:
    """Do the main job: engine, image, every notebook, HTML pages. Exit code 1 when a notebook fails."""
    from harvest_nb import api
    from harvest_nb.demo import demo as main_job

    done = main_job(
        out_dir,
        build=lambda: do(api.build()),
        live=live,
        max_budget_usd=max_budget_usd,
        jobs=jobs,
        console=out,
    )
    out.print(
        f"{done.seconds:.0f} s in all. JUnit: {done.junit}", highlight=False, markup=False, soft_wrap=True
    )
    out.print(f"Open {done.index.resolve().as_uri()}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if done.ok else 1)
