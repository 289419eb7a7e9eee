"""One `claude` process in a sandbox and the SDK client that speaks with it, owned by one long-lived task.

The SDK's cancel scopes demand that a client is opened and closed in the same task; every other task only sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise

from claude_agent_sdk import CanUseToolShadowedWarning, ClaudeAgentOptions, ClaudeSDKClient, Message

from harvest_nb.errors import HarvestError, SandboxError, SandboxGone, SessionError
from harvest_nb.sandbox.base import Sandbox
from harvest_nb.session.transport import SandboxTransport, Tap

__all__ = ["CLILink"]

# What ended a CLI is raised to whoever waits. The SDK logs it besides, and where nobody has set up logging that
# would go to standard error, into the middle of a conversation.
logging.getLogger("claude_agent_sdk").addHandler(logging.NullHandler())
# A tool that is allowed is not asked for: that is what is meant here.
warnings.filterwarnings("ignore", category=CanUseToolShadowedWarning)

# Where the kernel counts what it has ended for want of memory: control groups of version 2, and of version 1.
_OOM = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_OOM_SECONDS = 3.0


class CLILink:
    """Starts the CLI, hands on its messages, and says how it ended.

    Args:
        tap: called with each message and its bytes before anybody else sees it.
        on_message: called with each typed message; must not raise.
        on_end: called once, when no message can come any more.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        options: ClaudeAgentOptions,
        env: Mapping[str, str],
        *,
        tap: Tap,
        on_message: Callable[[Message], None],
        on_end: Callable[[CLILink], None],
        on_stderr: Callable[[str, bool], None],
    ) -> None:
        self._sandbox, self._on_message, self._on_end = sandbox, on_message, on_end
        self.transport = SandboxTransport(sandbox, options, env=env, tap=tap, on_stderr=on_stderr)
        self.client = ClaudeSDKClient(options, self.transport)
        self.error: HarvestError | None = None
        """What ended the link, when it was not `stop`."""
        self.cost = 0.0
        """US dollars that this process has reported so far."""
        self.brought = 0.0
        """US dollars that it began with, from the session that it goes on with."""
        self._connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._owner: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether prompts can be sent."""
        return self._owner is not None and not self._owner.done() and not self._stopping

    async def start(self) -> None:
        """Start the CLI and wait until it has answered.

        Raises:
            CLINotFound: there is no `claude` in the sandbox.
            SandboxGone, SandboxError: the sandbox has ended or cannot start it.
            SessionError: the CLI ended before it had answered; `code` is its exit code.
        """
        self._owner = asyncio.create_task(self._own(), name="claude CLI")
        either: set[asyncio.Future[None]] = {self._connected, self._owner}
        try:
            # An owner that is stopped before its first step never comes to answer.
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop(kill=True)
            raise
        if not self._connected.done():
            raise SessionError("The claude CLI was stopped")
        self._connected.result()

    async def _own(self) -> None:
        # Asked as the CLI is started, which does not wait for the answer.
        counting = asyncio.create_task(self._oom_kills(), name="memory")
        try:
            await self.client.connect()
            self._connected.set_result(None)
            async for message in self.client.receive_messages():
                self._on_message(message)
            raise SessionError("The claude CLI ended without a result", code=0)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except Exception as error:  # noqa: BLE001 - kept, and raised to whoever waits
            self.error = await self._cause(error, counting)
        finally:
            counting.cancel()
            if not self._connected.done():
                self._connected.set_exception(self.error or SessionError("The claude CLI was stopped"))
                self._connected.exception()  # whoever waits gets it; nobody waiting is no warning
            try:
                # A sandbox that has gone took the CLI along.
                with contextlib.suppress(SandboxError):
                    await self.client.disconnect()
            finally:
                self._on_end(self)

    async def _cause(self, error: Exception, counting: asyncio.Task[int | None]) -> HarvestError:
        """What really happened: the SDK hands on a transport's failure as a bare Exception."""
        cause = self.transport.error or error
        if isinstance(cause, SessionError) and cause.data.get("code") == 137:
            # SIGKILL: the kernel's own doing is one more in the sandbox's count than when the CLI started.
            before, now = await counting, await self._oom_kills()
            if before is not None and now is not None and now > before:
                return SessionError("The claude CLI was ended, as its sandbox ran out of memory", code=137)
        if isinstance(cause, HarvestError):
            return cause
        # Whatever runs in the sandbox as the CLI's user can write lines of its own into the CLI's output.
        return SessionError(f"The claude CLI sent what cannot be read ({type(cause).__name__}: {cause})")

    async def _oom_kills(self) -> int | None:
        """How many processes of the sandbox the kernel has ended for want of memory; None where nobody can say."""
        if not self._sandbox.isolated:
            return None  # it would be the whole machine's count
        # A sandbox that does not answer is no news about its memory.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OOM_SECONDS):
                for path in _OOM:
                    with contextlib.suppress(SandboxError, FileNotFoundError):
                        said = (await self._sandbox.read(path)).decode().split()
                        return next(
                            (int(count) for name, count in pairwise(said) if name == "oom_kill"), None
                        )
        return None

    async def stop(self, *, kill: bool = False) -> None:
        """End the CLI, with `kill` at once instead of by end of input. Safe to call twice."""
        self._stopping = True
        if self._owner is None or self._owner is asyncio.current_task():
            return
        if kill:
            with contextlib.suppress(SandboxGone):
                await self.transport.kill()
        self._owner.cancel()
        await asyncio.wait([self._owner])
