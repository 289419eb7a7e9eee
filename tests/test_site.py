"""The HTML pages, built from tiny executed notebooks with the repository's own sources."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import nbformat
import pytest

from harvest_nb.errors import HarvestError
from harvest_nb.notebooks import NotebookResult, run_notebooks
from harvest_nb.redact import Redactor
from harvest_nb.site import build_site, remote_loads

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data" / "notebooks"


@pytest.fixture
def executed(once) -> list[NotebookResult]:
    return cast(list[NotebookResult], once("executed", execute))


def execute(out: Path) -> list[NotebookResult]:
    return run_notebooks(
        [DATA / f"{name}.ipynb" for name in ("fine", "error", "needs_docker", "scripted")],
        out,
        requires={"docker": "no engine | and *none* wanted"},
        secrets=Redactor(),
    )


@pytest.fixture
def site(executed, once) -> Path:
    def build(folder: Path) -> Path:
        out = folder / "html"
        assert build_site(executed, out) == out / "index.html"
        return out

    return cast(Path, once("site", build))


def pages(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.html")):
        yield path.relative_to(folder).as_posix(), path.read_text()


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))


def test_the_index_tells_of_every_notebook(site):
    page = (site / "index.html").read_text()
    for name in ("fine", "error", "scripted"):
        assert f'href="notebooks/{name}.html"' in page
    assert "notebooks/needs_docker.html" not in page
    text = words(page)
    assert "needs_docker: it needs docker: no engine | and *none* wanted" in text
    assert "error: cell 2 [2]" in text
    assert "KeyError: 'no such thing'" in text
    for outcome in ("ok", "failed", "skipped"):
        assert f'class="outcome-{outcome}"' in page


def test_the_index_says_that_answers_were_scripted(site, executed, tmp_path):
    assert "scripted endpoint, a loopback server with made-up answers" in words(
        (site / "index.html").read_text()
    )
    index = build_site([r for r in executed if r.name == "fine"], tmp_path / "html")
    assert "scripted endpoint, a loopback" not in words(index.read_text())


def test_no_page_loads_anything_from_the_network(site):
    seen = 0
    for name, page in pages(site):
        assert remote_loads(page) == [], name
        seen += 1
    assert seen > 10
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path
    for path in site.rglob("*.svg"):
        assert not re.search(r"(href|src)=\"(https?:)?//", path.read_text()), path


def test_every_link_between_pages_leads_somewhere(site):
    for name, page in pages(site):
        here = (site / name).parent
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page):
            if not re.match(r"[a-z]+:", target):
                assert (here / target).exists(), f"{name} → {target}"


def test_outputs_and_failures_are_shown(site):
    fine = words((site / "notebooks" / "fine.html").read_text())
    assert 'words: ["a", "a"]' in fine.replace("&quot;", '"')
    error = words((site / "notebooks" / "error.html").read_text())
    assert "encountered an exception here and stopped" in error
    assert "before" in error


def test_diagrams_are_pictures(site):
    page = (site / "ARCHITECTURE.html").read_text()
    assert len(re.findall(r'<img [^>]*src="_images/[^"]+\.svg"', page)) >= 9
    assert "sequenceDiagram" not in page


def test_pages_of_an_earlier_build_are_replaced(site, executed, tmp_path):
    out = tmp_path / "html"
    shutil.copytree(site, out)
    index = build_site([executed[0]], out)
    assert index.exists()
    assert not (out / "notebooks" / "error.html").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_pages_behind_a_link_are_replaced_where_it_leads(site, executed, tmp_path):
    place, link = tmp_path / "place", tmp_path / "html"
    shutil.copytree(site, place)
    link.symlink_to(place)
    assert build_site([executed[0]], link) == link / "index.html"
    assert link.is_symlink()
    assert (place / "index.html").exists()
    assert not (place / "notebooks" / "error.html").exists()


def test_other_files_are_not_replaced(executed, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(HarvestError, match="holds something other than pages"):
        build_site(executed, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def changed(result: NotebookResult, folder: Path, markdown: str) -> NotebookResult:
    notebook = nbformat.read(result.executed, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell(markdown))
    path = folder / "fine.ipynb"
    nbformat.write(notebook, path)
    return NotebookResult("fine", 1.0, "ok", source=result.source, executed=path, result=result.result)


@pytest.mark.parametrize(
    ("markdown", "says"),
    [
        ("![missing](nowhere.png)", "nowhere.png"),
        ('<img src="https://example.org/x.png">', "would load https://example.org/x.png from the network"),
        ("the value is planted-value-123", "shows a secret: GITHUB_TOKEN"),
        ("ghp_" + "a1" * 18, "shows a secret: GitHub"),
    ],
)
def test_a_page_that_cannot_stand_is_an_error(executed, tmp_path, markdown, says):
    result = changed(executed[0], tmp_path, markdown)
    with pytest.raises(HarvestError, match=re.escape(says)) as caught:
        build_site([result], tmp_path / "html", secrets=Redactor({"GITHUB_TOKEN": "planted-value-123"}))
    assert "planted" not in str(caught.value)
    assert not (tmp_path / "html").exists()


def test_dead_links_keep_their_words_and_code_is_left_alone(executed, tmp_path):
    text = "[a part](../harvest_nb/none.py) and `[code](../none.md)` and [home](../README.md)\n\n"
    fence = "```mermaid\nflowchart LR\n  a --> b\n```\n"
    index = build_site([changed(executed[0], tmp_path, text + fence)], tmp_path / "html")
    page = (index.parent / "notebooks" / "fine.html").read_text()
    assert "none.py" not in page
    assert "a part and" in words(page)
    assert "[code](../none.md)" in words(page)
    assert 'href="../README.html"' in page
    assert re.search(r'<img [^>]*src="\.\./_images/fence-\w+\.svg"', page)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', ["//cdn.example/x.css"]),
        ('<div style="background: url(http://a.example/b.png)">', ["http://a.example/b.png"]),
        ("<style>@import 'https://a.example/f.css';</style>", ["https://a.example/f.css"]),
        ('<a href="https://example.org">out</a><img src="here.png">', []),
        ('<pre>src="https://example.org"</pre>', []),
        ('<img srcset="a.png 1x, https://a.example/b.png 2x">', ["https://a.example/b.png"]),
        ('<svg><image href="https://a.example/b.png"/></svg>', ["https://a.example/b.png"]),
        ('<svg><a href="https://a.example/"><use href="#here"/></a></svg>', []),
        ("<p style=\"background: url( 'https://a.example/b.png')\">", ["https://a.example/b.png"]),
        ('<script>import("https://a.example/m.js")</script>', ["https://a.example/m.js"]),
        ('<script>import x from "https://a.example/m.js"</script>', ["https://a.example/m.js"]),
        ('<style>@import url("https://a.example/f.css");</style>', ["https://a.example/f.css"]),
        ("<style>@import url(https://a.example/f.css);</style>", ["https://a.example/f.css"]),
        ('<script>const home = "https://example.org"</script>', []),
    ],
)
def test_what_a_browser_would_load_is_found(page, found):
    assert remote_loads(page) == found
