"""Which relay this is, by the contents of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["digest", "files"]


def files(package: Path) -> dict[str, Path]:
    """The relay's files by their place in an image: the command, and the package beside it."""
    modules = {f"relayd/{file.name}": file for file in sorted(package.glob("*.py"))}
    return {"relay.py": package / "launcher.py", **modules}


def digest(package: Path) -> str:
    """SHA-256 over names and contents, in hex."""
    total = hashlib.sha256()
    for name, file in files(package).items():
        total.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
