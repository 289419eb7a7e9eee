"""The manifest baked into the image: every config source with its digest, the commit, and the versions in it.

The same inputs give the same bytes, so that an unchanged build comes from the engine's cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harvest_nb.errors import BuildError
from harvest_nb.machine.command import clean_env
from harvest_nb.sandbox.relay_files import relay_digest
from harvest_nb.snapshot.base import Base
from harvest_nb.snapshot.sources import Sources

__all__ = [
    "LABEL_MANIFEST",
    "LABEL_SOURCES",
    "digest",
    "encode",
    "labels",
    "make_manifest",
    "source_commit",
    "source_root_name",
]

LABEL_MANIFEST = "harvest.manifest.sha256"
LABEL_SOURCES = "harvest.sources"
"""A JSON object: path in the image to SHA-256, of every config source."""
_SCHEMA = 2
_CLI = "@anthropic-ai/claude-code"
_SDK = "@anthropic-ai/claude-agent-sdk"


def make_manifest(sources: Sources, base: Base, lockfile: Path, relay: Path) -> dict[str, Any]:
    """The manifest: `schema`, `source_root_name`, `source_commit`, `source_dirty`, `files`, `versions`, `base`,
    `base_digest`, `relay_sha256`.

    Sizes are in bytes; `source_root_name` is the same in every clone of a repository; `source_commit` is None
    outside a git repository; `source_dirty` says whether one of the sources differs from that commit.

    Raises:
        BuildError: the lockfile cannot be read or does not pin the CLI and the SDK.
    """
    commit, dirty = source_commit(sources)
    return {
        "schema": _SCHEMA,
        "source_root_name": source_root_name(sources.root),
        "source_commit": commit,
        "source_dirty": dirty,
        "files": [
            {"image_path": file.image_path, "source": file.source, "size": file.size, "sha256": file.sha256}
            for file in sources.files
        ],
        "versions": {
            "cli": _locked(lockfile, _CLI),
            "sdk_typescript": _locked(lockfile, _SDK),
            "sdk_python": version("claude-agent-sdk"),
            "node": base.node,
            "python": base.python,
        },
        "base": base.reference,
        "base_digest": base.digest,
        "relay_sha256": relay_digest(relay),
    }


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it stands in the image."""
    return (json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the encoded manifest, in hex: what the label holds."""
    return hashlib.sha256(encode(manifest)).hexdigest()


def labels(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The image's labels that say what is in it without starting it."""
    versions = manifest["versions"]
    commit = manifest["source_commit"] or "none"
    return {
        LABEL_MANIFEST: digest(manifest),
        LABEL_SOURCES: json.dumps({file["image_path"]: file["sha256"] for file in manifest["files"]}),
        "harvest.source.root": manifest["source_root_name"],
        "harvest.source.commit": commit + ("+dirty" if manifest["source_dirty"] else ""),
        "harvest.cli.version": versions["cli"],
        "harvest.sdk.version": versions["sdk_python"],
        "harvest.sdk.typescript.version": versions["sdk_typescript"],
        "harvest.node.version": versions["node"],
        "harvest.python.version": versions["python"],
        "harvest.base": manifest["base"],
        "harvest.base.digest": manifest["base_digest"],
        "harvest.relay.sha256": manifest["relay_sha256"],
    }


def source_commit(sources: Sources) -> tuple[str | None, bool]:
    """The commit of the source root, and whether a source differs from it; `(None, False)` outside a repository.

    Compared is what was read, byte for byte, also behind a link.
    """
    commit = _git(sources.root, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return None, False
    places = {
        (sources.root / file.source).resolve().relative_to(sources.root): file for file in sources.files
    }
    # The objects' names, and not `git status`: that runs what a repository's settings name.
    paths = [place.as_posix() for place in places]
    listed = _git(sources.root, "--literal-pathspecs", "ls-tree", "-z", "HEAD", "--", *paths) or ""
    rows = [row.partition("\t") for row in listed.split("\0") if row]
    committed = {path: described.split()[-1] for described, _, path in rows}
    dirty = any(committed.get(place.as_posix()) != _blob(file.data, commit) for place, file in places.items())
    return commit.strip(), dirty


def _blob(data: bytes, commit: str) -> str:
    """The name under which git keeps `data`, in the repository that has `commit`."""
    kind = hashlib.sha256 if len(commit.strip()) == 64 else hashlib.sha1
    return kind(b"blob %d\0" % len(data) + data).hexdigest()


def source_root_name(root: Path) -> str:
    """The repository's name with the root's place in it, else the folder's name.

    Not its path, which is the building machine's own; nor the whole address of its remote, which may hold a password.
    """
    remote = (_git(root, "config", "--get", "remote.origin.url") or "").strip().rstrip("/")
    name = re.split(r"[/:]", remote)[-1].removesuffix(".git")
    inside = (_git(root, "rev-parse", "--show-prefix") or "").strip().rstrip("/")
    return f"{name}/{inside}".rstrip("/") if name else root.name


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            # Also in a checkout that belongs to somebody else, as one that is mounted into a container does: what
            # is asked here only reads, and runs no program that its settings name.
            ["git", "-C", str(root), "-c", "safe.directory=*", *arguments],
            env=clean_env({"GIT_OPTIONAL_LOCKS": "0"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _locked(lockfile: Path, package: str) -> str:
    try:
        found = json.loads(lockfile.read_text(encoding="utf-8"))["packages"][f"node_modules/{package}"][
            "version"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{lockfile} does not say which version of {package} goes into the image: {error!r}",
            hint="make the lockfile anew: `npm run lock` in snapshot/",
            step="context",
            tail="",
        ) from error
    return str(found)
