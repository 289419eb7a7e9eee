"""The record of a build, kept on the desk: what an image was made of, out of reach of whoever changes the image.

One file a build in the user's cache, `builds/<image id>.json`. An image made from the snapshot has the snapshot's
layers below its own, so it is told from the build that it began as.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harvest_nb.files import read_regular
from harvest_nb.paths import cache_dir

__all__ = ["BuildRecord", "Difference", "compare", "find_record", "keep_record"]

# Settings that change what a container does; the rest is the engine's own account of how it was made.
_SETTINGS = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)


class BuildRecord(BaseModel):
    """What a build made: `layers` are the digests of its files, the lowest first; `settings` those of the image."""

    model_config = ConfigDict(frozen=True)

    id: str
    tag: str
    built: datetime
    layers: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """How an image differs from a build: the layers on top of it, and its changed settings by name."""

    layers: tuple[str, ...]
    settings: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.layers or self.settings)


def keep_record(inspected: Mapping[str, Any], tag: str) -> Path:
    """Write the record of an image that a build has made, whole or not at all.

    Args:
        inspected: what the engine says of the image (`docker image inspect`).
        tag: the name under which it was built.

    Raises:
        OSError: it cannot be written.
    """
    record = BuildRecord(
        id=str(inspected["Id"]),
        tag=tag,
        built=datetime.now(UTC),
        layers=_layers(inspected),
        settings=_settings(inspected),
    )
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as part:
        part.write(record.model_dump_json())
    target = folder / f"{record.id.partition(':')[2]}.json"
    try:
        Path(part.name).replace(target)
    finally:
        Path(part.name).unlink(missing_ok=True)
    return target


def find_record(inspected: Mapping[str, Any]) -> BuildRecord | None:
    """Return the record of the build that an image is, or was made from; None where this desk knows of none."""
    layers = _layers(inspected)
    known: list[BuildRecord] = []
    for path in _folder().glob("*.json"):
        # A file that is damaged, or just being removed, is no record: the image is then unverified, and said to be.
        with suppress(OSError, ValidationError):
            known.append(BuildRecord.model_validate_json(read_regular(path)))
    below = [record for record in known if record.layers and record.layers == layers[: len(record.layers)]]
    # Of two builds with the same files, that one whose settings are the image's.
    return max(
        below,
        key=lambda record: (len(record.layers), not compare(inspected, record), record.built),
        default=None,
    )


def compare(inspected: Mapping[str, Any], record: BuildRecord) -> Difference:
    """Return how an image differs from the build that it was made from."""
    now = _settings(inspected)
    changed: list[str] = []
    for name in sorted({*now, *record.settings}):
        before, after = record.settings.get(name), now.get(name)
        if before == after:
            continue
        parts = _parts(before) ^ _parts(after)
        changed.append(f"{name} ({', '.join(sorted({part for part, _ in parts}))})" if parts else name)
    return Difference(_layers(inspected)[len(record.layers) :], tuple(changed))


def _parts(setting: Any) -> set[tuple[str, str]]:
    """Return the variables or labels of a setting that has any, with their values."""
    if isinstance(setting, Mapping):
        return {(str(name), json.dumps(value)) for name, value in setting.items()}
    if isinstance(setting, list) and all("=" in str(entry) for entry in setting):
        return {(name, value) for name, _, value in (str(entry).partition("=") for entry in setting)}
    return set()


def _layers(inspected: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(layer) for layer in (inspected.get("RootFS") or {}).get("Layers") or ())


def _settings(inspected: Mapping[str, Any]) -> dict[str, Any]:
    config = inspected.get("Config") or {}
    return {name: config[name] for name in _SETTINGS if config.get(name)}


def _folder() -> Path:
    return cache_dir() / "builds"
