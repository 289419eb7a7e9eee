"""Says what of the search path the agent may change: `search_path.py <folders…>`, prints sentences as JSON.

What belongs to the agent counts as well as what it may write, as it could make it so.
"""

import json
import os
import sys
from pathlib import Path


def changeable(path: Path) -> bool:
    """Whether this user may write the file or folder, links followed, or owns it."""
    return path.exists() and (os.access(path, os.W_OK) or path.stat().st_uid == os.geteuid())


problems = []
for folder in map(Path, sys.argv[1:]):
    if not folder.is_dir():
        above = next(parent for parent in folder.parents if parent.exists())
        if changeable(above):
            problems.append(f"{folder} is not there, and the agent may make it")
    elif changeable(folder):
        problems.append(f"{folder} is the agent's to write into")
    else:
        problems += [
            f"{path} is the agent's to change" for path in sorted(folder.iterdir()) if changeable(path)
        ]
json.dump(problems, sys.stdout)
