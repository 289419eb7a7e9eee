"""Kinds that ask what changes the agent's programs without being one: variables, search paths, settings, names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container
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

_DESCRIBED = 40  # files whose settings are named
_MOST = 12  # settings that are named of one file
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,40}", re.ASCII)
_READ = 256 * 1024  # bytes; a larger file is named alone
_OF_A_REPOSITORY = {"config", "config.worktree", "commondir", "hooks"}  # "hooks" as a link


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return value


Patterns = Annotated[tuple[str, ...], AfterValidator(_patterns)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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

    No program shadows another of its name in a later folder, but for those in `allow`.
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
            f"{path} shadows {other}, another program of the same name"
            for path, other in found["shadowing"]
            if path not in self.allow
        ]
        return Outcome(not problems, shorten("; ".join(problems)) or ":".join(folders))


class SettingsFilesCheck(Check):
    """No file matches one of `absent`, but for those that are allowed, and each file of `same` is as that beside it.

    A pattern must match the whole path. An empty file sets nothing and does not count.
    """

    kind: Literal["settings_files"]
    absent: Patterns = ()
    allow: Patterns = ()
    """Files that may be there, whatever they hold."""
    allow_sha256: dict[str, Digest] = Field(default_factory=dict)
    """Files that may be there with this content: path to SHA-256."""
    allow_links: dict[Regex, str] = Field(default_factory=dict)
    """Links that may be there: a pattern of their paths to where they lead, with `\\1` for its first group."""
    same: dict[str, str] = Field(default_factory=dict)
    repositories: bool = False
    """Whether hooks and settings in git repositories count too, under any name of the repository."""
    what: str = Field(min_length=1)
    """What such files set, in words."""

    def expected(self) -> str:
        """What is not set."""
        return f"nothing sets {self.what}"

    async def observe(self, context: Context) -> Outcome:
        """Find the files, and name what each sets."""
        absent, allow = (
            [re.compile(context.expand(pattern), re.DOTALL) for pattern in patterns]
            for patterns in (self.absent, self.allow)
        )
        files = await context.files()
        repositories = set(await context.repositories()) if self.repositories else set()
        found = [
            file
            for file in files
            if file.size
            and (any(p.fullmatch(file.path) for p in absent) or _of_a_repository(file.path, repositories))
            and not any(pattern.fullmatch(file.path) for pattern in allow)
            and not self._leads_where_it_may(file)
        ]
        problems: list[str] = []
        for file in sorted(found, key=lambda file: file.path):
            allowed = self.allow_sha256.get(file.path, "")
            described = len(problems) < _DESCRIBED or allowed
            problems.append(await _described(context, file, allowed) if described else file.path)
        problems = [problem for problem in problems if problem]
        for place, other in self.same.items():
            path = context.expand(place)
            ours, theirs = await _lines(context, path), await _lines(context, other)
            added = [line for line in ours if line not in theirs]
            if ours != theirs:
                problems.append(f"{path} differs from {other}: {len(added)} lines of its own")
        return Outcome(not problems, shorten("; ".join(problems)) or f"none in {len(files)} files")

    def _leads_where_it_may(self, file: FoundFile) -> bool:
        matches = (
            (re.fullmatch(pattern, file.path, re.DOTALL), target)
            for pattern, target in self.allow_links.items()
        )
        return any(match and match.expand(target) == file.link for match, target in matches)


def _of_a_repository(path: str, repositories: Container[str]) -> bool:
    above, _, name = path.rpartition("/")
    top, _, folder = above.rpartition("/")
    return (above in repositories and name in _OF_A_REPOSITORY) or (
        top in repositories and folder == "hooks" and not name.endswith(".sample")
    )


async def _described(context: Context, file: FoundFile, allowed: str) -> str:
    """Return what is wrong with a file; an empty text where its SHA-256 is the allowed one."""
    if file.size > _READ and not allowed:
        return file.path
    try:
        data = await context.sandbox.read(file.path)
    except (OSError, SandboxError):
        return f"{file.path}, a link to {file.link}" if file.link else f"{file.path} (closed to the agent)"
    digest = hashlib.sha256(data).hexdigest()
    if digest == allowed and not file.link:  # what a link leads to may change
        return ""
    names = setting_names(data.decode("utf-8", "replace"))
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    changed = f" (SHA-256 {digest}, not as allowed)" if allowed else ""
    return f"{file.path}{changed}" + (f" sets {', '.join(names[:_MOST])}{more}" if names else "")


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
