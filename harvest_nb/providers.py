"""The providers by name. Each one's own dependencies are loaded when it is asked for."""

from __future__ import annotations

from harvest_nb.errors import SettingsError
from harvest_nb.sandbox.base import Provider
from harvest_nb.settings import load_settings
from harvest_nb.snapshot import Snapshot

__all__ = ["PROVIDERS", "get_provider", "name_for"]

PROVIDERS = ("docker", "daytona", "host")


def get_provider(name: str) -> Provider:
    """The provider called `name`.

    Raises:
        SettingsError: there is none of that name.
        TokenError: `daytona` without `DAYTONA_API_KEY`.
    """
    if name == "docker":
        from harvest_nb.sandbox.docker import DockerProvider

        return DockerProvider()
    if name == "daytona":
        from harvest_nb.sandbox.daytona import DaytonaProvider, given_account

        return DaytonaProvider(given_account(), snapshot=load_settings().image)
    if name == "host":
        from harvest_nb.sandbox.host import HostProvider

        return HostProvider()
    raise SettingsError(f"Unknown provider {name!r}", hint=f"use one of {', '.join(PROVIDERS)}")


def name_for(provider: Provider, snapshot: Snapshot | str) -> str:
    """What `provider` knows `snapshot` by: an engine by its id, which no other build takes over; Daytona, which knows
    nothing of the engine's ids, by its tag. What is already a name stays as it is.
    """
    if isinstance(snapshot, str):
        return snapshot
    return snapshot.tag if provider.name == "daytona" else snapshot.id
