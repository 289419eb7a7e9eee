"""What every check is made of: an entry of the contract, and what it finds in a sandbox."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harvest_nb.checks.credentials import hide_credentials
from harvest_nb.errors import CheckError
from harvest_nb.sandbox.base import Completed, Sandbox

__all__ = ["GROUPS", "Check", "Context", "FoundFile", "Group", "Outcome", "program", "shorten"]

Group = Literal["tools", "security", "sdk", "mcp", "browser", "config"]
GROUPS: tuple[Group, ...] = ("tools", "security", "sdk", "mcp", "browser", "config")

_PROGRAMS = Path(__file__).resolve().parent / "programs"
_SHOWN = 400  # characters of an observation that a row keeps
_OF_SHELLS = frozenset({"_", "OLDPWD", "PWD", "SHLVL"})  # what every shell sets


@dataclass(frozen=True)
class Outcome:
    """What a check found: `ok`, in words, and a hint that replaces the contract's where it says more."""

    ok: bool
    observed: str
    hint: str = ""


@dataclass(frozen=True)
class FoundFile:
    """A file or link in the sandbox: its size in bytes, whether it has capabilities, and where a link leads."""

    path: str
    size: int
    capable: bool
    link: str


@dataclass
class Context:
    """One validation: the sandbox, and what its checks share.

    `source_root` is the checkout that config files are compared with, or None.
    """

    sandbox: Sandbox
    source_root: Path | None = None
    notes: list[str] = field(default_factory=list)
    """What a reader of the report should know besides its rows."""
    steps: dict[str, str] = field(default_factory=dict)
    """Current step of each check, by its name; shown when the check times out."""
    _manifest: dict[str, Any] | None = None
    _files: tuple[FoundFile, ...] | None = None
    _repositories: tuple[str, ...] = ()
    _environment: dict[str, str] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _listing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.scratch = self.sandbox.workspace / f".checks-{uuid.uuid4().hex[:12]}"
        """A folder of this validation alone; removed at its end."""

    def expand(self, text: str) -> str:
        """`text` with `{workdir}`, `{workspace}`, `{home}`, `{memory_file}`, `{scratch}` filled in."""
        for name, path in (
            ("workdir", self.sandbox.workdir),
            ("workspace", self.sandbox.workspace),
            ("home", self.sandbox.home),
            ("memory_file", self.sandbox.memory_file),
            ("scratch", self.scratch),
        ):
            text = text.replace("{" + name + "}", str(path))
        return text

    def located(self, image_path: str) -> PurePosixPath:
        """Where a path of the image, such as `/app/claude.md`, lies in this sandbox."""
        path = PurePosixPath(image_path)
        return self.sandbox.workdir / path.relative_to("/app") if path.is_relative_to("/app") else path

    async def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """`sandbox.run` with placeholders filled in."""
        return await self.sandbox.run([self.expand(part) for part in argv], **options)

    async def python(self, name: str, *args: str) -> Any:
        """Return what `programs/<name>.py` prints as JSON, run by the sandbox's Python without the image's `site`.

        Raises:
            CommandError: it failed.
        """
        done = await self.run(["python3", "-I", "-S", "-", *args], input=program(f"{name}.py"))
        return json.loads(done.check().stdout)

    async def node(self, name: str, *args: str, env: dict[str, str] | None = None) -> Completed:
        """The ended program `programs/<name>.mjs`, whose imports resolve from the sandbox's `workdir`."""
        argv = ["node", "--input-type=module", "-", *args]
        return await self.run(argv, input=program(f"{name}.mjs"), env=env, cwd=self.sandbox.workdir)

    async def environment(self) -> dict[str, str]:
        """Read the variables of a program that is started as the agent's CLI is, and those of process 1.

        The engine starts process 1; what the image's entrypoint has set since, only its own programs have. Left out is
        what the sandbox was given.

        Raises:
            CommandError: they cannot be read.
        """
        async with self._lock:
            if self._environment is None:
                first = await self.run(["cat", "/proc/1/environ"])  # its owner may keep it closed
                started = (await self.run(["cat", "/proc/self/environ"])).check()
                own = _variables(started.text)
                given = {name: own[name] for name in self.sandbox.given if name in own}
                engines = _variables(first.text) if first.ok else {}
                self._environment = {n: v for n, v in engines.items() if given.get(n) != v}
                left_out = _OF_SHELLS | self.sandbox.given
                self._environment |= {n: v for n, v in own.items() if n not in left_out}
            return dict(self._environment)

    async def login_variables(self) -> dict[str, str]:
        """Read the variables that a login shell sets or changes, as the CLI starts one for the commands of its agent.

        Raises:
            CommandError: the shell does not come to its end.
        """
        before = await self.environment()
        done = (await self.run(["bash", "-lc", "exec /bin/cat /proc/self/environ"])).check()
        left_out = _OF_SHELLS | self.sandbox.given
        return {
            name: value
            for name, value in _variables(done.text).items()
            if name not in left_out and before.get(name) != value
        }

    async def files(self) -> tuple[FoundFile, ...]:
        """List all files visible to the agent, except npm packages and the validation's scratch folders.

        Raises:
            CommandError: they cannot be listed.
        """
        async with self._listing:
            if self._files is None:
                listed = await self.python("files", str(self.scratch.parent / ".checks-"))
                self._files = tuple(FoundFile(*entry) for entry in listed["files"])
                self._repositories = tuple(listed["repositories"])
            return self._files

    async def repositories(self) -> tuple[str, ...]:
        """List the folders in which git would find a repository, under whatever name, as `files` sees them.

        Raises:
            CommandError: they cannot be listed.
        """
        await self.files()
        return self._repositories

    async def manifest(self) -> dict[str, Any]:
        """The baked `manifest.json`, read once.

        Raises:
            CheckError: it is missing or is no JSON object.
        """
        async with self._lock:
            if self._manifest is None:
                path = self.sandbox.workdir / "manifest.json"
                try:
                    loaded = json.loads(await self.sandbox.read(path))
                except (OSError, ValueError) as error:
                    raise CheckError(
                        f"{path} cannot be read: {error}", hint="build the image again"
                    ) from error
                if not isinstance(loaded, dict):
                    raise CheckError(f"{path} holds no JSON object", hint="build the image again")
                self._manifest = loaded
            return self._manifest


