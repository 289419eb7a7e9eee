"""Promises about the snapshot image itself: its size, what it says of itself, and that no token is in it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harvest_nb.api import validate
from harvest_nb.engine import DockerClient
from harvest_nb.paths import data_root
from harvest_nb.redact import Redactor
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.settings import TOKEN_VARIABLES
from harvest_nb.snapshot import Snapshot, build
from harvest_nb.snapshot.cache import forget
from harvest_nb.snapshot.carry import save

if TYPE_CHECKING:
    from tests.snapshot.conftest import Tiny
else:
    Tiny = Any

pytestmark = pytest.mark.docker


def test_it_is_small_enough(snapshot_image: Snapshot):
    assert snapshot_image.size <= 1.5e9


def test_labels_say_what_the_manifest_does(snapshot_image: Snapshot):
    manifest, labels = snapshot_image.manifest, snapshot_image.labels
    files = {file["image_path"]: file["sha256"] for file in manifest["files"]}
    assert json.loads(labels["harvest.sources"]) == files
    root = data_root()
    for file in manifest["files"]:
        assert hashlib.sha256((root / file["source"]).read_bytes()).hexdigest() == file["sha256"]
    versions = manifest["versions"]
    assert set(versions) == {"cli", "sdk_typescript", "sdk_python", "node", "python"}
    assert {labels[f"harvest.{name}.version"] for name in ("cli", "node", "python")} == {
        versions["cli"], versions["node"], versions["python"],
    }  # fmt: skip
    assert labels["harvest.source.commit"].removesuffix("+dirty") == manifest["source_commit"]
    assert labels["harvest.source.root"] == manifest["source_root_name"]
    assert len(snapshot_image.digest) == len("sha256:") + 64


def canaries(monkeypatch: pytest.MonkeyPatch) -> Redactor:
    """Made-up tokens under every name that a build might pick one up by, and what finds them in any form."""
    names = [*TOKEN_VARIABLES, "ANTHROPIC_API_KEY", "NPM_TOKEN", "NODE_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"]
    made = {name: f"canary{secrets.token_hex(16)}" for name in names}
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return Redactor(made)


async def test_a_token_in_the_building_environment_is_in_no_layer_label_or_history(
    tiny: Tiny, engine: DockerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    redactor = canaries(monkeypatch)
    (tiny.folder / ".env").write_text("\n".join(f"{name}={os.environ[name]}" for name in TOKEN_VARIABLES))
    # What a careless step would do; were a token a build argument or in the context, it would be here.
    tiny.steps(
        "ARG GITHUB_TOKEN", "RUN env > /environment; echo arg:$GITHUB_TOKEN:; find / -name '.env*' -xdev"
    )
    snapshot = await tiny.build()
    archive = save(engine, snapshot.id, tmp_path / "image.tar")
    image = engine.api.inspect_image(snapshot.id)
    texts = {
        "layers": archive.path.read_bytes().decode("latin-1"),
        "history": json.dumps(engine.api.history(snapshot.id)),
        "description": json.dumps(image),
        "progress": "\n".join(progress.line for progress in tiny.progress),
    }
    assert {where: redactor.found(text) for where, text in texts.items()} == {where: [] for where in texts}
    assert "arg::" in texts["progress"]
    assert redactor.found(os.environ["GITHUB_TOKEN"]) == ["GITHUB_TOKEN"]


@pytest.mark.soak
def test_no_canary_is_in_the_real_image_either(
    engine: DockerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    redactor = canaries(monkeypatch)
    tag = f"harvest-test-canary:{secrets.token_hex(4)}"
    snapshot = asyncio.run(build(client=engine, tag=tag))
    try:
        found: set[str] = set()
        rest = b""
        for chunk in engine.api.get_image(snapshot.id, chunk_size=1 << 24):
            text = rest + chunk
            found |= set(redactor.found(text.decode("latin-1")))
            rest = text[-200:]
        assert found == set()
        assert redactor.found(json.dumps([engine.api.history(snapshot.id), dict(snapshot.labels)])) == []
    finally:
        engine.api.remove_image(tag, noprune=True)
        forget(engine, tag)


@pytest.mark.soak
async def test_node_22_builds_and_keeps_the_whole_contract(engine: DockerClient):
    tag = f"harvest-test-node22:{secrets.token_hex(4)}"
    snapshot = await build(client=engine, tag=tag, node_version="22")
    try:
        assert snapshot.manifest["versions"]["node"].startswith("22.")
        assert snapshot.size <= 1.5e9
        report = await validate(snapshot, provider=DockerProvider(engine), source_root=data_root())
        assert report.failures == ()
        assert {row.status for row in report} == {"pass"}
    finally:
        engine.api.remove_image(tag, noprune=True)
        forget(engine, tag)
