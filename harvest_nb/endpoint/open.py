"""`open_endpoint`: the endpoint that a run asks for by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

import httpx

from harvest_nb.endpoint.cassette import load_cassette
from harvest_nb.endpoint.endpoint import Endpoint, Kind
from harvest_nb.endpoint.library import find_scenario, load_scenario
from harvest_nb.endpoint.places import Places
from harvest_nb.endpoint.player import Player, Scenario, refused_file, rules_for
from harvest_nb.endpoint.proxy import passing_on
from harvest_nb.endpoint.record import recording
from harvest_nb.endpoint.replay import playing
from harvest_nb.endpoint.scripted import scripted
from harvest_nb.endpoint.tour import tour
from harvest_nb.errors import CassetteError, EndpointError
from harvest_nb.machine.loopback import is_loopback
from harvest_nb.sandbox.base import Sandbox

__all__ = ["check_listening", "check_spec", "open_endpoint", "recorded_model"]

ANTHROPIC = "https://api.anthropic.com"
_SUFFIX = ".cassette"
_CONNECT_SECONDS = 5.0


def check_spec(spec: str | Path) -> Kind:
    """The kind of endpoint that `spec` means: `"scripted"`, `"anthropic"`, `"cassette"` or `"gateway"`.

    Raises:
        EndpointError: it means none.
    """
    if spec == "scripted" or spec == "anthropic":
        return cast(Kind, spec)
    if str(spec).endswith(_SUFFIX):
        return "cassette"
    if str(spec).startswith(("http://", "https://")):
        _check_gateway(str(spec))
        return "gateway"
    raise EndpointError(
        f"Unknown endpoint {str(spec)!r}",
        hint=f'use "scripted", "anthropic", a path that ends in {_SUFFIX}, or the base URL of a gateway',
    )


def _check_gateway(spec: str) -> None:
    try:
        url = httpx.URL(spec)
    except httpx.InvalidURL as error:
        raise EndpointError(
            f"The gateway's URL cannot be read: {error}", hint="as http://localhost:4000"
        ) from None
    # What is asked has a query of its own, so that one given here would not reach the gateway.
    if "?" in spec or "#" in spec:
        raise EndpointError(
            "A gateway's URL has no query and no fragment", hint="set HARVEST_ENDPOINT_TOKEN for a credential"
        )
    if url.userinfo or not url.host:
        # Not shown: what is no host may be a password.
        raise EndpointError(
            "A gateway's URL needs a host, and holds no credential", hint="set HARVEST_ENDPOINT_TOKEN instead"
        )


async def check_listening(spec: str | Path) -> None:
    """Connect to an endpoint elsewhere and leave again, unless the way there is a proxy of the environment's.

    Raises:
        EndpointError: nothing listens there.
    """
    kind = check_spec(spec)
    if kind not in ("anthropic", "gateway"):
        return
    base = ANTHROPIC if kind == "anthropic" else str(spec)
    url = httpx.URL(base)
    proxies = urllib.request.getproxies()
    proxied = (url.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(url.host)
    if proxied and not is_loopback(url.host):
        return
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            # Both kinds of address at a time: one of them may lead nowhere.
            _, writer = await asyncio.open_connection(url.host, port, happy_eyeballs_delay=0.25)
    except UnicodeError as error:
        raise EndpointError(f"{base} names no host: {error}", hint="give another base URL") from error
    except OSError as error:
        if isinstance(error, TimeoutError):
            why = f"no connection within {_CONNECT_SECONDS:g} s"
        elif isinstance(error, socket.gaierror) or not error.errno:
            why = error.strerror or str(error)
        else:
            why = os.strerror(error.errno)  # asyncio's own text names an address instead of the reason
        hint = "start the gateway, or give another base URL" if kind == "gateway" else "look at the network"
        raise EndpointError(f"Nothing answers at {base}: {why}", hint=hint) from error
    writer.close()


def recorded_model(spec: str | Path) -> str | None:
    """The model that a cassette's first answer came from; None for what is no cassette.

    Raises:
        EndpointError: the spec is unknown.
        CassetteError: the cassette cannot be read.
    """
    if check_spec(spec) != "cassette":
        return None
    return next(iter(load_cassette(Path(spec)).models), None)


@contextlib.asynccontextmanager
async def open_endpoint(
    spec: str | Path,
    *,
    scenario: str | Path | Scenario | None = None,
    sandbox: Sandbox,
    prompt: str,
    port: int = 0,
    record: Path | None = None,
    upstream_token: str | None = None,
    tokens: Mapping[str, str] | None = None,
    pace: float = 0.0,
    budget_usd: float | None = None,
    server_tools: bool = True,
) -> AsyncIterator[Endpoint]:
    """What answers the CLI in `sandbox`, for as long as the block lasts.

    Args:
        spec: `"scripted"`, `"anthropic"`, the path of a cassette, or the base URL of a gateway that speaks the
            Messages API; what is asked of the last two is passed on from here, so the sandbox needs no network.
        scenario: what a scripted model says: a shipped scenario's name, a scenario file's path, or a callable
            that makes a `Script`; by default the tour.
        prompt: the first prompt; a callable scenario is made for it.
        port: on the desk's loopback; 0 takes a free one.
        record: write a cassette there, through a recording proxy before the endpoint that `spec` means.
        upstream_token: what is sent to Anthropic, or to the gateway, as the bearer token.
        tokens: by name; never written to the cassette, in any form.
        pace: how a cassette is played: 0 at once, 1 as slowly as it was recorded.
        budget_usd: once more than that has been spent at an endpoint elsewhere, nothing is passed on any more.
        server_tools: whether the sandbox may have an endpoint elsewhere reach other places of the internet.

    Raises:
        EndpointError: the spec is unknown, or the port is taken.
        ScenarioError: the scenario cannot be read.
        CassetteError: the cassette cannot be read or written.
    """
    kind = check_spec(spec)
    given = dict(tokens or {}) | ({"UPSTREAM": upstream_token} if upstream_token else {})
    places = Places.of(sandbox)
    noting = _Noting(sandbox)
    async with contextlib.AsyncExitStack() as stack:
        behind: Endpoint | None = None
        if kind == "cassette":
            behind, files = await stack.enter_async_context(
                playing(Path(spec), places=places, secrets_given=given, port=0 if record else port, pace=pace)
            )
            for name, text in files.items():
                with refused_file(CassetteError, f"Cassette {spec}", name):
                    data = text.encode("utf-8", "surrogateescape")
                    await noting.write(name, data, within=sandbox.workspace)
        elif kind == "scripted":
            # The wrapper is a sandbox in all but its declared type.
            player = await _player(scenario, cast(Sandbox, noting), prompt)
            behind = await stack.enter_async_context(scripted(player, port=0 if record else port))
        if record is None and behind is not None:
            yield behind
            return
        if behind is not None:
            upstream, token = f"http://127.0.0.1:{behind.port}", behind.secret
        else:
            upstream, token = ANTHROPIC if kind == "anthropic" else str(spec), upstream_token or ""
        if record is None:
            yield await stack.enter_async_context(
                passing_on(upstream, token, kind, port=port, budget_usd=budget_usd, server_tools=server_tools)
            )
            return
        proxy = recording(
            record,
            upstream=upstream,
            token=token,
            places=places,
            files=noting.written,
            secrets_given=given,
            kind=kind,
            port=port,
            behind=behind,
            budget_usd=None if behind is not None else budget_usd,
            server_tools=server_tools,
        )
        yield await stack.enter_async_context(proxy)


class _Noting:
    """A sandbox that remembers what a scenario writes to it, so that a cassette can bring the same files."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.written: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)

    async def write(
        self, path: str | PurePosixPath, data: bytes, *, within: PurePosixPath | None = None
    ) -> None:
        """See `Sandbox.write`."""
        self.written[str(path)] = data.decode("utf-8", "surrogateescape")
        await self._sandbox.write(path, data, within=within)


async def _player(scenario: str | Path | Scenario | None, sandbox: Sandbox, prompt: str) -> Player:
    if scenario is None:
        return await tour(sandbox, prompt)
    if callable(scenario):
        return await scenario(sandbox, prompt)
    nonce = f"nonce-{secrets.token_hex(12)}"
    return await rules_for(find_scenario(scenario).stem, load_scenario(scenario), sandbox, nonce)
