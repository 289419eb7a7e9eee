"""What a person types in a terminal, and what is piped in their place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

from harvest_nb.cli.common import decoded
from harvest_nb.errors import SettingsError
from harvest_nb.redact import Redactor, find_secret_shapes

__all__ = ["History", "keys", "piped_lines"]


class History(FileHistory):
    """What was typed, in a file that only its owner reads; lines with a secret in them are not kept."""

    def __init__(self, path: Path, redactor: Redactor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._redactor = redactor
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        """Append an entry."""
        if not self._redactor.found(string) and not find_secret_shapes(string):
            super().store_string(string)


def keys() -> KeyBindings:
    """Enter sends; Alt-Enter, Ctrl-J and a pasted line end begin a new line."""
    bindings = KeyBindings()

    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    bind: Callable[..., Any] = bindings.add
    bind("enter")(send)
    bind("escape", "enter")(new_line)
    bind("c-j")(new_line)
    return bindings


async def piped_lines() -> AsyncIterator[str]:
    """The lines of standard input as they come.

    Nothing waits for the thread that reads them: a command that is stopped must not wait for a pipe in which
    nothing comes any more, as a thread of the event loop's own would have it do.

    Raises:
        SettingsError: it cannot be read, or is not UTF-8.
    """
    if sys.stdin is None:
        raise SettingsError("Standard input is closed", hint="give it a file or a pipe")
    descriptor, failed = sys.stdin.fileno(), list[OSError]()
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    def put(line: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def read() -> None:
        try:
            # Not through `sys.stdin`: the interpreter's end would wait for its lock.
            with open(descriptor, "rb", closefd=False) as pipe:
                for line in pipe:
                    put(line)
        except OSError as error:
            failed.append(error)
        put(b"")

    threading.Thread(target=read, name="piped prompts", daemon=True).start()
    while line := await lines.get():
        yield decoded(line)
    if failed:
        raise SettingsError(
            f"Standard input cannot be read: {failed[0].strerror}", hint="give it a file or a pipe"
        )
