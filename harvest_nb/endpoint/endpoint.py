"""A running endpoint, as the rest of the package sees it: where it is, what it answered, what went wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harvest_nb.settings import ENDPOINT_TOKEN

__all__ = ["Endpoint", "Event", "Kind", "Usage"]

Usage = Callable[[str, Mapping[str, Any], bool], None]
"""Takes the model that answered, its usage and whether that is final.

The usage has the names of `COUNTS` and `WORDS` of `harvest_nb.endpoint.metering`.
"""
Kind = Literal["scripted", "cassette", "anthropic", "gateway"]
"""Who it is: a script or a recording on loopback, Anthropic, or another server that speaks its API."""


_LOGGED = 10_000  # events
_PATH = 200  # characters


@dataclass(frozen=True)
class Event:
    """One request: when it came (seconds since the epoch), what it was, and how it was answered."""

    time: float
    method: str
    path: str
    status: int | None
    """None when nothing was answered, as when the endpoint hangs."""
    note: str


@dataclass
class Endpoint:
    """Who answers the Messages API.

    `failures` holds what departed from the script or the cassette, in the words of the run's reason; `requests`
    counts what was asked under this endpoint's credential.
    """

    port: int
    """On this machine's 127.0.0.1."""
    secret: str = field(repr=False)
    """What the CLI must send as its bearer token."""
    failures: list[str] = field(default_factory=list)
    requests: int = 0
    kind: Kind = "scripted"
    model: str | None = None
    """The model that a cassette's answers came from."""
    log: list[Event] = field(default_factory=list, repr=False)
    scenario: str | None = None
    """What the scripted model says, by name."""
    on_usage: Usage = field(default=lambda _model, _counts, _final: None, repr=False)
    """Called with each answer that passes a proxy."""
    on_problem: Callable[[str], None] = field(default=lambda _text: None, repr=False)
    """Called with what went wrong beside the answers that the CLI gets."""
    url: str | None = None
    """The base URL of an endpoint elsewhere."""
    latest: int | None = None
    """The HTTP status of its latest answer to the prompt, as a proxy passed it on."""
    inside: int | None = None
    """The port of the sandbox's 127.0.0.1 at which the CLI asks."""

    @property
    def variable(self) -> str:
        """The variable that holds what it is sent as a credential."""
        return ENDPOINT_TOKEN if self.kind == "gateway" else "CLAUDE_CODE_OAUTH_TOKEN"

    def named(self, text: str) -> str:
        """Return `text` with this endpoint's URL in place of the address in the sandbox, which nobody else knows."""
        if self.inside is None:
            return text
        name = self.url or f"the {self.kind} endpoint"
        return re.sub(rf"(http://)?(127\.0\.0\.1|localhost):{self.inside}\b", lambda _: name, text)

    def with_latest(self, reason: str) -> str:
        """Return why a request failed, with the URL and the latest status of an endpoint elsewhere that answered."""
        if self.url is None or self.latest is None or self.url in reason:
            return reason
        return f"{reason} (the latest answer of {self.url} had the HTTP status {self.latest})"

    def note(self, method: str, path: str, status: int | None, note: str = "") -> None:
        """Add to the log, which a sandbox that asks for ever does not fill without end."""
        if len(self.log) < _LOGGED:
            self.log.append(Event(time.time(), method, path[:_PATH], status, note))

    @property
    def statuses(self) -> Sequence[int | None]:
        """The statuses answered to message requests so far, in order."""
        return [event.status for event in self.log if event.path == "/v1/messages"]
