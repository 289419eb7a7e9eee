"""Says what of the search path the agent may change: `search_path.py <folders…>`, prints sentences as JSON.

Files that the agent owns count as well as those that it may write: their owner can change the mode.
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


problems = []
for folder in map(Path, sys.argv[1:]):
    if not folder.is_dir():
        if replaceable(folder):
            problems.append(f"{folder} is not there, and the agent may make it")
    elif replaceable(folder):
        problems.append(f"{folder} is the agent's to write into")
    else:
        problems += [
            f"{path} is the agent's to change" for path in sorted(folder.iterdir()) if replaceable(path)
        ]
json.dump(problems, sys.stdout)
