"""Ctrl-C: a word at once, an end in bounded time, and at the second one an end at once.

Only what Python itself needs is imported here, so that Ctrl-C is heard while everything else is loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from harvest_nb.machine.children import kill_children
from harvest_nb.machine.held import held

__all__ = ["Ending", "ending"]

_PATIENCE = 4.5  # seconds from the first Ctrl-C until the end is forced, which takes a moment too ...
_STILL = 1.5  # ... and longer only while data comes in or one thing after another is done ...
_AT_MOST = 30.0  # ... but no longer than that: a sandbox decides how slowly its data comes
_MOMENT = 2.5  # seconds after which is told what the end waits for
_AGAIN = 5.0  # seconds until that is told once more
_LOOK = 0.25
_CALM = "\x1b[?25h\x1b[?2004l"  # the cursor is seen, and what is pasted comes as it is


class Ending:
    """Handles SIGINT, and SIGTERM and SIGHUP where asked for, so that the process ends in bounded time."""

    def __init__(self) -> None:
        self.code = 0
        """The exit code, 128 and the signal's number, once the process is ending."""
        self.patient = False
        """Whether the watchdog is off, and an ordinary exit code stays."""
        self._stop: Callable[[], object] | None = None
        self._first: Callable[[], object] | None = None
        self._unheard = 0
        self._terminal: tuple[int, list[Any]] | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take Ctrl-C for as long as the block runs; where it is ignored, as in the background, it stays so."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        with contextlib.suppress(termios.error, OSError, ValueError, AttributeError):
            self._terminal = sys.stdin.fileno(), termios.tcgetattr(sys.stdin.fileno())
        signal.signal(signal.SIGINT, self._asked)
        try:
            yield
        finally:
            # Nothing is left to be ended but the interpreter. Another Ctrl-C ends its threads at once; when these have
            # ended it is ignored, as it would take the place of the exit code.
            if self.code:
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
            else:
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], object] | None = None) -> Iterator[None]:
        """Have `stop` called, instead of KeyboardInterrupt raised, and SIGTERM and SIGHUP taken as well."""
        others = [signal.SIGTERM, signal.SIGHUP]
        mine = [number for number in others if signal.getsignal(number) is signal.SIG_DFL]  # not under nohup
        before, self._stop = self._stop, stop
        for number in mine:
            signal.signal(number, self._asked)
        try:
            yield
        finally:
            self._stop = before
            for number in mine:
                signal.signal(number, signal.SIG_DFL)

    @contextlib.contextmanager
    def first(self, take: Callable[[], bool], soon: Callable[[Callable[[], None]], object]) -> Iterator[None]:
        """Call `take` through `soon`, in the event loop, for each Ctrl-C; end the process where it returns False."""

        def ask() -> None:
            self._unheard = 0
            if not take():
                self.begin()
                if self._stop is not None:
                    self._stop()

        self._first = lambda: soon(ask)
        try:
            yield
        finally:
            self._first = None

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            if number == signal.SIGINT:
                self.at_once()
            return  # a terminal that goes away may say so twice
        if self._first is not None and number == signal.SIGINT:
            self._unheard += 1
            if self._unheard > 1:  # the loop has not come to the one before
                self.begin(number)
                self.at_once()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._first()
                return
        if self._stop is None and not held() and _importing(frame):
            self.say("interrupted")
            self._restore_terminal()
            os._exit(128 + number)  # an import may lose an exception
        self.begin(number)
        if self._stop is None:
            raise KeyboardInterrupt
        self._stop()

    def begin(self, number: int = signal.SIGINT) -> None:
        """Say that the process ends, and see to it that it does; what has been started is ended by the caller."""
        if self.code:
            return
        self.code = 128 + number
        why = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
        self.say(f"{why}; ending what was started here …")
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def _watch(self) -> None:
        began = moved = time.monotonic()
        tell, before = began + _MOMENT, list[tuple[int, int]]()
        while True:
            time.sleep(_LOOK)
            now, items = time.monotonic(), held()
            if (state := [(id(item), item.size) for item in items]) != before:
                moved, before = now, state
            if now >= tell and items:
                tell = now + _AGAIN
                self.say(f"still ending: {', '.join(map(_told, items))}; Ctrl-C ends at once")
            if self.patient or now - began < _PATIENCE:
                continue
            if now - moved >= _STILL or now - began >= _AT_MOST:
                self.at_once()

    def left(self) -> None:
        """Say what is left of what was started here, and the command that removes it."""
        for text in dict.fromkeys(f"{item.what}; to remove: {item.remove}" for item in held() if item.remove):
            self.say(f"left behind: {text}")

    def at_once(self) -> NoReturn:
        """End the process and its children now, and name what they leave."""
        try:
            with contextlib.suppress(Exception):  # it may be half imported where the signal came
                kill_children()
            self.left()
            for item in held():
                if item.last is not None:
                    # The other thread may be in the midst of the same.
                    with contextlib.suppress(Exception):
                        if text := item.last():
                            self.say(text)
            self._restore_terminal()
        finally:
            os._exit(self.code)

    def _restore_terminal(self) -> None:
        if self._terminal is None:
            return
        descriptor, before = self._terminal
        with contextlib.suppress(termios.error, OSError):
            if os.tcgetpgrp(descriptor) == os.getpgrp():  # in the background this would stop the process
                termios.tcsetattr(descriptor, termios.TCSANOW, before)
                self._write(_CALM)

    def say(self, text: str) -> None:
        """Write a line to standard error: not through `Console`, whose lock the interrupted code may hold."""
        # After the ^C that the terminal has put into whatever line is being written.
        self._write(("\n" if self._terminal is not None and os.isatty(2) else "") + text + "\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may have gone
            os.write(2, text.encode())


def _told(item: Any) -> str:
    return f"{item.what} ({item.size / 1e6:.1f} MB so far)" if item.size else str(item.what)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


ending = Ending()
"""This process's own."""
