import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from harvest_nb.errors import BuildError
from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.snapshot.homemade import read_recipe
from harvest_nb.snapshot.nodepkg import Package, fetch, npm_command, write_tree


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "cache"))


def pack(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size, info.mode = len(data), 0o755 if name.startswith("bin/") else 0o600
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.mark.slow
def test_a_package_comes_through_npm_once_and_is_checked():
    wanted = read_recipe().node["20"].npm
    said: list[str] = []
    file = fetch(wanted, say=said.append)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == wanted.sha256
    assert said == [f"fetching {wanted.package} with npm"]
    assert fetch(wanted, say=pytest.fail) == file
    file.write_bytes(b"torn")
    assert fetch(wanted, say=said.append) == file
    assert hashlib.sha256(file.read_bytes()).hexdigest() == wanted.sha256


def test_another_file_than_the_pinned_one_is_refused_and_not_kept():
    wanted = Package(read_recipe().node["20"].npm.package, "0" * 64)
    with pytest.raises(BuildError, match="is not the file that is pinned") as caught:
        fetch(wanted, say=lambda _: None)
    assert "0" * 64 in str(caught.value)
    assert list((Path(os.environ["HARVEST_CACHE"]) / "base").iterdir()) == []


def test_a_registry_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    monkeypatch.setenv("NPM_CONFIG_FETCH_RETRIES", "0")
    with pytest.raises(BuildError, match="npm could not fetch npm@") as caught:
        fetch(read_recipe().node["20"].npm, say=lambda _: None)
    assert "ECONNREFUSED" in caught.value.tail


def test_a_stop_is_obeyed():
    stop = Stop()
    stop.ask()
    with pytest.raises(Cancelled):
        fetch(read_recipe().node["20"].npm, say=lambda _: None, stop=stop)


def test_without_any_npm_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("harvest_nb.snapshot.nodepkg.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError) as caught:
        npm_command()
    assert "harvest-nb[host]" in caught.value.hint


def test_the_tree_has_the_commands_and_is_the_same_every_time(tmp_path):
    node = pack(tmp_path / "node.tgz", {"bin/node": b"ELF", "include/node.h": b"", "CHANGELOG.md": b""})
    npm = pack(
        tmp_path / "npm.tgz",
        {"bin/npm-cli.js": b"#!", "bin/npx-cli.js": b"#!", "lib/x.js": b"", "man/m": b""},
    )
    write_tree(tmp_path / "one.tar", node, npm)
    write_tree(tmp_path / "two.tar", node, npm)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        found = {member.name: member for member in tar.getmembers()}
    library = "usr/local/lib/node_modules/npm"
    assert set(found) == {
        *(f"usr/local/bin/{name}" for name in ("node", "nodejs", "npm", "npx")),
        *(f"{library}/{name}" for name in ("bin/npm-cli.js", "bin/npx-cli.js", "lib/x.js")),
    }
    assert found["usr/local/bin/node"].mode == found[f"{library}/bin/npm-cli.js"].mode == 0o755
    assert found[f"{library}/lib/x.js"].mode == 0o644
    assert found["usr/local/bin/npm"].linkname == "../lib/node_modules/npm/bin/npm-cli.js"
    assert {(member.uid, member.gid) for member in found.values()} == {(0, 0)}
