"""Where this machine gets Debian's packages from, in the form that `mmdebstrap` takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harvest_nb.engine.apt import os_release

__all__ = ["debian_sources"]

_SUITE = re.compile(r"(?P<name>[a-z]+)(?P<kind>|-updates|-security)$")
_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$"
)


@dataclass(frozen=True)
class _Entry:
    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str


def debian_sources(suite: str, root: Path = Path("/")) -> list[str]:
    """`deb URI SUITE main` lines for Debian's `suite`, from the sources that this machine is set up with.

    A Debian machine's mirrors carry every current release, so on another release the suite's name alone is
    exchanged. The list is empty where the machine has no such source (another distribution, a mirror list,
    a CD): `mmdebstrap` then uses its own default. A source with a password in its address is passed over,
    for the lines end up in the image.

    Args:
        suite: the release wanted, such as `bookworm`.
        root: where `/etc` is looked for.
    """
    release = os_release(root)
    if release.get("ID") != "debian":
        return []
    names = {release.get("VERSION_CODENAME", suite), suite, "stable", "oldstable"}
    lines: list[str] = []
    kinds: set[str] = set()
    for entry in _entries(root / "etc/apt"):
        address, match = urlsplit(entry.uri), _SUITE.match(entry.suite)
        debian = "debian-archive" in entry.signed_by or (not entry.signed_by and "debian" in entry.uri)
        if (
            match is None
            or match["name"] not in names
            or "main" not in entry.components
            or address.scheme not in {"http", "https"}
            or "@" in address.netloc
            or not debian
        ):
            continue
        kinds.add(match["kind"])
        line = f"deb {entry.uri} {suite}{match['kind']} main"
        if line not in lines:
            lines.append(line)
    return lines if "" in kinds else []


def _entries(folder: Path) -> Iterator[_Entry]:
    parts = folder / "sources.list.d"
    for file in [folder / "sources.list", *sorted(parts.glob("*.list"))]:
        if file.is_file():
            yield from _one_line(file.read_text(encoding="utf-8"))
    for file in sorted(parts.glob("*.sources")):
        yield from _deb822(file.read_text(encoding="utf-8"))


def _one_line(text: str) -> Iterator[_Entry]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match:
            options = dict(item.split("=", 1) for item in (match["options"] or "").split() if "=" in item)
            yield _Entry(
                match["uri"], match["suite"], tuple(match["components"].split()), options.get("signed-by", "")
            )


def _deb822(text: str) -> Iterator[_Entry]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = fields.get(key, "") + "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield _Entry(
                    uri, suite, tuple(fields.get("components", "").split()), fields.get("signed-by", "")
                )
