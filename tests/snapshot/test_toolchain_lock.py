"""What must hold of the toolchain's lockfile and of the Dockerfile that installs it."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from claude_agent_sdk._cli_version import __cli_version__

from harvest_nb.mcp_servers import mcp_servers
from harvest_nb.paths import snapshot_dir

DOCKERFILE = (snapshot_dir() / "Dockerfile").read_text()


@cache
def asked_for() -> dict[str, str]:
    dependencies: dict[str, str] = json.loads((snapshot_dir() / "package.json").read_text())["dependencies"]
    return dependencies


@cache
def locked() -> dict[str, Any]:
    packages: dict[str, Any] = json.loads((snapshot_dir() / "package-lock.json").read_text())["packages"]
    return packages


def bins() -> set[str]:
    return {name for package in asked_for() for name in locked()[f"node_modules/{package}"].get("bin", {})}


def instructions() -> list[str]:
    """The Dockerfile's instructions, comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    return [" ".join(one.split()) for one in "\n".join(lines).replace("\\\n", " ").split("\n") if one.strip()]


def test_every_version_is_exact():
    assert len(asked_for()) >= 10
    for name, version in asked_for().items():
        assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version), name
        assert locked()[f"node_modules/{name}"]["version"] == version


def test_the_lockfile_is_that_of_the_package_file():
    lock = json.loads((snapshot_dir() / "package-lock.json").read_text())
    assert lock["lockfileVersion"] == 3
    assert lock["packages"][""]["dependencies"] == asked_for()


def test_the_lockfile_names_no_registry_and_checks_every_package():
    for name, entry in locked().items():
        assert "resolved" not in entry, name
        assert not name or entry["integrity"].startswith("sha512-"), name


def test_the_cli_is_the_one_that_the_python_sdk_bundles():
    assert asked_for()["@anthropic-ai/claude-code"] == __cli_version__


def test_there_is_one_copy_of_the_cli():
    second = [name for name in locked() if name.startswith("node_modules/@anthropic-ai/claude-agent-sdk-")]
    assert second == [], "run `npm run lock` in snapshot/"
    assert "optionalDependencies" not in locked()["node_modules/@anthropic-ai/claude-agent-sdk"]


def test_the_only_optional_packages_are_those_of_the_cli():
    # The host provider leaves out the CLI by leaving out what is optional.
    optional = {name for name, entry in locked().items() if entry.get("optional")}
    assert "node_modules/@anthropic-ai/claude-code-linux-x64" in optional
    assert "node_modules/@anthropic-ai/claude-code-linux-arm64" in optional
    assert all(name.startswith("node_modules/@anthropic-ai/claude-code-") for name in optional)


def test_playwright_is_the_one_of_its_mcp_server():
    wanted = locked()["node_modules/@playwright/mcp"]["dependencies"]
    for name in ("playwright", "playwright-core"):
        copies = [entry for key, entry in locked().items() if key.endswith(f"node_modules/{name}")]
        assert [entry["version"] for entry in copies] == [wanted[name]]


def test_install_scripts_are_known():
    # None is run. A new one has to be read first: the package may not work without it.
    assert {name for name, entry in locked().items() if entry.get("hasInstallScript")} == {
        "node_modules/@anthropic-ai/claude-code",
        "node_modules/@google/genai",
        "node_modules/@tacticlaunch/mcp-linear",
        "node_modules/protobufjs",
    }
    assert "npm ci --ignore-scripts" in DOCKERFILE


@pytest.mark.parametrize("server", mcp_servers(), ids=lambda server: server.name)
def test_every_mcp_server_is_installed_and_on_the_path(server):
    assert server.command in locked()[f"node_modules/{server.package}"]["bin"]
    assert server.command in linked()


def linked() -> set[str]:
    found = re.search(r"for name in ([\w\s-]+); do", " ".join(instructions()))
    assert found is not None
    # The memory server is started through a program of the image's own.
    assert "/usr/local/bin/mcp-server-memory" in DOCKERFILE
    return {*found.group(1).split(), "mcp-server-memory"}


def test_the_image_links_commands_that_are_installed():
    assert linked() <= bins()
    assert {"claude", "pnpm", "playwright"} <= linked()


def test_the_dockerfile_is_one_for_the_classic_builder():
    known = {"ARG", "FROM", "LABEL", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    for instruction in instructions():
        assert instruction.split()[0] in known, instruction
        assert not re.search(r"--(mount|link|chmod|network|security|parents|exclude)\b|<<", instruction), (
            instruction
        )


def test_the_ca_is_copied_into_the_first_stage_only():
    stages = [index for index, one in enumerate(instructions()) if one.startswith("FROM ")]
    copies = [
        index for index, one in enumerate(instructions()) if one.startswith("COPY ") and "ca.crt" in one
    ]
    assert len(stages) == 2
    assert [stages[0] < index < stages[1] for index in copies] == [True]


def test_the_image_ends_as_the_user_harvest_in_app():
    assert [one for one in instructions() if one.startswith("USER ")] == ["USER harvest"]
    assert instructions()[-5:-3] == ["WORKDIR /app", "USER harvest"]
    assert instructions()[-1] == "COPY app/ /app/"
