"""The page that documents every column, made from the table of columns.

python -m harvest_nb.tables.reference --write    # docs/columns.md
python -m harvest_nb.tables.reference --check    # exit code 1 when the page is not what the code gives
"""

from __future__ import annotations

import sys
from pathlib import Path

from harvest_nb.paths import data_root
from harvest_nb.tables.columns import COLUMNS, Column
from harvest_nb.tables.reconcile import REASONS

__all__ = ["page", "path"]

_TYPES = {
    "string": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "time": "time",
    "usd": "exact decimal",
    "category": "category",
}
_FRAMES = {
    "files": "One row per file that was found.",
    "runs": "One row per recorded run, with where it came from, what it did and what it cost.",
    "sessions": "One row per Claude Code session; several runs may have recorded parts of it.",
    "records": "One row per JSON object in any file, unknown kinds included: where everything else is from.",
    "messages": "One row per message: a response of the model with all its rows, or one other message.",
    "blocks": "One row per content block of a message, with its text.",
    "turns": "One row per response of the model and the tools it called, with where the time went.",
    "tool_calls": "One row per tool call, joined with its result.",
    "usage": "One row per API response (or per iteration of one): tokens, each counted once.",
    "result_usage": "One row per result and model: the CLI's own account.",
    "endpoint_usage": "One row per answer that passed the proxy before an endpoint, whoever in the sandbox asked.",
    "costs": "One row per response and component; and what a result reports beyond the rows.",
    "problems": "One row for everything that could not be read or explained as it should.",
}
_HEAD = """# Columns of the frames

What `harvest_nb.load` gives, frame by frame. This page is made from the code by
`python -m harvest_nb.tables.reference --write`; `Frames.describe("usage")` shows the same in a notebook.

Text, integers, numbers and times are Arrow-backed, times are in UTC, and money is exact to 12 places. An empty
cell is a value that nobody recorded; it is never 0. Key columns: `run_id` leads to `runs`, `turn` with it to
`turns`, `message_id` to `usage` and `messages`, `tool_use_id` to `tool_calls`, `path` to `files`.
"""


def page() -> str:
    """The whole page, as markdown."""
    parts = [_HEAD]
    for frame, columns in COLUMNS.items():
        rows = "\n".join(_row(column) for column in columns)
        parts.append(
            f"## {frame}\n\n{_FRAMES[frame]}\n\n| column | type | unit | meaning |\n|---|---|---|---|\n{rows}\n"
        )
    reasons = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in REASONS.items())
    parts.append(
        "## Reasons why reported and counted cost differ\n\nThe values of `runs.residual_reason`.\n\n"
        f"| reason | meaning |\n|---|---|\n{reasons}\n"
    )
    return "\n".join(parts)


def _row(column: Column) -> str:
    values = f" One of {', '.join(f'`{value}`' for value in column.values)}." if column.values else ""
    meaning = f"{column.meaning[:1].upper()}{column.meaning[1:]}.{values}".replace("|", "\\|")
    return f"| `{column.name}` | {_TYPES[column.kind]} | {column.unit} | {meaning} |"


def path() -> Path:
    """Where the page lies."""
    return data_root() / "docs" / "columns.md"


def main(words: list[str]) -> int:
    """Write the page, or compare it."""
    if "--write" in words:
        path().write_text(page(), encoding="utf-8")
        return 0
    if path().is_file() and path().read_text("utf-8") == page():
        return 0
    sys.stderr.write(
        "docs/columns.md is not what the code gives: python -m harvest_nb.tables.reference --write\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
