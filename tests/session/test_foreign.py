"""Run folders from strangers: what they hold reaches the agent, and nothing else of this machine does."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from harvest_nb.endpoint.messages import Block, Text, ToolUse
from harvest_nb.endpoint.scripted import Conversation
from harvest_nb.errors import RunFolderError
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup
from harvest_nb.session.resume import find_past
from harvest_nb.session.run import run_session
from tests.session.conftest import BASH, about, conversation, echo, typed

pytestmark = pytest.mark.slow

CANARY = "CANARY-of-this-machine"


def looking(c: Conversation) -> list[Block]:
    if c.results:
        return [Text(c.results[-1][0])]
    find = "cat $MEMORY_FILE_PATH | head -c 2000; find ~/.claude/projects -path '*tool-results*' -type f -exec cat {} +"
    return [ToolUse("Bash", {"command": f"{find}; true", "description": typed(c)})]


@pytest.fixture
def host() -> Provider:
    return HostProvider()


@pytest.fixture(scope="module")
def host_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was recorded on the host."""
    plan = Setup(
        provider=HostProvider(), runs_dir=tmp_path_factory.mktemp("runs"), scenario=conversation(echo)
    )
    return asyncio.run(run_session("one", plan)).folder


async def test_links_of_a_run_folder_are_left_out_and_said(provider: Provider, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    first = await run_session("one", Setup(provider=provider, runs_dir=tmp_path, scenario=conversation(echo)))
    folder = first.folder
    results = folder / "transcript" / str(first.session_id) / "tool-results"
    results.mkdir(parents=True)
    (results / "plain.txt").write_text("of the run itself")
    (results / "key.txt").symlink_to(secret)
    (results / "up").symlink_to(tmp_path)
    (folder / "memory.after.jsonl").unlink()
    (folder / "memory.after.jsonl").symlink_to(secret)
    os.mkfifo(results / "pipe")
    second = await run_session(
        "two",
        Setup(
            provider=provider,
            runs_dir=tmp_path,
            options=BASH,
            scenario=conversation(looking),
            past=find_past(folder),
        ),
    )
    assert second.ok, second.reason
    assert "of the run itself" in str(second.text)
    for path in second.folder.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    named = " ".join(about(second.folder)["problems"])
    for name in ("key.txt", "up", "pipe", "memory.after.jsonl"):
        assert name in named
    assert "key.txt" in (second.folder / "stderr.log").read_text()


@pytest.mark.parametrize("name", ["run.json", "stream.jsonl", "transcript/{}.jsonl"])
async def test_a_run_folder_whose_records_lie_elsewhere_is_refused(
    host_run: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(host_run, tmp_path / "foreign")
    path = folder / name.format(about(folder)["session_id"])
    if name == "stream.jsonl":
        (folder / "run.json").write_text(json.dumps(about(folder) | {"transcript_whole": False}))
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(RunFolderError, match=path.name):
        find_past(folder)


async def test_the_list_of_who_went_on_is_no_link(host_run: Path, tmp_path: Path, host: Provider) -> None:
    folder = shutil.copytree(host_run, tmp_path / "foreign")
    profile = tmp_path / "profile"
    profile.write_text("untouched")
    (folder / "resumed.jsonl").symlink_to(profile)
    result = await run_session(
        "two",
        Setup(provider=host, runs_dir=tmp_path, scenario=conversation(echo), past=find_past(folder)),
    )
    assert result.ok
    assert profile.read_text() == "untouched"


@pytest.mark.parametrize("name", ["memory.after.jsonl", "transcript/{}", "transcript"])
async def test_a_link_in_the_place_of_a_part_is_not_walked(host_run: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (outside / "a-name-of-this-machine").mkdir(parents=True)
    (outside / "a-name-of-this-machine" / "x.jsonl").write_text("{no JSON")
    (outside / "another-name").symlink_to("/nowhere")
    folder = shutil.copytree(host_run, tmp_path / "foreign")
    path = folder / name.format(about(folder)["session_id"])
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    try:
        said = " ".join(find_past(folder).notes)
    except RunFolderError as error:
        said = str(error)
    assert path.name in said
    assert "a-name-of-this-machine" not in said
    assert "another-name" not in said
