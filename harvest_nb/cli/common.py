"""What every command shares: options, printing, and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import termios
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from harvest_nb.errors import SettingsError

__all__ = [
    "Image",
    "Json",
    "ProviderName",
    "SourceRoot",
    "decoded",
    "do",
    "err",
    "out",
    "print_json",
    "quiet",
]

T = TypeVar("T")
out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
ProviderName = Annotated[str, typer.Option("--provider", help="docker, daytona or host.")]
Image = Annotated[str | None, typer.Option("--image", help="The image's tag or id (default: HARVEST_IMAGE).")]
SourceRoot = Annotated[Path | None, typer.Option(help="A checkout to take the config sources from.")]


def interrupted() -> SystemExit:
    """Say that Ctrl-C has ended the command; what is to be raised."""
    err.print("interrupted; everything started here has been ended")
    return SystemExit(130)


def do(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. SIGTERM and SIGHUP end it as Ctrl-C does, with 128 + their number."""
    received: list[int] = []

    async def watched() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # a program under nohup stays
                loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(watched())
    except KeyboardInterrupt:
        raise interrupted() from None  # here, as typer would end without a word
    except asyncio.CancelledError:
        if received:
            raise SystemExit(128 + received[0]) from None
        raise


def print_json(document: Any) -> None:
    """Print one document for programs."""
    # At once: whoever reads it may wait for it before this command ends.
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str), flush=True)  # noqa: T201


def readable(path: Path) -> Path:
    """The path of a file that goes along with a prompt; asked before anything is started.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise SettingsError(f"Cannot attach {path}: {error.strerror}", hint="name a file to send") from error


def decoded(said: bytes) -> str:
    """What standard input said.

    Raises:
        SettingsError: it is not UTF-8.
    """
    try:
        return said.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"Standard input is not UTF-8: {error}", hint="convert it first") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is typed while nothing is asked waits for the next prompt instead of appearing in the midst.

    Also between the two: a line discipline that collects lines would take a Ctrl-D for itself, and lose it.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (termios.error, OSError, ValueError):
        yield
        return
    silent = [*before]
    silent[0] &= ~termios.ICRNL  # Enter stays Enter, as the prompt's own mode has it
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may have gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
