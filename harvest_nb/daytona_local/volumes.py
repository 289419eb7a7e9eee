"""Volumes, each one of the engine's, and the lists of what a sandbox may reach."""

from __future__ import annotations

import asyncio
import ipaddress
import posixpath
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from harvest_nb import engine
from harvest_nb.daytona_local.machine import LABEL
from harvest_nb.daytona_local.replies import ApiError, now
from harvest_nb.sandbox.owner import in_namespace, owner

__all__ = ["Volumes", "check_allow_lists"]

_MOST = 10  # entries of an allow list
_DOMAIN = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}", re.IGNORECASE)


class Volumes:
    """The volumes of one server."""

    def __init__(self, client: engine.DockerClient, server: str, organization: str) -> None:
        self._api: Any = client.api  # partly untyped
        self._server, self._organization = server, organization
        self.all: dict[str, dict[str, Any]] = {}

    async def create(self, name: str | None) -> dict[str, Any]:
        """A new one. Raises ApiError 409 when there is one of that name."""
        ident = str(uuid.uuid4())
        if any(volume["name"] == name for volume in self.all.values()):
            raise ApiError(409, f"Volume with name {name} already exists")
        labels = {LABEL: self._server, f"{LABEL}.owner": owner(), **in_namespace()}
        # At once, so that of two at a time one is refused.
        self.all[ident] = {
            "id": ident,
            "name": name or ident,
            "organizationId": self._organization,
            "state": "ready",
            "createdAt": now(),
            "updatedAt": now(),
            "errorReason": None,
            "folder": None,
        }
        try:
            made = await self._engine(lambda: self._api.create_volume(_engines(ident), labels=labels))
        except BaseException:
            del self.all[ident]
            raise
        self.all[ident]["folder"] = made["Mountpoint"]
        return self.dto(self.all[ident])

    def get(self, id_or_name: str) -> dict[str, Any]:
        """The volume. Raises ApiError 404."""
        for volume in self.all.values():
            if id_or_name in (volume["id"], volume["name"]):
                return volume
        raise ApiError(404, f"Volume with ID or name {id_or_name} not found")

    async def delete(self, volume: Mapping[str, Any]) -> None:
        """Remove one. Raises ApiError 409 while a sandbox has it."""
        await self._engine(lambda: self._api.remove_volume(_engines(volume["id"])))
        self.all.pop(volume["id"], None)

    def dto(self, volume: Mapping[str, Any]) -> dict[str, Any]:
        """The volume as the API describes it."""
        return {key: value for key, value in volume.items() if key != "folder"}

    def mounts(self, asked: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """What is mounted, by the path in the sandbox. Raises ApiError."""
        found: dict[str, str] = {}
        for mount in asked:
            target, sub = str(mount.get("mountPath") or ""), str(mount.get("subpath") or "")
            if not target.startswith("/") or posixpath.normpath(target) in ("/", "//") or ":" in target:
                raise ApiError(400, f"Invalid mount path {target!r}: it must be absolute, and not the root")
            if sub.startswith("/") or ".." in sub.split("/"):
                raise ApiError(400, f"Invalid subpath {sub!r}")
            if target in found:
                raise ApiError(400, f"Mount path {target} is given twice")
            try:
                volume = self.get(str(mount.get("volumeId") or ""))
            except ApiError as error:
                raise ApiError(400, error.message) from None
            found[target] = posixpath.join(volume["folder"], sub) if sub else _engines(volume["id"])
        return found

    async def _engine(self, work: Any) -> Any:
        try:
            return await asyncio.to_thread(work)
        except engine.APIError as error:
            raise ApiError(409 if error.status_code == 409 else 500, str(error.explanation)) from error


def _engines(ident: str) -> str:
    return f"daytona-local-{ident}"


def check_allow_lists(asked: Mapping[str, Any]) -> bool:
    """Whether the sandbox may reach only what is listed. Raises ApiError where a list is malformed."""
    networks, domains = (
        [each.strip() for each in (asked.get(key) or "").split(",") if each.strip()]
        for key in ("networkAllowList", "domainAllowList")
    )
    for network in networks:
        try:
            ipaddress.IPv4Network(network, strict=False)
        except ValueError:
            raise ApiError(400, f"Invalid CIDR in the network allow list: {network}") from None
    for domain in domains:
        if not _DOMAIN.fullmatch(domain):
            raise ApiError(400, f"Invalid domain in the domain allow list: {domain}")
    if max(len(networks), len(domains)) > _MOST:
        raise ApiError(400, f"An allow list cannot have more than {_MOST} entries")
    return bool(networks or domains)
