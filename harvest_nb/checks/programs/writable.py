"""Tries to write: `writable.py <number of closed paths> <closed…> <open…>`, prints what happened as JSON.

A path alone is tried itself; with `/**` behind it, everything under it too. Existing files are only opened for
writing, never changed; a file made in a folder is removed again.
"""

import json
import os
import sys
import uuid
from pathlib import Path


def can_write(path: Path) -> bool:
    """Whether the path can be written: a file opened, or a new file made in a folder."""
    folder = path.is_dir()
    probe = path / f".probe-{uuid.uuid4().hex}" if folder else path
    try:
        os.close(os.open(probe, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if folder else 0)))
    except OSError:
        return False
    if folder:
        probe.unlink()
    return True


def tree(pattern: str) -> "list[Path]":
    """The path and, where `/**` follows it, everything under it; links are not followed."""
    path = Path(pattern.removesuffix("/**"))
    found = [path, *path.rglob("*")] if pattern.endswith("/**") else [path]
    return [entry for entry in found if not entry.is_symlink()]


def is_there(path: Path) -> bool:
    """Whether there is something, be it a link to nothing."""
    return path.exists() or path.is_symlink()


count = int(sys.argv[1])
closed, opened = sys.argv[2 : 2 + count], [Path(path) for path in sys.argv[2 + count :]]
entries = [entry for pattern in closed for entry in tree(pattern)]
roots = [Path(pattern.removesuffix("/**")) for pattern in closed]
json.dump(
    {
        "written": [str(path) for path in entries if is_there(path) and can_write(path)],
        "refused": [str(path) for path in opened if is_there(path) and not can_write(path)],
        "missing": [str(path) for path in [*roots, *opened] if not is_there(path)],
        "tried": len(entries) + len(opened),
    },
    sys.stdout,
)
