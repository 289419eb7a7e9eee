"""The memory graph: the seed that is baked into the snapshot, and the store that the MCP memory server keeps.

The store's format is what `@modelcontextprotocol/server-memory` writes (read in its source, 2026.8.31): one JSON
object a line, joined by `\\n` without one at the end, entities first. The server answers with every tool failing
when one line is not JSON, drops lines of an unknown type at its next write, and checks neither that a relation's
ends exist nor, in a file it is given, that names are unique: `lint` looks for all of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harvest_nb.errors import RunFolderError, SourceError
from harvest_nb.files import read_named

__all__ = [
    "Entity",
    "Frames",
    "Graph",
    "Relation",
    "frame_of",
    "json_line",
    "lint",
    "parse_seed",
    "parse_store",
    "to_store",
]

_KEYS = {"entity": ("name", "entityType"), "relation": ("from", "to", "relationType")}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Entity:
    """A node: a name, unique in its graph, and what has been observed about it, one fact a text."""

    name: str
    entity_type: str
    observations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Relation:
    """A directed edge in the active voice: `source` *relation_type* `target`."""

    source: str
    target: str
    relation_type: str

    def __str__(self) -> str:
        return f"{self.source} {self.relation_type} {self.target}"


class Frames(NamedTuple):
    """A graph as tables, rows in the graph's order.

    `entities`: name, entity_type, observations (count). `observations`: name, position (from 0), observation.
    `relations`: source, relation_type, target.
    """

    entities: pd.DataFrame
    observations: pd.DataFrame
    relations: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Graph:
    """Entities and relations, in the order of the file they came from."""

    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The entities' names."""
        return tuple(entity.name for entity in self.entities)

    @property
    def frames(self) -> Frames:
        """The graph as three frames."""
        return Frames(
            frame_of(
                [(e.name, e.entity_type, len(e.observations)) for e in self.entities],
                {"name": "str", "entity_type": "str", "observations": "int64"},
            ),
            frame_of(
                [(e.name, i, text) for e in self.entities for i, text in enumerate(e.observations)],
                {"name": "str", "position": "int64", "observation": "str"},
            ),
            frame_of(
                [(r.source, r.relation_type, r.target) for r in self.relations],
                {"source": "str", "relation_type": "str", "target": "str"},
            ),
        )


def parse_seed(path: str | PathLike[str]) -> Graph:
    """The graph of a seed file: `{"entities": [...], "relations": [...]}`.

    Raises:
        SourceError: the file is missing or malformed; the first problem is named with its place.
    """
    try:
        read = _read_seed(read_named(Path(path)))
    except OSError as error:
        raise SourceError(f"Cannot read the memory seed {path}: {error.strerror}") from error
    for problem in read.malformed:
        at = f"{path}:{problem.line}" if problem.line else f"{path}"
        raise SourceError(f"Malformed memory seed: {at}: {problem.problem}", hint=f'lint("{path}") lists all')
    return read.graph


def parse_store(source: str | PathLike[str] | bytes, *, strict: bool = True) -> Graph:
    """The graph of the memory server's store, from its path or its bytes.

    Args:
        source: JSON lines; empty means an empty graph, as it does for the server.
        strict: whether a malformed line is an error; otherwise it is left out, and `lint` reports it.

    Raises:
        RunFolderError: the file cannot be read or, when strict, has a malformed line, which is named.
    """
    where = "memory store" if isinstance(source, bytes) else str(source)
    try:
        read = _read_store(source if isinstance(source, bytes) else read_named(Path(source)))
    except OSError as error:
        raise RunFolderError(f"Cannot read the memory store {where}: {error.strerror}") from error
    for problem in read.malformed if strict else ():
        raise RunFolderError(
            f"{where}:{problem.line}: {problem.problem}",
            hint="lint() lists every problem; strict=False reads the other lines",
        )
    return read.graph


def to_store(graph: Graph) -> bytes:
    """`graph` as the memory server itself would write it, byte for byte."""
    lines = [
        json_line("entity", name=e.name, entityType=e.entity_type, observations=e.observations)
        for e in graph.entities
    ]
    lines += [
        json_line("relation", **{"from": r.source, "to": r.target, "relationType": r.relation_type})
        for r in graph.relations
    ]
    return "\n".join(lines).encode()


