"""What lies in an image's layers, also in those that a later one covers: a secret that was removed is still there."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from harvest_nb.checks.base import shorten
from harvest_nb.checks.report import Report, Row
from harvest_nb.machine.command import Stop
from harvest_nb.paths import cache_dir
from harvest_nb.redact import SECRET_SHAPES

__all__ = ["scan_layers", "validate_layers"]

# Other people's packages hold example keys by the dozen; the lockfile's checksums say that they are theirs.
_EXCLUDED = ("node_modules",)
_BUFFER = 1024 * 1024
_OVERLAP = 8 * 1024  # bytes: more than any credential is long
_SHAPES = {
    kind: re.compile(shape.pattern.encode(), shape.flags & ~re.UNICODE)
    for kind, shape in SECRET_SHAPES.items()
}
# A layer is named by what it holds: one that was clean under these rules is clean for ever.
_RULES = hashlib.sha256(
    repr((sorted(shape.pattern for shape in _SHAPES.values()), _EXCLUDED)).encode()
).hexdigest()[:16]


def validate_layers(
    inspect: Mapping[str, Any], export: Callable[[], Iterable[bytes]], stop: Stop | None = None
) -> Report:
    """A row about the image's layers, to be added to the others.

    Args:
        inspect: what the engine's `inspect_image` gives: `Id`, `RootFS`.
        export: gives the image as `docker save` writes it; only called where a layer is not known to be clean.
        stop: ends the reading when asked.

    Raises:
        Cancelled: `stop` was asked.
    """
    start = time.monotonic()
    layers = [str(layer) for layer in inspect["RootFS"]["Layers"]]
    clean = _known()
    found: dict[str, list[str]] = {}
    if not set(layers) <= clean:
        found = scan_layers(_until(stop or Stop(), export()))
        missing = [layer for layer in layers if layer not in found]
        if not missing:
            _remember({layer for layer in layers if not found[layer]})
        problems = [f"layer {layer[7:19]} was not exported" for layer in missing]
        problems += [
            f"layer {number} of {len(layers)}: {problem}"
            for number, layer in enumerate(layers, 1)
            for problem in found.get(layer, [])
        ]
    else:
        problems = []
    return Report(
        [
            Row(
                check="image-layers",
                group="security",
                expected="no credential in a text file of any layer, removed ones included (node_modules apart)",
                observed=shorten("; ".join(problems)) or f"none in {len(layers)} layers",
                status="fail" if problems else "pass",
                seconds=time.monotonic() - start,
                hint="a later step cannot remove it: build without it, and revoke what it showed"
                if problems
                else "",
            )
        ],
        subject=str(inspect.get("Id", "")),
        seconds=time.monotonic() - start,
    )


def _until(stop: Stop, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        stop.check()
        yield chunk


def scan_layers(chunks: Iterable[bytes]) -> dict[str, list[str]]:
    """Digest of each layer in a `docker save` stream to what was found in it; a finding never shows its value."""
    found: dict[str, list[str]] = {}
    with tarfile.open(fileobj=_Chunks(chunks), mode="r|", bufsize=_BUFFER) as image:
        for member in image:
            inner = image.extractfile(member) if member.isfile() else None
            if inner is None or member.name.endswith(".json") or member.size < tarfile.BLOCKSIZE:
                continue
            reader = _Digesting(inner)
            problems: list[str] = []
            # Not every blob is a layer: the image's own description has no suffix in the newer layout.
            with (
                suppress(tarfile.ReadError),
                tarfile.open(fileobj=reader, mode="r|", bufsize=_BUFFER) as layer,
            ):
                problems += _scan(layer)
            while reader.read(1 << 20):
                pass
            found[f"sha256:{reader.digest.hexdigest()}"] = problems
    return found


def _scan(layer: tarfile.TarFile) -> Iterator[str]:
    for member in layer:
        content = layer.extractfile(member) if member.isfile() else None
        if content is None or set(PurePosixPath(member.name).parts) & set(_EXCLUDED):
            continue
        for kind in _kinds(content):
            yield f"shape of a {kind} credential in /{member.name}"


def _kinds(file: IO[bytes]) -> set[str]:
    """The kinds of credentials in a file of any size; none where it is no text."""
    window = file.read(_BUFFER)
    if b"\0" in window[:8192]:
        return set()
    found = set()
    while window:
        found |= {kind for kind, shape in _SHAPES.items() if kind not in found and shape.search(window)}
        following = file.read(_BUFFER)
        window = window[-_OVERLAP:] + following if following else b""
    return found


class _Chunks(io.RawIOBase):
    """A stream that is read from chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while size < 0 or have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            have += len(chunk)
        whole = b"".join(parts)
        cut = len(whole) if size < 0 else size
        self._rest = whole[cut:]
        return whole[:cut]


class _Digesting(io.RawIOBase):
    """A stream whose digest is taken as it is read."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner, self.digest = inner, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self.digest.update(data)
        return data


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
