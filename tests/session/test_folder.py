"""A run folder that somebody else meddles with while it is written."""

from __future__ import annotations

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
