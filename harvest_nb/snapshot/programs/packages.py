"""Runs in the image: every apt, npm and pip package as one JSON list; standard library only.

Entries: `type` (`apt`, `npm`, `pip`), `name`, `version`, `licences` (as the package itself says, a list),
`architecture` (apt), `places` (npm, pip: folders that hold it), `homepage`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

COPYRIGHT = "/usr/share/doc/{}/copyright"
COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]+[A-Za-z0-9])")
FIELD = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)
# What the older, free-form files say instead of a field.
WORDS = {
    "Expat": re.compile(r"Permission is hereby granted, free of charge"),
    "BSD": re.compile(r"Redistribution and use in source and binary forms"),
    "HPND": re.compile(r"Permission to use, copy, modify,? distribute,? and sell this software"),
    "ISC": re.compile(r"Permission to use, copy, modify,? and(/or)? distribute this software"),
    "public-domain": re.compile(r"public domain", re.IGNORECASE),
}
ROOTS = ("/usr/local/lib/harvest/node_modules", "/usr/local/lib/node_modules")


def apt() -> Iterator[dict[str, Any]]:
    """What dpkg has installed."""
    fields = ("Package", "Version", "Architecture", "Homepage", "db:Status-Status")
    wanted = "\t".join(f"${{{name}}}" for name in fields) + "\n"
    listed = subprocess.run(["dpkg-query", "-W", "-f", wanted], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        name, version, architecture, homepage, status = line.split("\t")
        if status == "installed":
            yield {
                "type": "apt", "name": name, "version": version, "architecture": architecture,
                "homepage": homepage, "licences": debian_licences(name), "places": [],
            }  # fmt: skip


def debian_licences(name: str) -> list[str]:
    """What a package's copyright file names: its fields, else what its words point at."""
    try:
        text = Path(COPYRIGHT.format(name)).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found: list[str] = []
    if re.match(r"Format(-Specification)?:", text):
        found = [field.strip() for field in FIELD.findall(text)]
    if not found:
        found = [match.rstrip(".") for match in COMMON.findall(text)]
    if not found:
        flat = " ".join(text.split())
        found = [licence for licence, words in WORDS.items() if words.search(flat)]
    return sorted(set(found))


def npm() -> Iterable[dict[str, Any]]:
    """Every package below the roots, also those that lie in another one's folder."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for root in ROOTS:
        for name, _, files in os.walk(root):
            folder = Path(name)
            # A package's own folder: node_modules/<name> or node_modules/@<scope>/<name>.
            above = folder.parent.parent if folder.parent.name.startswith("@") else folder.parent
            if "package.json" not in files or above.name != "node_modules":
                continue
            package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
            if not package.get("name") or not package.get("version"):
                continue
            homepage = package.get("homepage")
            entry = found.setdefault(
                (package["name"], package["version"]),
                {
                    "type": "npm", "name": package["name"], "version": package["version"], "architecture": "",
                    "homepage": homepage if isinstance(homepage, str) else "",
                    "licences": npm_licences(package), "places": [],
                },
            )  # fmt: skip
            entry["places"].append(name)
    return found.values()


def npm_licences(package: dict[str, Any]) -> list[str]:
    """The `license` field in its present form and in its two older ones."""
    said = package.get("license", package.get("licenses", []))
    entries = said if isinstance(said, list) else [said]
    named = [entry.get("type") if isinstance(entry, dict) else entry for entry in entries]
    return sorted({str(name) for name in named if name})


def pip() -> Iterator[dict[str, Any]]:
    """The distributions that the image's Python finds."""
    for found in importlib.metadata.distributions():
        fields: Any = found.metadata
        licences = [fields["License-Expression"]] if fields["License-Expression"] else []
        if not licences:
            trove = [line for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
            licences = [line.split(" :: ")[-1] for line in trove]
        if not licences:
            licences = [line for line in (fields["License"] or "").splitlines()[:1] if line.strip()]
        yield {
            "type": "pip", "name": fields["Name"], "version": fields["Version"], "architecture": "",
            "homepage": fields["Home-page"] or "", "licences": sorted(set(licences)),
            "places": [str(found.locate_file(""))],
        }  # fmt: skip


if __name__ == "__main__":
    json.dump([*apt(), *npm(), *pip()], sys.stdout)
