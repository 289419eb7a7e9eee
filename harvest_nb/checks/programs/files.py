"""Lists the files of the image: `files.py <prefix to leave out>`, prints `[path, size, has capabilities]` as JSON.

What npm packages hold is left out, but for npm's own settings; so are the kernel's file systems. Folders of settings,
whose names begin with a dot, are looked into where they are links too, under the names that programs know them by.
"""

import json
import os
import sys
from pathlib import Path

found = []
linked = [("/", "/")]
seen = set()
while linked:
    shown, top = linked.pop()
    for folder, folders, names in os.walk(top):
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
            if name.startswith(".") and link.is_symlink():
                real = os.path.realpath(link)
                if real not in seen and real.count("/") > 1:
                    seen.add(real)
                    linked.append((shown + str(link)[len(top) :], real))
        for path in paths:
            try:
                size = path.lstat().st_size
            except FileNotFoundError:
                continue
            try:
                capable = bool(os.getxattr(path, "security.capability", follow_symlinks=False))
            except OSError:
                capable = False
            found.append((shown + str(path)[len(top) :] if top != "/" else str(path), size, capable))
json.dump(found, sys.stdout)
