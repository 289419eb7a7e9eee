"""Lists the files of the image: `files.py <prefix to leave out>`, prints `[path, size, has capabilities]` as JSON.

What npm packages hold is left out, but for npm's own settings; so are the kernel's file systems.
"""

import json
import os
import sys
from pathlib import Path

found = []
for folder, folders, names in os.walk("/"):
    left_out = ("proc", "sys", "dev", "node_modules") if folder == "/" else ("node_modules",)
    paths = [Path(folder, name) for name in names]
    if "node_modules" in folders:
        paths.append(Path(folder, "node_modules/npm/npmrc"))
    folders[:] = [
        name
        for name in folders
        if name not in left_out and not str(Path(folder, name)).startswith(sys.argv[1])
    ]
    for path in paths:
        try:
            size = path.lstat().st_size
        except FileNotFoundError:
            continue
        try:
            capable = bool(os.getxattr(path, "security.capability", follow_symlinks=False))
        except OSError:
            capable = False
        found.append((str(path), size, capable))
json.dump(found, sys.stdout)
