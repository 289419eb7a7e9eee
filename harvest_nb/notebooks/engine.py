"""The papermill engine: this interpreter as the kernel, an explicit environment, no secret on disk.

Three things differ from papermill's own engine. The kernel is started from an in-memory kernel spec, so that
no kernel of that name elsewhere on the machine can take its place. Environment and working directory are
handed to the kernel instead of being set in this process. Outputs are redacted as soon as a cell ends, before
the notebook is saved.
"""

# mypy: disable-error-code="no-untyped-call,override"
# papermill, nbformat and nbclient come without (complete) types.

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbclient.util import ensure_async, run_sync
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines

from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.machine.held import discard, holding
from harvest_nb.redact import SECRET_NAME, SECRET_SHAPES, Pieces, Redactor
from harvest_nb.settings import DESK_VARIABLES, TOKEN_VARIABLES

__all__ = ["ENGINE", "Job", "kernel_environment", "redact_cells"]

ENGINE = "harvest"
_DROPPED = re.compile(r"(ANTHROPIC|CLAUDE|AWS|GOOGLE|VERTEX|CLOUD_ML|AZURE)_.*|CLAUDECODE")
_LET_GO = 10  # seconds a cell gets to clean up after it was interrupted
_LET_GO_STOPPED = 2  # ... by a person, who waits
_STDERR = 16_384  # characters of what a kernel says on its standard error, the end
_DRAINED = 0.5  # seconds for the rest of it once the kernel has ended
_PUT_AWAY = (
    30  # seconds a kernel gets for the sandboxes that it holds, twice as much as until it gets SIGTERM
)


def kernel_environment(*, live: bool = False, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The kernel's environment: this process's own, without credentials and without what steers Claude.

    What the desk itself needs stays (Daytona's key, a gateway's token); it is as secret as the rest in what is written.

    Args:
        live: keep the five token variables, which a run against Anthropic's endpoint needs.
        base: environment to start from instead of this process's.
    """
    source = os.environ if base is None else base
    stays = {*DESK_VARIABLES, *(TOKEN_VARIABLES if live else ())}
    kept = {
        name: value
        for name, value in source.items()
        if name in stays or not (SECRET_NAME.search(name) or _DROPPED.fullmatch(name))
    }
    # The kernel's debugger prints a warning about frozen modules otherwise.
    return {**kept, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@dataclass
class Job:
    """Holds the inputs of one execution besides the notebook, and its traces: last cell, leaks, end of `stderr`.

    When `stop` is asked, from any thread, the running cell is interrupted and the execution ends with `Cancelled`.
    The kernel gets time to put away what it holds; its caller removes sandboxes that it leaves all the same.
    """

    cwd: Path
    env: Mapping[str, str]
    redactor: Redactor
    on_cell: Callable[[int, int], None] = lambda index, cells: None
    stop: Stop = field(default_factory=Stop)
    cell: int = 0
    leaks: set[str] = field(default_factory=set)
    stderr: str = ""


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: the interpreter that runs this."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            metadata={"debugger": True},
        )


class _Manager(NotebookExecutionManager):
    """papermill's record of an execution, with outputs redacted before each save."""

    job: Job
    scanned: dict[int, int]

    def cell_start(self, cell: Any, cell_index: int = 0, **kwargs: Any) -> None:
        self.job.stop.check()
        self.job.cell = cell_index
        self.job.on_cell(cell_index, len(self.nb.cells))
        super().cell_start(cell, cell_index, **kwargs)

    def save(self, **kwargs: Any) -> None:
        # Each cell is saved twice, and large outputs take time to scan: only what has changed is.
        marks = {id(cell): _fingerprint(cell.get("outputs")) for cell in self.nb.cells}
        changed = [cell for cell in self.nb.cells if self.scanned.get(id(cell)) != marks[id(cell)]]
        self.job.leaks |= redact_cells(changed, self.job.redactor)
        for cell in changed:
            self.scanned[id(cell)] = _fingerprint(cell.get("outputs"))
        super().save(**kwargs)


def _fingerprint(value: Any) -> int:
    if isinstance(value, dict):
        return hash(tuple((key, _fingerprint(item)) for key, item in value.items()))
    if isinstance(value, list):
        return hash(tuple(map(_fingerprint, value)))
    return hash(value)


class HarvestEngine(Engine):
    """Executes a notebook in a kernel of this interpreter; see the module's docstring."""

    @classmethod
    def execute_notebook(
        cls, nb: Any, kernel_name: str, output_path: str | None = None, *, job: Job, **kwargs: Any
    ) -> Any:
        """papermill's entry point; `job` comes through `papermill.execute_notebook(..., job=…)`."""
        manager = _Manager(nb, output_path=output_path, progress_bar=False, autosave_cell_every=0)
        manager.job = job
        manager.scanned = {}
        # Names, not paths: the executed notebook is published.
        for key in ("input_path", "output_path"):
            nb.metadata.papermill[key] = Path(nb.metadata.papermill[key]).name
        manager.notebook_start()
        try:
            cls.execute_managed_notebook(manager, kernel_name, job=job, **kwargs)
        finally:
            manager.notebook_complete()
            manager.save()
        return manager.nb

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: _Manager,
        kernel_name: str,
        *,
        job: Job,
        execution_timeout: int,
        start_timeout: int = 60,
        **_: Any,
    ) -> None:
        """Run the cells; the kernel has ended when this returns or raises."""
        # Sockets in a folder of the kernel's own: of two kernels that start at once, both may choose one free TCP port.
        # A socket's path has 107 bytes at most.
        place = None if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108
        with (
            tempfile.TemporaryDirectory(prefix="harvest-kernel-", dir=place) as folder,
            holding(f"the folder {folder}", last=lambda: discard(folder)),
            _stderr_of(job) as stderr,
        ):
            kernel = AsyncKernelManager(
                kernel_name=kernel_name,
                kernel_spec_manager=_ThisInterpreter(),
                transport="ipc",
                ip=f"{folder}/k",
                connection_file=f"{folder}/kernel.json",  # which holds its key
            )
            kernel.shutdown_wait_time = _PUT_AWAY
            client = _Client(
                nb_man,
                km=kernel,
                kernel_name=kernel_name,
                timeout=execution_timeout,
                startup_timeout=start_timeout,
            )
            try:
                client.execute(cleanup_kc=True, env=dict(job.env), cwd=str(job.cwd), stderr=stderr)
            finally:
                if kernel.has_kernel:  # interrupted while it started
                    run_sync(kernel.shutdown_kernel)(now=True)


