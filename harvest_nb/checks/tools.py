"""Kinds that call a program: its version, its exit code and output, its absence."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator, Field

from harvest_nb.checks.base import Check, Context, Outcome, shorten

__all__ = ["AbsentCheck", "CommandCheck", "VersionCheck", "find_version"]

_DOTTED = re.compile(r"(?<![\d.])\d+(?:\.\d+)+")
Argv = Annotated[tuple[str, ...], Field(min_length=1)]


def _specifiers(value: str) -> str:
    try:
        SpecifierSet(value)
    except InvalidSpecifier as error:
        raise ValueError(f"{value!r} is no range of versions such as '>=20,<21'") from error
    return value


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from error
    return value


Specifiers = Annotated[str, AfterValidator(_specifiers)]
Regex = Annotated[str, AfterValidator(_regex)]


def find_version(text: str) -> Version | None:
    """The first dotted number in `text` (`2.39.5` in `git version 2.39.5`), or None."""
    match = _DOTTED.search(text)
    return Version(match.group()) if match else None


class VersionCheck(Check):
    """The program answers, with a version inside `range` (PEP 440 specifiers)."""

    kind: Literal["version"]
    argv: Argv
    range: Specifiers

    def expected(self) -> str:
        """The command and its range."""
        return f"`{' '.join(self.argv)}` says {self.range}"

    async def observe(self, context: Context) -> Outcome:
        """Run the command and read its version."""
        done = await context.run(self.argv)
        said = shorten(done.text or done.stderr.decode("utf-8", "replace"))
        if not done.ok:
            return Outcome(False, f"exit code {done.exit_code}: {said}")
        version = find_version(done.text) or find_version(done.stderr.decode("utf-8", "replace"))
        if version is None:
            return Outcome(False, f"no version in: {said or 'no output'}")
        return Outcome(SpecifierSet(self.range).contains(version, prereleases=True), str(version))


class CommandCheck(Check):
    """A command ends with `exit_code`, and its output matches (`matches`) or does not (`lacks`)."""

    kind: Literal["command"]
    argv: Argv
    exit_code: int = 0
    matches: Regex | None = None
    lacks: Regex | None = None

    def expected(self) -> str:
        """The command, its exit code and what its output must be like."""
        words = [f"`{' '.join(self.argv)}` ends with {self.exit_code}"]
        if self.matches is not None:
            words.append(f"output matches {self.matches}")
        if self.lacks is not None:
            words.append(f"output lacks {self.lacks}")
        return ", ".join(words)

    async def observe(self, context: Context) -> Outcome:
        """Run the command; standard output and standard error count together."""
        done = await context.run(self.argv)
        output = done.text + done.stderr.decode("utf-8", "replace")
        found = self.matches is None or re.search(self.matches, output, re.MULTILINE) is not None
        clean = self.lacks is None or re.search(self.lacks, output, re.MULTILINE) is None
        ok = done.exit_code == self.exit_code and found and clean
        return Outcome(ok, f"ended with {done.exit_code}: {shorten(output) or 'no output'}")


class AbsentCheck(Check):
    """None of the commands can be found on the sandbox's PATH."""

    kind: Literal["absent"]
    commands: Argv

    def expected(self) -> str:
        """The commands that must not be there."""
        return f"no {', '.join(self.commands)}"

    async def observe(self, context: Context) -> Outcome:
        """Ask the shell for each command."""
        script = 'for name in "$@"; do command -v -- "$name" || true; done'
        done = (await context.run(["sh", "-c", script, "sh", *self.commands])).check()
        found = done.text.split()
        return Outcome(not found, ", ".join(found) if found else "none found")
