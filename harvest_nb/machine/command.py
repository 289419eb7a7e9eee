"""Programs of the machine (apt-get, mmdebstrap, npm): run to their end, line by line, and cancelled cleanly."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["Cancelled", "Finished", "Stop", "StoppableFile", "clean_env", "run_lines", "unless_stopped"]

T = TypeVar("T")

_GRACE_SECONDS = 2.0  # Ctrl-C may take five, and removing what was written needs the rest
_TAIL_LINES = 20
_END = 1024 * 1024  # so much of a file goes out in any case: a receiver may do without a tar's padding
_PASSED_ON = {
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "XDG_RUNTIME_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
}  # fmt: skip


class Cancelled(Exception):  # noqa: N818 - not an error: what was asked for
    """The work was asked to stop, and has."""


class Stop:
    """Asks work in another thread to stop: a flag, and callbacks that wake what blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def asked(self) -> bool:
        """Whether the work is to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Cancelled` when the work is to stop."""
        if self.asked:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the work is to stop (then raise `Cancelled`)."""
        self._event.wait(seconds)
        self.check()

    def on_ask(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback` when the work is to stop; at once if it already is.

        Returns:
            A function that takes the callback back, for work that has ended meanwhile.
        """
        with self._lock:
            asked = self._event.is_set()
            if not asked:
                self._callbacks.append(callback)
        if asked:
            callback()

        def forget() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return forget

    def ask(self) -> None:
        """Ask the work to stop."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def unless_stopped(work: Callable[[], T], stop: Stop) -> T:
    """Do `work`, which cannot be stopped, in a thread that is left to itself once `stop` is asked.

    Raises:
        Cancelled: `stop` was asked.
    """
    over, results, errors = threading.Event(), list[T](), list[BaseException]()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            errors.append(error)
        over.set()

    forget = stop.on_ask(over.set)
    threading.Thread(target=run, name="unless stopped", daemon=True).start()
    over.wait()
    forget()
    stop.check()
    if errors:
        raise errors[0]
    return results[0]


class StoppableFile(io.FileIO):
    """A file to be sent, whose reading raises `Cancelled` once `stop` is asked, unless nearly all of it has been read.

    The sender then breaks its connection, so that the receiver has only a part. Past that point the file goes out
    whole.
    """

    def __init__(self, path: Path, stop: Stop) -> None:
        super().__init__(path)
        self._stop, self._end = stop, path.stat().st_size - _END

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes."""
        if self.tell() == 0 or self.tell() < self._end:
            self._stop.check()
        return super().read(-1 if size is None else size) or b""


@dataclass(frozen=True)
class Finished:
    """A program that has ended: its exit code and the last lines it wrote to either output."""

    exit_code: int
    tail: tuple[str, ...]


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for the machine's own programs: no token, only what finds programs and networks."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.lower().startswith("npm_config_")
    }
    kept["PATH"] = kept.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return kept | dict(extra or {})


def run_lines(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    stop: Stop | None = None,
) -> Finished:
    """Run a program to its end, its outputs merged and handed on line by line.

    Args:
        argv: the program and its arguments.
        env: added to `clean_env()`.
        cwd: where it runs.
        on_line: called with every line, without its end.
        stop: when asked, the program's process group gets SIGTERM, after 2 seconds SIGKILL.

    Raises:
        Cancelled: `stop` was asked; the program has ended.
        OSError: it cannot be started.
    """
    if stop is not None:
        stop.check()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        argv,
        env=clean_env(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        killer = threading.Timer(_GRACE_SECONDS, _signal, (process, signal.SIGKILL))

        def end() -> None:
            _signal(process, signal.SIGTERM)
            killer.start()

        if stop is not None:
            stop.on_ask(end)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                tail.append(line.rstrip("\n"))
                if on_line is not None and not (stop is not None and stop.asked):
                    on_line(tail[-1])
            exit_code = process.wait()
        finally:
            killer.cancel()
            _signal(process, signal.SIGKILL)  # only still there when on_line raised
    if stop is not None:
        stop.check()
    return Finished(exit_code, tuple(tail))


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    # Not reaped yet, so its number cannot belong to another process.
    if process.returncode is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
