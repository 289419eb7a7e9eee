"""Which Daytona, and with which key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import SecretStr

from harvest_nb.errors import SettingsError, TokenError

__all__ = ["DEFAULT_URL", "Account", "given_account"]

DEFAULT_URL = "https://app.daytona.io/api"


@dataclass(frozen=True)
class Account:
    """A key for Daytona. `target` is the region; without one the organisation's own is used.

    Raises:
        TokenError: no request could carry `api_key`.
        SettingsError: `api_url` is no web address, or holds a password.
    """

    api_key: SecretStr
    api_url: str = DEFAULT_URL
    target: str | None = None

    def __post_init__(self) -> None:
        key = self.api_key.get_secret_value()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise TokenError(
                "Daytona's key (DAYTONA_API_KEY) holds characters that no request can carry, or none at all",
                hint="copy it again from the Daytona dashboard",
            )
        if not _is_web_address(self.api_url):
            # Not shown: it may be a key that was pasted into the wrong variable.
            raise SettingsError(
                "Daytona's address (DAYTONA_API_URL) is no web address",
                hint=f"give the address with http:// or https://, as in {DEFAULT_URL}",
            )
        if "@" in urlsplit(self.api_url).netloc:  # not shown either: errors and warnings tell the address
            raise SettingsError(
                "Daytona's address (DAYTONA_API_URL) holds a user's name or password",
                hint=f"leave out what stands before the @, as in {DEFAULT_URL}; the key is DAYTONA_API_KEY's alone",
            )

    @property
    def secrets(self) -> dict[str, str]:
        """The key by its variable's name, for a redactor."""
        return {"DAYTONA_API_KEY": self.api_key.get_secret_value()}


def given_account(folder: Path | None = None) -> Account:
    """The account that `DAYTONA_API_KEY`, `DAYTONA_API_URL` and `DAYTONA_TARGET` give.

    Asking for the provider is what makes the environment's key count. Key and target may stand in `.env.local` and
    `.env` too; the address may not, since it decides where the key is sent.

    Raises:
        TokenError: there is no key, or none that a request can carry.
        SettingsError: the address is no web address, or holds a password.
    """
    base = folder or Path.cwd()
    values = {**dotenv_values(base / ".env"), **dotenv_values(base / ".env.local"), **os.environ}
    key = (values.get("DAYTONA_API_KEY") or "").strip()
    if not key:
        raise TokenError(
            "The provider daytona needs DAYTONA_API_KEY",
            hint="make a key in the Daytona dashboard and set it in the environment or .env.local;"
            " without an account, `harvest-nb daytona-local` runs a stand-in and prints its key",
        )
    return Account(
        SecretStr(key),
        (os.environ.get("DAYTONA_API_URL") or "").strip().rstrip("/") or DEFAULT_URL,
        (values.get("DAYTONA_TARGET") or "").strip() or None,
    )


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        return False
