"""The validation contract: `config/contract.toml` read into checks."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from harvest_nb.checks.base import GROUPS, Check
from harvest_nb.checks.browser import BrowserMCPCheck, BrowserNodeCheck
from harvest_nb.checks.config import ManifestCheck, ManifestLabelCheck, ReferencesCheck, SourcesCheck
from harvest_nb.checks.mcp import (
    MCPServerCheck,
    MCPServersCheck,
    MemoryAloneCheck,
    MemoryGraphCheck,
    MissingTokenCheck,
)
from harvest_nb.checks.production import ProductionCallCheck
from harvest_nb.checks.sdk import CLIVersionCheck, RelayCheck, TypeScriptSDKCheck, VersionsCheck
from harvest_nb.checks.secret_files import CredentialFilesCheck, FileSecretsCheck
from harvest_nb.checks.security import (
    AuthoritiesCheck,
    CapabilitiesCheck,
    EnvironmentSecretsCheck,
    NoNewPrivilegesCheck,
    PermissionsCheck,
    UserCheck,
    WritableCheck,
)
from harvest_nb.checks.settings import (
    EnvironmentCheck,
    FileCapabilitiesCheck,
    NameResolutionCheck,
    SearchPathCheck,
    SettingsFilesCheck,
)
from harvest_nb.checks.tools import AbsentCheck, CommandCheck, VersionCheck
from harvest_nb.errors import CheckError
from harvest_nb.paths import config_dir

__all__ = ["Contract", "load_contract"]

AnyCheck = Annotated[
    VersionCheck
    | CommandCheck
    | AbsentCheck
    | UserCheck
    | CapabilitiesCheck
    | NoNewPrivilegesCheck
    | PermissionsCheck
    | WritableCheck
    | AuthoritiesCheck
    | EnvironmentSecretsCheck
    | FileSecretsCheck
    | EnvironmentCheck
    | SearchPathCheck
    | CredentialFilesCheck
    | SettingsFilesCheck
    | FileCapabilitiesCheck
    | NameResolutionCheck
    | CLIVersionCheck
    | TypeScriptSDKCheck
    | VersionsCheck
    | RelayCheck
    | ProductionCallCheck
    | MCPServerCheck
    | MCPServersCheck
    | MemoryAloneCheck
    | MemoryGraphCheck
    | MissingTokenCheck
    | BrowserNodeCheck
    | BrowserMCPCheck
    | ManifestCheck
    | ManifestLabelCheck
    | SourcesCheck
    | ReferencesCheck,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Check] = TypeAdapter(AnyCheck)


@dataclass(frozen=True)
class Contract:
    """All checks in the file's order; at most `concurrency` of them run at once."""

    checks: tuple[Check, ...]
    concurrency: int

    @property
    def user(self) -> UserCheck | None:
        """The check that says who the agent is; None where there is none."""
        return next((check for check in self.checks if isinstance(check, UserCheck)), None)

    @property
    def variables(self) -> dict[str, str] | None:
        """Return the patterns of the variables that an image may set, None without a check of the environment."""
        found = [check.known for check in self.checks if isinstance(check, EnvironmentCheck)]
        return {name: value for known in found for name, value in known.items()} if found else None

    def only(self, groups: Iterable[str] | None) -> Contract:
        """The checks of `groups` (None: all).

        Raises:
            CheckError: no such group, or no check in any of them.
        """
        if groups is None:
            return self
        wanted = (groups,) if isinstance(groups, str) else tuple(groups)
        unknown = sorted(set(wanted) - set(GROUPS))
        if unknown:
            raise CheckError(f"Unknown group {', '.join(unknown)}", hint=f"known: {', '.join(GROUPS)}")
        chosen = tuple(check for check in self.checks if check.group in wanted)
        if not chosen:
            raise CheckError(
                f"The contract has no check in {', '.join(wanted) or 'an empty choice of groups'}"
            )
        return Contract(chosen, self.concurrency)


def load_contract(path: Path | None = None) -> Contract:
    """The contract in `path` (default: `config/contract.toml`).

    Raises:
        CheckError: the file cannot be read, or an entry is malformed; the entry and its field are named.
    """
    source = path or config_dir() / "contract.toml"
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckError(f"Cannot read the contract {source}: {error}") from error
    unknown = sorted(set(raw) - {"version", "concurrency", "check"})
    if unknown:
        raise CheckError(
            f"{source}: unknown key {', '.join(unknown)}", hint="known: version, concurrency, check"
        )
    if raw.get("version") != 1:
        raise CheckError(f"{source}: version {raw.get('version')!r} is not known", hint="version = 1")
    concurrency = raw.get("concurrency", 4)
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or not 1 <= concurrency <= 64:
        raise CheckError(f"{source}: concurrency {concurrency!r} is no whole number from 1 to 64")
    entries = raw.get("check")
    if not isinstance(entries, list) or not entries:
        raise CheckError(
            f"{source}: no [[check]] entries", hint="a contract that asks for nothing is no contract"
        )
    checks = tuple(
        check for number, entry in enumerate(entries, 1) for check in _read(source, number, entry).expand()
    )
    _connected(source, checks)
    return Contract(checks, concurrency)


def _read(source: Path, number: int, entry: Any) -> Check:
    name = entry.get("name", "without a name") if isinstance(entry, dict) else "not a table"
    try:
        return _ADAPTER.validate_python(entry)
    except ValidationError as error:
        # The first part of a location is the kind, which the entry shows itself.
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'][1:])) or 'kind'}: {item['msg']}" for item in error.errors()
        )
        raise CheckError(
            f"{source}: check {number} ({name}) is malformed: {problems}",
            hint="correct this entry",
            entry=name,
        ) from None


def _connected(source: Path, checks: tuple[Check, ...]) -> None:
    """Names are unique, and `after` names checks that stand before: so there is no circle."""
    known: set[str] = set()
    for check in checks:
        if check.name in known:
            raise CheckError(f"{source}: two checks are named {check.name}", entry=check.name)
        for other in check.after:
            if other not in known:
                raise CheckError(
                    f"{source}: check {check.name} comes after {other!r}, which does not stand before it",
                    hint="name a check that stands before it in the file",
                    entry=check.name,
                )
        known.add(check.name)
