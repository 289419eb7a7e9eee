"""The build context, made afresh for every build and the same to the byte for the same inputs."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from harvest_nb.errors import BuildError, SettingsError
from harvest_nb.sandbox.relay_files import relay_files
from harvest_nb.snapshot.manifest import encode
from harvest_nb.snapshot.sources import Sources, stage

__all__ = ["FILES", "ca_bundle_bytes", "packed_context", "write_context"]

FILES = ("Dockerfile", "package.json", "package-lock.json", "entrypoint.py", "memory_server.py")
"""What the context takes from `snapshot/`, under the same names."""
_EPOCH = 315532800  # 1980-01-01
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


def ca_bundle_bytes(ca_bundle: Path | None = None) -> bytes:
    """The certificates that the build's downloads are to trust; empty where the environment names none.

    Args:
        ca_bundle: a PEM file; without it the files that `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` and
            `NODE_EXTRA_CA_CERTS` name, each once.

    Raises:
        SettingsError: a file is named that cannot be read or holds no certificate.
    """
    named = [("ca_bundle", ca_bundle)] if ca_bundle is not None else []
    if not named:
        named = [(name, Path(os.environ[name])) for name in _CA_VARIABLES if os.environ.get(name)]
    parts: list[bytes] = []
    for name, file in named:
        if name == "REQUESTS_CA_BUNDLE" and file.is_dir():
            continue  # a folder of hashed links is allowed there, and is no bundle
        try:
            data = file.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"The CA bundle {file} ({name}) cannot be read: {error.strerror}", hint=f"correct {name}"
            ) from error
        if b"-----BEGIN CERTIFICATE-----" not in data:
            raise SettingsError(
                f"The CA bundle {file} ({name}) holds no PEM certificate", hint=f"correct {name}"
            )
        if data not in parts:
            parts.append(data)
    return b"\n".join(parts)


def write_context(
    folder: Path,
    *,
    snapshot: Path,
    relay: Path,
    sources: Sources,
    manifest: Mapping[str, Any],
    ca_bundle: bytes,
) -> None:
    """Write the whole context into the empty `folder`.

    Raises:
        BuildError: a file of `snapshot` or of the relay is missing.
    """
    for name, file in {**{name: snapshot / name for name in FILES}, **relay_files(relay)}.items():
        if not file.is_file():
            raise BuildError(
                f"{file} is missing, without which the image cannot be built",
                hint="restore it from the repository",
                step="context",
                tail="",
            )
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    stage(sources, folder)
    (folder / "app" / "manifest.json").write_bytes(encode(manifest))
    (folder / "ca.crt").write_bytes(ca_bundle)


@contextmanager
def packed_context(folder: Path) -> Iterator[IO[bytes]]:
    """A tar of `folder`, open for reading: names sorted, owners, modes and times the same everywhere."""
    with tempfile.TemporaryFile() as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(folder.rglob("*")):
                info = tar.gettarinfo(path, arcname=path.relative_to(folder).as_posix())
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = _EPOCH
                # A checkout's umask must not reach the image, nor undo the cache on another machine.
                info.mode = 0o755 if info.isdir() else 0o644
                if info.isfile():
                    with path.open("rb") as data:
                        tar.addfile(info, data)
                else:
                    tar.addfile(info)
        stream.seek(0)
        yield stream
