"""A sandbox that does not even start is a failed validation too, and the entrypoint's exit code says why."""

from __future__ import annotations

import re

from harvest_nb.checks.base import shorten
from harvest_nb.checks.report import Report, Row
from harvest_nb.errors import HarvestError

__all__ = ["failed_start"]

_EXIT_CODE = re.compile(r"exit code (\d+)")

# The exit codes of snapshot/entrypoint.py and of the relay, after it.
_REASONS = {
    65: "memory-seed.json is malformed",
    66: "memory-seed.json is missing or cannot be read",
    70: "the relay crashed",
    73: "the memory store cannot be written: does the image run as `harvest`, and is its home that user's?",
    78: "MEMORY_FILE_PATH is not set to an absolute path",
    126: "the relay or Python cannot be run",
    127: "Python is missing",
}


def failed_start(error: HarvestError, subject: str = "", cause: str = "") -> Report:
    """The report of a sandbox that `Provider.create` could not start: one failed row, `start`.

    Args:
        error: what `create` raised.
        subject: the image.
        cause: what is known to be wrong with it, in words.
    """
    code = _EXIT_CODE.search(error.message)
    reason = cause or (_REASONS.get(int(code.group(1)), "") if code else "")
    row = Row(
        check="start",
        group="config",
        expected="the sandbox starts: entrypoint, then relay",
        observed=shorten(f"{error.message}{f' ({reason})' if reason else ''}"),
        status="fail",
        seconds=0.0,
        hint=error.hint or "start the image by hand and read what its entrypoint says",
    )
    return Report([row], subject=subject)
