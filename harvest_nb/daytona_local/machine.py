"""A sandbox's container, and programs in it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from harvest_nb import engine
from harvest_nb.daytona_local.replies import ApiError
from harvest_nb.errors import EngineError, HarvestError
from harvest_nb.sandbox.base import Completed
from harvest_nb.sandbox.exec_stream import open_exec_stream
from harvest_nb.sandbox.owner import in_namespace, is_alive, namespace_filter, owner
from harvest_nb.sandbox.relay import Relay, RelayProcess, Stream
from harvest_nb.sandbox.relay_files import relay_archive

__all__ = ["LABEL", "Machine", "sweep"]

LABEL = "harvest.daytona-local"
FOLDER = "/opt/daytona-local"
"""Where the daemon's part lies in the container; its working files are in `WORK`."""
WORK = "/tmp/.daytona-local"  # noqa: S108 - the sandbox's own /tmp
_RELAY = ["python3", f"{FOLDER}/relay.py"]
_SOCKET = ["--socket", f"{WORK}.sock"]
_LEASE = 120.0


class Machine:
    """One container. It must have Python 3 and sh.

    Args:
        client: the engine.
        image: a local image's tag or id.
        server: which local server it belongs to.
    """

    def __init__(self, client: engine.DockerClient, image: str, server: str, sandbox: str) -> None:
        self._api: Any = client.api  # partly untyped
        self.image, self._server, self._sandbox = image, server, sandbox
        self.container: str | None = None
        self.relay: Relay | None = None
        self.config: dict[str, Any] = {}
        self._mounted: list[str] = []

    async def create(
        self,
        *,
        env: Mapping[str, str],
        network: bool,
        cpu: int,
        memory: int,
        entrypoint: Sequence[str] | None,
        mounts: Mapping[str, str],
        ephemeral: bool,
    ) -> None:
        """Make the container, without starting it. `memory` is in GiB; `mounts` says what of the engine is where in it.

        An ephemeral one goes with its end, also when that is the lease's and no server is left to remove it.

        Raises:
            ApiError: there is no such image, or the engine refuses.
        """

        def make() -> None:
            try:
                self.config = self._api.inspect_image(self.image)["Config"]
                self.container = self._api.create_container(
                    self.image,
                    entrypoint=_RELAY,
                    command=["serve", *_SOCKET, "--lease", str(_LEASE)],
                    environment=dict(env),
                    name=f"daytona-local-{self._sandbox[:12]}",
                    labels={
                        LABEL: self._server,
                        f"{LABEL}.sandbox": self._sandbox,
                        f"{LABEL}.owner": owner(),
                        **in_namespace(),
                    },
                    host_config=self._api.create_host_config(
                        init=True,
                        auto_remove=ephemeral,
                        binds=[f"{source}:{target}" for target, source in mounts.items()],
                        cap_drop=["ALL"],
                        security_opt=["no-new-privileges"],
                        network_mode="bridge" if network else "none",
                        mem_limit=memory * 1024**3,
                        memswap_limit=memory * 1024**3,
                        nano_cpus=int(cpu * 1e9),
                        pids_limit=2048,
                        shm_size=256 * 1024**2,
                    ),
                )["Id"]
                self._api.put_archive(self.container, "/", relay_archive(FOLDER))
            except engine.ImageNotFound:
                raise ApiError(400, f"image {self.image} not found") from None

        await self._engine(make)
        self._mounted = list(mounts)
        self.entrypoint = list(
            entrypoint or [*(self.config.get("Entrypoint") or []), *(self.config.get("Cmd") or [])]
        )

    async def start(self) -> None:
        """Start it, and the daemon's part in it."""

        def begin() -> None:
            self._api.start(self.container)
            if self._mounted:
                # A new volume is root's, and the sandbox's user need not be.
                command = ["chmod", "777", *self._mounted]
                self._api.exec_start(self._api.exec_create(self.container, command, user="root")["Id"])

        await self._engine(begin)
        try:
            self.relay = await Relay.open(self._connect, self._gone, lease=_LEASE)
        except HarvestError as error:
            raise ApiError(500, f"the sandbox cannot start: {error.message}") from error

    async def _connect(self) -> Stream:
        def attach() -> Any:
            try:
                ident = self._api.exec_create(
                    self.container,
                    [*_RELAY, "attach", *_SOCKET],
                    stdin=True,
                    stdout=True,
                    stderr=True,
                    tty=False,
                )["Id"]
                return self._api.exec_start(ident, socket=True)
            except engine.APIError as error:
                raise ConnectionError(str(error.explanation or error)) from error

        return await open_exec_stream(await asyncio.to_thread(attach))

    async def _gone(self) -> str | None:
        try:
            state = (await asyncio.to_thread(self._api.inspect_container, self.container))["State"]
        except (engine.APIError, engine.DockerException) as error:
            return f"the engine has it no more ({error})"
        return None if state["Running"] else "its container has ended"

    async def stop(self) -> None:
        """End it; its files stay."""
        relay, self.relay = self.relay, None
        if relay is not None:
            await relay.close(shutdown=False)
        await self._engine(lambda: self._api.kill(self.container) if self._running() else None)

    def _running(self) -> bool:
        try:
            return bool(self._api.inspect_container(self.container)["State"]["Running"])
        except engine.NotFound:
            return False

    async def remove(self) -> None:
        """Take it away, whatever it does."""
        relay, self.relay = self.relay, None
        if relay is not None:
            await relay.close(shutdown=False)
        if self.container is not None:
            container, self.container = self.container, None
            await self._engine(lambda: engine.remove_containers(self._api, {"id": container}))

    async def _engine(self, work: Any) -> None:
        try:
            await asyncio.to_thread(work)
        except (engine.APIError, engine.DockerException, EngineError) as error:
            raise ApiError(500, f"the engine says: {getattr(error, 'explanation', None) or error}") from error

    @property
    def live(self) -> Relay:
        """The running daemon's part. Raises ApiError when the sandbox is not running."""
        if self.relay is None or self.relay.ended.is_set():
            raise ApiError(400, "the sandbox is not running", source="DAYTONA_PROXY")
        return self.relay

    @property
    def workdir(self) -> str:
        """The image's working directory."""
        return str(self.config.get("WorkingDir") or "/")

    async def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> RelayProcess:
        """Start a program. Raises ApiError."""
        try:
            return await self.live.spawn(argv, env or {}, cwd or self.workdir)
        except HarvestError as error:
            raise ApiError(400, error.message, source="DAYTONA_DAEMON") from error

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes | None = None,
        timeout: float | None = 60,
    ) -> Completed:
        """Run a program to its end. Raises ApiError, TimeoutError."""
        try:
            return await self.live.run(
                argv, env=env or {}, cwd=cwd or self.workdir, input=stdin, timeout=timeout
            )
        except HarvestError as error:
            raise ApiError(400, error.message, source="DAYTONA_DAEMON") from error


def sweep(
    client: engine.DockerClient, server: str | None = None, *, all_namespaces: bool = False
) -> list[str]:
    """Remove the containers and volumes of `server`, or those of this namespace, or of all, whose server has ended.

    Returns:
        The engine's ids and names of what was removed.
    """
    removed: list[str] = []
    api: Any = client.api
    label = LABEL if server is None else f"{LABEL}={server}"
    wanted = namespace_filter(all_namespaces)

    def left(item: Mapping[str, Any]) -> bool:
        if server is not None:
            return True
        labels = item["Labels"]
        return wanted(labels) and is_alive(labels.get(f"{LABEL}.owner", "")) is False

    for item in api.containers(all=True, filters={"label": label}):
        if left(item):
            engine.remove_containers(api, {"id": item["Id"]})
            removed.append(item["Id"][:12])
    for item in api.volumes(filters={"label": label})["Volumes"] or []:
        if left(item):
            try:
                api.remove_volume(item["Name"])
                removed.append(item["Name"])
            except engine.APIError as error:
                if error.status_code not in (404, 409):  # it has gone, or somebody else uses it
                    raise
    return removed
