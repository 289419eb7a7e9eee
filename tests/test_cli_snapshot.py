"""The snapshot's commands as programs: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harvest_nb.snapshot import Snapshot

pytestmark = pytest.mark.docker

COMMAND = [sys.executable, "-c", "from harvest_nb.cli import main; main()"]


def call(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_sources_tells_each_files_state(snapshot_image: Snapshot, tmp_path: Path):
    done = call("sources", "--check", "--json", "--image", snapshot_image.id, cwd=tmp_path)
    rows = json.loads(done.stdout)
    assert done.returncode == 0
    assert {row["state"] for row in rows} == {"in the image"}
    assert {row["image_path"] for row in rows} >= {"/app/claude.md", "/app/memory-seed.json"}
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_without_an_image_all_sources_are_missing(tmp_path: Path):
    done = call("sources", "--check", "--json", "--image", "harvest-test-never:made", cwd=tmp_path)
    assert done.returncode == 1
    assert "no image harvest-test-never:made" in done.stderr
    assert {row["state"] for row in json.loads(done.stdout)} == {"missing"}


def test_inventory_writes_a_bill_of_materials(snapshot_image: Snapshot, tmp_path: Path):
    done = call("inventory", "--image", snapshot_image.id, "--cyclonedx", "out/sbom.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "out" / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert len(bill["components"]) > 500


def test_what_a_check_saw_is_shown_as_it_is(snapshot_image: Snapshot, tmp_path: Path):
    # In rich's markup one of these is an error and the other vanishes.
    (tmp_path / "contract.toml").write_text(
        'version = 1\n[[check]]\nname = "brackets"\ngroup = "tools"\nkind = "command"\nhint = "see [/y]"\n'
        """argv = ["sh", "-c", "echo '[/usr] [red]x'; exit 1"]\n"""
    )
    done = call("validate", snapshot_image.id, "--no-layers", "--contract", "contract.toml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "[/usr] [red]x" in done.stdout
    assert "see [/y]" in done.stdout


@pytest.mark.soak
def test_an_image_is_carried_and_validated(snapshot_image: Snapshot, tmp_path: Path):
    built = call("build", "--output", "snapshot.tar", "--json", cwd=tmp_path)
    assert json.loads(built.stdout)["id"] == snapshot_image.id
    done = call("validate", "snapshot.tar", "--json", "--junit", "junit.xml", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True)
    assert "image-layers" in {check["check"] for check in report["checks"]}
    assert (tmp_path / "junit.xml").read_text().startswith("<?xml")
    (tmp_path / "snapshot.tar").write_bytes(b"cut")
    done = call("validate", "snapshot.tar", cwd=tmp_path)
    assert done.returncode == 1
    assert "no image that was saved whole" in done.stderr
