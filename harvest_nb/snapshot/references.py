"""`@docs/…` references in markdown, and which of them lead nowhere.

What counts, and why:

- `@` at the start of a word, followed by a path whose first part is a name at the top of `/app`
  (`@docs/ai/x.md`), or which ends in a text file's suffix (`@notes.md`), or begins with `/`, `./`, `../` or
  `~/`. So npm scopes (`@anthropic-ai/claude-code`), people (`@octocat`) and addresses are none.
- Code spans count: the pages write their references in them, and a reader follows them all the same.
- Code blocks, HTML and link targets count only where the path begins with a folder at the top of `/app`
  (`@docs/x.md`): that is a page of the image wherever it is written, and an agent will look for it. Anything else
  there (`@decorator`, `@notes.md`) is an example of something else.
- A path with a placeholder in or right after it (`@docs/…`, `@docs/<page>.md`, `@docs/*.md`) is a pattern.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["Reference", "dangling", "references"]

APP = "/app"
_MENTION = re.compile(r"(?<![\w@/.`-])@(?P<path>(?:~|\.{1,2})?/?[\w][\w./+~-]*|/[\w./+~-]*)(?P<after>\S?)")
_ANYWHERE = re.compile(r"(?<![\w@/.-])@(?P<path>[\w][\w.+~-]*/[\w./+~-]*)(?P<after>\S?)")
_PLACEHOLDER = frozenset("<>{}*…[$")
_SUFFIXES = (".md", ".mdx", ".txt", ".json", ".jsonl", ".toml", ".yaml", ".yml")
_ROOTED = ("/", "./", "../", "~/")


@dataclass(frozen=True)
class Reference:
    """One reference: the path as written, without the `@`, and the line (from 1) of its block."""

    path: str
    line: int

    @property
    def target(self) -> str:
        """The absolute path meant: relative ones start at `/app`, the session's working directory."""
        return posixpath.normpath(posixpath.join(APP, self.path))


def references(text: str, top: Collection[str]) -> list[Reference]:
    """The references in a markdown text.

    Args:
        text: the markdown.
        top: names at the top of `/app` (`{"docs", "claude.md", …}`).
    """
    found: list[Reference] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type != "inline":
            continue
        line = (token.map or [0])[0] + 1
        for piece, offset in _pieces(token):
            found += [
                Reference(path, line + offset) for path in _paths(_MENTION, piece) if _is_path(path, top)
            ]
    read = {reference.path for reference in found}
    for number, whole in enumerate(text.split("\n"), start=1):
        paths = [path for path in _paths(_ANYWHERE, whole) if path.split("/", 1)[0] in top]
        found += [Reference(path, number) for path in paths if path not in read]
    return sorted(found, key=lambda reference: reference.line)


def _paths(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    for match in pattern.finditer(text):
        path = match["path"].rstrip(".-~+")
        after = match["after"] if path == match["path"] else ""
        if after not in _PLACEHOLDER and not match["path"].endswith("..."):
            yield path


def _pieces(inline: Token) -> Iterator[tuple[str, int]]:
    """Runs of text between breaks, with how many lines below the block's first they are."""
    line, run = 0, ""
    for child in inline.children or []:
        if child.type in {"softbreak", "hardbreak"}:
            yield run, line
            line, run = line + 1, ""
        elif child.type == "code_inline":
            # Its own run: what stands next to a code span is no part of the path in it.
            yield run, line
            yield child.content, line
            run = ""
        else:
            run += child.content
    yield run, line


def _is_path(path: str, top: Collection[str]) -> bool:
    first = path.split("/", 1)[0]
    return path.startswith(_ROOTED) or first in top or path.lower().endswith(_SUFFIXES)


def dangling(text: str, files: Collection[str]) -> list[Reference]:
    """The references in `text` that are neither one of `files` (absolute paths in the image) nor a folder of them."""
    folders = {APP}
    for file in files:
        parent = posixpath.dirname(file)
        while parent not in {"/", ""}:
            folders.add(parent)
            parent = posixpath.dirname(parent)
    top = {name.removeprefix(f"{APP}/").split("/", 1)[0] for name in files if name.startswith(f"{APP}/")}
    known = {*files, *folders}
    return [reference for reference in references(text, top) if reference.target not in known]
