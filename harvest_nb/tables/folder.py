"""Files to runs: what was recorded, put together by run folder and by session."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harvest_nb.errors import RunFolderError
from harvest_nb.files import file_identity, is_plain
from harvest_nb.machine.locks import is_locked
from harvest_nb.tables.items import Item, ItemReader, is_recording
from harvest_nb.tables.known import STREAM_TYPES, TRANSCRIPT_TYPES
from harvest_nb.tables.problems import Problem, Problems
from harvest_nb.tables.read import Line, read_json, values_in
from harvest_nb.tables.sources import (
    SAVED,
    find,
    is_no_file,
    leads_outside,
    plain_name,
    read_content,
    saved_records,
)
from harvest_nb.tables.values import as_dict, as_int, as_list, as_str, as_time

__all__ = ["FileRead", "Gathered", "Run", "gather"]

_SCHEMA = 1
_SLACK = timedelta(seconds=2)
_LATE = datetime.max.replace(tzinfo=UTC)
_EARLY = datetime.min.replace(tzinfo=UTC)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class FileRead:
    """One file, read: its row of `files`, its records, its problems."""

    path: Path
    row: dict[str, Any]
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    agents: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A run with everything recorded about it, in the order in which it happened (`story`)."""

    run_id: str
    path: Path
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    story: list[Item] = field(default_factory=list)
    history: frozenset[str] = frozenset()
    """Keys of responses in a run folder's transcript that an earlier run made."""
    agents: dict[str, str] = field(default_factory=dict)
    """Sub-agent id by the id of the tool call that started it."""
    session_id: str | None = None
    metered: list[tuple[Path, Line]] = field(default_factory=list)
    """The lines of its `endpoint.jsonl`, each with the file's path."""

    @property
    def origin(self) -> datetime | None:
        """The time of the first message, from which `t_s` and `start_s` count."""
        return next((item.time for item in self.story if item.time is not None), None)

    @property
    def rank(self) -> tuple[bool, datetime, str]:
        """Of runs that hold the same response, the lowest made it: run folders, then what ended first."""
        times = [item.time for item in self.items if item.time is not None]
        return self.kind != "run_folder", max(times, default=_LATE), self.run_id


@dataclass
class Gathered:
    """Everything that was found at the paths."""

    runs: list[Run]
    files: list[FileRead]


def gather(
    paths: Iterable[str | os.PathLike[str]], problems: Problems, *, follow_links: bool = False
) -> Gathered:
    """Read everything at and below `paths`; with `follow_links`, also what links lead to that lead out of them.

    Raises:
        RunFolderError: there is nothing to read, a run folder is of a later schema, or `problems` is
            strict and there is one.
    """
    found = find(paths, follow_links=follow_links)
    problems.add_all(_left_out(found.left_out))
    problems.add_all(_outside(found.outside))
    problems.add_all(_no_files(found.no_files))
    runs: dict[str, Run] = {}
    files: list[FileRead] = []
    read_folders = [_run_folder(folder, problems, follow_links) for folder in found.folders]
    # Of copies of one run the one that holds most is taken, whichever comes first.
    for run, read in sorted(read_folders, key=lambda entry: (-len(entry[0].items), str(entry[0].path))):
        if run.run_id in runs:
            detail = f"run {run.run_id} is already loaded from {runs[run.run_id].path}: this copy is left out"
            problems.add(Problem(run.path, "duplicate_run", detail, run_id=run.run_id))
            continue
        runs[run.run_id] = run
        files += read
    logs: list[FileRead] = []
    for path in sorted([*found.files, *found.pipes]):
        read_one = _read(path, named_pipe=path in found.pipes)
        problems.add_all(read_one.problems)
        logs.append(read_one)
    for run in _by_session(logs):
        while run.run_id in runs:
            run.run_id += "+log"
        runs[run.run_id] = run
    files += logs
    files += [FileRead(path, {"path": str(path), "kind": "other", **_size(path)}) for path in found.others]
    return Gathered(list(runs.values()), files)


