"""The HTML pages: executed notebooks with an index, README, ARCHITECTURE and what the agent is given.

Sphinx with myst-nb and furo, in a process of its own. The result works without a network; a page that would
load a script, a style or an image from elsewhere is an error, and so is every warning.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat

from harvest_nb.errors import HarvestError
from harvest_nb.notebooks.inputs import parameters
from harvest_nb.notebooks.report import OUTCOME_WORDS
from harvest_nb.notebooks.run import NotebookResult
from harvest_nb.paths import data_root
from harvest_nb.redact import Redactor, find_secret_shapes
from harvest_nb.views.diagrams import Diagram, to_svg

__all__ = ["build_site", "remote_loads"]

_TIMEOUT = 600  # seconds for Sphinx
_TAIL = 25  # lines of its output in an error
_PAGES = ("README.md", "ARCHITECTURE.md", "docs/columns.md", "docs/trust.md")
_FOLDERS = ("docs/ai", "docs/mcp", "docs/diagrams", "docs/images")
_MARKED = re.compile(r"<!-- diagram (\w+) -->\n.*?<!-- end diagram \1 -->\n", re.DOTALL)
_FENCE = re.compile(r"^```mermaid\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(
    r"(?<!!)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\((?P<target>[^)\s#]+)(?:#[^)\s]*)?\)"
)


def build_site(executed: Sequence[NotebookResult], out_dir: Path, *, secrets: Redactor | None = None) -> Path:
    """Build the pages.

    Args:
        executed: what `run_notebooks` gave, in the order of the index; those not run are listed with the reason.
        out_dir: where the pages go; pages of an earlier build there are replaced.
        secrets: what must be on no page; shapes of well-known credentials are looked for in any case.

    Returns:
        The path of `index.html`.

    Raises:
        HarvestError: Sphinx fails or warns (with its last lines), a page would load something from the
            network or shows a secret, or `out_dir` holds something else.
    """
    given, out_dir = Path(out_dir), Path(out_dir).resolve()
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / "objects.inv").exists():
        raise HarvestError(f"{out_dir} holds something other than pages", hint="choose another folder")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=out_dir.parent) as folder:
        source, made = Path(folder, "source"), Path(folder, "html")
        _lay_out(source, executed)
        _sphinx(source, made, Path(folder, "doctrees"))
        _vet(made, secrets or Redactor())
        if out_dir.exists():
            shutil.rmtree(out_dir)
        made.rename(out_dir)
    return given / "index.html"


def _lay_out(source: Path, executed: Sequence[NotebookResult]) -> None:
    """The sources as Sphinx wants them, in the repository's own layout, so that links hold."""
    root = data_root()
    source.mkdir()
    try:
        shutil.copy(root / "docs" / "conf.py", source)
        shutil.copytree(root / "docs" / "static", source / "static")
        index = (root / "docs" / "index.md").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise HarvestError(
            f"The pages' sources are missing: {error.filename}", hint="build the pages in a checkout"
        ) from error
    for name in _PAGES:
        if (root / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, source / name)
    for name in _FOLDERS:
        if (root / name).exists():
            shutil.copytree(root / name, source / name)
    (source / "notebooks").mkdir()
    for result in executed:
        if result.executed is not None:
            shutil.copy(result.executed, source / "notebooks" / f"{result.name}.ipynb")
    (source / "index.md").write_text(index.replace("% results\n", _results(executed)), encoding="utf-8")
    for page in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        _adapt(page, source)
    with (source / "index.md").open("a", encoding="utf-8") as out:
        out.write(_contents(source, executed))


def _adapt(page: Path, source: Path) -> None:
    def text(value: str) -> str:
        return _drop_dead_links(_draw(value, page, source), page, source)

    if page.suffix == ".md":
        page.write_text(text(page.read_text(encoding="utf-8")), encoding="utf-8")
        return
    notebook = nbformat.read(page, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = text(cell.source)
    nbformat.write(notebook, page)  # type: ignore[no-untyped-call]


def _draw(text: str, page: Path, source: Path) -> str:
    """Mermaid text replaced by its picture: the committed one where there is one."""
    up = "../" * (len(page.relative_to(source).parts) - 1)

    def fence(found: re.Match[str]) -> str:
        name = f"fence-{sha256(found[1].encode()).hexdigest()[:12]}"
        path = source / "docs" / "diagrams" / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_svg(Diagram(name, "diagram", found[1])), encoding="utf-8")
        return f"![diagram]({up}docs/diagrams/{name}.svg)\n"

    text = _MARKED.sub(rf"![\1]({up}docs/diagrams/\1.svg)\n", text)
    return _FENCE.sub(fence, text)


def _drop_dead_links(text: str, page: Path, source: Path) -> str:
    """Links into the repository that lead to no page keep their words and lose their target."""

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if re.match(r"[a-z][a-z+.-]*:", target) or (page.parent / target).is_file():
            return found.group()
        return found["text"] or f"`{target}`"

    parts = _CODE.split(text)
    return "".join(part if n % 2 else _LINK.sub(link, part) for n, part in enumerate(parts))


