"""The sandboxes that the server has, from their creation to their destruction."""

from __future__ import annotations

import asyncio
import builtins
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from harvest_nb import engine
from harvest_nb.daytona_local.faults import Faults
from harvest_nb.daytona_local.machine import Machine
from harvest_nb.daytona_local.replies import STAND_IN, ApiError, now
from harvest_nb.daytona_local.sessions import Sessions
from harvest_nb.daytona_local.snapshots import Snapshots
from harvest_nb.daytona_local.volumes import Volumes, check_allow_lists

__all__ = ["Box", "Boxes"]

ORGANIZATION = "00000000-0000-4000-8000-000000000000"
_GONE = ("destroying", "destroyed")


@dataclass
class Box:
    """One sandbox."""

    id: str
    asked: Mapping[str, Any]
    name: str
    machine: Machine
    labels: dict[str, str]
    state: str
    cpu: int
    memory: int
    disk: int
    snapshot: str | None
    isolated: bool
    mounts: Mapping[str, str]
    intervals: dict[str, int]
    destroy_at: float | None = None
    error_reason: str | None = None
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    active: float = field(default_factory=time.time)
    sessions: Sessions = field(init=False)
    logs: str = ""
    """What its build said."""

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.machine)

    def touch(self) -> None:
        """Something happened that counts as activity."""
        self.active = time.time()


