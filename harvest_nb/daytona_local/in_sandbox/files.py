"""Runs in a sandbox: one question about files on standard input as JSON, the answer on standard output."""

from __future__ import annotations

import errno
import fnmatch
import grp
import json
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LARGEST = 48 * 1024 * 1024  # bytes of a file that is searched


def name_of(database: Callable[[int], Any], number: int) -> str:
    """The name of a user or group, or its number."""
    try:
        return str(database(number)[0])
    except KeyError:
        return str(number)


def info(path: Path) -> dict[str, Any]:
    """One file or folder."""
    found = path.lstat()
    changed = datetime.fromtimestamp(found.st_mtime, UTC)
    return {
        "name": path.absolute().name,
        "path": str(path.absolute()),
        "isDir": stat.S_ISDIR(found.st_mode),
        "size": found.st_size,
        "mode": stat.filemode(found.st_mode),
        "permissions": format(stat.S_IMODE(found.st_mode), "04o"),
        "owner": name_of(pwd.getpwuid, found.st_uid),
        "group": name_of(grp.getgrgid, found.st_gid),
        "modTime": changed.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"),
        "modifiedAt": changed.isoformat(),
    }


def below(path: Path) -> Iterator[Path]:
    """All files below a folder, or the file itself."""
    if path.is_file():
        yield path
    for top, _, names in os.walk(path):
        for name in sorted(names):
            yield Path(top, name)


def text_of(file: Path) -> str:
    """The text of a regular file of a size that can be searched: a device, a pipe or a sparse file may have no end."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
        raise OSError(errno.EFBIG, "no regular file, or too large", str(file))
    return file.read_text(encoding="utf-8")


def find(path: Path, pattern: str) -> list[dict[str, Any]]:
    """The lines that hold `pattern`."""
    found = []
    for file in below(path):
        try:
            lines = text_of(file).splitlines()
        except (OSError, UnicodeDecodeError):  # as for `grep`: no text, no lines
            continue
        found += [
            {"file": str(file), "line": number, "content": line}
            for number, line in enumerate(lines, 1)
            if pattern in line
        ]
    return found


def replace(files: list[str], pattern: str, new: str) -> list[dict[str, Any]]:
    """Replace a text in files, each with its own outcome."""
    outcomes: list[dict[str, Any]] = []
    for name in files:
        file = Path(name)
        try:
            file.write_text(text_of(file).replace(pattern, new), encoding="utf-8")
            outcomes.append({"file": name, "success": True})
        except (OSError, UnicodeDecodeError) as error:
            outcomes.append({"file": name, "success": False, "error": str(error)})
    return outcomes


def delete(path: Path, recursive: bool) -> None:
    """Remove a file, or a folder if asked to."""
    if path.is_dir() and not path.is_symlink():
        if not recursive:
            raise IsADirectoryError(21, "cannot delete directory without recursive flag", str(path))
        shutil.rmtree(path)
    else:
        path.unlink()


def folder(path: Path, mode: str) -> None:
    """Make a folder and those above it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(int(mode, 8))


def act(ask: dict[str, Any]) -> Any:
    """Do what is asked."""
    what, path = ask["what"], Path(ask.get("path") or ".")
    if what == "info":
        return info(path)
    if what == "list":
        return [info(entry) for entry in sorted(path.iterdir())]
    if what == "folder":
        return folder(path, ask["mode"])
    if what == "move":
        return str(shutil.move(path, ask["to"]))
    if what == "permissions":
        return path.chmod(int(ask["mode"] or "644", 8))
    if what == "find":
        return find(path, ask["pattern"])
    if what == "search":
        return [str(file) for file in below(path) if fnmatch.fnmatch(file.name, ask["pattern"])]
    if what == "replace":
        return replace(ask["files"], ask["pattern"], ask["new"])
    return delete(path, ask["recursive"])


def main() -> None:
    """Answer one question."""
    ask = json.load(sys.stdin)
    try:
        answer = {"result": act(ask)}
    except OSError as error:
        answer = {"error": type(error).__name__, "message": f"{error.filename}: {error.strerror}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
