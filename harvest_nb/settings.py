"""Settings from the environment, `.env.local` and `.env`: the first that names a value wins.

Tokens are read only here, and only when a caller asks; nothing ambient reaches a sandbox.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from harvest_nb.errors import SettingsError

__all__ = [
    "DEFAULT_NAMESPACE",
    "DESK_VARIABLES",
    "ENDPOINT_TOKEN",
    "TOKEN_VARIABLES",
    "Settings",
    "given_tokens",
    "load_settings",
]

TOKEN_VARIABLES = (
    "CLAUDE_CODE_OAUTH_TOKEN",
    "GITHUB_TOKEN",
    "LINEAR_API_KEY",
    "GEMINI_API_KEY",
    "SENTRY_AUTH_TOKEN",
)
"""What may be passed into a sandbox."""
ENDPOINT_TOKEN = "HARVEST_ENDPOINT_TOKEN"  # noqa: S105 - a name
"""What a gateway is sent as its bearer token."""
DESK_VARIABLES = (ENDPOINT_TOKEN, "DAYTONA_API_KEY", "DAYTONA_JWT_TOKEN")
"""What the desk alone needs: as secret as the tokens, and never passed on."""


DEFAULT_NAMESPACE = "default"
"""The namespace of all that is made where `HARVEST_NAMESPACE` is not set."""
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?")
_IMAGE = "harvest-daytona-snapshot"


def _checked_namespace(name: str) -> str:
    if not _NAMESPACE.fullmatch(name):
        raise ValueError("use at most 63 of a-z, 0-9, '-', '_' and '.', with a letter or digit at either end")
    if name == "latest":
        raise ValueError("use another name: the default namespace's image is tagged 'latest'")
    return name


def _default_image(settings: dict[str, Any]) -> str:
    namespace = settings.get("namespace", DEFAULT_NAMESPACE)
    return f"{_IMAGE}:{'latest' if namespace == DEFAULT_NAMESPACE else namespace}"


class Settings(BaseSettings):
    """What the environment may say; every field has a default that works without any of it."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True)

    claude_code_oauth_token: SecretStr | None = None
    github_token: SecretStr | None = None
    linear_api_key: SecretStr | None = None
    gemini_api_key: SecretStr | None = None
    sentry_auth_token: SecretStr | None = None
    harvest_endpoint_token: SecretStr | None = None
    daytona_api_key: SecretStr | None = None
    daytona_jwt_token: SecretStr | None = None

    engine: Literal["auto", "off"] = Field(default="auto", validation_alias="HARVEST_ENGINE")
    """`off` forbids looking for, starting or installing a Docker engine."""
    runs_dir: Path = Field(default=Path("runs"), validation_alias="HARVEST_RUNS")
    """Where run folders are written."""
    namespace: Annotated[str, AfterValidator(_checked_namespace)] = Field(
        default=DEFAULT_NAMESPACE, validation_alias="HARVEST_NAMESPACE"
    )
    """The label of what is made and the tag of the image: jobs of different namespaces do not see each other's."""
    image: str = Field(default_factory=_default_image, validation_alias="HARVEST_IMAGE")
    """The tag of the snapshot image; by default the namespace is the tag, and `latest` in the default one."""

    live_budget_usd: float = Field(default=5.0, gt=0, validation_alias="HARVEST_LIVE_BUDGET_USD")
    """What a live session may cost at most where it is not told otherwise, in US dollars."""

    def tokens(self) -> dict[str, str]:
        """All secrets that are set, also in the environment, by variable name: what must never be published.

        Values are secrets: hand them on, never print them.
        """
        found: dict[str, str] = {}
        for name in (*TOKEN_VARIABLES, *DESK_VARIABLES):
            secret: SecretStr | None = getattr(self, name.lower())
            if secret is not None and secret.get_secret_value().strip():
                found[name] = secret.get_secret_value().strip()
        return found


def given_tokens(folder: Path | None = None) -> dict[str, str]:
    """The tokens that `.env` and `.env.local` in `folder` give, by variable name.

    Only these are passed into sandboxes by default; what merely lies in the environment is not.
    """
    base = folder or Path.cwd()
    values = {**dotenv_values(base / ".env"), **dotenv_values(base / ".env.local")}
    return {name: value for name in TOKEN_VARIABLES if (value := (values.get(name) or "").strip())}


def load_settings(folder: Path | None = None) -> Settings:
    """Settings as they stand in `folder` (default: the current one).

    Raises:
        SettingsError: a variable holds a value of the wrong kind; the value itself is not shown.
    """
    base = folder or Path.cwd()
    try:
        return Settings(_env_file=(base / ".env", base / ".env.local"))
    except ValidationError as error:
        names = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise SettingsError(
            f"Cannot use the value of {names} (environment, .env or .env.local in {base})",
            hint="; ".join(item["msg"] for item in error.errors()),
        ) from None