class Check(BaseModel):
    """One entry of the contract; each kind adds its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._:-]*$")
    group: Group
    hint: str = Field(min_length=1)
    """What a person can do when the check fails."""
    timeout: float = Field(default=30, gt=0, le=900)
    """Seconds after which the check has failed."""
    image_only: bool = False
    """Asks for a property of the image or of its isolation; `n/a` where nothing isolates (`host`)."""
    providers: tuple[str, ...] | None = None
    """Providers to which the check applies; None for all."""
    after: tuple[str, ...] = ()
    """Checks without which this one says nothing new: when one of them fails, this one is `n/a`."""

    def expected(self) -> str:
        """What the check asks for, in words."""
        raise NotImplementedError

    async def observe(self, context: Context) -> Outcome:
        """Look into the sandbox. Whatever it raises is a failure of the check."""
        raise NotImplementedError

    def expand(self) -> tuple[Check, ...]:
        """The checks that this entry stands for: itself, or one a server."""
        return (self,)

    def not_applicable(self, context: Context) -> str:
        """Why the check does not apply to this sandbox; empty when it does."""
        sandbox = context.sandbox
        if self.providers is not None and sandbox.provider not in self.providers:
            return f"holds for {', '.join(self.providers)} only; this is {sandbox.provider}"
        if self.image_only and not sandbox.isolated:
            return f"a property of the image: the {sandbox.provider} provider has none and isolates nothing"
        return ""


def _variables(environ: str) -> dict[str, str]:
    # A start file of a shell may have printed something before.
    pairs = (entry.partition("=") for entry in environ.split("\0") if "=" in entry)
    return {name.rpartition("\n")[2]: value for name, _, value in pairs}


def program(name: str) -> bytes:
    """The bytes of a program that checks run in the sandbox."""
    return (_PROGRAMS / name).read_bytes()


def shorten(text: str) -> str:
    """`text` on one line, at most some hundred characters, without control characters and credentials."""
    words = " ".join(text[: 10 * _SHOWN].split())  # enough of it: the rest is cut off
    line = "".join(c if c.isprintable() else "\ufffd" for c in hide_credentials(words))
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
