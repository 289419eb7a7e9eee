"""Looks at the search path: `search_path.py <folders…>`, prints `{"changeable": …, "shadowing": …}` as JSON.

Sentences on what the agent may change: files that it owns count as well as those that it may write, since their owner
can change the mode. And pairs of programs of one name in two folders, where they are two files.
"""

import json
import os
import sys
from functools import cache
from pathlib import Path


@cache
def changeable(path: Path) -> bool:
    """Whether this user may write a file or folder, or owns it; of one that is not there, what is above it."""
    if not os.path.lexists(path):
        return changeable(path.parent)
    return os.access(path, os.W_OK) or path.stat().st_uid == os.geteuid()


def replaceable(path: Path) -> bool:
    """Whether this user may change what `path` leads to: its target, or a folder above the target."""
    real = Path(os.path.realpath(path))
    return any(changeable(place) for place in (real, *real.parents))


changeables = []
shadowing = []
first: "dict[str, Path]" = {}
for folder in map(Path, sys.argv[1:]):
    if not folder.is_dir():
        if replaceable(folder):
            changeables.append(f"{folder} is not there, and the agent may make it")
    elif replaceable(folder):
        changeables.append(f"{folder} is the agent's to write into")
    else:
        changeables += [
            f"{path} is the agent's to change" for path in sorted(folder.iterdir()) if replaceable(path)
        ]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if os.access(path, os.X_OK) and path.is_file():
            before = first.setdefault(path.name, path)
            if not before.samefile(path):
                shadowing.append((str(before), str(path)))
json.dump({"changeable": changeables, "shadowing": shadowing}, sys.stdout)
