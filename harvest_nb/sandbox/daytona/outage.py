"""Saying in the log that Daytona keeps its callers waiting: soon, and now and then while it lasts."""

from __future__ import annotations

import logging
import time
from asyncio import AbstractEventLoop, get_running_loop
from dataclasses import dataclass
from weakref import WeakKeyDictionary

__all__ = ["answered", "waits"]

_log = logging.getLogger(__name__)
_SOON = 2.0  # seconds of waiting that nobody need be told of
_BETWEEN = 20.0  # seconds between two lines: sandboxes that wait together wait for the same thing


@dataclass
class _Outage:
    since: float | None = None
    """When the first call failed after the last that was answered."""
    told: float | None = None
    """When the last line was written."""


_outages: WeakKeyDictionary[AbstractEventLoop, _Outage] = WeakKeyDictionary()


def waits(error: Exception, *, began: float, pause: float, why: str) -> None:
    """Note that a call is to be tried again after `pause` seconds, and say so where it has taken long already.

    Args:
        began: when the caller first tried, on the monotonic clock.
        why: what is wrong, and for how long it is tried.
    """
    outage, now = _outages.setdefault(get_running_loop(), _Outage()), time.monotonic()
    outage.since = min(began, now if outage.since is None else outage.since)
    if now + pause - outage.since >= _SOON and (outage.told is None or now - outage.told >= _BETWEEN):
        outage.told = now
        _log.warning("%s: %s", why, (str(error).strip() or type(error).__name__)[:300])


def answered() -> None:
    """Note that Daytona has done what it was asked."""
    if (outage := _outages.get(get_running_loop())) is not None:
        outage.since = None