def _results(executed: Sequence[NotebookResult]) -> str:
    if not executed:
        return "No notebook has been executed for these pages.\n"
    lines = ["## Notebooks", "", *_endpoint_note(executed)]
    lines += ["| notebook | seconds | outcome | result |", "|---|---:|---|---|"]
    for result in executed:
        shown = f"[{result.name}](notebooks/{result.name}.ipynb)" if result.executed else result.name
        seconds = "" if result.outcome == "skipped" else f"{result.seconds:.1f}"
        outcome = f'<span class="outcome-{result.outcome}">{OUTCOME_WORDS[result.outcome]}</span>'
        gave = ", ".join(f"{name}: {_short(value)}" for name, value in (result.result or {}).items())
        lines.append(f"| {shown} | {seconds} | {outcome} | {_cell(gave or result.reason)} |")
    for outcome, title in (("failed", "Failed"), ("skipped", "Not run")):
        chosen = [result for result in executed if result.outcome == outcome]
        if chosen:
            lines += ["", f"### {title}", ""]
            lines += [f"- **{result.name}**: {_cell(result.reason)}" for result in chosen]
    return "\n".join(lines) + "\n"


def _endpoint_note(executed: Iterable[NotebookResult]) -> list[str]:
    """Who answered the Messages API, said above the figures."""
    kinds = {kind for result in executed for kind in _endpoints(result)}
    notes = []
    if "scripted" in kinds:
        notes.append(
            "What a model says on these pages, its token counts and its costs come from the **scripted "
            "endpoint**, a loopback server with made-up answers. Tools, MCP servers and the CLI are real."
        )
    if kinds - {"scripted"}:
        notes.append(f"Some runs were live: {', '.join(sorted(kinds - {'scripted'}))}.")
    return [":::{note}", "\n\n".join(notes), ":::", ""] if notes else []


def _endpoints(result: NotebookResult) -> set[str]:
    if result.executed is None:
        return set()
    found: list[Any] = [(result.result or {}).get("endpoint")]
    notebook = nbformat.read(result.executed, as_version=4)  # type: ignore[no-untyped-call]
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    defaults = {p.name: p.default for p in parameters(result.source)} if result.source else {}
    found.append({**defaults, **given}.get("endpoint"))
    return {kind for kind in found if isinstance(kind, str)}


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_short(item)}' for name, item in value.items())})"
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _cell(text: str) -> str:
    """Plain text for a cell of a markdown table."""
    plain = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#$@~^])", r"\\\1", plain)


def _contents(source: Path, executed: Sequence[NotebookResult]) -> str:
    pages = {
        "Notebooks": [f"notebooks/{r.name}" for r in executed if r.executed is not None],
        "About": [name.removesuffix(".md") for name in _PAGES if (source / name).exists()],
        "What the agent is given": sorted(
            PurePosixPath(path.relative_to(source)).with_suffix("").as_posix()
            for folder in ("docs/ai", "docs/mcp")
            for path in (source / folder).rglob("*.md")
        ),
    }
    blocks = [
        "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```", ""])
        for title, names in pages.items()
        if names
    ]
    return "".join(blocks)


def _sphinx(source: Path, out: Path, doctrees: Path) -> None:
    argv = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", str(doctrees)]
    # Another's NO_COLOR, SPHINXOPTS or token has no business in it.
    env = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if name in os.environ
    }
    try:
        done = subprocess.run(
            [*argv, str(source), str(out)],
            env={**env, "NO_COLOR": "1", "SOURCE_DATE_EPOCH": "0"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise HarvestError(f"Sphinx took longer than {_TIMEOUT} s to build the pages") from error
    if done.returncode != 0:
        said = f"{done.stdout}\n{done.stderr}".replace(f"{source}/", "").strip().splitlines()
        raise HarvestError(
            f"The pages could not be built, Sphinx ended with {done.returncode}:\n"
            + "\n".join(said[-_TAIL:]),
            hint="mend the page that is named; warnings count as errors",
            tail=said[-_TAIL:],
        )


def _vet(folder: Path, redactor: Redactor) -> None:
    """No page may need the network or show a secret."""
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        remote = remote_loads(text)
        if remote:
            raise HarvestError(
                f"The page {page.relative_to(folder)} would load {remote[0]} from the network",
                hint="put the file into the repository, or link to it instead",
            )
        leaked = [*redactor.found(text), *find_secret_shapes(text)]
        if leaked:
            raise HarvestError(
                f"The page {page.relative_to(folder)} shows a secret: {', '.join(leaked)}",
                hint="find where it was written, and revoke it if anybody else may have seen it",
            )


class _Loads(HTMLParser):
    """Addresses that a browser fetches by itself: scripts, styles, pictures, frames, fonts."""

    def __init__(self, keep: Callable[[str], None]) -> None:
        super().__init__()
        self._keep, self._inside = keep, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._inside = tag
        if tag == "link" and values.get("rel") not in ("canonical", "author", "license", "next", "prev"):
            self._keep(values.get("href", ""))
        if tag not in ("a", "area", "link"):
            for name in ("src", "data", "poster", "href", "xlink:href"):
                self._keep(values.get(name, ""))
            for candidate in values.get("srcset", "").split(","):
                self._keep(candidate.split()[0] if candidate.strip() else "")
        for address in re.findall(r"url\(\s*['\"]?([^'\")]+)", values.get("style", "")):
            self._keep(address)

    def handle_data(self, data: str) -> None:
        patterns = {
            "style": r"(?:@import\s+(?:url\(\s*)?|url\(\s*)['\"]?([^'\");]+)",
            "script": r"\b(?:import|importScripts|from)\b\s*\(?\s*['\"]([^'\"]+)",
        }
        if self._inside in patterns:
            for address in re.findall(patterns[self._inside], data):
                self._keep(address)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def remote_loads(page: str) -> list[str]:
    """Addresses on the network that a browser would load by itself with an HTML page."""
    found: list[str] = []

    def keep(address: str) -> None:
        if re.match(r"\s*(https?:)?//", address):
            found.append(address)

    parser = _Loads(keep)
    parser.feed(page)
    return found
