"""What may go wrong on purpose, switched on by name."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from harvest_nb.errors import SettingsError

__all__ = ["FAULTS", "Faults"]

FAULTS = {
    "create-response-lost": "the sandbox is made, but the answer never arrives",
    "toolbox-unnamed": "an answer about one sandbox lacks the address of its toolbox",
    "rate-limit": "429 on the control plane, with Retry-After of so many seconds",
    "bad-gateway": "502 on any call",
    "stuck-starting": "a new sandbox stays in `starting`",
    "start-failed": "a new sandbox ends in `error` instead of starting",
    "stuck-deleting": "a deletion is accepted, and nothing happens",
    "stuck-pending": "a build stays in `pending`, of a snapshot or of a sandbox from an image",
    "build-failed": "a sandbox from an image, or a snapshot, ends in `build_failed`",
    "log-cut": "a log socket is cut after so many milliseconds",
    "log-refused": "a log socket closes at once, without a code",
    "log-silent": "a log socket stays open and brings nothing",
    "input-lost": "an input arrives, but its answer is a 502",
    "input-hung": "an input does not arrive, and is never answered",
    "exec-limited": "429 on a command of a session, with Retry-After of so many seconds",
    "upload-failed": "502 on an upload of files",
    "out-of-memory": "a sandbox runs out of memory so many seconds after its start, or from now",
    "slow-start": "a sandbox takes so many seconds longer to start",
    "quota": "no more than so many sandboxes at once",
    "heartbeat-lost": "502 on a sandbox's signs of life: its activity, its time to live",
    "delete-forbidden": "403 on a deletion alone",
    "forbidden": "403 on the control plane: the key lacks a permission",
}
"""What each one does; `value` is the number in it."""
_LASTING = {"quota"}


@dataclass
class _Fault:
    value: float
    left: int | None


class Faults:
    """The faults that are on. Any thread may change them."""

    def __init__(self) -> None:
        self._on: dict[str, _Fault] = {}
        self._lock = threading.Lock()

    def set(self, name: str, value: float = 0, count: int | None = None) -> None:
        """Switch one on for `count` times (None: until it is switched off).

        Raises:
            SettingsError: there is no such fault.
        """
        if name not in FAULTS:
            raise SettingsError(f"There is no fault {name!r}", hint=f"one of {', '.join(FAULTS)}")
        with self._lock:
            self._on[name] = _Fault(value, count)

    def clear(self, name: str | None = None) -> None:
        """Switch one off, or all."""
        with self._lock:
            if name is None:
                self._on.clear()
            else:
                self._on.pop(name, None)

    def take(self, name: str) -> float | None:
        """The fault's value if it strikes now, else None."""
        with self._lock:
            fault = self._on.get(name)
            if fault is None:
                return None
            if fault.left is not None and name not in _LASTING:
                fault.left -= 1
                if fault.left <= 0:
                    del self._on[name]
            return fault.value

    def parse(self, text: str) -> None:
        """Switch one on as `name`, `name=value` or `name=value*count`.

        Raises:
            SettingsError: it cannot be read, or there is no such fault.
        """
        name, _, rest = text.partition("=")
        value, _, count = rest.partition("*")
        try:
            self.set(name.strip(), float(value or 0), int(count) if count else None)
        except ValueError:
            raise SettingsError(
                f"Cannot read the fault {text!r}", hint="write name, name=value or name=value*count"
            ) from None
