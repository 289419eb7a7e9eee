"""Files from strangers: what is compressed, linked or no file at all costs a row of `problems`, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import load

ROW = {
    "type": "user",
    "uuid": "u1",
    "sessionId": "s",
    "timestamp": "2026-01-01T00:00:00Z",
    "message": {"role": "user", "content": "hi"},
}
LINE = json.dumps(ROW) + "\n"


def zstd_of_one_byte(blocks: int) -> bytes:
    """A frame of `blocks` blocks, each of which repeats one byte 128 KiB times (RFC 8878, 3.1.1)."""
    block = struct.pack("<I", 1 << 1 | (128 * 1024) << 3)[:3] + b" "
    last = struct.pack("<I", 1 | 1 << 1 | (128 * 1024) << 3)[:3] + b" "
    return b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x88" + block * (blocks - 1) + last


def reasons(folder: Path, *, follow_links: bool = False) -> dict[str, str]:
    found = load(folder, follow_links=follow_links).problems
    return {Path(row["path"]).name: str(row["reason"]) for row in found.to_dict("records")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jsonl").write_text(LINE)
    return tmp_path / "in"


def test_bombs_cost_a_problem_and_little_memory(folder: Path) -> None:
    (folder / "a.jsonl.zst").write_bytes(zstd_of_one_byte(500_000))  # 2 MB that unpack to 64 GB
    (folder / "notes.bin.zst").write_bytes(zstd_of_one_byte(65_000))
    zeros = gzip.compress(bytes(64 * 1024**2))
    (folder / "b.jsonl.gz").write_bytes(zeros * 40)  # 2.5 GiB, in members
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 * 1024**3,) * 2)
from harvest_nb.tables import load
frames = load({str(folder)!r})
rows = frames.problems.to_dict("records")
print(len(frames.records), sorted((row["path"].rpartition("/")[2], row["reason"]) for row in rows))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1 [('a.jsonl.zst', 'too_large'), ('b.jsonl.gz', 'too_large')]"


def test_what_compresses_well_is_read_all_the_same(folder: Path) -> None:
    many = "".join(json.dumps(ROW | {"uuid": f"u{number}"}) + "\n" for number in range(50_000))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(many.encode(), 19))
    assert len(load(folder).records) == 50_001


def test_bounds_can_be_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.jsonl").write_text(LINE * 100)
    monkeypatch.setenv("HARVEST_MAX_FILE_BYTES", "1000")
    assert reasons(folder) == {"a.jsonl": "unreadable_file"}


def test_links_that_lead_out_are_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text(LINE.replace("hi", "secret"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep.jsonl").write_text(LINE.replace("u1", "u2"))
    (folder / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "up").symlink_to(tmp_path / "out")
    (folder / "kernel.jsonl").symlink_to("/proc/kmsg")
    (folder / "inside.jsonl").symlink_to("good.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    frames = load(folder)
    assert reasons(folder) == {
        **dict.fromkeys(["a.jsonl", "up", "kernel.jsonl"], "outside"),
        "pipe.jsonl": "not_a_file",
    }
    assert not any("secret" in str(text) for text in frames.blocks["text"])
    assert "u2" not in set(frames.records["uuid"])
    (folder / "kernel.jsonl").unlink()
    assert "u2" in set(load(folder, follow_links=True).records["uuid"])
    assert reasons(folder, follow_links=True) == {"pipe.jsonl": "not_a_file"}
    with pytest.raises(RunFolderError, match="leads out"):
        load(folder, strict=True)


@pytest.mark.parametrize("name", ["run.json", "stream.jsonl", "transcript", "transcript/s.jsonl"])
def test_links_of_a_run_folder(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / "transcript").mkdir(parents=True)
    (run / "run.json").write_text(
        json.dumps({"schema": 1, "run_id": "r", "status": "success", "prompt": "p"})
    )
    recorded = {"seq": 0, "t": 1.0, "dir": "in", "message": {**ROW, "uuid": "recorded"}}
    (run / "stream.jsonl").write_text(json.dumps(recorded) + "\n")
    (run / "transcript" / "s.jsonl").write_text(LINE)
    whole = load(run)
    assert whole.problems.empty
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    frames = load(run)
    assert frames.problems["reason"].tolist().count("outside") == 1
    assert len(frames.records) == len(whole.records) - (name != "run.json")


@pytest.mark.parametrize("name", ["stream.jsonl", "endpoint.jsonl", "transcript/s.jsonl"])
@pytest.mark.parametrize("linked", [False, True], ids=["pipe", "link to a pipe"])
def test_pipes_of_a_run_folder_are_not_read(tmp_path: Path, name: str, linked: bool) -> None:
    run = tmp_path / "run"
    (run / "transcript").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"schema": 1, "run_id": "r", "status": "success"}))
    pipe = tmp_path / "pipe" if linked else run / name
    os.mkfifo(pipe)
    if linked:
        (run / name).symlink_to(pipe)
    # Where it is read all the same, this ends the wait.
    with subprocess.Popen(["sh", "-c", 'printf "%s" "$1" > "$2"', "sh", LINE, pipe]) as writing:
        frames = load(run, follow_links=True)
        writing.kill()
    assert len(frames.records) == len(frames.endpoint_usage) == 0
    assert frames.problems.loc[frames.problems["path"] == str(run / name), "reason"].tolist()[:1] == [
        "not_a_file"
    ]


def test_a_link_and_a_pipe_that_are_named_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder / "good.jsonl")
    assert len(load(tmp_path / "link").records) == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", folder / "good.jsonl", pipe]):
        assert len(load(pipe).records) == 1


@pytest.mark.parametrize(
    "time", ["9999-99-99", "1e300", "2026-01-01T00:00:00+99:99", "0001-01-01T00:00:00+23:00", 7]
)
def test_a_time_that_is_none_is_a_problem(folder: Path, time: object) -> None:
    (folder / "good.jsonl").write_text(json.dumps(ROW | {"timestamp": time}) + "\n")
    frames = load(folder)
    assert set(frames.problems["reason"]) == {"bad_time"}
    assert len(frames.records) == 1


def test_a_beginning_that_repeats_a_name_takes_no_long_time(folder: Path) -> None:
    (folder / "stream.jsonl").write_bytes(b'"seq":' * 100_000)
    began = time.monotonic()
    assert len(load(folder).runs) >= 1
    assert time.monotonic() - began < 20