def _run_folder(path: Path, problems: Problems, follow_links: bool) -> tuple[Run, list[FileRead]]:
    mine = Problems(strict=problems.strict)
    entries = set(path.iterdir())
    if follow_links or not leads_outside(path / "transcript", path):
        entries.update((path / "transcript").rglob("*"))
    outside = set() if follow_links else {item for item in entries if leads_outside(item, path)}
    no_files = {item for item in entries - outside if is_no_file(item)}
    mine.add_all(_outside(sorted(outside)))
    mine.add_all(_no_files(sorted(no_files)))
    entries -= outside | no_files
    meta = {} if path / "run.json" in outside else read_json(path / "run.json", mine)
    schema = as_int(meta.get("schema"))
    if schema is not None and schema > _SCHEMA:
        raise RunFolderError(
            f"{path} has schema {schema}; this version reads up to {_SCHEMA}", hint="update harvest-nb"
        )
    if meta.get("status") == "running":
        meta["status"] = _status_without_end(path, meta)
        if meta["status"] == "died":
            detail = "the process that recorded it ended before it could say how the run ended"
            mine.add(Problem(path / "run.json", "killed", detail, salvaged=True))
        elif meta["status"] == "unknown":
            detail = (
                "it says that the run goes on; in a copy of the folder, or where the stream's lock cannot be read, "
                "nothing tells whether it does"
            )
            mine.add(Problem(path / "run.json", "end_unknown", detail, salvaged=True))
    for said in as_list(meta.get("problems")):
        mine.add(Problem(path / "run.json", "recorder", str(said)))
    for name in ("created", "started", "ended"):
        if meta.get(name) is not None and as_time(meta[name]) is None:
            mine.add(Problem(path / "run.json", "bad_time", f"`{name}` is no time: left out", salvaged=True))
    run = Run(as_str(meta.get("run_id")) or path.name, path, "run_folder", meta)
    streams = [item for item in sorted(entries) if item.parent == path and _is_stream(item)]
    if not streams:
        mine.add(Problem(path / "stream.jsonl", "missing_file", "stream.jsonl is missing"))
    read = [_read(item, recording=True) for item in streams]
    run.story = _recorded([item for one in read for item in one.items], path / "stream.jsonl", mine)
    for item in sorted(entries):
        if item.parent == path and plain_name(item) == "endpoint.jsonl":
            content = read_content(item, mine)
            lines = values_in(item, content.data if content else b"", mine)
            run.metered += [(item, line) for line in lines]
    inside = sorted(item for item in entries if item.parent != path)
    rows = [
        _read(item)
        for item in inside
        if plain_name(item).endswith(".jsonl")
        and item.is_file()
        and SAVED not in item.relative_to(path).parts[:-1]
    ]
    for folder in inside:
        if folder.name == SAVED and folder.is_dir():
            mine.add_all(_left_out(saved_records(folder)))
    transcript = [item for one in rows for item in one.items]
    for one in (*read, *rows):
        mine.add_all(one.problems)
        run.agents.update(one.agents)
    run.items = run.story + transcript
    begin = as_time(meta.get("created")) or as_time(meta.get("started")) or run.origin
    here = {item.key for item in run.story}
    run.history = frozenset(
        item.key
        for item in transcript
        if item.key and item.key not in here and begin and item.time and item.time < begin - _SLACK
    )
    if not run.story:
        run.story = _told(transcript)
    init = next((item for item in run.story if item.subtype == "init"), None)
    run.session_id = as_str(meta.get("session_id")) or (init.session if init else None) or next(
        (item.session for item in run.items if item.session), None
    )  # fmt: skip
    for problem in mine:
        problem.run_id = run.run_id
    problems.extend(mine)
    return run, read + rows


def _is_stream(path: Path) -> bool:
    return plain_name(path) == "stream.jsonl"


def _status_without_end(path: Path, meta: dict[str, Any]) -> str:
    """Return the status of a run whose `run.json` says that it goes on: the lock on its stream tells if it does.

    In a copy of the folder no lock tells anything.
    """
    stream = path / "stream.jsonl"
    try:
        if is_locked(stream):
            return "running"
    except OSError:
        return "unknown"
    return "died" if meta.get("stream") == file_identity(stream) else "unknown"


def _outside(paths: Iterable[Path]) -> Iterator[Problem]:
    for path in paths:
        detail = "a link that leads out of the path that was given: left out. `follow_links=True` follows it"
        yield Problem(path, "outside", detail)


def _no_files(paths: Iterable[Path]) -> Iterator[Problem]:
    for path in paths:
        detail = "a pipe, socket or device, no regular file: left out. A pipe that is itself named is read"
        yield Problem(path, "not_a_file", detail)


def _left_out(paths: Iterable[Path]) -> Iterator[Problem]:
    for path in paths:
        detail = (
            f"holds records and lies in {SAVED}, where the CLI keeps what tools gave back: left out. "
            "If it is a transcript, name the file to have it read"
        )
        yield Problem(path, "left_out", detail)


def _recorded(items: list[Item], path: Path, problems: Problems) -> list[Item]:
    """A stream in the order of its numbers, so that lines shuffled or joined since tell the same story."""
    items.sort(key=lambda item: item.seq or 0)
    expected = 0
    for item in items:
        seq = item.seq or 0
        if seq > expected:
            missing = f"{expected}" if seq == expected + 1 else f"{expected} to {seq - 1}"
            detail = f"messages {missing} are not in the file"
            problems.add(Problem(path, "gap_in_stream", detail, item.line, item.offset))
        expected = max(expected, seq + 1)
    return items


def _told(items: list[Item]) -> list[Item]:
    """Records of files in the order of their times, each once; one without a time follows its predecessor."""
    seen: set[str] = set()
    keyed: list[tuple[datetime, int, Item]] = []
    last, file = _EARLY, None
    for place, item in enumerate(items):
        if item.file != file:
            last, file = _EARLY, item.file
        last = item.time or last
        if item.uuid is not None and item.type != "stream_event":
            if item.uuid in seen:
                continue
            seen.add(item.uuid)
        keyed.append((last, place, item))
    keyed.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in keyed]