@contextlib.contextmanager
def _stderr_of(job: Job) -> Iterator[int]:
    """Give a descriptor for the kernel's own standard error, whose end comes into `job`, without secrets."""
    source, sink = os.pipe()
    pieces, decoder = Pieces(job.redactor), codecs.getincrementaldecoder("utf-8")("replace")
    said = ""

    def read() -> None:
        nonlocal said
        with os.fdopen(source, "rb", buffering=0) as pipe:
            while chunk := pipe.read(65536):
                said = (said + pieces.text(decoder.decode(chunk)))[-_STDERR - 1 :]

    reader = threading.Thread(target=read, name="a kernel's stderr", daemon=True)
    reader.start()
    try:
        yield sink
    finally:
        os.close(sink)
        reader.join(_DRAINED)  # no longer: a program that the kernel has left may hold the pipe
        # Of a line that was cut the rest is left out: it may be the end of a credential that nobody declared.
        cut = len(said) > _STDERR
        job.stderr = (
            (said.partition("\n")[2] or f"(a line of more than {_STDERR:,} characters)") if cut else said
        )


class _Client(PapermillNotebookClient):
    def papermill_execute_cells(self) -> None:
        stop: Stop = self.nb_man.job.stop
        try:
            super().papermill_execute_cells()
        except (CellTimeoutError, KeyboardInterrupt, Cancelled):
            # A cell that holds a sandbox gets the chance to close it before its kernel is ended.
            run_sync(self._interrupt)()
            raise
        except DeadKernelError:
            # nbclient raises this for a cancelled cell too, whose kernel lives.
            if stop.asked:
                run_sync(self._interrupt)()
                stop.check()
            raise

    async def async_execute_cell(self, *args: Any, **kwargs: Any) -> Any:
        stop: Stop = self.nb_man.job.stop
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(super().async_execute_cell(*args, **kwargs))

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed, so the cell has ended
                loop.call_soon_threadsafe(running.cancel)

        forget = stop.on_ask(cancel)
        try:
            return await running
        finally:
            forget()

    execute_cell = run_sync(async_execute_cell)

    async def _interrupt(self) -> None:
        assert self.km is not None
        assert isinstance(self.kc, AsyncKernelClient)
        await ensure_async(self.km.interrupt_kernel())
        # ipykernel's signal handler does not wake its own loop: an awaiting cell would not notice (7.4.0).
        self.kc.kernel_info()
        with contextlib.suppress(Empty):  # no reply: the cell does not let go, and the kernel is ended anyway
            stopped = self.nb_man.job.stop.asked
            await self.kc.get_shell_msg(timeout=_LET_GO_STOPPED if stopped else _LET_GO)


papermill_engines.register(ENGINE, HarvestEngine)

_BINARY = ("image/png", "image/jpeg", "image/gif", "application/pdf")


def redact_cells(cells: Iterable[Any], redactor: Redactor) -> set[str]:
    """Replace every known secret and everything shaped like one in cells, in place.

    Returns:
        The names of what was found: variables of known secrets, or kinds of credentials.
    """
    leaks: set[str] = set()

    def clean(text: str) -> str:
        leaks.update(redactor.found(text))
        text = redactor.text(text)
        for kind, shape in SECRET_SHAPES.items():
            text, count = shape.subn(f"[redacted:{kind}]", text)
            if count:
                leaks.add(kind)
        return text

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, dict):
            for key in list(value):
                if key not in _BINARY:
                    value[key] = walk(value[key])
        elif isinstance(value, list):
            value[:] = [walk(item) for item in value]
        return value

    for cell in cells:
        cell.source = clean(cell.source)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            walk(cell.outputs)
    return leaks


def _joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring chunks of one stream as one: a secret may lie across two of them."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last is not None
            and output.output_type == "stream" == last.output_type
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined
