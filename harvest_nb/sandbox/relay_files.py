"""The relay's program as files: what an image holds of it, and by which digest that is known."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from pathlib import Path

from harvest_nb.sandbox.relayd import identity

__all__ = ["FOLDER", "RELAY", "RELAY_HERE", "relay_archive", "relay_digest", "relay_files"]

FOLDER = "/usr/local/lib/harvest"
"""Where an image holds the relay."""
RELAY = f"{FOLDER}/relay.py"
"""The relay's command in an image."""
RELAY_HERE = (sys.executable, "-I", "-m", "harvest_nb.sandbox.relayd")
"""The relay's command on this machine."""
_PACKAGE = Path(__file__).parent / "relayd"


def relay_files(package: Path = _PACKAGE) -> dict[str, Path]:
    """The relay's files by their place under `FOLDER`: the command, and the package beside it."""
    return identity.files(package)


def relay_digest(package: Path = _PACKAGE) -> str:
    """SHA-256 of the relay, in hex: an image with another one gets this package's relay put in."""
    return identity.digest(package)


def relay_archive(folder: str = FOLDER) -> bytes:
    """A tar, to be unpacked at `/`, that puts the relay into `folder`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, file in relay_files().items():
            data = file.read_bytes()
            entry = tarfile.TarInfo(f"{folder}/{name}".lstrip("/"))
            entry.size, entry.mode, entry.mtime = len(data), 0o644, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