def _read(path: Path, *, recording: bool = False, named_pipe: bool = False) -> FileRead:
    problems = Problems()
    try:
        return _read_whole(path, problems, recording, named_pipe)
    except (MemoryError, RecursionError) as error:
        problems.add(Problem(path, "unreadable_file", f"{path.name}: {type(error).__name__}"))
        return FileRead(path, {"path": str(path), "kind": "unreadable"}, [], problems)


def _read_whole(path: Path, problems: Problems, recording: bool, named_pipe: bool) -> FileRead:
    name = plain_name(path)
    stem = name.split(".")[0]
    agent = stem.removeprefix("agent-") if stem.startswith("agent-") else None
    content = read_content(path, problems, named_pipe=named_pipe)
    if content is None:
        return FileRead(path, {"path": str(path), "kind": "unreadable"}, [], problems)
    reader = ItemReader(path, agent=agent, recording=recording)
    items: list[Item] = []
    records, known, recorded = 0, False, False
    for line in values_in(path, content.data, problems):
        records += 1
        known = known or _is_known(line.value)
        recorded = recorded or is_recording(line.value)
        items.extend(reader.items(line))
    row = {
        "path": str(path),
        "kind": "recording" if recorded else _kind(items) if known else "unknown" if records else "empty",
        "compression": content.compression,
        "bytes": content.size,
        "lines": content.data.count(b"\n") + (not content.data.endswith(b"\n") and bool(content.data)),
        "records": records,
        "bad_lines": len({problem.line for problem in problems if not problem.salvaged}),
        "salvaged_lines": len({problem.line for problem in problems if problem.salvaged}),
        "versions": ", ".join(sorted({item.version for item in items if item.version})) or None,
        "first": min((item.time for item in items if item.time), default=None),
        "last": max((item.time for item in items if item.time), default=None),
        "sha256": content.sha256,
    }
    if known or recorded or recording:
        problems.add_all(reader.close())
    elif records:
        detail = f"{records} objects, none of them a record of Claude Code: kept as records, counted nowhere"
        problems.add(Problem(path, "unknown_format", detail, items[0].line, items[0].offset))
        for item in items:
            item.session, item.source = None, "unknown"
    read = FileRead(path, row, items, problems)
    _name_sessions(read)
    if agent and is_plain(path.parent / f"{stem}.meta.json"):
        call = as_str(read_json(path.parent / f"{stem}.meta.json", problems).get("toolUseId"))
        read.agents = {call: agent} if call else {}
    return read


def _is_known(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    if is_recording(value):
        return True
    marked = any(key in value for key in ("sessionId", "session_id", "uuid", "leafUuid"))
    return isinstance(kind, str) and (kind in STREAM_TYPES or kind in TRANSCRIPT_TYPES or marked)


def _kind(items: list[Item]) -> str:
    counts: dict[str, int] = {}
    for item in items:
        counts[item.source] = counts.get(item.source, 0) + 1
    kind = max(counts, key=lambda source: counts[source]) if counts else "empty"
    return "result" if len(items) == 1 and items[0].type == "result" else kind


def _name_sessions(read: FileRead) -> None:
    """Records that name no session belong to the one before them, else after them, else the file's."""
    current: str | None = None
    for item in read.items:
        current = item.session = item.session or current
    current = None
    for item in reversed(read.items):
        current = item.session = item.session or current
    if read.items and current is None:
        parts = read.path.parts
        inside = parts[parts.index("subagents") - 1] if "subagents" in parts[1:] else None
        stem = plain_name(read.path).split(".")[0]
        named = inside or (stem if _UUID.fullmatch(stem) else None)
        for item in read.items:
            item.session = named


def _by_session(logs: list[FileRead]) -> Iterator[Run]:
    """A run for each session; records that name none make a run for each file."""
    groups: dict[tuple[str, str], Run] = {}
    for read in logs:
        for item in read.items:
            if item.source == "unknown":
                continue
            key = ("session", item.session) if item.session else ("file", str(read.path))
            run = groups.get(key)
            if run is None:
                stem = plain_name(read.path).split(".")[0]
                run = groups[key] = Run(item.session or stem, read.path, "log", session_id=item.session)
            run.items.append(item)
            run.agents.update(read.agents)
    for run in groups.values():
        kinds = {"stream" if item.source == "stream" else "transcript" for item in run.items}
        run.kind = kinds.pop() if len(kinds) == 1 else "stream and transcript"
        run.story = _told(run.items)
        main = next((item for item in run.items if item.agent is None or not item.sidechain), None)
        run.path = main.file if main else run.path
        yield run


def _size(path: Path) -> dict[str, Any]:
    try:
        return {"bytes": path.stat().st_size}
    except OSError:
        return {}


def agents_of(run: Run) -> dict[str, str]:
    """Sub-agent id by the call that started it, from all that the run's records say."""
    agents = dict(run.agents)
    for item in run.items:
        if item.parent_call and item.agent:
            agents.setdefault(item.parent_call, item.agent)
        named = as_str(as_dict(item.whole).get("agent")) if item.type == "user" else None
        call = next((block.call for block in item.blocks if block.call), None) if named else None
        if named and call:
            agents.setdefault(call, named)
    return agents
