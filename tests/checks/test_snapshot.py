"""The contract on the real image, and on images and containers that are each wrong in one way.

A few broken ones run always, against the groups that they concern; all of them against the whole contract in the soak.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from typing import Any

import pytest

from harvest_nb.api import validate
from harvest_nb.checks import Report, validate_image, validate_sandbox
from harvest_nb.engine import DockerClient
from harvest_nb.errors import SandboxError
from harvest_nb.paths import data_root
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.snapshot import Snapshot
from harvest_nb.snapshot import manifest as manifests
from tests.checks.broken import Broken, Change, Files, built, provider

pytestmark = pytest.mark.docker

TOOLCHAIN = "/usr/local/lib/harvest/node_modules"


def _edit(path: str, data: bytes) -> Change:
    """Put other bytes at `path`, with a manifest that agrees: only what the text says is wrong then."""

    def change(manifest: dict[str, Any]) -> Files:
        for entry in manifest["files"]:
            if entry["image_path"] == path:
                entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        return {path: data}

    return change


def _without_entity(manifest: dict[str, Any]) -> Files:
    seed = json.loads((data_root() / "config" / "memory-seed.json").read_text())
    seed["entities"] = [entity for entity in seed["entities"] if entity["name"] != "ErrorPatterns"]
    names = {entity["name"] for entity in seed["entities"]}
    seed["relations"] = [r for r in seed["relations"] if {r["from"], r["to"]} <= names]
    return _edit("/app/memory-seed.json", json.dumps(seed).encode())(manifest)


def _other_node(manifest: dict[str, Any]) -> Files:
    manifest["versions"]["node"] = "20.0.0"
    return {}


def _fake(path: str, words: str) -> tuple[str, ...]:
    return (f"RUN rm -f {path} && printf '#!/bin/sh\\necho \"{words}\"\\n' > {path} && chmod 755 {path}",)


_BODY = base64.b64encode(secrets.token_bytes(600)).decode()
_CERTIFICATE = f"-----BEGIN CERTIFICATE-----\\n{_BODY}\\n-----END CERTIFICATE-----\\n"
_TOKEN = "ghp_" + secrets.token_hex(20)
_RULES = (data_root() / ".claude" / "CLAUDE.md").read_bytes()

BROKEN = [
    Broken(
        "stale-config",
        ("RUN echo stale >> /app/docs/ai/shared/testing.md",),
        frozenset({"manifest"}),
        ("config",),
        quick=True,
    ),
    Broken(
        "dangling-reference",
        (),
        frozenset({"references"}),
        ("config",),
        quick=True,
        change=_edit("/app/claude.md", _RULES + b"\nSee @docs/ai/shared/gone.md\n"),
    ),
    Broken(
        "missing-server",
        ("RUN rm /usr/local/bin/mcp-linear",),
        frozenset({"mcp:linear"}),
        ("mcp",),
        quick=True,
    ),
    Broken(
        "writable-config",
        ("RUN chown harvest /app/claude.md",),
        frozenset({"config-closed"}),
        ("security",),
        quick=True,
    ),
    Broken(
        "wrong-cli",
        _fake("/usr/local/bin/claude", "2.1.0 (Claude Code)"),
        frozenset({"cli-version"}),
        ("tools", "sdk"),
        quick=True,
    ),
    Broken(
        "chromium-gone",
        ("RUN rm /usr/bin/chromium-headless-shell",),
        frozenset({"chromium"}),
        ("browser",),
        quick=True,
    ),
    Broken("deleted-seed", ("RUN rm /app/memory-seed.json",), frozenset({"start"}), ("config",), quick=True),
    Broken(
        "malformed-seed", (), frozenset({"start"}), ("config",), change=_edit("/app/memory-seed.json", b"{}")
    ),
    Broken(
        # Covered by a later layer, and so in no sandbox; whoever has the image has it all the same.
        "secret-in-a-removed-file",
        (f"COPY {_TOKEN[:8]} /opt/build-note", "RUN rm /opt/build-note"),
        frozenset({"image-layers"}),
        ("security",),
        change=lambda _: {f"/{_TOKEN[:8]}": _TOKEN.encode()},
        layers=True,
    ),
    Broken(
        "secret-closed-to-the-agent",
        (f"COPY {_TOKEN[:8]} /root/.npmrc", "RUN chmod 600 /root/.npmrc"),
        frozenset({"image-layers"}),
        ("security",),
        change=lambda _: {f"/{_TOKEN[:8]}": _TOKEN.encode()},
        layers=True,
    ),
    Broken(
        "memory-unlocked",
        (
            "RUN rm /usr/local/bin/mcp-server-memory"
            f" && ln -s {TOOLCHAIN}/.bin/mcp-server-memory /usr/local/bin/mcp-server-memory",
        ),
        frozenset({"memory-alone"}),
        ("mcp",),
    ),
    Broken("ts-node-gone", ("RUN rm /usr/local/bin/ts-node",), frozenset({"ts-node"}), ("tools", "sdk")),
    Broken(
        "code-run-finds-no-sdk",
        ("RUN rm /node_modules",),
        frozenset({"production-call-typescript"}),
        ("sdk",),
    ),
    Broken(
        "manifest-gone",
        ("RUN rm /app/manifest.json",),
        frozenset({"manifest", "manifest-label"}),
        ("config",),
    ),
    Broken(
        "browser-server-gone",
        ("RUN rm /usr/local/bin/playwright-mcp",),
        frozenset({"mcp:playwright"}),
        ("mcp", "browser"),
    ),
    Broken("root-user", (), frozenset({"image-user", "start"}), ("security",), user="root", quick=True),
    Broken(
        # Its store lies where root may write, so that the sandbox starts at all.
        "running-as-root",
        ("ENV MEMORY_FILE_PATH=/tmp/memory/memory.jsonl",),
        frozenset({"image-user", "user", "environment", "image-variables"}),
        ("security", "tools"),
        user="root",
        quick=True,
    ),
    Broken(
        "workspace-closed",
        ("RUN chown root:root /app/workspace",),
        frozenset({"workspace"}),
        ("security", "tools"),
    ),
    Broken(
        "secret-in-environment",
        (f"ENV BUILD_NOTE={_TOKEN}",),
        frozenset({"environment-secrets", "image-environment", "image-history"}),
        ("security",),
    ),
    Broken(
        "secret-in-file",
        (f"COPY {_TOKEN[:8]} /etc/build-note",),
        frozenset({"file-secrets"}),
        ("security",),
        change=lambda _: {f"/{_TOKEN[:8]}": _TOKEN.encode()},
    ),
    Broken(
        "secret-in-label",
        (f"LABEL note={_TOKEN}",),
        frozenset({"image-labels", "image-history"}),
        ("security",),
    ),
    Broken("setuid-file", ("RUN chmod u+s /usr/bin/find",), frozenset({"setuid-files"}), ("security",)),
    Broken("sudo", _fake("/usr/bin/sudo", "root"), frozenset({"no-sudo"}), ("security",)),
    Broken(
        "world-writable",
        ("RUN mkdir /opt/shared && chmod 777 /opt/shared",),
        frozenset({"world-writable"}),
        ("security",),
    ),
    Broken(
        "foreign-authority",
        (f"RUN printf -- '{_CERTIFICATE}' >> /etc/ssl/certs/ca-certificates.crt",),
        frozenset({"authorities"}),
        ("security",),
    ),
    Broken(
        "typescript-sdk-gone",
        (f"RUN rm -r {TOOLCHAIN}/@anthropic-ai/claude-agent-sdk",),
        frozenset({"typescript-sdk"}),
        ("sdk",),
    ),
    Broken(
        "toolchain-writable", (f"RUN chown harvest {TOOLCHAIN}",), frozenset({"config-closed"}), ("security",)
    ),
    Broken("entity-gone", (), frozenset({"memory-graph"}), ("mcp",), change=_without_entity),
    Broken("fd-gone", ("RUN rm /usr/local/bin/fd",), frozenset({"fd"}), ("tools",)),
    Broken(
        "old-git",
        _fake("/usr/bin/git", "git version 2.20.1"),
        frozenset({"git", "packages"}),
        ("tools", "security"),
    ),
    Broken("extra-config", ("RUN echo x > /app/docs/mcp/extra.md",), frozenset({"manifest"}), ("config",)),
    Broken("mcp-servers-slipped-in", ("RUN echo {} > /app/.mcp.json",), frozenset({"manifest"}), ("config",)),
    Broken("other-node", (), frozenset({"versions"}), ("config",), change=_other_node),
    Broken(
        "wrong-label",
        (f"LABEL {manifests.LABEL_MANIFEST}={'0' * 64}",),
        frozenset({"manifest-label", "image-manifest-label"}),
        ("config",),
    ),
    Broken(
        "memory-server-gone",
        (f"RUN rm -r {TOOLCHAIN}/@modelcontextprotocol/server-memory",),
        frozenset({"mcp:memory"}),
        ("mcp",),
    ),
    Broken(
        "capability-added",
        (),
        frozenset({"capability-bounds"}),
        ("security",),
        host_config={"cap_add": ["NET_RAW"]},
    ),
    Broken(
        "new-privileges",
        (),
        frozenset({"no-new-privileges"}),
        ("security",),
        host_config={"security_opt": []},
    ),
]

QUICK = [broken for broken in BROKEN if broken.quick]


def exactly(report: Report, broken: Broken) -> None:
    assert not report.ok
    # Whatever was changed, the image is not the one that was built; a container's own fault is none of the image's.
    others = {row.check for row in report} & ({"image-build"} if not broken.host_config else set())
    assert {row.check for row in report.failures} == broken.failures | others, report.failures
    assert all(row.hint for row in report.failures)
    assert _TOKEN not in report.to_json()


@pytest.mark.parametrize("broken", QUICK, ids=[broken.name for broken in QUICK])
async def test_the_broken_thing_is_named(
    engine: DockerClient, kept: Snapshot, broken: Broken, monkeypatch: pytest.MonkeyPatch
):
    with built(engine, kept, broken) as image:
        makes = provider(engine, broken, monkeypatch)
        report = await validate(image, provider=makes, groups=broken.groups, layers=broken.layers)
    exactly(report, broken)


@pytest.mark.soak
@pytest.mark.parametrize("broken", BROKEN, ids=[broken.name for broken in BROKEN])
async def test_exactly_the_broken_thing_is_named_by_the_whole_contract(
    engine: DockerClient, kept: Snapshot, broken: Broken, monkeypatch: pytest.MonkeyPatch
):
    with built(engine, kept, broken) as image:
        makes = provider(engine, broken, monkeypatch)
        exactly(await validate(image, provider=makes, layers=broken.layers), broken)


async def test_no_image_at_all_is_an_error_and_no_report(engine: DockerClient):
    with pytest.raises(SandboxError, match="no image harvest-test-never:made"):
        await validate("harvest-test-never:made", provider=DockerProvider(engine))


async def test_the_snapshot_keeps_the_whole_contract(engine: DockerClient, kept: Snapshot):
    async with await DockerProvider(engine).create(kept.id) as sandbox:
        before = await sandbox.run(["sh", "-c", "sha256sum $MEMORY_FILE_PATH; ls -A /app/workspace"])
        report = await validate_sandbox(sandbox, source_root=data_root())
        after = await sandbox.run(["sh", "-c", "sha256sum $MEMORY_FILE_PATH; ls -A /app/workspace"])
        left = await sandbox.run(["ps", "-eo", "args"])
        manifest = await sandbox.read("/app/manifest.json")
    assert report.failures == ()
    # On Docker, with a source root, every check applies.
    assert {row.status for row in report} == {"pass"}
    assert after.stdout == before.stdout
    assert not [line for line in left.text.splitlines() if "node" in line or "chrom" in line]
    image = engine.api.inspect_image(kept.id)
    assert validate_image(image, engine.api.history(kept.id), manifest=manifest).ok
