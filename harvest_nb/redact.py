"""Secrets never leave: known values are replaced by the name of their variable, wherever text is written.

Shapes of well-known credentials are caught too, so that a token nobody declared is not published either.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from urllib.parse import quote

__all__ = ["SECRET_NAME", "SECRET_SHAPES", "Redactor", "all_secrets", "find_secret_shapes"]

SECRET_NAME = re.compile(
    r"^(?!SSH_AUTH_SOCK$|GPG_KEY$)"  # a socket's path, and a fingerprint that is published
    r"(?:.*(?:TOKEN|SECRET|PASSWORD|PASSWD|APIKEY)|(?:.*_)?(?:CREDENTIALS?|ACCESS_KEY|AUTH|PAT)|.*_KEY)(?:_.*)?$",
    re.IGNORECASE,
)
"""What a variable that holds a secret is called."""
# Published prefixes of credentials; the lengths keep prose such as "sk-ant-..." out.
SECRET_SHAPES: Mapping[str, re.Pattern[str]] = {
    "Anthropic": re.compile(r"sk-ant-[A-Za-z0-9_-]{16,}"),
    "GitHub": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})"),
    "Linear": re.compile(r"\blin_api_[A-Za-z0-9]{20,}"),
    "Google": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "Sentry": re.compile(r"\bsntry[us]_[A-Za-z0-9_=+/-]{20,}"),
    "Daytona": re.compile(r"\bdtn_[A-Za-z0-9]{40,}"),
    "AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}

_SHORTEST = 6  # shorter values would redact ordinary words
_NESTED = 3  # a file of JSON, in a tool's input that streams as JSON, in a line of JSON


class Redactor:
    """Replaces secret values in text, also in their JSON-escaped, URL-encoded and base64 forms.

    Args:
        secrets: variable name to value. White space around one does not count, as whoever uses it may leave that
            out; empty values and values under six characters are ignored.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._secrets = dict(secrets or {})
        forms: dict[str, str] = {}
        for name, value in self._secrets.items():
            if len(value.strip()) >= _SHORTEST:
                for form in _forms(value.strip()):
                    forms.setdefault(form, f"[redacted:{name}]")
        self._forms = dict(sorted(forms.items(), key=lambda item: -len(item[0])))
        self._pattern = re.compile("|".join(re.escape(f) for f in self._forms)) if self._forms else None

    def knowing(self, more: Mapping[str, str]) -> Redactor:
        """A redactor of these secrets and `more`."""
        return Redactor({**self._secrets, **more})

    @property
    def forms(self) -> Mapping[str, str]:
        """Every form in which a value is known, and what replaces it; values are secrets."""
        return self._forms

    def text(self, value: str) -> str:
        """`value` with every known secret replaced by `[redacted:NAME]`."""
        if self._pattern is None:
            return value
        return self._pattern.sub(lambda match: self._forms[match.group()], value)

    def found(self, value: str) -> list[str]:
        """Names of the secrets that occur in `value`, in any form."""
        if self._pattern is None:
            return []
        return sorted(
            {
                self._forms[m.group()].removeprefix("[redacted:").removesuffix("]")
                for m in self._pattern.finditer(value)
            }
        )


def all_secrets(*known: Mapping[str, str]) -> dict[str, str]:
    """The secrets of all of `known`; a name that stands for two values is told apart, so that neither is forgotten."""
    found: dict[str, str] = {}
    for secrets in known:
        for name, value in secrets.items():
            while found.setdefault(name, value) != value:
                name += " (another)"
    return found


def _forms(value: str) -> set[str]:
    raw = value.encode()
    forms = {value, quote(value, safe="")}
    for ascii_only in (True, False):
        escaped = value
        for _ in range(_NESTED):
            escaped = json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]
            forms.add(escaped)
    # Inside a longer base64 text the value may start at any of three byte offsets; the outermost
    # characters depend on the neighbours, so only the stable middle is looked for.
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + raw).decode().rstrip("=")
        middle = encoded[-(-lead * 8 // 6) : len(encoded) - (1 if (lead + len(raw)) % 3 else 0)]
        if len(middle) >= _SHORTEST:
            forms |= {middle, middle.replace("+", "-").replace("/", "_")}
    return forms


def find_secret_shapes(text: str) -> list[str]:
    """Kinds of credentials (`"GitHub"`, `"Anthropic"` …) whose published shape occurs in `text`."""
    return [kind for kind, shape in SECRET_SHAPES.items() if shape.search(text)]