def lint(path: str | PathLike[str]) -> pd.DataFrame:
    """What is wrong with a seed (`.json`) or a store (any other suffix), one row a problem; empty when all is well.

    Columns: `line` (from 1; missing where a seed's record has none), `kind` (`line`, `entity`, `relation`), `name`
    (the entity, or the relation as a sentence), `problem`.

    Raises:
        OSError: the file cannot be read.
    """
    data = read_named(Path(path))
    read = _read_seed(data) if Path(path).suffix == ".json" else _read_store(data)
    rows = sorted([*read.malformed, *_inconsistent(read)], key=lambda p: p.line or 0)
    return frame_of(rows, {"line": "Int64", "kind": "str", "name": "str", "problem": "str"})


class _Problem(NamedTuple):
    line: int | None
    kind: str
    name: str
    problem: str


@dataclass(slots=True)
class _Read:
    """What a file held: good records with their lines, and what could not be read."""

    entities: list[tuple[int | None, Entity]] = field(default_factory=list)
    relations: list[tuple[int | None, Relation]] = field(default_factory=list)
    malformed: list[_Problem] = field(default_factory=list)

    @property
    def graph(self) -> Graph:
        return Graph(tuple(e for _, e in self.entities), tuple(r for _, r in self.relations))

    def add(self, line: int | None, kind: object, record: object) -> None:
        """Take one record in, or note why it cannot be taken."""
        try:
            parsed = _parse(kind, record)
        except ValueError as error:
            name = record.get("name", record.get("from")) if isinstance(record, dict) else None
            label = str(kind) if kind in tuple(_KEYS) else "line"
            self.malformed.append(_Problem(line, label, name if isinstance(name, str) else "", str(error)))
        else:
            if isinstance(parsed, Entity):
                self.entities.append((line, parsed))
            else:
                self.relations.append((line, parsed))


def _read_seed(data: bytes) -> _Read:
    read = _Read()
    try:
        seed = _json(data)
        if not isinstance(seed, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        read.malformed.append(_Problem(line, "line", "", str(error)))
        return read
    for key, kind in (("entities", "entity"), ("relations", "relation")):
        records = seed.get(key)
        if isinstance(records, list):
            for record in records:
                read.add(None, kind, record)
        else:
            read.malformed.append(_Problem(None, "line", "", f"{key!r} must be a list"))
    return read


def _read_store(data: bytes) -> _Read:
    read = _Read()
    # As the server splits; str.splitlines() would break at a U+2028 inside a string, too.
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            record = _json(raw)
        except ValueError as error:
            read.malformed.append(_Problem(number, "line", "", str(error)))
        else:
            read.add(number, record.get("type") if isinstance(record, dict) else None, record)
    return read


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_line(kind: str, **fields: object) -> str:
    """One line of a store, as the memory server's JSON.stringify would write it."""
    line = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    # UTF-8 has no lone surrogates; JSON.stringify escapes them, and so does this.
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _parse(kind: object, record: object) -> Entity | Relation:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    keys = _KEYS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        raise ValueError(f"type is {kind!r}, not 'entity' or 'relation': the server would drop it")
    for key in keys:
        if not isinstance(record.get(key), str):
            raise ValueError(f"{key!r} must be a string")
    if kind == "relation":
        return Relation(*(record[key] for key in keys))
    texts = record.get("observations")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("'observations' must be a list of strings")
    return Entity(record["name"], record["entityType"], tuple(texts))


def _inconsistent(read: _Read) -> Iterator[_Problem]:
    names = set(read.graph.names)
    seen: set[str | Relation] = set()
    for line, entity in read.entities:
        texts = entity.observations
        for wrong, problem in (
            (entity.name in seen, "duplicate entity: the server uses the first alone"),
            (not entity.name.strip(), "empty name"),
            (len(set(texts)) < len(texts), "duplicate observation"),
            (not all(text.strip() for text in texts), "empty observation"),
        ):
            if wrong:
                yield _Problem(line, "entity", entity.name, problem)
        seen.add(entity.name)
    for line, relation in read.relations:
        if relation in seen:
            yield _Problem(line, "relation", str(relation), "duplicate relation")
        seen.add(relation)
        for end in dict.fromkeys((relation.source, relation.target)):
            if end not in names:
                yield _Problem(line, "relation", str(relation), f"no entity is named {end!r}")


def frame_of(rows: Iterable[tuple[object, ...]], dtypes: dict[str, str]) -> pd.DataFrame:
    """A frame of `rows`, whose texts may hold what Arrow's cannot."""
    # Arrow's strings are UTF-8, which has no lone surrogates.
    clean = [
        tuple(_LONE_SURROGATE.sub("\ufffd", v) if isinstance(v, str) else v for v in row) for row in rows
    ]
    return pd.DataFrame(clean, columns=list(dtypes)).astype(dtypes)
