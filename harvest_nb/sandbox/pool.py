"""Warm sandboxes: made ahead, handed out once each, replaced in the background."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections import deque
from collections.abc import Hashable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from harvest_nb.errors import HarvestError, SandboxError
from harvest_nb.sandbox.base import Limits, Provider, SandboxInfo
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.sandbox.uncancelled import to_the_end
from harvest_nb.settings import load_settings

__all__ = ["Pool", "Relabelling"]

_log = logging.getLogger(__name__)
_RUN = "harvest.run"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds from a creation that failed to the next attempt


@runtime_checkable
class Relabelling(Provider, Protocol):
    """A provider whose sandboxes can be given to a run after they were made."""

    async def relabel(self, ident: str, run: str) -> None:
        """List the sandbox under `harvest.run=<run>` from now on. Raises SandboxError when it has gone."""

    async def made_from(self, snapshot: str | None) -> str:
        """A name for what a sandbox would hold that is made now; another name later says that it is out of date.

        Raises as `create` does.
        """

    def place(self) -> Hashable:
        """Where it makes sandboxes, and in which namespace: providers of one name and place can share a pool."""


class _Warm(NamedTuple):
    sandbox: RelayedSandbox
    made_from: str


class Pool:
    """A provider that keeps `size` sandboxes ready; see `harvest_nb.sandbox.base.Provider`.

    What is asked for in another shape (image, limits, network, labels besides the run's) is made anew, as without
    a pool. Sandboxes that were handed out belong to whoever has them; those that were not are closed with the pool.
    One made from an image or from config sources that have changed meanwhile is not handed out. While none can be
    made, the pool tries again after pauses that grow to a minute. A pool serves one namespace: after a change of
    `HARVEST_NAMESPACE` in the process, make another one.

    Args:
        provider: makes them, and can name the run that one is handed to.
        size: how many stand ready at most.
        snapshot, limits, network: their shape; by default the image is the one that `run` takes.
        ttl: their lease in seconds while they wait.
    """

    def __init__(
        self,
        provider: Relabelling,
        size: int,
        *,
        snapshot: str | None = None,
        limits: Limits | None = None,
        network: str = "none",
        ttl: float = 600.0,
    ) -> None:
        self._size = 0
        self.grow(size)
        self.name = provider.name
        self._provider = provider
        self._snapshot = snapshot or load_settings().image  # as `run` does
        self._limits, self._network, self._ttl = limits, network, ttl
        self._warm: deque[_Warm] = deque()
        self._making: set[asyncio.Task[_Warm]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._failures = 0  # creations that failed since the last one that did not
        self._pause: asyncio.TimerHandle | None = None
        self._said: str | None = None
        self._closed = False

    async def __aenter__(self) -> Pool:
        self._fill()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def ready(self) -> int:
        """How many stand ready."""
        return len(self._warm)

    def grow(self, size: int) -> None:
        """Keep at least `size` ready from the next creation on."""
        if size < 1:
            raise SandboxError(f"A pool of {size} sandboxes", hint="give it a size of at least 1")
        self._size = max(self._size, size)

    async def filled(self) -> None:
        """Wait until nothing is being made any more; a pool that cannot be filled says why in the log."""
        while self._making:
            await asyncio.wait(list(self._making))

    def _fill(self) -> None:
        """Begin to make what is missing; while creations fail, one at a time and after a pause."""
        if self._closed or self._pause is not None:
            return
        most = 1 if self._failures else self._size
        while len(self._making) < most and len(self._warm) + len(self._making) < self._size:
            task = asyncio.create_task(self._make(), name="warm sandbox")
            self._making.add(task)
            task.add_done_callback(self._made)

    async def _make(self) -> _Warm:
        made_from = await self._provider.made_from(self._snapshot)
        sandbox = await self._provider.create(
            self._snapshot, ttl=self._ttl, limits=self._limits, network=self._network
        )
        assert isinstance(sandbox, RelayedSandbox)
        return _Warm(sandbox, made_from)

    def _made(self, task: asyncio.Task[_Warm]) -> None:
        self._making.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._warm.append(task.result())  # also when it was closed meanwhile: `_close` waits for this
            self._recovered()
            return
        # Whoever asks next is told, by the creation that then fails before their eyes.
        if self._said != repr(error):
            self._said = repr(error)
            told = None if isinstance(error, HarvestError) else error
            _log.warning("A warm sandbox could not be made: %s", error, exc_info=told)
        if self._pause is None and not self._closed:
            pause = min(_FIRST_PAUSE * 2 ** min(self._failures, 9), _LONGEST_PAUSE)
            self._failures += 1
            self._pause = asyncio.get_running_loop().call_later(pause, self._again)

    def _again(self) -> None:
        self._pause = None
        self._fill()

    def _recovered(self) -> None:
        """Sandboxes can be made: make what is missing."""
        if self._pause is not None:
            self._pause.cancel()
        self._failures, self._pause, self._said = 0, None, None
        self._fill()

    async def create(
        self,
        snapshot: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: float = 120.0,
        limits: Limits | None = None,
        network: str = "none",
    ) -> RelayedSandbox:
        """A warm sandbox if one fits, else a new one. Raises as the provider does."""
        labels = labels or {}
        shape = (self._snapshot, self._limits, self._network)
        fits = (snapshot or self._snapshot, limits, network) == shape and set(labels) <= {_RUN}
        if fits and self._warm:
            current = await self._provider.made_from(self._snapshot)
            while self._warm:
                warm = self._warm.popleft()  # nobody else gets this one, whatever comes
                self._fill()
                if warm.made_from != current:
                    self._end(warm.sandbox)
                elif await self._hand_over(warm.sandbox, labels.get(_RUN), env or {}, ttl):
                    return warm.sandbox
        made = await self._provider.create(
            snapshot, env=env, labels=labels, ttl=ttl, limits=limits, network=network
        )
        assert isinstance(made, RelayedSandbox)
        if fits:
            self._recovered()
        return made

    async def _hand_over(
        self, sandbox: RelayedSandbox, run: str | None, env: Mapping[str, str], ttl: float
    ) -> bool:
        """Give it to a run; False when it died while it waited."""
        try:
            sandbox.hand_over(env, ttl)
            if run is not None:
                await self._provider.relabel(sandbox.id, run)
        except SandboxError as error:
            _log.info("A warm sandbox has died: %s", error)
            self._end(sandbox)
            return False
        except BaseException:
            await to_the_end(sandbox.close)
            raise
        return True

    def _end(self, sandbox: RelayedSandbox) -> None:
        """Close one that nobody gets, while whoever asked goes on."""
        task = asyncio.create_task(sandbox.close(), name="sandbox that nobody gets")
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("A sandbox that nobody got could not be removed: %s", error, exc_info=error)

    async def list(
        self, labels: Mapping[str, str] | None = None, *, all_namespaces: bool = False
    ) -> builtins.list[SandboxInfo]:
        """The provider's sandboxes, warm ones included."""
        return await self._provider.list(labels, all_namespaces=all_namespaces)

    async def reap(self, *, all_namespaces: bool = False) -> builtins.list[str]:
        """As the provider does it; warm sandboxes are held by this process."""
        return await self._provider.reap(all_namespaces=all_namespaces)

    async def close(self) -> None:
        """Close what stands ready or is being made. Safe to call twice."""
        self._closed = True
        await to_the_end(self._close)

    async def _close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        making = list(self._making)
        for task in making:
            task.cancel()
        await asyncio.gather(*making, *self._ending, return_exceptions=True)
        warm = [each.sandbox for each in self._warm]
        self._warm.clear()
        ended = await asyncio.gather(*(sandbox.close() for sandbox in warm), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error
