"""What a sandbox does before its first program: give the memory server a store, then become that program.

    entrypoint.py PROGRAM [ARGUMENT ...]     make the store if there is none, then exec PROGRAM
    entrypoint.py --seed-only                make the store if there is none, and end

The store (`MEMORY_FILE_PATH`) is what the MCP memory server reads: one JSON object a line,
`{"type": "entity", "name", "entityType", "observations"}` or `{"type": "relation", "from", "to",
"relationType"}`. It is made from `memory-seed.json` in the app folder (`HARVEST_APP`, `/app` unless set):
`{"entities": [{"name", "entityType", "observations"}], "relations": [{"from", "to", "relationType"}]}`.
A store that exists is left as it is: it holds what earlier sessions have learned.

Only the standard library is used: this file runs in the image with Debian's Python, and on the desk.

Exit codes (sysexits.h, and the shell's for a program that cannot be started): 64 wrong arguments, 65 the seed
is malformed, 66 the seed cannot be read, 73 the store cannot be written, 78 `MEMORY_FILE_PATH` is missing or
not absolute, 126 the program cannot be run, 127 there is no such program.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["Refusal", "main", "make_store", "seed_lines"]

USAGE, DATA, NO_INPUT, CANNOT_CREATE, CONFIG, CANNOT_RUN, NOT_FOUND = 64, 65, 66, 73, 78, 126, 127

ENTITY = ("name", "entityType")
RELATION = ("from", "to", "relationType")


class Refusal(Exception):  # noqa: N818 - it ends the program with a code, as meant
    """The sandbox cannot start: `code` is the exit code, the message says why and where."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def seed_lines(text: str, source: str) -> list[str]:
    """The store's lines for a seed.

    Args:
        text: the seed, JSON.
        source: what to call it in an error.

    Raises:
        Refusal: code 65, naming the place in the seed.
    """
    try:
        seed = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal(DATA, f"{source}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error

    def bad(place: str, expected: str) -> Refusal:
        return Refusal(DATA, f"{source}: {place}: expected {expected}")

    if not isinstance(seed, dict) or set(seed) != {"entities", "relations"}:
        raise bad("top level", 'an object with exactly "entities" and "relations"')
    lines: list[str] = []
    names: set[str] = set()
    for kind, fields in (("entities", ENTITY), ("relations", RELATION)):
        entries = seed[kind]
        if not isinstance(entries, list):
            raise bad(kind, "a list")
        for index, entry in enumerate(entries):
            place = f"{kind}[{index}]"
            wanted = {*fields, "observations"} if kind == "entities" else {*fields}
            if not isinstance(entry, dict) or set(entry) != wanted:
                raise bad(place, f"an object with exactly {', '.join(sorted(wanted))}")
            for field in fields:
                if not isinstance(entry[field], str) or not entry[field].strip():
                    raise bad(f"{place}.{field}", "text that is not empty")
            if kind == "entities":
                if entry["name"] in names:
                    raise bad(f"{place}.name", f"a name not used before, found {entry['name']!r} again")
                names.add(entry["name"])
                observations = entry["observations"]
                if not isinstance(observations, list) or not all(isinstance(o, str) for o in observations):
                    raise bad(f"{place}.observations", "a list of texts")
            else:
                for end in ("from", "to"):
                    if entry[end] not in names:
                        raise bad(f"{place}.{end}", f"the name of an entity, found {entry[end]!r}")
            lines.append(json.dumps({"type": "entity" if kind == "entities" else "relation", **entry}))
    return lines


def make_store(store: Path, seed: Path) -> bool:
    """Make `store` from `seed`, whole or not at all, unless it exists; whether it was made.

    Raises:
        Refusal: the seed is missing (66) or malformed (65), or the store cannot be written (73).
    """
    if store.is_file():
        return False
    try:
        text = seed.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(NO_INPUT, f"cannot read the memory seed {seed}: {error}") from error
    content = "\n".join(seed_lines(text, str(seed)))
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=store.parent, prefix=f".{store.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, never takes the place of a store that was made in the meantime.
            os.link(name, store)
        finally:
            Path(name).unlink()
    except FileExistsError:
        if store.is_file():
            return False
        raise Refusal(CANNOT_CREATE, f"the memory store {store} exists, but is not a file") from None
    except OSError as error:
        raise Refusal(CANNOT_CREATE, f"cannot write the memory store {store}: {error}") from error
    return True


def _become(argv: Sequence[str]) -> NoReturn:
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - an argument list, no shell
    except FileNotFoundError as error:
        raise Refusal(NOT_FOUND, f"no such program: {argv[0]}") from error
    except OSError as error:
        raise Refusal(CANNOT_RUN, f"cannot run {argv[0]}: {error}") from error


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Make the store, then exec `argv`; returns only after `--seed-only` or a refusal."""
    try:
        if not argv or (argv[0].startswith("-") and list(argv) != ["--seed-only"]):
            raise Refusal(USAGE, "usage: entrypoint.py PROGRAM [ARGUMENT ...] | --seed-only")
        store = Path(environ.get("MEMORY_FILE_PATH", ""))
        if not store.is_absolute():
            # A relative one would mean a file in the memory server's own package folder.
            raise Refusal(CONFIG, "MEMORY_FILE_PATH must be set to an absolute path")
        make_store(store, Path(environ.get("HARVEST_APP", "/app")) / "memory-seed.json")
        if argv[0] == "--seed-only":
            return 0
        _become(argv)
    except Refusal as refusal:
        print(f"harvest entrypoint: {refusal}", file=sys.stderr)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
