"""Names from elsewhere, at each reader that makes or opens files by them: none leads out of its place."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from harvest_nb.errors import RunFolderError
from harvest_nb.redact import Redactor
from harvest_nb.session.collect import collect_transcript
from harvest_nb.session.folder import RunFolder
from harvest_nb.session.resume import find_past
from harvest_nb.session.store import TranscriptStore
from harvest_nb.tables import load

SESSION = "0f0e0d0c-0b0a-4908-8706-050403020100"
SECRET = "SECRET-of-this-machine"
PARTS = st.one_of(
    st.sampled_from(
        [
            "..",
            ".",
            "",
            "~",
            "C:\\x",
            "a\\b",
            "a:b",
            "a\0b",
            "a\nb",
            "a\r",
            "\x1b[31m",
            "‮",
            "x" * 300,
            "é" * 200,
            "-rf",
        ]
    ),
    st.text(max_size=12),
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
EVIL = ("../../../secret/found.txt", "/etc/passwd", f"../{SESSION}.jsonl", "link/found.txt", "")


@contextlib.contextmanager
def guarded() -> Iterator[Path]:
    """A folder to work in; nothing beside it may change, nor be read."""
    with tempfile.TemporaryDirectory() as base:
        secret = Path(base, "secret", "found.txt")
        secret.parent.mkdir()
        secret.write_text(SECRET)
        inside = Path(base, "inside")
        inside.mkdir()
        yield inside
        assert secret.read_text() == SECRET
        assert sorted(Path(base).iterdir()) == [inside, secret.parent]
        assert [*secret.parent.iterdir()] == [secret]
        for path in inside.rglob("*"):
            assert path.is_symlink() or path.is_dir() or SECRET.encode() not in path.read_bytes()


@given(name=NAMES, project=NAMES, below=NAMES)
@example(name=EVIL[0], project="-app", below="x")
@example(name="x", project="..", below="../../x")
def test_a_mirrored_transcript(name: str, project: str, below: str) -> None:
    async def mirror(folder: Path) -> None:
        store = TranscriptStore(folder / "transcript", "-app")
        for key in (
            {"project_key": "-app", "session_id": name},
            {"project_key": project, "session_id": name},
            {"project_key": "-app", "session_id": SESSION, "subpath": below},
        ):
            with contextlib.suppress(RunFolderError):
                await store.append(key, [{"type": "x", "uuid": "u"}])  # type: ignore[arg-type]

    with guarded() as folder:
        asyncio.run(mirror(folder))
        assert {path.name for path in folder.iterdir()} <= {"transcript"}
        assert all(path.name.isprintable() for path in folder.rglob("*"))


class _Packed:
    """A sandbox whose tar sends what it likes."""

    home = PurePosixPath("/home/harvest")

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def spawn(self, *_: Any, **__: Any) -> SimpleNamespace:
        async def chunks(data: bytes) -> AsyncIterator[bytes]:
            yield data

        async def nothing() -> int:
            return 0

        return SimpleNamespace(stdout=chunks(self._data), stderr=chunks(b""), wait=nothing, kill=nothing)


@given(names=st.lists(NAMES, max_size=4), link=st.booleans(), junk=st.binary(max_size=2000))
@example(names=[*EVIL], link=True, junk=b"")
def test_a_transcript_that_is_brought_home(names: list[str], link: bool, junk: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as archive:
        for name in names:
            for place in (f"-app/{SESSION}/{name}", name, f"-app/{name}"):
                entry = tarfile.TarInfo(place.replace("\0", ""))
                if link:
                    entry.type, entry.linkname = tarfile.SYMTYPE, "../../../../secret"
                archive.addfile(entry)
                plain = tarfile.TarInfo(f"{place}/found.txt".replace("\0", ""))
                plain.size = 2
                archive.addfile(plain, io.BytesIO(b"hi"))
    with guarded() as folder:
        run = RunFolder(folder, Redactor({}), {})
        asyncio.run(collect_transcript(_Packed(buffer.getvalue() + junk), run, SESSION))  # type: ignore[arg-type]
        run.finish(status="success")
        made = [path for path in folder.rglob("*") if path.name == "found.txt"]
        assert all(path.is_relative_to(run.path / "transcript" / SESSION) for path in made)
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert all(path.name.isprintable() for path in folder.rglob("*"))


@settings(max_examples=15)  # reading a run folder takes a third of a second
@given(names=st.lists(NAMES, max_size=6), linked=st.booleans())
@example(names=["link.jsonl", f"transcript/{SESSION}/subagents/x.jsonl"], linked=True)
def test_a_run_folder_with_files_of_any_name(names: list[str], linked: bool) -> None:
    row = {"type": "user", "uuid": "u", "sessionId": SESSION, "message": {"role": "user", "content": "hi"}}
    with guarded() as folder:
        run = RunFolder(folder, Redactor({}), {"session_id": SESSION})
        run.put(f"transcript/{SESSION}.jsonl", json.dumps(row).encode())
        run.finish(status="success", transcript_whole=True)
        for name in names:
            path = Path(os.path.normpath(run.path / f"./{name}"))
            if not path.is_relative_to(run.path) or path == run.path:
                continue
            with contextlib.suppress(OSError, ValueError):
                path.parent.mkdir(parents=True, exist_ok=True)
                if linked:
                    path.symlink_to(folder.parent / "secret" / "found.txt")
                else:
                    path.write_text(json.dumps(row))
        with contextlib.suppress(RunFolderError):
            past = find_past(run.path)
            assert past.session_id == SESSION
        frames = load(folder)
        assert not any(SECRET in str(cell) for _, frame in frames for cell in frame.to_numpy().ravel())


@settings(max_examples=15)
@given(ident=st.one_of(NAMES, st.integers(), st.none(), st.lists(st.text(), max_size=2)))
@example(ident=f"{SESSION}/../x")
@example(ident=f"{SESSION}\n")
def test_a_run_folder_with_any_session_id(ident: object) -> None:
    with guarded() as folder:
        run = RunFolder(folder, Redactor({}), {"session_id": ident})
        run.finish(status="success")
        try:
            find_past(run.path)
        except RunFolderError:
            pass
        else:
            raise AssertionError("there is nothing to go on from")
        assert len(load(folder).runs) == 1
