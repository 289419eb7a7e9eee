"""The key and the port that this user's stand-in keeps from start to start, for shells and notebooks that stay open."""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from harvest_nb.errors import SettingsError, TokenError
from harvest_nb.files import open_regular
from harvest_nb.machine.locks import one_at_a_time
from harvest_nb.paths import cache_dir

__all__ = ["Kept", "checked_key", "keep_port", "kept", "kept_path", "new_key"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """The key and the port of the stand-ins before, for the next one; port 0 where none was chosen yet."""

    key: str
    port: int = 0


def new_key() -> str:
    """Return a key that nobody can guess."""
    return f"dtn_local_{secrets.token_hex(24)}"


def checked_key(key: str) -> str:
    """Return a key that a person has chosen.

    Raises:
        TokenError: no request could carry it.
    """
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise TokenError(
            "The key holds characters that no request can carry as a credential, or none at all",
            hint="use letters, digits, '_' and '-'",
        )
    return key


def kept_path() -> Path:
    """Return the path of the file that holds the key and the port. Without the file, a new key is made."""
    return cache_dir() / "daytona-local.json"


def kept(*, fresh: bool = False) -> Kept:
    """Return the key and the port of the last stand-in, a new key where there is none.

    Args:
        fresh: make a new key in any case.

    Raises:
        SettingsError: they cannot be kept.
    """
    try:
        with one_at_a_time("daytona-local key", say=_log.info):
            found = _read()
            if found is None or fresh:
                found = Kept(new_key(), found.port if found else 0)
                _write(found)
            return found
    except OSError as error:
        raise _unkept(error) from error


def keep_port(port: int) -> None:
    """Keep the port of a stand-in that has chosen one. Raises SettingsError."""
    try:
        with one_at_a_time("daytona-local key", say=_log.info):
            if (found := _read()) is not None:
                _write(Kept(found.key, port))
    except OSError as error:
        raise _unkept(error) from error


def _unkept(error: OSError) -> SettingsError:
    return SettingsError(
        f"Cannot keep the stand-in's key in {kept_path()}: {error.strerror}",
        hint="set HARVEST_CACHE to a folder of your own, or give `--key`",
    )


def _read() -> Kept | None:
    """Return what the file holds; None where there is none, or none that can be trusted."""
    path = kept_path()
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                _log.warning("%s was open to other users of this machine, so a new key is made", path)
                return None
            told = json.loads(file.read(4096))
        return Kept(checked_key(str(told["key"])), int(told["port"]) % 65536)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, TokenError) as error:
        _log.warning("%s cannot be read (%s), so a new key is made", path, type(error).__name__)
        return None


def _write(kept: Kept) -> None:
    """Write the file whole or not at all, for its owner's eyes only from the first byte on."""
    path = kept_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(kept), file)
    new.replace(path)
