"""Snapshots. Every image of the engine counts as a snapshot of that name, without being made one."""

from __future__ import annotations

import asyncio
import io
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from harvest_nb import engine
from harvest_nb.daytona_local.faults import Faults
from harvest_nb.daytona_local.replies import ApiError, now
from harvest_nb.settings import load_settings

__all__ = ["Snapshots", "snapshot_dto"]

_FROM_ONLY = re.compile(r"\A\s*FROM\s+(\S+)\s*\Z", re.IGNORECASE)


class Snapshots:
    """Named images with sizes."""

    def __init__(self, client: engine.DockerClient, faults: Faults) -> None:
        self._api: Any = client.api
        self._faults = faults
        self.all: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def _image(self, name: str) -> str | None:
        try:
            found: str = (await asyncio.to_thread(self._api.inspect_image, name))["Id"]
        except engine.APIError:
            return None
        return found

    async def resolve(self, name: str | None) -> dict[str, Any]:
        """The active snapshot of that name or id. Raises ApiError."""
        wanted = name or load_settings().image
        found = self.find(wanted)
        if found is not None:
            if found["state"] != "active":
                raise ApiError(400, f"Snapshot {wanted} is {found['state']}")
            return found
        if await self._image(wanted) is None:
            raise ApiError(400, f"Snapshot {wanted} not found. Did you add it through the Daytona Dashboard?")
        return {"image": wanted, "cpu": 2, "mem": 4, "disk": 8}

    def find(self, id_or_name: str) -> dict[str, Any] | None:
        """The snapshot, or None."""
        return self.all.get(id_or_name) or next(
            (each for each in self.all.values() if each["name"] == id_or_name), None
        )

    async def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Begin to make one. Raises ApiError."""
        name = asked.get("name")
        if not name:
            raise ApiError(400, "name should not be empty")
        if self.find(name) is not None:
            raise ApiError(409, f"Snapshot with name {name} already exists")
        made = {
            "id": str(uuid.uuid4()),
            "name": name,
            "imageName": asked.get("imageName"),
            "image": asked.get("imageName") or "",
            "state": "pending",
            "entrypoint": asked.get("entrypoint"),
            "cpu": asked.get("cpu") or 1,
            "mem": asked.get("memory") or 1,
            "disk": asked.get("disk") or 3,
            "errorReason": None,
            "createdAt": now(),
            "updatedAt": now(),
            "logs": "",
        }
        self.all[made["id"]] = made
        task = asyncio.create_task(self._make(made, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return made

    async def _make(self, made: dict[str, Any], asked: Mapping[str, Any]) -> None:
        if self._faults.take("stuck-pending") is not None:
            return
        made["state"] = "building" if asked.get("buildInfo") else "pulling"

        def log(text: str) -> None:
            made["logs"] += text

        try:
            if self._faults.take("build-failed") is not None:
                raise ApiError(500, "step 2 exited with 1")
            if asked.get("buildInfo"):
                made["image"] = await self.build(asked["buildInfo"].get("dockerfileContent") or "", log)
            elif await self._image(made["image"]) is None:
                raise ApiError(400, f"image {made['image']} not found")
            made["state"] = "active"
        except ApiError as error:
            made["state"] = "build_failed" if asked.get("buildInfo") else "error"
            made["errorReason"] = error.message
        made["updatedAt"] = now()

    async def build(self, dockerfile: str, log: Callable[[str], None]) -> str:
        """The image of a Dockerfile without a context. Raises ApiError."""
        plain = _FROM_ONLY.match(dockerfile)
        if plain and await self._image(plain[1]) is not None:
            log(f"FROM {plain[1]}\n")
            return plain[1]

        def work() -> str:
            image = ""
            for event in self._api.build(
                fileobj=io.BytesIO(dockerfile.encode()), rm=True, forcerm=True, decode=True
            ):
                if "stream" in event:
                    log(event["stream"])
                if "error" in event:
                    raise ApiError(500, event["error"].strip())
                image = event.get("aux", {}).get("ID", image)
            return image

        try:
            return await asyncio.to_thread(work)
        except (engine.APIError, engine.DockerException) as error:
            raise ApiError(500, f"the engine says: {error}") from error


def snapshot_dto(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """The snapshot as the API describes it."""
    hidden = {"image", "logs"}
    described = {key: value for key, value in snapshot.items() if key not in hidden}
    if described.get("imageName") is None:
        described.pop("imageName", None)
    return described | {"general": False, "size": None, "gpu": 0, "lastUsedAt": None, "sourceSandboxId": None}
