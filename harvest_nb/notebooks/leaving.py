"""Removes the sandboxes that kernels have left behind."""

from __future__ import annotations

import asyncio
import logging

from harvest_nb.errors import EngineError, HarvestError, SettingsError
from harvest_nb.machine.held import holding
from harvest_nb.providers import PROVIDERS, get_provider
from harvest_nb.settings import load_settings

__all__ = ["remove_left", "usable"]

_log = logging.getLogger(__name__)


def remove_left() -> None:
    """Remove the sandboxes of this namespace that no live process holds. What goes wrong with that is logged."""
    for name in usable():
        try:
            with holding(f"{name} sandboxes that were left"):
                asyncio.run(get_provider(name).reap())
        except EngineError:
            continue  # no kernel has had one of this machine's either
        except (HarvestError, ImportError, OSError) as error:
            _log.warning("sandboxes may be left at the provider %s: %s", name, error)


def usable() -> list[str]:
    """Return the providers whose sandboxes a kernel of this machine can have."""
    try:
        daytona = load_settings().daytona_api_key is not None
    except SettingsError as error:  # said by whatever needs the settings; here an end is under way
        _log.debug("%s", error)
        daytona = False
    return [name for name in PROVIDERS if name != "daytona" or daytona]
