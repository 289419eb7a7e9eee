import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from harvest_nb.errors import BuildError
from harvest_nb.machine import command
from harvest_nb.snapshot.base import Base
from harvest_nb.snapshot.manifest import digest, encode, labels, make_manifest, source_commit
from harvest_nb.snapshot.sources import SourceMap, Sources, collect

BASE = Base(
    "harvest-base:x",
    "sha256:0",
    official=False,
    node="20.1.2",
    python="3.11.2",
    digest="sha256:d",
    created=datetime(2026, 1, 1, tzinfo=UTC),
)
MAP = SourceMap.model_validate({"source": [{"image": "/app/a.md", "source": "a.md"}]})


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/a.md").write_text("a\n")
    packages = {
        f"node_modules/@anthropic-ai/{n}": {"version": v}
        for n, v in [("claude-code", "2"), ("claude-agent-sdk", "3")]
    }
    (tmp_path / "lock.json").write_text(json.dumps({"packages": packages}))
    (tmp_path / "relayd").mkdir()
    (tmp_path / "relayd" / "launcher.py").write_text("relay\n")
    return tmp_path / "repo"


def sources(root: Path) -> Sources:
    return collect(root, source_map=MAP)


def test_outside_a_repository_there_is_no_commit(root, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert source_commit(sources(root)) == (None, False)


def test_a_machine_without_git(root, monkeypatch, tmp_path):
    git(root, "init", "-q")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("harvest_nb.snapshot.manifest.clean_env", lambda _: {"PATH": str(tmp_path)})
    assert source_commit(sources(root)) == (None, False)


def test_the_commit_and_whether_a_source_differs_from_it(root):
    git(root, "init", "-q")
    assert source_commit(sources(root)) == (None, False)
    git(root, "add", "a.md")
    git(root, "commit", "-q", "-m", "one")
    commit = git(root, "rev-parse", "HEAD")
    assert source_commit(sources(root)) == (commit, False)
    (root / "other.txt").write_text("no source\n")
    assert source_commit(sources(root)) == (commit, False)
    (root / "a.md").write_text("changed\n")
    assert source_commit(sources(root)) == (commit, True)


def test_a_source_that_git_ignores_is_not_in_the_commit(root):
    (root / ".gitignore").write_text("a.md\n")
    git(root, "init", "-q")
    git(root, "add", ".gitignore")
    git(root, "commit", "-q", "-m", "one")
    assert source_commit(sources(root))[1] is True


def test_a_source_behind_a_link_is_compared_with_the_commit_too(root):
    (root / "a.md").rename(root / "real.md")
    (root / "a.md").symlink_to("real.md")
    (root / "folder").mkdir()
    (root / "folder/b.md").write_text("b\n")
    (root / "linked").symlink_to("folder")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    both = SourceMap.model_validate(
        {"source": [{"image": "/app/a.md", "source": "a.md"}, {"image": "/app/b/*", "source": "linked/*"}]}
    )
    assert source_commit(collect(root, source_map=both))[1] is False
    (root / "folder/b.md").write_text("changed\n")
    assert source_commit(collect(root, source_map=both))[1] is True
    git(root, "commit", "-q", "-a", "-m", "two")
    assert source_commit(collect(root, source_map=both))[1] is False
    (root / "real.md").write_text("changed\n")
    assert source_commit(collect(root, source_map=both))[1] is True


def test_a_root_below_the_repositorys_top(root):
    (root / "inner dir").mkdir()
    (root / "inner dir/a.md").write_text("a\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    inner = root / "inner dir"
    assert source_commit(sources(inner)) == (git(root, "rev-parse", "HEAD"), False)
    (inner / "a.md").write_text("changed\n")
    assert source_commit(sources(inner))[1] is True


def test_a_checkout_that_belongs_to_somebody_else_has_a_commit_and_runs_nothing(root, tmp_path, monkeypatch):
    # As in CI: root in a container, the checkout mounted. git itself refuses there, for its settings run programs.
    (root / ".gitattributes").write_text("* filter=theirs\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    commit = git(root, "rev-parse", "HEAD")
    ran = tmp_path / "ran"
    git(root, "config", "core.fsmonitor", f"touch {ran}")
    git(root, "config", "filter.theirs.clean", f"touch {ran}; cat")
    # git's own switch for such tests; only root could really give the files away.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    passed_on = {*command._PASSED_ON, "GIT_TEST_ASSUME_DIFFERENT_OWNER"}
    monkeypatch.setattr(command, "_PASSED_ON", passed_on)
    (root / "a.md").write_text("a\n")  # its time has changed, so that git would look into it
    assert source_commit(sources(root)) == (commit, False)
    (root / "a.md").write_text("changed\n")
    assert source_commit(sources(root)) == (commit, True)
    assert not ran.exists()


def test_the_same_inputs_give_the_same_bytes(root):
    one, two = (
        make_manifest(sources(root), BASE, root.parent / "lock.json", root.parent / "relayd") for _ in "12"
    )
    assert encode(one) == encode(two)
    assert json.loads(encode(one)) == one
    assert one["versions"] == {
        "cli": "2",
        "sdk_typescript": "3",
        "sdk_python": version("claude-agent-sdk"),
        "node": "20.1.2",
        "python": "3.11.2",
    }
    assert str(root) not in encode(one).decode()
    (root / "a.md").write_text("b\n")
    assert digest(
        make_manifest(sources(root), BASE, root.parent / "lock.json", root.parent / "relayd")
    ) != digest(one)


def test_labels_say_what_is_in_it(root):
    manifest = make_manifest(sources(root), BASE, root.parent / "lock.json", root.parent / "relayd")
    found = labels(manifest | {"source_commit": "abc", "source_dirty": True})
    assert found["harvest.source.commit"] == "abc+dirty"
    assert found["harvest.node.version"] == "20.1.2"
    assert found["harvest.base"] == "harvest-base:x"
    assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize("text", ["", "{}", '{"packages": {"node_modules/@anthropic-ai/claude-code": {}}}'])
def test_a_lockfile_that_does_not_pin_the_cli(root, text):
    (root.parent / "lock.json").write_text(text)
    with pytest.raises(
        BuildError, match=r"lock\.json does not say which version of @anthropic-ai/claude-code"
    ):
        make_manifest(sources(root), BASE, root.parent / "lock.json", root.parent / "relayd")
