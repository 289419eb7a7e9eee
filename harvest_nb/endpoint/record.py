"""A recording proxy between the CLI and an endpoint: it writes down what was said."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request

from harvest_nb.endpoint.cassette import Exchange, Writer
from harvest_nb.endpoint.conversation import Conversation
from harvest_nb.endpoint.endpoint import Endpoint, Kind
from harvest_nb.endpoint.matching import View, view_of
from harvest_nb.endpoint.places import Places, deep, rewrite
from harvest_nb.endpoint.proxy import Keep, passing_on
from harvest_nb.redact import Redactor

__all__ = ["parse_sse", "recording"]

_KEPT = ("content-type", "retry-after", "retry-after-ms", "x-should-retry", "request-id")


def _exchange(
    number: int,
    c: Conversation,
    view: View,
    answer: httpx.Response,
    chunks: list[tuple[float, bytes]],
    ending: str,
    clean: Callable[[str], str],
) -> Exchange:
    headers = {name: clean(answer.headers[name]) for name in _KEPT if name in answer.headers}
    events: list[tuple[float, Any]] | None = None
    body: Any = None
    if "text/event-stream" in answer.headers.get("content-type", ""):
        timed = parse_sse(chunks)
        datas = rewrite([data for _, data in timed], clean)
        events = [(at, data) for (at, _), data in zip(timed, datas, strict=True)]
    else:
        text = b"".join(data for _, data in chunks).decode("utf-8", "replace")
        try:
            body = deep(json.loads(text), clean)
        except ValueError:
            body = clean(text)
    return Exchange(number, c.body.get("model", "?"), view, answer.status_code, headers, events, body, ending)


def parse_sse(chunks: list[tuple[float, bytes]]) -> list[tuple[float, Any]]:
    """The events of a stream, each with the time of the chunk that completed it; data that is no JSON as text."""
    found: list[tuple[float, Any]] = []
    rest = b""
    for at, chunk in chunks:
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        found += [(at, data) for part in whole for data in _data(part)]
    return found


def _data(part: bytes) -> list[Any]:
    lines = [
        line[5:].lstrip() for line in part.decode("utf-8", "replace").split("\n") if line.startswith("data:")
    ]
    if not lines:
        return []  # a comment, as a ping may be
    text = "\n".join(lines)
    try:
        return [json.loads(text)]
    except ValueError:
        return [text]


@contextlib.asynccontextmanager
async def recording(
    path: Path,
    *,
    upstream: str,
    token: str,
    places: Places,
    files: Mapping[str, str],
    secrets_given: Mapping[str, str],
    kind: Kind,
    port: int = 0,
    behind: Endpoint | None = None,
    budget_usd: float | None = None,
    server_tools: bool = True,
) -> AsyncIterator[Endpoint]:
    """Record what passes between the CLI and `upstream` (a base URL) to the cassette `path`.

    Args:
        token: the bearer token for `upstream`.
        files: what was put into the sandbox for this conversation; read at the end.
        secrets_given: by name; none of their values reaches the file in any form.
        behind: the endpoint at `upstream` if it is ours; its failures are this one's.
        budget_usd, server_tools: see `passing_on`.

    Raises:
        CassetteError: the file cannot be written.
        EndpointError: the port is taken.
    """
    secret = secrets.token_hex(24)
    writer = Writer(path, Redactor({**secrets_given, "UPSTREAM_TOKEN": token, "ENDPOINT_SECRET": secret}))
    failures = behind.failures if behind is not None else []

    # The run goes on, and ends with what could not be recorded as its reason.
    def lost(error: Exception) -> None:
        if isinstance(error, OSError):
            failures.append(f"Cannot write cassette {path}: {error.strerror}")
        else:
            what = writer.clean(f"{type(error).__name__}: {error}")
            failures.append(f"Cannot record an exchange to {path}: {what}")

    def keeper(number: int, request: Request, content: bytes, answer: httpx.Response) -> Keep:
        try:
            c = Conversation(json.loads(content), dict(request.headers))
            here = places.with_values(session=c.session, agent=c.agent_id)

            def clean(text: str) -> str:
                return here.to_marks(writer.clean(text))

            view = view_of(c, clean)
        except Exception as error:  # noqa: BLE001 - a request may hold anything
            lost(error)
            return lambda _chunks, _ending: None

        def keep(chunks: list[tuple[float, bytes]], ending: str) -> None:
            try:
                writer.add(_exchange(number, c, view, answer, chunks, ending, clean))
            except Exception as error:  # noqa: BLE001 - an answer may hold anything
                lost(error)

        return keep

    try:
        passing = passing_on(
            upstream,
            token,
            kind,
            keeper=keeper,
            secret=secret,
            port=port,
            budget_usd=budget_usd,
            server_tools=server_tools,
        )
        async with passing as endpoint:
            endpoint.failures = failures
            endpoint.scenario = behind.scenario if behind is not None else None
            yield endpoint
    finally:
        writer.files = {places.to_marks(name): writer.clean(text) for name, text in files.items()}
        writer.finish()
