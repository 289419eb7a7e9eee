"""Kinds that compare the baked configuration: with the manifest, with its sources, and within itself."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

from harvest_nb.checks.base import Check, Context, Outcome, shorten
from harvest_nb.errors import CheckError
from harvest_nb.snapshot.references import references

__all__ = ["ManifestCheck", "ManifestLabelCheck", "ReferencesCheck", "SourcesCheck", "parse_sums"]


def parse_sums(text: str) -> dict[str, str]:
    """`sha256sum --zero` output as path to hexadecimal digest."""
    found: dict[str, str] = {}
    for entry in text.split("\0"):
        digest, _, path = entry.partition("  ")
        if path:
            found[path] = digest
    return found


async def _recorded(context: Context) -> dict[str, dict[str, str]]:
    """The manifest's files by image path. Raises CheckError when it lists none."""
    files = (await context.manifest()).get("files")
    if not isinstance(files, list) or not files:
        raise CheckError("manifest.json lists no files", hint="build the image again")
    return {entry["image_path"]: entry for entry in files}


async def _sums(context: Context, paths: list[PurePosixPath]) -> dict[str, str]:
    """SHA-256 of each file that is there, by its path in the sandbox, in one call."""
    # sha256sum ends with 1 when a file is missing and still prints the others.
    return parse_sums((await context.run(["sha256sum", "--zero", "--", *map(str, paths)])).text)


class ManifestCheck(Check):
    """Every file that `manifest.json` lists is in the sandbox with its SHA-256, and no other stands beside it.

    `trees` are folders in which every file and link must be listed. The agent's workspace, the link to the
    toolchain's packages and the manifest itself need not be.
    """

    kind: Literal["manifest"]
    # All of it, not the pages alone: the CLI reads settings, MCP servers and rules from its working directory.
    trees: tuple[str, ...] = ("/app",)

    def expected(self) -> str:
        """All hashes."""
        return (
            f"every file as manifest.json records it, none more under {', '.join(self.trees) or 'any folder'}"
        )

    async def observe(self, context: Context) -> Outcome:
        """Hash in the sandbox, compare here."""
        recorded = await _recorded(context)
        located = {path: context.located(path) for path in recorded}
        sums = await _sums(context, list(located.values()))
        problems = [f"{path} is missing" for path, place in located.items() if str(place) not in sums]
        problems += [
            f"{path} differs"
            for path, place in located.items()
            if str(place) in sums and sums[str(place)] != recorded[path]["sha256"]
        ]
        workdir, workspace = context.sandbox.workdir, str(context.sandbox.workspace)
        own = {str(workdir / name) for name in ("manifest.json", "node_modules")}
        known = {str(place) for place in located.values()} | own
        for tree in map(str, map(context.located, self.trees)):
            argv = ["find", tree, "-path", workspace, "-prune", "-o", "!", "-type", "d", "-print0"]
            listed = (await context.run(argv)).check().text.split("\0")
            problems += [f"{path} is not listed" for path in sorted(listed) if path and path not in known]
        return Outcome(not problems, shorten("; ".join(problems)) if problems else f"{len(recorded)} files")


class ManifestLabelCheck(Check):
    """The image's label and its baked manifest come from the same build."""

    kind: Literal["manifest_label"]

    def expected(self) -> str:
        """The label's digest."""
        return "the image's label is the SHA-256 of manifest.json"

    async def observe(self, context: Context) -> Outcome:
        """Hash the manifest in the sandbox."""
        path = context.sandbox.workdir / "manifest.json"
        digest = hashlib.sha256(await context.sandbox.read(path)).hexdigest()
        label = context.sandbox.manifest_hash
        if label is None:
            return Outcome(False, "the image has no such label")
        return Outcome(label == digest, f"label {label[:12]}, manifest {digest[:12]}")


class SourcesCheck(Check):
    """Every baked file equals its source in the source root, where one is given."""

    kind: Literal["sources"]

    def expected(self) -> str:
        """All files."""
        return "every baked file as its source is now"

    def not_applicable(self, context: Context) -> str:
        """Without a source root there is nothing to compare with."""
        return super().not_applicable(context) or ("" if context.source_root else "no source root was given")

    async def observe(self, context: Context) -> Outcome:
        """Hash sources here and files in the sandbox."""
        root = Path(context.source_root or "")
        recorded = await _recorded(context)
        sums = await _sums(context, [context.located(path) for path in recorded])
        problems = []
        for path, entry in recorded.items():
            source = root / entry["source"]
            if not source.is_file():
                problems.append(f"{path}: its source {entry['source']} is missing under {root}")
            elif sums.get(str(context.located(path))) != hashlib.sha256(source.read_bytes()).hexdigest():
                problems.append(f"{path} differs from {entry['source']}")
        return Outcome(
            not problems, shorten("; ".join(problems)) if problems else f"{len(recorded)} files, {root}"
        )


class ReferencesCheck(Check):
    """Every `@path` reference in the baked markdown resolves from the sandbox's `workdir`."""

    kind: Literal["references"]
    least: int = 1
    """References that there are at least: a text without any has lost them."""

    def expected(self) -> str:
        """All of them."""
        return f"at least {self.least} `@` references, each to a file"

    async def observe(self, context: Context) -> Outcome:
        """Read every markdown file under `workdir` but the agent's own, and ask for each path it names."""
        workdir, workspace = str(context.sandbox.workdir), str(context.sandbox.workspace)
        argv = ["find", workdir, "-path", workspace, "-prune", "-o", "-type", "f", "-print0"]
        files = [path for path in (await context.run(argv)).check().text.split("\0") if path]
        top = {PurePosixPath(path).relative_to(workdir).parts[0] for path in files}
        named: dict[str, list[str]] = {}
        for path in files:
            if path.endswith((".md", ".mdx")):
                text = (await context.sandbox.read(path)).decode("utf-8", "replace")
                shown = f"/app/{PurePosixPath(path).relative_to(workdir)}"
                for reference in references(text, top):
                    target = str(context.located(reference.target))
                    named.setdefault(target, []).append(f"@{reference.path} in {shown}:{reference.line}")
        script = 'for path in "$@"; do [ -e "$path" ] || printf "%s\\0" "$path"; done'
        done = (await context.run(["sh", "-c", script, "sh", *named])).check()
        dangling = [place for path in done.text.split("\0") if path for place in named[path]]
        if dangling:
            return Outcome(False, shorten("; ".join(dangling)))
        return Outcome(len(named) >= self.least, f"{len(named)} references")
