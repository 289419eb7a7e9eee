"""Lists the image's files: `files.py <prefix to leave out>`, prints `{"files": …, "repositories": …}` as JSON.

Each file is `[path, size, has capabilities, where it leads as a link]`; a link to a folder is listed too. A repository
is a folder in which git would find one, whatever its name is.

What npm packages hold is left out, but for npm's own settings; so are the kernel's file systems. Folders of settings,
whose names begin with a dot, are looked into where they are links too, under the names that programs know them by.
"""

import json
import os
import sys
from pathlib import Path


def known_as(path: str, shown: str, top: str) -> str:
    """Return the name of a path below `top`, which programs know as `shown`."""
    return shown + path[len(top) :] if shown else path


found = []
repositories = []
linked = [("", "/")]
seen = set()
while linked:
    shown, top = linked.pop()
    for folder, folders, names in os.walk(top):
        parts = {*folders, *names}
        if "HEAD" in parts and ({"objects", "refs"} <= parts or "commondir" in parts):
            repositories.append(known_as(folder, shown, top))
        left_out = ("proc", "sys", "dev", "node_modules") if folder == "/" else ("node_modules",)
        paths = [Path(folder, name) for name in names]
        if "node_modules" in folders:
            paths.append(Path(folder, "node_modules/npm/npmrc"))
        folders[:] = [
            name
            for name in folders
            if name not in left_out and not str(Path(folder, name)).startswith(sys.argv[1])
        ]
        for name in folders:
            link = Path(folder, name)
            if not link.is_symlink():
                continue
            paths.append(link)
            real = os.path.realpath(link)
            if name.startswith(".") and real not in seen and real.count("/") > 1:
                seen.add(real)
                linked.append((known_as(str(link), shown, top), real))
        for path in paths:
            try:
                size = path.lstat().st_size
                target = str(path.readlink()) if path.is_symlink() else ""
            except FileNotFoundError:
                continue
            try:
                capable = bool(os.getxattr(path, "security.capability", follow_symlinks=False))
            except OSError:
                capable = False
            found.append((known_as(str(path), shown, top), size, capable, target))
json.dump({"files": found, "repositories": repositories}, sys.stdout)
