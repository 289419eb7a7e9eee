"""Kinds that ask what changes the agent's programs without being one: variables, search paths, settings, names."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from harvest_nb.checks.base import Check, Context, FoundFile, Outcome, shorten
from harvest_nb.checks.tools import Regex
from harvest_nb.checks.variables import foreign_variables
from harvest_nb.errors import SandboxError

__all__ = [
    "EnvironmentCheck",
    "FileCapabilitiesCheck",
    "NameResolutionCheck",
    "SearchPathCheck",
    "SettingsFilesCheck",
    "setting_names",
]

_MOST = 12  # settings that are named of one file
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,40}", re.ASCII)
_READ = 256 * 1024  # bytes; a larger file is named alone


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return value


Patterns = Annotated[tuple[str, ...], AfterValidator(_patterns)]


def setting_names(text: str) -> list[str]:
    """The names of the settings in a file of JSON, or of lines such as `name = value` below `[section]`.

    What JSON sets in `env` and `hooks` is named one by one. Values are never returned, nor what is no plain name: git's
    subsections and npm's registries may hold a token.
    """
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        loaded = None
    if isinstance(loaded, dict):
        return list(_json_names(loaded))
    names: dict[str, None] = {}
    section = ""
    for line in text.splitlines():
        if opened := re.match(r"\s*\[\s*([\w.-]{1,40})", line):
            section = opened.group(1) + "."
        elif named := re.match(r"\s*(?:export\s+)?([\w./:@-]+)\s*(?:=\s*[^\s=]|:\s+\S)", line):
            name = named.group(1).rstrip(":").rpartition(":")[2]
            names[section + name if _NAME.fullmatch(name) else f"{section}…"] = None
    return list(names)


def _json_names(loaded: dict[str, Any]) -> dict[str, None]:
    names: dict[str, None] = {}
    for name, value in loaded.items():
        if name in ("env", "hooks", "mcpServers", "permissions") and isinstance(value, dict) and value:
            names |= dict.fromkeys(f"{name}.{inner}" for inner in value)
        else:
            names[str(name)] = None
    return names


class EnvironmentCheck(Check):
    """The image sets the variables in `known`, each with a value that matches, and no other.

    Any other may load code into every program (`LD_PRELOAD`, `NODE_OPTIONS`, `PYTHONPATH`, `BASH_ENV`), send its
    connections elsewhere (`HTTPS_PROXY`, `GIT_…`), or change what it prints (`TZ`, `LC_ALL`). Asked are process 1, a
    program that is started as the agent's CLI is, so that what the entrypoint sets counts, and a login shell.
    """

    kind: Literal["environment"]
    known: dict[str, Regex]

    def expected(self) -> str:
        """The variables."""
        return f"only {', '.join(self.known)}, each with its usual value"

    async def observe(self, context: Context) -> Outcome:
        """Read the environment; names are shown, values never."""
        variables = await context.environment()
        found = foreign_variables(variables, self.known)
        login = foreign_variables(await context.login_variables(), self.known)
        found += [f"{problem} by the login shell" for problem in login]
        return Outcome(
            bool(variables) and not found, shorten("; ".join(found)) or f"{len(variables)} variables"
        )


class SearchPathCheck(Check):
    """`PATH` leads to the folders in `known` alone, and the agent may change neither these nor the programs in them.

    No program stands in the way of another of its name in a later folder, but for those in `allow`.
    """

    kind: Literal["search_path"]
    known: tuple[str, ...] = Field(min_length=1)
    allow: tuple[str, ...] = ()

    def expected(self) -> str:
        """The folders."""
        return f"PATH of {', '.join(self.known)}, closed to the agent"

    async def observe(self, context: Context) -> Outcome:
        """Look at each folder of the path and at each program in it, links followed."""
        variables = await context.environment()
        folders = variables.get("PATH", "").split(":")
        problems = [
            f"{folder or 'the working directory'} is no folder of the snapshot"
            for folder in folders
            if folder not in self.known
        ]
        found = await context.python("search_path", *[folder for folder in folders if folder])
        problems += found["changeable"]
        problems += [
            f"{path} stands before {other}, another program"
            for path, other in found["covering"]
            if path not in self.allow
        ]
        return Outcome(not problems, shorten("; ".join(problems)) or ":".join(folders))


class SettingsFilesCheck(Check):
    """No file matches one of `absent`, but for those of `allow`, and each file of `same` is as that beside it.

    A pattern must match the whole path. An empty file sets nothing and does not count.
    """

    kind: Literal["settings_files"]
    absent: Patterns = ()
    allow: Patterns = ()
    same: dict[str, str] = Field(default_factory=dict)
    what: str = Field(min_length=1)
    """What such files set, in words."""

    def expected(self) -> str:
        """What is not set."""
        return f"nothing sets {self.what}"

    async def observe(self, context: Context) -> Outcome:
        """Find the files, and name what each sets."""
        absent, allow = (
            [re.compile(context.expand(pattern)) for pattern in patterns]
            for patterns in (self.absent, self.allow)
        )
        files = await context.files()
        found = [
            file
            for file in files
            if file.size
            and any(pattern.fullmatch(file.path) for pattern in absent)
            and not any(pattern.fullmatch(file.path) for pattern in allow)
        ]
        problems = [await _described(context, file) for file in sorted(found, key=lambda file: file.path)]
        for place, other in self.same.items():
            path = context.expand(place)
            ours, theirs = await _lines(context, path), await _lines(context, other)
            added = [line for line in ours if line not in theirs]
            if ours != theirs:
                problems.append(f"{path} differs from {other}: {len(added)} lines of its own")
        return Outcome(not problems, shorten("; ".join(problems)) or f"none in {len(files)} files")


async def _described(context: Context, file: FoundFile) -> str:
    if file.size > _READ:
        return file.path
    try:
        text = (await context.sandbox.read(file.path)).decode("utf-8", "replace")
    except (OSError, SandboxError):
        return f"{file.path} (closed to the agent)"
    names = setting_names(text)
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{file.path} sets {', '.join(names[:_MOST])}{more}" if names else file.path


async def _lines(context: Context, path: str) -> list[str]:
    try:
        return (await context.sandbox.read(path)).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []


class FileCapabilitiesCheck(Check):
    """No file has capabilities of its own, by which a program could do more than the agent."""

    kind: Literal["file_capabilities"]

    def expected(self) -> str:
        """No such file."""
        return "no file with capabilities"

    async def observe(self, context: Context) -> Outcome:
        """Ask the file system for each file that the agent can see."""
        files = await context.files()
        found = [file.path for file in files if file.capable]
        return Outcome(not found, shorten(", ".join(sorted(found))) or f"none of {len(files)} files")


class NameResolutionCheck(Check):
    """Names of hosts are asked of DNS, and none is answered by the image itself."""

    kind: Literal["name_resolution"]

    def expected(self) -> str:
        """How names are found."""
        return "hosts by files, then dns; no entry of its own in /etc/hosts"

    async def observe(self, context: Context) -> Outcome:
        """Read what the resolver reads; whether a server answers depends on the network, which is closed here."""
        problems = await context.python("names")
        return Outcome(not problems, shorten("; ".join(problems)) or "files, dns")