class Boxes:
    """All sandboxes of one server."""

    def __init__(
        self,
        client: engine.DockerClient,
        faults: Faults,
        snapshots: Snapshots,
        server: str,
        emit: Callable[[str, Mapping[str, Any]], Coroutine[Any, Any, None]],
    ) -> None:
        self._client, self.faults, self.snapshots, self.server, self._emit = (
            client,
            faults,
            snapshots,
            server,
            emit,
        )
        self.volumes = Volumes(client, server, ORGANIZATION)
        self.all: dict[str, Box] = {}
        self.toolbox_url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something after the answer."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def get(self, id_or_name: str) -> Box:
        """The sandbox. Raises ApiError 404."""
        box = self.all.get(id_or_name) or next(
            (box for box in self.all.values() if box.name == id_or_name and box.state != "destroyed"), None
        )
        if box is None or box.state == "destroyed":
            raise ApiError(404, f"Sandbox with ID or name {id_or_name} not found")
        return box

    async def create(self, asked: Mapping[str, Any]) -> Box:
        """Begin to make a sandbox."""
        limit = self.faults.take("quota")
        living = [box for box in self.all.values() if box.state not in _GONE]
        if limit is not None and len(living) >= limit:
            raise ApiError(
                403,
                f"Total CPU limit exceeded. Maximum allowed: {limit:g}. Consider archiving unused sandboxes",
            )
        ident = str(uuid.uuid4())
        name = asked.get("name") or ident
        if any(box.name == name for box in living):
            raise ApiError(409, f"Sandbox with name {name} already exists")
        # What is listed cannot be told from the rest by the engine: such a sandbox reaches nothing at all.
        isolated = bool(asked.get("networkBlockAll")) | check_allow_lists(asked)
        mounts = self.volumes.mounts(asked.get("volumes") or [])
        build = asked.get("buildInfo")
        image, cpu, memory, disk = "", 1, 1, 3
        if build is None:
            if any(asked.get(key) is not None for key in ("cpu", "memory", "disk")):
                raise ApiError(400, "Cannot specify Sandbox resources when using a snapshot")
            found = await self.snapshots.resolve(asked.get("snapshot"))
            image, cpu, memory, disk = found["image"], found["cpu"], found["mem"], found["disk"]
        box = Box(
            id=ident,
            asked=asked,
            name=name,
            machine=Machine(self._client, image, self.server, ident),
            labels=dict(asked.get("labels") or {}),
            state="pending_build" if build else "creating",
            cpu=asked.get("cpu") or cpu,
            memory=asked.get("memory") or memory,
            disk=asked.get("disk") or disk,
            snapshot=asked.get("snapshot"),
            isolated=isolated,
            mounts=mounts,
            intervals={
                "autoStopInterval": 15
                if asked.get("autoStopInterval") is None
                else asked["autoStopInterval"],
                "autoArchiveInterval": asked.get("autoArchiveInterval") or 10080,
                "autoDeleteInterval": -1
                if asked.get("autoDeleteInterval") is None
                else asked["autoDeleteInterval"],
            },
        )
        self.set_ttl(box, asked.get("ttlMinutes") or 0)
        self.all[ident] = box
        self.background(self._make(box))
        return box

    async def _make(self, box: Box) -> None:
        try:
            build = box.asked.get("buildInfo")
            if build is not None:
                if self.faults.take("stuck-pending") is not None:
                    return
                await self.enter(box, "building_snapshot")
                if self.faults.take("build-failed") is not None:
                    raise ApiError(500, "the build failed: step 2 exited with 1")
                box.machine.image = await self.snapshots.build(
                    build.get("dockerfileContent") or "", lambda text: setattr(box, "logs", box.logs + text)
                )
            await self.enter(box, "starting")
            if self.faults.take("stuck-starting") is not None:
                return
            if self.faults.take("start-failed") is not None:
                raise ApiError(500, "the runner was lost")
            await asyncio.sleep(self.faults.take("slow-start") or 0)
            await box.machine.create(
                env=box.asked.get("env") or {},
                network=not box.isolated,
                cpu=box.cpu,
                memory=box.memory,
                entrypoint=None,
                mounts=box.mounts,
                ephemeral=box.intervals["autoDeleteInterval"] == 0,
            )
            await self._start(box)
        except ApiError as error:
            await self.enter(
                box, "build_failed" if box.state == "building_snapshot" else "error", error.message
            )

    async def _start(self, box: Box) -> None:
        if box.state in _GONE:
            await box.machine.remove()
            return
        await box.machine.start()
        await box.sessions.begin()
        await self.enter(box, "started")

    async def _run_out(self, box: Box, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if box.state == "started":
            await self.enter(box, "error", "the sandbox ran out of memory (OOMKilled)")
            await box.machine.stop()

    async def enter(self, box: Box, state: str, reason: str | None = None) -> None:
        """Change the state, and tell whoever listens. A sandbox that is being destroyed becomes nothing else."""
        if box.state in _GONE and state not in _GONE:
            return
        old, box.state, box.error_reason, box.updated = box.state, state, reason, now()
        await self._emit(
            "sandbox.state.updated", {"sandbox": self.dto(box), "oldState": old, "newState": state}
        )

    async def start(self, box: Box) -> None:
        """Begin to start one that is stopped."""
        if box.state not in ("stopped", "archived"):
            raise ApiError(400, f"Sandbox is not in valid state: {box.state}")
        await self.enter(box, "starting")
        box.sessions = Sessions(box.machine)

        async def work() -> None:
            try:
                await self._start(box)
            except ApiError as error:
                await self.enter(box, "error", error.message)

        self.background(work())

    async def stop(self, box: Box) -> None:
        """Begin to stop one; an ephemeral one is destroyed then."""
        if box.state != "started":
            raise ApiError(400, f"Sandbox is not in valid state: {box.state}")
        await self.enter(box, "stopping")

        async def work() -> None:
            await box.machine.stop()
            await self.enter(box, "stopped")
            if box.intervals["autoDeleteInterval"] == 0:
                await self.delete(box)

        self.background(work())

    async def delete(self, box: Box) -> None:
        """Begin to destroy one."""
        await self.enter(box, "destroying")
        if self.faults.take("stuck-deleting") is not None:
            return

        async def work() -> None:
            await box.machine.remove()
            await self.enter(box, "destroyed")

        self.background(work())

    def set_ttl(self, box: Box, minutes: int) -> None:
        """Destroy it so many minutes from now, or never (0)."""
        box.destroy_at = time.time() + 60 * minutes if minutes else None

    async def tend(self) -> None:
        """Stop what has been idle, destroy what has lived long enough; for ever."""
        while True:
            await asyncio.sleep(1)
            for box in builtins.list(self.all.values()):
                idle = (time.time() - box.active) / 60
                if box.destroy_at is not None and time.time() > box.destroy_at and box.state not in _GONE:
                    await self.delete(box)
                elif box.state == "started" and 0 < box.intervals["autoStopInterval"] < idle:
                    await self.stop(box)
                elif box.state == "started" and box.machine.relay and box.machine.relay.ended.is_set():
                    await self.enter(box, "error", "the container ended")
                elif box.state == "started" and (seconds := self.faults.take("out-of-memory")) is not None:
                    self.background(self._run_out(box, seconds))

    async def close(self) -> None:
        """Destroy all."""
        for task in builtins.list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One that cannot be removed keeps no other one; the sweep after this tries it again, and raises.
        await asyncio.gather(*(box.machine.remove() for box in self.all.values()), return_exceptions=True)

    def dto(self, box: Box, *, listed: bool = False) -> dict[str, Any]:
        """The sandbox as the API describes it."""
        described: dict[str, Any] = {
            "id": box.id,
            "organizationId": ORGANIZATION,
            "name": box.name,
            "snapshot": box.snapshot,
            "user": box.asked.get("user") or "harvest",
            "labels": box.labels,
            "public": bool(box.asked.get("public")),
            "networkBlockAll": bool(box.asked.get("networkBlockAll")),
            "networkAllowList": box.asked.get("networkAllowList"),
            "domainAllowList": box.asked.get("domainAllowList"),
            "target": box.asked.get("target") or "local",
            "cpu": box.cpu,
            "gpu": 0,
            "memory": box.memory,
            "disk": box.disk,
            "state": box.state,
            "desiredState": "destroyed"
            if box.state in _GONE
            else "stopped"
            if "stop" in box.state
            else "started",
            "errorReason": box.error_reason,
            **box.intervals,
            "autoDestroyAt": _at(box.destroy_at),
            "createdAt": box.created,
            "updatedAt": box.updated,
            "lastActivityAt": _at(box.active),
            "daemonVersion": STAND_IN,
            "toolboxProxyUrl": self.toolbox_url,
        }
        if not listed:
            described |= {
                "env": box.asked.get("env") or {},
                "kvm": False,
                "volumes": box.asked.get("volumes") or [],
                "sandboxClass": "container",
            }
        return {key: value for key, value in described.items() if value is not None}


def _at(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
