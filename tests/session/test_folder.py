"""A run folder that somebody else meddles with while it is written."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from harvest_nb.errors import RunFolderError
from harvest_nb.redact import Redactor
from harvest_nb.session.folder import RunFolder, is_written
from tests.session.conftest import about


def in_the_way(path: Path) -> None:
    """Something at `path` that even root can neither write nor unlink."""
    path.unlink(missing_ok=True)
    path.mkdir()


def test_a_file_that_cannot_be_written_is_reported_as_any_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Redactor(), {})
    in_the_way(folder.path / "memory.after.jsonl")
    with pytest.raises(RunFolderError, match="Cannot write to run folder"):
        folder.put("memory.after.jsonl", b"{}")
    folder.close()
    assert {path.name for path in folder.path.glob(".*")} == set()


def test_a_folder_whose_end_cannot_be_written_is_let_go_and_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Redactor(), {})
    kept = (folder.path / "run.json").rename(folder.path / "kept.json")
    for name in ("run.json", ".reserve"):
        in_the_way(folder.path / name)
    assert is_written(folder.path)
    with pytest.raises(RunFolderError, match="Cannot write to run folder"):
        folder.finish(status="cancelled", exit_reason="cancelled from the desk")
    assert not is_written(folder.path)
    assert json.loads(kept.read_text())["status"] == "running"


def test_what_was_removed_during_a_run_is_told_at_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Redactor(), {})
    folder.record("in", json.dumps({"type": "assistant"}).encode())
    shutil.rmtree(folder.path)
    folder.finish(status="success", exit_reason="success")
    told = about(folder.path)
    assert told["status"] == "success"
    assert told["exit_reason"].startswith("success; ")
    assert "stream.jsonl was removed" in told["exit_reason"]


def test_the_end_of_a_whole_folder_is_told_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Redactor(), {})
    folder.finish(status="success", exit_reason="success")
    assert about(folder.path)["exit_reason"] == "success"


def test_a_secret_over_several_lines_of_standard_error_is_replaced(tmp_path: Path) -> None:
    value = "a-token-of-more-than-one-line-" + "4tQ9vXcZ7LmN2bKpR8sWdYfH" * 4
    folder = RunFolder(tmp_path, Redactor({"GITHUB_TOKEN": value}), {})
    lines = base64.encodebytes(f"before {value} after, and much later\n".encode()).decode().splitlines()
    for line in ["first", *lines, "last"]:
        folder.stderr(line)
        folder.note("meanwhile")
    folder.close()
    told = (folder.path / "stderr.log").read_text().replace("[harvest] meanwhile\n", "")
    assert told.startswith("first\n" + lines[0][:9])
    assert told.endswith(lines[-1][-28:] + "\nlast\n")
    assert told.count("[redacted:GITHUB_TOKEN]") == 1
    assert not [line for line in lines if line in told]


def test_no_file_is_named_after_a_secret(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Redactor({"GITHUB_TOKEN": "value-of-the-token"}), {})
    folder.put("transcript/tool-results/value-of-the-token.txt", b"x")
    folder.close()
    assert not [path for path in folder.path.rglob("*") if "value" in path.name]
    assert len([*folder.path.glob("transcript/tool-results/*")]) == 1
