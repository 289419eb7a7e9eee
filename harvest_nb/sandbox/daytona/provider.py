"""Sandboxes at Daytona, with its SDK as it is.

A sandbox never stops by itself in the middle of a run (Daytona does not see a process that computes, nor a model that
thinks); instead it is ephemeral and has a time to live, which its owner puts off as long as it lives. Environment
variables given to `create` are known to Daytona; what a session gives its CLI is not.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import math
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from daytona import (
    AsyncDaytona,
    AsyncSandbox,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    DaytonaError,
    Resources,
    VolumeMount,
)

from harvest_nb.errors import HarvestError, SandboxError
from harvest_nb.sandbox.base import Limits, SandboxInfo
from harvest_nb.sandbox.daytona.account import Account
from harvest_nb.sandbox.daytona.book import OURS, Book, created_at, name_of, take_up
from harvest_nb.sandbox.daytona.client import close_client, new_client
from harvest_nb.sandbox.daytona.holding import OWNER, claim, give_back
from harvest_nb.sandbox.daytona.making import Maker
from harvest_nb.sandbox.daytona.reach import check_reached
from harvest_nb.sandbox.daytona.retry import REAP, explained, persist
from harvest_nb.sandbox.daytona.sandbox import LABEL, DaytonaSandbox, open_sandbox, state_of
from harvest_nb.sandbox.daytona.switching import start, stop
from harvest_nb.sandbox.owner import in_namespace, namespace_filter, owner
from harvest_nb.sandbox.uncancelled import to_the_end

__all__ = ["DaytonaProvider"]

_log = logging.getLogger(__name__)
DEFAULT_SNAPSHOT = "harvest-daytona-snapshot"


class DaytonaProvider:
    """Makes, lists and removes sandboxes at Daytona; see `harvest_nb.sandbox.base.Provider`.

    Args:
        account: the key, and where to.
        snapshot: what sandboxes start from where `create` names nothing.
        ttl_minutes: how long a sandbox may outlive its owner; put off while the owner lives. 0 means for ever.
        ephemeral: whether a sandbox that is stopped is deleted. `stop` and `start` need False.
        start_timeout: seconds until a sandbox must have started.
        patience: seconds in all to wait for a rate limit or a quota.
        volumes, allow_networks, allow_domains: as for `create`, where it is given none.
    """

    name = "daytona"

    def __init__(
        self,
        account: Account,
        *,
        snapshot: str = DEFAULT_SNAPSHOT,
        ttl_minutes: int = 120,
        ephemeral: bool = True,
        start_timeout: float = 120.0,
        patience: float = 120.0,
        delete_timeout: float = 60.0,
        volumes: Mapping[str, str] | None = None,
        allow_networks: Sequence[str] = (),
        allow_domains: Sequence[str] = (),
    ) -> None:
        self.account, self.snapshot = account, snapshot
        self._ttl, self._ephemeral = ttl_minutes, ephemeral
        self._volumes = dict(volumes or {})
        self._networks, self._domains = tuple(allow_networks), tuple(allow_domains)
        self._start_timeout, self._patience, self._delete_timeout = start_timeout, patience, delete_timeout
        self._reached = False

    async def _new_client(self) -> AsyncDaytona:
        """Return a client, the first time after a look whether Daytona answers. Raises TokenError, SandboxError."""
        if not self._reached:
            await check_reached(self.account)
            self._reached = True
        return new_client(self.account)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncDaytona]:
        """A client for a few calls. Its errors come out as this package's own."""
        client = await self._new_client()
        try:
            yield client
        finally:
            await close_client(client)

    def _book(self, client: AsyncDaytona) -> Book:
        return Book(client, self._patience)

    @property
    def secrets(self) -> Mapping[str, str]:
        """What no recording may hold, by name."""
        return self.account.secrets

    async def create(
        self,
        snapshot: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: float = 120.0,
        limits: Limits | None = None,
        network: str = "none",
        image: str | None = None,
        volumes: Mapping[str, str] | None = None,
        allow_networks: Sequence[str] | None = None,
        allow_domains: Sequence[str] | None = None,
    ) -> DaytonaSandbox:
        """A running sandbox from a snapshot's name, or from `image`, which Daytona makes a snapshot of first.

        Args:
            env: environment variables of everything in the sandbox; Daytona keeps them.
            ttl: the relay's lease in seconds.
            limits: only with `image`; a snapshot has its own.
            volumes: ids or names of volumes by the path that they are mounted at.
            allow_networks: CIDRs that may be reached; with `network="none"` nothing else may.
            allow_domains: domains that may be reached, likewise.

        Raises:
            TokenError: the key is refused.
            SandboxError: no such snapshot, a quota, a failed build, or it did not start in time.
        """
        if network not in ("none", "open"):
            raise SandboxError(f"Unknown network {network!r}", hint='use "none" or "open"')
        volumes = self._volumes if volumes is None else volumes
        networks = self._networks if allow_networks is None else allow_networks
        domains = self._domains if allow_domains is None else allow_domains
        ident = uuid.uuid4().hex[:12]
        common: dict[str, Any] = {
            # The name is unique at Daytona, so a creation whose answer was lost cannot happen twice.
            "name": name_of(ident),
            "env_vars": dict(env or {}),
            "labels": {
                **(labels or {}),
                **OURS,
                **in_namespace(),
                LABEL: ident,
                OWNER: owner(),
                "harvest.created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            "auto_stop_interval": 0,
            "ttl_minutes": self._ttl,
            "ephemeral": self._ephemeral,
            "network_block_all": True if network == "none" and not (networks or domains) else None,
            "network_allow_list": ",".join(networks) or None,
            "domain_allow_list": ",".join(domains) or None,
            "volumes": [VolumeMount(volume_id=volume, mount_path=path) for path, volume in volumes.items()]
            or None,
        }
        params: CreateSandboxFromImageParams | CreateSandboxFromSnapshotParams
        if image is None:
            params = CreateSandboxFromSnapshotParams(snapshot=snapshot or self.snapshot, **common)
        else:
            params = CreateSandboxFromImageParams(
                image=image, resources=_resources(limits or Limits()), **common
            )
        client = await self._new_client()
        maker = Maker(
            client,
            start_timeout=self._start_timeout,
            patience=self._patience,
            delete_timeout=self._delete_timeout,
        )
        making = asyncio.create_task(maker.make(params, ident))
        try:
            remote = await asyncio.shield(making)
        except BaseException:
            # Also when cancelled: nothing may be left of which nobody has heard.
            try:
                await to_the_end(lambda: _unmake(maker, making, ident))
            finally:
                await close_client(client)
            raise
        return await self._open(client, remote, ident, lease=ttl, made=True)

    async def _open(
        self, client: AsyncDaytona, remote: AsyncSandbox, ident: str, *, lease: float, made: bool
    ) -> DaytonaSandbox:
        ending: set[asyncio.Task[None]] = set()
        take_up(ident)

        async def leave() -> None:
            if ending:
                await asyncio.wait(ending, timeout=5)
            await close_client(client)

        problems: list[str] = []

        async def remove() -> None:
            try:
                if not await to_the_end(lambda: self._book(client).delete_all(ident, self._delete_timeout)):
                    problems.append(f"sandbox {ident} may be left at Daytona: {REAP} removes it")
            finally:
                await to_the_end(leave)

        try:
            sandbox = await open_sandbox(remote, remove, leave, ending, lease=lease, ttl_minutes=self._ttl)
            sandbox.secrets, sandbox.problems = self.secrets, problems
            return sandbox
        except BaseException:
            # One that was there before stays: nobody has asked to remove it.
            await (remove() if made else to_the_end(leave))
            raise

    async def get(self, id: str, *, ttl: float = 120.0) -> DaytonaSandbox:  # noqa: A002 - the protocol's word
        """A running sandbox, by this package's id, Daytona's id, or its name; what another desk started there ends.

        Raises:
            SandboxError: there is none, or it does not run.
        """
        client = await self._new_client()
        try:
            remote = await self._one(client, id)
            if state_of(remote) != "started":
                raise SandboxError(
                    f"Sandbox {id} is {state_of(remote)}",
                    hint="start it first: `DaytonaProvider.start`",
                )
            if LABEL not in remote.labels:
                raise SandboxError(
                    f"Sandbox {id} was not made by this package", hint="see `DaytonaProvider.list`"
                )
            try:
                remote = await self._book(client).reachable(remote)
            except DaytonaError as error:
                raise explained(error, f"take up sandbox {id}") from error
        except BaseException:
            await close_client(client)
            raise
        before = dict(remote.labels)
        try:
            try:
                await claim(remote, self._patience)
            except BaseException as error:
                await close_client(client)
                if isinstance(error, DaytonaError):
                    raise explained(error, f"take up sandbox {id}") from error
                raise
            return await self._open(client, remote, before[LABEL], lease=ttl, made=False)
        except BaseException:
            await to_the_end(lambda: give_back(self.account, remote.id, before))
            raise

    async def _one(self, client: AsyncDaytona, ident: str) -> AsyncSandbox:
        try:
            found = await self._book(client).all_of(ident)
            if found:
                return found[0]
            return await persist(lambda: client.get(ident, request_timeout=30), patience=self._patience)
        except DaytonaError as error:
            raise explained(error, f"find sandbox {ident}") from error

    async def stop(self, id: str) -> None:  # noqa: A002
        """Stop it; its files stay unless it is ephemeral. Raises SandboxError."""
        async with self._client() as client:
            remote = await self._one(client, id)
            try:
                await stop(remote, self._start_timeout, self._patience)
            except DaytonaError as error:
                raise explained(error, f"stop sandbox {id}") from error

    async def start(self, id: str) -> None:  # noqa: A002
        """Start one that is stopped; `get` then takes it up. Raises SandboxError."""
        async with self._client() as client:
            remote = await self._one(client, id)
            try:
                await start(remote, self._start_timeout, self._patience)
            except DaytonaError as error:
                raise explained(error, f"start sandbox {id}") from error

    async def list(
        self, labels: Mapping[str, str] | None = None, *, all_namespaces: bool = False
    ) -> builtins.list[SandboxInfo]:
        """This package's sandboxes at Daytona, of this namespace or of all, that carry `labels`, whoever owns them."""
        wanted = namespace_filter(all_namespaces)
        async with self._client() as client:
            book = self._book(client)
            try:
                found = [
                    each
                    for each in await book.labelled(labels or {})
                    if LABEL in each.labels and wanted(each.labels)
                ]
            except DaytonaError as error:
                raise explained(error, "list the sandboxes") from error
            return [
                SandboxInfo(
                    id=remote.labels[LABEL],
                    provider=self.name,
                    state=state_of(remote),
                    created=created_at(remote),
                    labels=remote.labels,
                    held=held,
                )
                for remote, held in zip(found, await book.are_held(found), strict=True)
            ]

    async def reap(self, *, all_namespaces: bool = False) -> builtins.list[str]:
        """Remove the sandboxes of this namespace, or of all, that no live process holds; returns their ids."""
        left = [info.id for info in await self.list(all_namespaces=all_namespaces) if not info.held]
        async with self._client() as client:
            asked = (self._book(client).delete_all(ident, self._delete_timeout) for ident in left)
            done = await asyncio.gather(*asked, return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return [ident for ident, gone in zip(left, done, strict=True) if gone]


async def _unmake(maker: Maker, making: asyncio.Task[Any], ident: str) -> None:
    """Leave nothing of it; the caller raises its own error."""
    await asyncio.wait([making])
    if not making.cancelled():
        making.exception()  # looked at
    try:
        await maker.unmake(ident)
    except HarvestError as error:
        _log.warning("sandbox %s may be left at Daytona: %s", ident, error)


def _resources(limits: Limits) -> Resources:
    return Resources(cpu=math.ceil(limits.cpus), memory=math.ceil(limits.memory_bytes / 1024**3))
