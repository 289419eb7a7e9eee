"""What every command shares: options, printing, and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import termios
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from harvest_nb.cli.ctrl_c import ending
from harvest_nb.errors import HarvestError, SettingsError
from harvest_nb.machine.held import holding
from harvest_nb.views.plain import plain

__all__ = [
    "Image",
    "Json",
    "ProviderName",
    "SourceRoot",
    "decoded",
    "do",
    "err",
    "kernels_sandboxes",
    "out",
    "print_json",
    "quiet",
    "tell_error",
]

T = TypeVar("T")
out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
ProviderName = Annotated[str, typer.Option("--provider", help="docker, daytona or host.")]
Image = Annotated[str | None, typer.Option("--image", help="The image's tag or id (default: HARVEST_IMAGE).")]
SourceRoot = Annotated[Path | None, typer.Option(help="A checkout to take the config sources from.")]


def tell_error(error: HarvestError) -> None:
    """Say on standard error what is wrong."""
    err.print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
    err.print(plain(str(error)), markup=False, highlight=False, soft_wrap=True)


def do(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. SIGINT, SIGTERM and SIGHUP cancel it; the exit code is then 128 + their number."""
    running: list[Callable[[], object]] = []

    async def watched() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        running.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if ending.code:
            task.cancel()
        return await work

    def stop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: all is done
            for cancel in running:
                cancel()

    try:
        with ending.stopping(stop):
            return asyncio.run(watched())
    except (asyncio.CancelledError, HarvestError) as error:
        if not ending.code:
            raise
        if isinstance(error, HarvestError):
            tell_error(error)
        raise SystemExit(ending.code) from None
    finally:
        work.close()  # where it has not even begun


@contextlib.contextmanager
def kernels_sandboxes() -> Iterator[None]:
    """Register the kernels' sandboxes, so that a forced exit names them and the command that removes them."""
    from harvest_nb.notebooks.leaving import usable
    from harvest_nb.sandbox.base import reap_command

    with contextlib.ExitStack() as stack:
        for name in usable():
            stack.enter_context(holding(f"any {name} sandbox of the kernels", reap_command(name)))
        yield


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
