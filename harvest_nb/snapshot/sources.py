"""The config sources: which files go into the image, read from their source of truth and checked.

`config/sources.toml` maps image paths to paths under the source root. Nothing is copied into this package;
every build reads them afresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harvest_nb.errors import SourceError
from harvest_nb.paths import config_dir, data_root
from harvest_nb.snapshot.references import APP, dangling

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MANIFEST", "SourceFile", "SourceMap", "Sources", "collect", "listed", "read_map", "stage"]

MANIFEST = f"{APP}/manifest.json"
_MADE_BY_THE_BUILD = (MANIFEST, f"{APP}/workspace/.keep")


@dataclass(frozen=True)
class SourceFile:
    """One file: where it goes, where it comes from (relative to the root, or to the link's place), its bytes."""

    image_path: str
    source: str
    data: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Sources:
    """All config sources of one root, in the order of their image paths."""

    root: Path
    files: tuple[SourceFile, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a file: `image_path`, `source`, `size_bytes`, `sha256`."""
        import pandas as pd

        rows = [(file.image_path, file.source, file.size, file.sha256) for file in self.files]
        frame = pd.DataFrame(rows, columns=["image_path", "source", "size_bytes", "sha256"])
        return frame.astype(
            {"image_path": "string", "source": "string", "size_bytes": "int64", "sha256": "string"}
        )


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    file_bytes: int = Field(default=262_144, gt=0)
    total_bytes: int = Field(default=4_194_304, gt=0)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    source: str

    @field_validator("image")
    @classmethod
    def _in_the_image(cls, value: str) -> str:
        if not value.startswith(f"{APP}/") or not _plain(value):
            raise ValueError(f"{value!r} is not a path under {APP}/ (with at most a trailing /*)")
        return value

    @field_validator("source")
    @classmethod
    def _under_the_root(cls, value: str) -> str:
        if value.startswith("/") or not _plain(value):
            raise ValueError(f"{value!r} is not a path under the source root (with at most a trailing /*)")
        return value


def _plain(value: str) -> bool:
    path = value.removesuffix("/*")
    return "*" not in path and ".." not in path.split("/") and str(PurePosixPath(path)) == path != "."


class SourceMap(BaseModel):
    """What `config/sources.toml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: _Limits = _Limits()
    source: tuple[_Entry, ...] = Field(min_length=1)


def read_map(file: Path | None = None) -> SourceMap:
    """The map in `file` (default: `config/sources.toml`).

    Raises:
        SourceError: it is missing or malformed, or an entry has `/*` on one side alone.
    """
    place = file or config_dir() / "sources.toml"
    try:
        found = SourceMap.model_validate(tomllib.loads(place.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise SourceError(
            f"Cannot read {place}: {error}", hint="see DESIGN: Sources", path=str(place)
        ) from error
    for entry in found.source:
        if entry.image.endswith("/*") != entry.source.endswith("/*"):
            raise SourceError(
                f"{place}: {entry.image} from {entry.source}: either both end in /* or neither does",
                path=str(place),
            )
    return found


def collect(source_root: Path | None = None, *, source_map: SourceMap | None = None) -> Sources:
    """Read and check every config source.

    Args:
        source_root: the checkout that holds them (default: the enclosing repository).
        source_map: which ones (default: `config/sources.toml`).

    Raises:
        SourceError: naming the file and the reason: missing, a link out of the root, two sources for one
            path, not a file, not readable, over a size limit, not UTF-8, not JSON where it says `.json`, or an
            `@` reference that leads to nothing in the image. `problems` lists all of the dangling ones.
    """
    chosen = source_map or read_map()
    root = _root(source_root)
    taken: dict[str, SourceFile] = {}
    total = 0
    for entry in chosen.source:
        for image_path, source in _expand(entry, root):
            if image_path in taken or image_path == MANIFEST:
                other = taken[image_path].source if image_path in taken else "the manifest"
                raise SourceError(
                    f"Two sources for {image_path}: {other} and {source}",
                    hint="take one of them out of config/sources.toml",
                    path=source,
                )
            taken[image_path] = _read(root, source, image_path, chosen.limits.file_bytes)
            total += taken[image_path].size
            if total > chosen.limits.total_bytes:
                raise SourceError(
                    f"The config sources are larger than {chosen.limits.total_bytes} bytes together (at {source})",
                    hint="limits.total_bytes in config/sources.toml sets the limit",
                    path=source,
                )
    files = tuple(taken[path] for path in sorted(taken))
    _check_overlaps(files)
    _check_references(files)
    return Sources(root, files)


def listed(
    source_root: Path | None = None, *, source_map: SourceMap | None = None
) -> Iterator[tuple[str, str, bytes | SourceError]]:
    """Image path, source and bytes of each config source; in place of the bytes why they cannot be had.

    Raises:
        SourceError: the map, or the root itself, cannot be used.
    """
    chosen, root = source_map or read_map(), _root(source_root)
    for entry in chosen.source:
        try:
            pairs = list(_expand(entry, root))
        except SourceError as error:
            yield entry.image, entry.source, error
            continue
        for image_path, source in pairs:
            try:
                yield image_path, source, _read(root, source, image_path, chosen.limits.file_bytes).data
            except SourceError as error:
                yield image_path, source, error


def _root(source_root: Path | None) -> Path:
    root = (source_root or data_root()).resolve()
    if not root.is_dir():
        raise SourceError(f"The source root {root} is not a folder", hint="pass source_root=", path=str(root))
    return root


def _expand(entry: _Entry, root: Path) -> Iterator[tuple[str, str]]:
    if not entry.source.endswith("/*"):
        yield entry.image, entry.source
        return
    folder = entry.source[:-2]
    names = list(_walk(root, folder, frozenset()))
    if not names:
        raise SourceError(
            f"Config source {entry.source} is missing: there is no file below {root / folder}",
            hint=f"add the files for {entry.image}, or take the entry out of config/sources.toml",
            path=entry.source,
        )
    for name in names:
        yield entry.image[:-1] + name, f"{folder}/{name}"


def _walk(root: Path, folder: str, above: frozenset[Path]) -> Iterator[str]:
    """Names relative to `folder` of every file below it; links are followed, within the root."""
    place = root / folder
    if not place.is_dir():
        return
    real = _inside(root, folder)
    if real in above:
        raise SourceError(f"{folder} is a link to a folder that it is in", path=folder)
    try:
        children = [(child, child.is_dir()) for child in sorted(place.iterdir())]
    except OSError as error:
        raise SourceError(f"Config source {folder} cannot be read: {error.strerror}", path=folder) from error
    for child, is_folder in children:
        if child.name.startswith("."):
            continue
        if is_folder:
            deeper = _walk(root, f"{folder}/{child.name}", above | {real})
            yield from (f"{child.name}/{name}" for name in deeper)
        else:
            yield child.name


def _inside(root: Path, source: str) -> Path:
    try:
        real = (root / source).resolve()
    except RuntimeError as error:  # Python 3.13 leaves it to whoever opens it
        raise SourceError(f"Config source {source} is a link that leads to itself", path=source) from error
    if not real.is_relative_to(root):
        raise SourceError(
            f"Config source {source} is a link that leads out of the source root, to {real}",
            hint=f"put the file itself under {root}",
            path=source,
        )
    return real


def _read(root: Path, source: str, image_path: str, limit: int) -> SourceFile:
    real = _inside(root, source)
    try:
        # Not to wait for ever on a FIFO; and what was looked at is what is read.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceError(
            f"Config source {source} is missing in {root} (for {image_path})",
            hint="add it, or correct config/sources.toml or source_root=",
            path=source,
        ) from None
    except OSError as error:
        raise SourceError(f"Config source {source} cannot be read: {error.strerror}", path=source) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"Config source {source} is not a file", path=source)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise SourceError(
            f"Config source {source} is larger than {limit} bytes",
            hint="limits.file_bytes in config/sources.toml sets the limit",
            path=source,
        )
    _check_text(source, data)
    return SourceFile(image_path, source, data)


def _check_text(source: str, data: bytes) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SourceError(
            f"Config source {source} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}",
            hint="store it as UTF-8",
            path=source,
        ) from error
    if source.endswith(".json"):
        try:
            json.loads(text)
        except ValueError as error:
            raise SourceError(f"Config source {source} is not JSON: {error}", path=source) from error


def _check_overlaps(files: tuple[SourceFile, ...]) -> None:
    paths = {file.image_path: file for file in files}
    for file in files:
        for parent in PurePosixPath(file.image_path).parents:
            if str(parent) in paths:
                raise SourceError(
                    f"{parent} would be a file (from {paths[str(parent)].source}) and a folder (for {file.source})",
                    path=file.source,
                )


def _check_references(files: tuple[SourceFile, ...]) -> None:
    known = {file.image_path for file in files} | set(_MADE_BY_THE_BUILD)
    problems = [
        f"{file.source}:{reference.line}: @{reference.path} (no {reference.target} in the image)"
        for file in files
        if file.image_path.endswith((".md", ".mdx"))
        for reference in dangling(file.data.decode("utf-8"), known)
    ]
    if problems:
        raise SourceError(
            "Dangling references in the config sources:\n" + "\n".join(problems),
            hint="correct the path, add the file to config/sources.toml, or put an example into a code block",
            path=problems[0].split(":", 1)[0],
            problems=problems,
        )


def stage(sources: Sources, folder: Path) -> None:
    """Write the tree of `/app` into `folder/app`, which must not exist yet.

    Raises:
        FileExistsError: it does.
    """
    top = folder / "app"
    top.mkdir(parents=True)
    for file in sources.files:
        target = top / PurePosixPath(file.image_path).relative_to(APP)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
