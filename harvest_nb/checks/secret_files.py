"""Looks for credentials in files of the sandbox: by their shapes, and by where programs keep them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harvest_nb.checks.base import Check, Context, Outcome, shorten
from harvest_nb.checks.credentials import credential_file, rg_patterns

__all__ = ["CredentialFilesCheck", "FileSecretsCheck"]


class CredentialFilesCheck(Check):
    """No program keeps credentials in the sandbox: no `.netrc`, no `.docker/config.json`, no key of SSH, and so on."""

    kind: Literal["credential_files"]

    def expected(self) -> str:
        """No such file."""
        return "no file in which a program keeps credentials"

    async def observe(self, context: Context) -> Outcome:
        """Go through the names of all files that the agent can see."""
        files = await context.files()
        found = [file.path for file in files if file.size and credential_file(file.path)]
        return Outcome(not found, shorten(", ".join(sorted(found))) or f"none of {len(files)} files")


class FileSecretsCheck(Check):
    """No file under `paths` holds anything of a credential's published shape; `exclude` are rg globs.

    Binary files are searched only for shapes that nothing but a credential has.
    """

    kind: Literal["file_secrets"]
    paths: tuple[str, ...] = Field(min_length=1)
    exclude: tuple[str, ...] = ()

    def expected(self) -> str:
        """Return the folders in which nothing may be found."""
        return f"no credential in files under {', '.join(self.paths)}"

    async def observe(self, context: Context) -> Outcome:
        """Search with ripgrep, hidden and ignored files too; only file names come back, never a match."""
        found: set[str] = set()
        # Without an option rg leaves a file at its first NUL. With this one it takes NUL for an end of line too.
        for options in (rg_patterns(), ["--binary", *rg_patterns(sure=True)]):
            done, problem = await self._search(context, options)
            if problem:
                return Outcome(False, problem)
            found |= done
        return Outcome(not found, shorten(", ".join(sorted(found))) or "none found")

    async def _search(self, context: Context, options: list[str]) -> tuple[set[str], str]:
        """Return the files in which rg finds something, and what has kept it from looking."""
        argv = [
            "rg",
            "--no-unicode",
            "--files-with-matches",
            "--hidden",
            "--no-ignore",
            "--no-messages",
            "--null",
            *options,
        ]
        for glob in self.exclude:
            argv += ["--glob", f"!{glob}"]
        done = await context.run([*argv, "--", *self.paths])
        found = {path for path in done.text.split("\0") if path}
        if found:
            return found, ""
        # rg ends with 1 for no match, and silently with 2 when a folder is missing, or closed: then nobody here can
        # read it. What it says in spite of --no-messages, such as of a pattern it cannot take, means no search.
        # The loader's word on a library that it cannot preload is about every program, and no word of rg's.
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        said = " ".join(line for line in lines if not line.startswith("ERROR: ld.so:"))
        if done.exit_code == 1 or (done.exit_code == 2 and not said.strip()):
            return set(), ""
        return set(), f"rg ended with {done.exit_code}: {shorten(said) or 'no output'}"
