"""Where the files live that the package works on: in a checkout at its top, in a wheel under `_data`."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

__all__ = [
    "cache_dir",
    "config_dir",
    "data_root",
    "locks_dir",
    "notebook_paths",
    "notebooks_dir",
    "snapshot_dir",
]

_PACKAGE = Path(__file__).resolve().parent


def data_root() -> Path:
    """The folder that holds `snapshot/`, `config/`, `notebooks/` and the default config sources."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent


def snapshot_dir() -> Path:
    """The folder of the Dockerfile, the npm lockfile and the in-image programs."""
    return data_root() / "snapshot"


def config_dir() -> Path:
    """The folder of `sources.toml`, `contract.toml` and `memory-seed.json`."""
    return data_root() / "config"


def notebooks_dir() -> Path:
    """The folder of the numbered notebooks."""
    return data_root() / "notebooks"


def notebook_paths() -> list[Path]:
    """The numbered notebooks in their order."""
    return sorted(notebooks_dir().glob("[0-9][0-9]_*.ipynb"))


def cache_dir() -> Path:
    """This user's cache (`HARVEST_CACHE`, else `$XDG_CACHE_HOME/harvest-nb`, else `~/.cache/harvest-nb`)."""
    explicit = os.environ.get("HARVEST_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "harvest-nb"


def locks_dir() -> Path:
    """The folder, made where it is missing, of locks that all of this user's processes on this machine share.

    They guard what the machine has once, its Docker engine above all, so they do not lie in the cache: checkouts with
    caches of their own must wait for each other too. It lies in the folder for temporary files (`TMPDIR`): processes
    with different ones do not wait for each other.

    Raises:
        OSError: it cannot be made, or somebody else has made it.
    """
    mine = Path(tempfile.gettempdir()) / f"harvest-nb-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    found = mine.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            f"{mine} belongs to another user: remove it, or set TMPDIR to a folder of your own"
        )
    (mine / "locks").mkdir(exist_ok=True)
    return mine / "locks"
