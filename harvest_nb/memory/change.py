"""How a memory graph changes: what differs between two, and a newer seed merged into what has been learned."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import TypeVar

import pandas as pd

from harvest_nb.errors import RunFolderError
from harvest_nb.memory.graph import Entity, Graph, frame_of, json_line, parse_seed, parse_store

__all__ = ["diff", "merge", "merge_seed"]

_T = TypeVar("_T")


def diff(before: Graph, after: Graph) -> pd.DataFrame:
    """What changed from `before` to `after`, as a run's two stores show it; order does not count.

    Columns: `change` (`added`, `removed`), `kind` (`entity`, `observation`, `relation`), `name` (the entity, or the
    relation's source), `value` (the entity's type, the observation, or the relation as a sentence). Removals come
    first. An entity whose type changed is removed and added.
    """
    old, new = _facts(before), _facts(after)
    rows = [("removed", *row) for fact, row in old.items() if fact not in new]
    rows += [("added", *row) for fact, row in new.items() if fact not in old]
    return frame_of(rows, dict.fromkeys(("change", "kind", "name", "value"), "str"))


def merge(graph: Graph, seed: Graph) -> Graph:
    """`graph` with what `seed` has and it lacks: entities, observations, relations. Nothing in `graph` is changed.

    An entity that both have keeps its type and its observations, in their order; the seed's others come after.
    """
    wanted = {entity.name: entity for entity in reversed(seed.entities)}
    seen: set[str] = set()
    entities: list[Entity] = []
    for entity in graph.entities:
        # Of several with one name the server uses the first.
        other = wanted.get(entity.name) if entity.name not in seen else None
        seen.add(entity.name)
        more = _missing(entity.observations, other.observations) if other is not None else ()
        entities.append(Entity(entity.name, entity.entity_type, (*entity.observations, *more)))
    entities += [entity for entity in wanted.values() if entity.name not in seen][::-1]
    return Graph(tuple(entities), (*graph.relations, *_missing(graph.relations, seed.relations)))


def merge_seed(store: str | PathLike[str], seed: str | PathLike[str]) -> pd.DataFrame:
    """Add to the memory server's `store` what the seed file has and it lacks, whole or not at all; what was added.

    Lines that need nothing stay as they are, to the byte. The result is that of `diff`. A store that is not there
    is made.

    Raises:
        SourceError: the seed is missing or malformed.
        RunFolderError: the store has a malformed line, is in use by a memory server, or cannot be written.
    """
    place, wanted = Path(os.path.realpath(store)), parse_seed(seed)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # The lock that snapshot/memory_server.py takes for as long as a server runs.
        with Path(f"{place}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"The memory store {place} is in use by a memory server",
                    hint="end the session that uses it; the server would overwrite what is added",
                ) from None
            data = place.read_bytes() if place.exists() else b""
            before = parse_store(data)
            after = merge(before, wanted)
            if after != before:
                _replace(place, _lines(data, before, after))
    except OSError as error:
        raise RunFolderError(f"The memory store {place} cannot be written: {error.strerror}") from error
    return diff(before, after)


def _lines(data: bytes, before: Graph, after: Graph) -> bytes:
    """The store's old lines, an entity's rewritten where it has got more observations, and the new ones."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    known = iter(zip(before.entities, after.entities, strict=False))
    kept: list[bytes] = []
    for line in lines:
        record = json.loads(line)
        if record["type"] == "entity":
            old, new = next(known)
            if old != new:
                record["observations"] = list(new.observations)
                line = json_line(**{"kind": record.pop("type"), **record}).encode()
        kept.append(line)
    kept += [
        json_line("entity", name=e.name, entityType=e.entity_type, observations=e.observations).encode()
        for e in after.entities[len(before.entities) :]
    ]
    kept += [
        json_line("relation", **{"from": r.source, "to": r.target, "relationType": r.relation_type}).encode()
        for r in after.relations[len(before.relations) :]
    ]
    return b"\n".join(kept)


def _replace(place: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            part.chmod(place.stat().st_mode & 0o777)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _missing(have: tuple[_T, ...], wanted: tuple[_T, ...]) -> tuple[_T, ...]:
    known = set(have)
    return tuple(dict.fromkeys(one for one in wanted if one not in known))


def _facts(graph: Graph) -> dict[object, tuple[str, str, str]]:
    facts: dict[object, tuple[str, str, str]] = {}
    for entity in graph.entities:
        facts[entity.name, entity.entity_type, None] = ("entity", entity.name, entity.entity_type)
        for text in entity.observations:
            facts[entity.name, text] = ("observation", entity.name, text)
    for relation in graph.relations:
        facts[relation] = ("relation", relation.source, str(relation))
    return facts
