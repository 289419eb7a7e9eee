"""Scenarios and cassettes from strangers: the files that they bring lie in the workspace, or are refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harvest_nb.endpoint import open_endpoint
from harvest_nb.errors import CassetteError, ScenarioError
from harvest_nb.sandbox.base import Provider, Sandbox
from harvest_nb.sandbox.host import HostProvider

pytestmark = pytest.mark.slow

ABSOLUTE = "/var/tmp/harvest-test-of-names.txt"
NAMES = [
    "../out.txt",
    "../../../../../../../../../../var/tmp/harvest-test-of-names.txt",
    ABSOLUTE,
    "{home}/.bashrc",
    "{workspace}/../../out.txt",
    "{workspace}",
    "{workspace}/",
    "..",
    "",
    "a/../../out.txt",
    "link/out.txt",
    "a\0b",
    "~/x/../../../out",
    "x" * 300,
]


def cassette(folder: Path, files: dict[str, str]) -> Path:
    header: dict[str, Any] = {
        "format": "harvest-nb cassette",
        "version": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "models": ["claude-sonnet-4-5"],
        "exchanges": 0,
        "files": files,
    }
    header["sha256"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n").hexdigest()
    path = folder / "foreign.cassette"
    path.write_text(json.dumps(header) + "\n")
    return path


def scenario(folder: Path, name: str) -> Path:
    path = folder / "foreign.yaml"
    path.write_text(json.dumps({"about": "x", "files": {name: "brought"}, "rules": [{"text": "hi"}]}))
    return path


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "host"])
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


async def test_names_that_lead_out_are_refused(provider: Provider, tmp_path: Path) -> None:
    sandbox = await provider.create()
    try:
        home, workspace = str(sandbox.home), str(sandbox.workspace)
        await sandbox.run(["ln", "-s", home, f"{workspace}/link"])
        for name in NAMES:
            marked = name.replace("{", "{harvest:")
            for kind, spec, script in (
                (ScenarioError, "scripted", scenario(tmp_path, name)),
                (CassetteError, cassette(tmp_path, {marked: "brought"}), None),
            ):
                with pytest.raises(kind, match="brings a file"):
                    async with open_endpoint(spec, scenario=script, sandbox=sandbox, prompt="hi"):
                        pass
        search = 'grep -rl brought "$1" "$2" "$3"'
        found = await sandbox.run(["sh", "-c", search, "sh", home, str(sandbox.workdir), ABSOLUTE])
        assert found.stdout == b""
    finally:
        await sandbox.close()


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[asyncio.Runner, Sandbox]]:
    with asyncio.Runner() as runner:
        sandbox = runner.run(HostProvider().create())
        yield runner, sandbox
        runner.run(sandbox.close())


@given(st.one_of(st.sampled_from(NAMES), st.text("a./\\~ \n\0é*", max_size=12), st.text(max_size=20)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_name_lies_in_the_workspace_or_is_refused(
    opened: tuple[asyncio.Runner, Sandbox], tmp_path: Path, name: str
) -> None:
    runner, sandbox = opened
    workspace = Path(sandbox.workspace)
    content = f"brought {uuid.uuid4()}"

    def holding() -> set[bool]:
        files = [path for path in workspace.parent.parent.rglob("*") if path.is_file()]
        return {workspace in path.parents for path in files if path.read_bytes() == content.encode()}

    async def play() -> None:
        path = cassette(tmp_path, {name: content})
        try:
            async with open_endpoint(path, sandbox=sandbox, prompt="hi"):
                assert holding() == {True}
        except CassetteError:
            assert holding() == set()

    runner.run(play())
