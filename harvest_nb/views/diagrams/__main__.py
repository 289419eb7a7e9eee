"""`python -m harvest_nb.views.diagrams --write | --check`, in a checkout."""

from __future__ import annotations

import argparse
import sys

from harvest_nb.paths import data_root
from harvest_nb.views.diagrams.files import check, write_all


def main() -> int:
    """Write the committed diagrams, or say which are stale (exit code 1)."""
    parser = argparse.ArgumentParser(prog="python -m harvest_nb.views.diagrams", description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true", help="write docs/diagrams and ARCHITECTURE.md")
    group.add_argument("--check", action="store_true", help="say what differs from the code")
    options = parser.parse_args()
    folder, page = data_root() / "docs" / "diagrams", data_root() / "ARCHITECTURE.md"
    if options.write:
        lines = [f"wrote {path.relative_to(data_root())}" for path in write_all(folder, page)]
    else:
        lines = check(folder, page)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if options.check and lines else 0


if __name__ == "__main__":
    sys.exit(main())
