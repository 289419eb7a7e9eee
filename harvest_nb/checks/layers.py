"""Rows about an image's files: secrets in any layer, covered ones too, and whether they are those of the build."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harvest_nb.checks import credentials, export
from harvest_nb.checks.base import shorten
from harvest_nb.checks.export import Layer, changed_files, read_layers
from harvest_nb.checks.image import history_secrets
from harvest_nb.checks.report import UNVERIFIED, Report, Row
from harvest_nb.errors import CheckError
from harvest_nb.machine.command import Stop
from harvest_nb.paths import cache_dir
from harvest_nb.snapshot.record import BuildRecord, compare

__all__ = ["scan_layers", "validate_build", "validate_layers"]

# A layer is named by what it holds: one that was clean under these rules is clean for ever.
_RULES = hashlib.sha256(
    b"".join(Path(str(module.__file__)).read_bytes() for module in (credentials, export))
    + repr([shape.pattern for shape in credentials.SHAPES]).encode()
).hexdigest()[:16]


def validate_layers(
    inspect: Mapping[str, Any],
    export: Callable[[], Iterable[bytes]],
    *,
    history: Sequence[Mapping[str, Any]] = (),
    record: BuildRecord | None = None,
    stop: Stop | None = None,
) -> Report:
    """Rows about the image's layers, to be added to the others.

    Args:
        inspect: what the engine's `inspect_image` gives: `Id`, `RootFS`, `Config`.
        export: gives the image as `docker save` writes it; only called where a layer is not known to be clean, or
            lies on top of the build.
        history: what the engine's `history` gives; a secret that a step shows is looked for in the files too.
        record: the build that the image is, or was made from.
        stop: ends the reading when asked.

    Raises:
        Cancelled: `stop` was asked.
    """
    start = time.monotonic()
    digests = [str(layer) for layer in inspect["RootFS"]["Layers"]]
    values = history_secrets([str(entry.get("CreatedBy") or "") for entry in history])
    layers: dict[str, Layer] = {}
    problems: list[str] = []
    if values or not set(digests) <= _known() or (record and compare(inspect, record).layers):
        try:
            layers = read_layers(
                _until(stop or Stop(), export()), {name: value.encode() for name, value in values.items()}
            )
        except CheckError as error:
            problems.append(f"the image cannot be read to its end: {error.message}")
        else:
            problems += _problems(digests, layers)
            if set(digests) <= set(layers):
                _remember({digest for digest in digests if not layers[digest].problems})
    seconds = time.monotonic() - start
    row = Row(
        check="image-layers",
        group="security",
        expected="no credential in a file of any layer, removed ones included",
        observed=shorten("; ".join(problems)) or f"none in {len(digests)} layers",
        status="fail" if problems else "pass",
        seconds=seconds,
        hint="a later step cannot remove it: build without it, and revoke what it showed" if problems else "",
    )
    report = Report([row], subject=str(inspect.get("Id", "")), seconds=seconds)
    return report + validate_build(inspect, record, layers)


def validate_build(
    inspect: Mapping[str, Any], record: BuildRecord | None, layers: Mapping[str, Layer] | None = None
) -> Report:
    """A row that says whether the image is what its build made: the same files, by digest, and the same settings.

    Args:
        inspect: what the engine's `inspect_image` gives.
        record: the build that the image is, or was made from.
        layers: what lies in the layers, to name the files that were changed; without them their number is named.
    """
    observed, hint = f"{UNVERIFIED}: this desk has no record of its build", ""
    problems: list[str] = []
    if record is not None:
        digests = [str(layer) for layer in inspect["RootFS"]["Layers"]]
        difference = compare(inspect, record)
        problems += [f"{name} differs" for name in difference.settings]
        if difference.layers:
            problems.append(f"layers on top of those that were built: {len(difference.layers)}")
            if layers and set(digests) <= set(layers):
                count = len(record.layers)
                below, above = ([layers[one] for one in part] for part in (digests[:count], digests[count:]))
                problems[-1:] = _some(changed_files(below, above)) or problems[-1:]
        observed = shorten("; ".join(problems)) or f"as built on {record.built:%Y-%m-%d %H:%M} UTC"
        hint = "the image was changed after its build: build it again" if problems else ""
    row = Row(
        check="image-build",
        group="security",
        expected="files and settings as this desk's build made them",
        observed=observed,
        status="fail" if problems else "n/a" if record is None else "pass",
        seconds=0.0,
        hint=hint,
    )
    return Report([row], subject=str(inspect.get("Id", "")))


def _until(stop: Stop, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        stop.check()
        yield chunk


def scan_layers(chunks: Iterable[bytes]) -> dict[str, list[str]]:
    """Digest of each layer in a `docker save` stream to what was found in it; a finding never shows its value."""
    return {digest: layer.problems for digest, layer in read_layers(chunks).items()}


def _some(found: Sequence[str], most: int = 8) -> list[str]:
    return [*found[:most], f"{len(found) - most} more"] if len(found) > most else list(found)


def _problems(digests: Sequence[str], layers: Mapping[str, Layer]) -> list[str]:
    return [f"layer {digest[7:19]} was not exported" for digest in digests if digest not in layers] + [
        f"layer {number} of {len(digests)}: {problem}"
        for number, digest in enumerate(digests, 1)
        if digest in layers
        for problem in layers[digest].problems
    ]


def _known() -> set[str]:
    try:
        return set(json.loads((cache_dir() / f"clean-layers-{_RULES}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _remember(layers: set[str]) -> None:
    # Only spares work: a cache that cannot be written, or another process's later word, costs one more look.
    file = cache_dir() / f"clean-layers-{_RULES}.json"
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
            json.dump(sorted(_known() | layers), part)
        Path(part.name).replace(file)
