"""Sandboxes as Docker containers: no capabilities, no new privileges, limits, and no network unless asked for.

The container's one program is the relay; each stream to it is an exec of `relay.py attach`. When nobody renews
the lease, the relay ends, and the engine removes the container.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import re
import time
import uuid
import weakref
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from harvest_nb import engine
from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.base import Limits, SandboxInfo
from harvest_nb.sandbox.exec_stream import open_exec_stream
from harvest_nb.sandbox.owner import in_namespace, is_alive, namespace_filter, owner
from harvest_nb.sandbox.relay import Relay, Stream
from harvest_nb.sandbox.relay_files import RELAY, relay_archive, relay_digest
from harvest_nb.sandbox.relayd.daemon import LAPSED
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.sandbox.uncancelled import in_thread, to_the_end
from harvest_nb.settings import load_settings

__all__ = ["DockerProvider"]

APP = PurePosixPath("/app")
HOME = PurePosixPath("/home/harvest")
_LABEL = "harvest.sandbox"
_GIVEN = ".run-"  # what stands between a container's name and the run that it was given to
_GRACE = 60.0  # seconds that a container may stand unstarted before it counts as left behind


class DockerProvider:
    """Makes, lists and removes containers; see `harvest_nb.sandbox.base.Provider`.

    Args:
        client: an engine's client; by default the one that `harvest_nb.engine.connect` finds.
    """

    name = "docker"

    def __init__(self, client: engine.DockerClient | None = None) -> None:
        self._given = self._client = client

    @property
    def client(self) -> engine.DockerClient:
        """The engine's client, connected at first use. Raises EngineError."""
        if self._client is None:
            self._client = engine.connect()
            # Nobody else knows it: its kept connections are closed when nobody needs this provider any more.
            weakref.finalize(self, self._client.close)
        return self._client

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
        """A running container from `snapshot` (an image's tag or id; default: `HARVEST_IMAGE`).

        `env` is handed to each program when it starts and stays out of the container's own description.

        Raises:
            SandboxError: no such image, or the container cannot start.
            EngineError: no engine can be used.
        """
        if network not in ("none", "open"):
            raise SandboxError(f"Unknown network {network!r}", hint='use "none" or "open"')
        ident = uuid.uuid4().hex[:12]
        # A cancelled caller must not leave a container behind whose creation it never heard of.
        making = in_thread(
            self._start,
            ident,
            snapshot or load_settings().image,
            {**(labels or {}), **in_namespace()},
            ttl,
            limits or Limits(),
            network,
        )
        try:
            container, image = await asyncio.shield(making)
        except asyncio.CancelledError:
            await to_the_end(lambda: self._unmake(making, ident))
            raise

        async def connect() -> Stream:
            attaching = in_thread(self._attach, container)
            try:
                return await open_exec_stream(await asyncio.shield(attaching))
            except asyncio.CancelledError:
                await to_the_end(lambda: _close_late(attaching))
                raise

        async def gone() -> str | None:
            return await asyncio.to_thread(self._why_gone, container)

        async def remove() -> None:
            await to_the_end(lambda: in_thread(self._remove, ident))

        try:
            relay = await Relay.open(connect, gone, lease=ttl)
        except BaseException:
            await remove()
            raise
        return RelayedSandbox(
            relay,
            remove,
            id=ident,
            provider=self.name,
            app=APP,
            home=HOME,
            memory_file=PurePosixPath(image["env"].get("MEMORY_FILE_PATH", str(HOME / "memory.jsonl"))),
            isolated=True,
            image=image["id"],
            manifest_hash=image["labels"].get("harvest.manifest.sha256"),
            env=env or {},
        )

    async def _unmake(self, making: asyncio.Future[Any], ident: str) -> None:
        await asyncio.wait([making])
        if making.exception() is None:
            await in_thread(self._remove, ident)

    def _start(
        self, ident: str, image: str, labels: Mapping[str, str], ttl: float, limits: Limits, network: str
    ) -> tuple[str, dict[str, Any]]:
        with engine.engine_errors(f"start a container from {image}"):
            api: Any = self.client.api  # partly untyped
            description = self._describe(image)
            config = description["Config"]
            container: str = api.create_container(
                image,
                command=["python3", RELAY, "serve", "--lease", str(ttl)],
                name=f"harvest-{ident}",
                labels={
                    **labels,
                    _LABEL: ident,
                    "harvest.owner": owner(),
                    "harvest.created": datetime.now(UTC).isoformat(timespec="seconds"),
                },
                host_config=api.create_host_config(
                    auto_remove=True,
                    init=True,
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges"],
                    network_mode="none" if network == "none" else "bridge",
                    mem_limit=limits.memory_bytes,
                    memswap_limit=limits.memory_bytes,
                    nano_cpus=int(limits.cpus * 1e9),
                    pids_limit=limits.pids,
                    shm_size=256 * 1024**2,
                ),
            )["Id"]
            try:
                if (config.get("Labels") or {}).get("harvest.relay.sha256") != relay_digest():
                    api.put_archive(container, "/", relay_archive())
                api.start(container)
            except BaseException:
                api.remove_container(container, force=True)
                raise
        environment = dict(item.split("=", 1) for item in config.get("Env") or [])
        return container, {
            "id": description["Id"],
            "labels": config.get("Labels") or {},
            "env": environment,
        }

    def _describe(self, image: str) -> dict[str, Any]:
        with engine.engine_errors(f"look at {image}"):
            try:
                api: Any = self.client.api  # partly untyped
                found: dict[str, Any] = api.inspect_image(image)
            except engine.ImageNotFound:
                raise SandboxError(
                    f"There is no image {image}", hint="build it first: `harvest-nb build`", image=image
                ) from None
            return found

    def _attach(self, container: str) -> Any:
        try:
            ident = self.client.api.exec_create(
                container, ["python3", RELAY, "attach"], stdin=True, stdout=True, stderr=True, tty=False
            )["Id"]
            return self.client.api.exec_start(ident, socket=True)
        except engine.APIError as error:
            # A container that has ended answers 404 or 409; `gone` finds out how it ended.
            raise ConnectionError(str(error.explanation or error)) from error

    def _why_gone(self, container: str) -> str | None:
        """How the container ended, or None while it runs. The engine keeps its last events for such questions."""
        api = self.client.api
        try:
            for _ in range(20):
                state = api.inspect_container(container)["State"]
                if state["Running"] and not state.get("Restarting"):
                    return None
                if state["Status"] in ("exited", "dead", "removing"):
                    break
                time.sleep(0.05)
        except engine.NotFound:
            pass
        except (engine.APIError, OSError, engine.DockerException) as error:
            return f"the engine does not answer any more ({error})"
        try:
            return self._story(container)
        except (engine.APIError, OSError, engine.DockerException) as error:
            return f"its container has ended, and the engine does not say how ({error})"

    def _story(self, container: str) -> str:
        api = self.client.api
        now = _timestamp(api.info()["SystemTime"])
        events = api.events(
            since=int(now - 3600), until=int(now) + 1, filters={"container": container}, decode=True
        )
        try:
            seen = {event["Action"]: event["Actor"]["Attributes"] for event in events if "Action" in event}
        finally:
            # An engine that stops in the middle leaves the answer's socket open.
            with contextlib.suppress(OSError, AttributeError, engine.DockerException):
                events.close()
        if "oom" in seen:
            return "its container ran out of memory"
        if "die" in seen:
            code = seen["die"].get("exitCode", "?")
            if code == str(LAPSED):
                return "its lease lapsed, as nobody had renewed it"
            how = (
                f"by signal {int(code) - 128}"
                if code.isdigit() and int(code) > 128
                else f"with exit code {code}"
            )
            return f"its container was ended {how}"
        return "its container was removed"

    def _remove(self, ident: str) -> None:
        with engine.engine_errors("remove a container"):
            engine.remove_containers(self.client.api, {"label": f"{_LABEL}={ident}"})

    async def made_from(self, snapshot: str | None) -> str:
        """The image's id, which another image of the same tag has not.

        Raises:
            SandboxError: no such image. EngineError: no engine can be used.
        """
        return str((await asyncio.to_thread(self._describe, snapshot or load_settings().image))["Id"])

    def place(self) -> Hashable:
        """The engine (a client that was given, or the address at which one is found), and the namespace.

        Raises:
            EngineError: no engine can be used.
        """
        return engine.endpoint().host if self._given is None else self._given, load_settings().namespace

    async def relabel(self, ident: str, run: str) -> None:
        """List the container under `harvest.run=<run>` from now on: labels cannot change later, but its name can.

        Raises:
            SandboxError: it has gone.
        """
        await to_the_end(lambda: in_thread(self._rename, ident, run))

    def _rename(self, ident: str, run: str) -> None:
        with engine.engine_errors("name a container"):
            try:
                self.client.api.rename(f"harvest-{ident}", f"harvest-{ident}{_GIVEN}{run}")
            except engine.NotFound as error:
                raise SandboxError(f"There is no container harvest-{ident} any more") from error

    async def list(
        self, labels: Mapping[str, str] | None = None, *, all_namespaces: bool = False
    ) -> builtins.list[SandboxInfo]:
        """The containers of this namespace, or of all, that carry `labels`, whichever process owns them."""
        return await asyncio.to_thread(self._list, labels or {}, namespace_filter(all_namespaces))

    def _list(
        self, labels: Mapping[str, str], wanted: Callable[[Mapping[str, str]], bool]
    ) -> builtins.list[SandboxInfo]:
        with engine.engine_errors("list containers"):
            found = self.client.api.containers(all=True, filters={"label": [_LABEL]})
        found = [item for item in found if wanted(item["Labels"])]
        for item in found:
            run = item["Names"][0].partition(_GIVEN)[2] if item.get("Names") else ""
            if run:
                item["Labels"]["harvest.run"] = run
        found = [item for item in found if labels.items() <= item["Labels"].items()]
        return [
            SandboxInfo(
                id=item["Labels"][_LABEL],
                provider=self.name,
                state=item["State"],
                created=datetime.fromtimestamp(item["Created"], UTC),
                labels=item["Labels"],
                held=self._held(item),
            )
            for item in found
        ]

    def _held(self, item: Mapping[str, Any]) -> bool:
        """Whether a live process still holds it: its owner on this machine, or else whoever renews its lease."""
        alive = is_alive(item["Labels"].get("harvest.owner", ""))
        if alive is not None:
            return alive
        if item["State"] != "running":
            return bool(time.time() - item["Created"] < _GRACE)
        try:
            ident = self.client.api.exec_create(item["Id"], ["python3", RELAY, "status"])["Id"]
            said = json.loads(self.client.api.exec_start(ident))
        except (ValueError, engine.APIError):
            return True  # the relay has not come up yet, or is just going: its lease decides
        return bool(said["lease_seconds"] > 0)

    async def reap(self, *, all_namespaces: bool = False) -> builtins.list[str]:
        """Remove the containers of this namespace, or of all, that no live process holds; returns their ids."""
        left = [info.id for info in await self.list(all_namespaces=all_namespaces) if not info.held]
        for ident in left:
            await asyncio.to_thread(self._remove, ident)
        return left


async def _close_late(attaching: asyncio.Future[Any]) -> None:
    """Close a stream that came after nobody waited for it any more."""
    await asyncio.wait([attaching])
    if attaching.exception() is None:
        attaching.result().close()


def _timestamp(text: str) -> float:
    """Seconds since 1970 of a time as the engine writes it: nanoseconds, which datetime does not read, and any zone."""
    return datetime.fromisoformat(re.sub(r"\.\d+", "", text)).timestamp()
