"""Images that are each wrong in one way: made from the snapshot, and removed again."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from harvest_nb.engine import DockerClient
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.snapshot import Snapshot
from harvest_nb.snapshot import manifest as manifests

Files = dict[str, bytes]
Change = Callable[[dict[str, Any]], Files]


@dataclass(frozen=True)
class Broken:
    """An image made from the snapshot: Dockerfile lines run as root, and what the contract must name."""

    name: str
    lines: tuple[str, ...]
    failures: frozenset[str]
    groups: tuple[str, ...]
    """What `make test` runs of it; everything in the soak."""
    user: str = "harvest"
    change: Change | None = None
    """Files to copy in, made from the manifest, which it may change; the label follows the manifest."""
    quick: bool = False
    layers: bool = False
    """Whether its layers are read: a gigabyte for each image."""
    host_config: dict[str, Any] = field(default_factory=dict)


@contextmanager
def built(engine: DockerClient, snapshot: Snapshot, broken: Broken) -> Iterator[str]:
    """The broken image's id; the image is removed at the end."""
    manifest = json.loads(json.dumps(snapshot.manifest))
    files = broken.change(manifest) if broken.change else {}
    lines = [f"FROM {snapshot.id}", "USER root"]
    if broken.change:
        if any(path.startswith("/app/") for path in files) or manifest != snapshot.manifest:
            files["/app/manifest.json"] = manifests.encode(manifest)
            lines += [
                f"LABEL {json.dumps(name)}={json.dumps(value)}"
                for name, value in manifests.labels(manifest).items()
            ]
        lines += [f"COPY {path.lstrip('/')} {path}" for path in files if path.startswith("/app/")]
    lines += [*broken.lines, f"USER {broken.user}"]
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, data in {"Dockerfile": "\n".join(lines).encode(), **files}.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    context.seek(0)
    tag = f"harvest-test-broken:{broken.name}-{secrets.token_hex(4)}"
    said = list(
        engine.api.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            decode=True,
            network_mode="none",
            nocache=True,  # layers shared with another build must not be removed with this image
        )
    )
    assert not [line["error"] for line in said if "error" in line]
    try:
        yield tag
    finally:
        engine.api.remove_image(tag, force=True)


def provider(engine: DockerClient, broken: Broken, patch: pytest.MonkeyPatch) -> DockerProvider:
    """A provider whose containers differ as `broken` says."""
    if broken.host_config:
        make = engine.api.create_host_config
        patch.setattr(
            engine.api, "create_host_config", lambda **options: make(**options | broken.host_config)
        )
    return DockerProvider(engine)
