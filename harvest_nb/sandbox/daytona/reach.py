"""Asking whether Daytona answers at its address, so that a wrong address or key is said before anything is begun."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from urllib.parse import urlsplit

import httpx

from harvest_nb.errors import SandboxError, SettingsError, TokenError
from harvest_nb.sandbox.daytona.account import DEFAULT_URL, Account

__all__ = ["check_reached"]

_log = logging.getLogger(__name__)
_PAUSES = (0.3, 0.7)  # seconds between attempts: a server that is just restarting refuses for a moment
_SLOW = 1.5  # seconds without an answer after which that is said
_PATIENCE = 30.0  # seconds in all to wait for an answer
_ADDRESS = f"check DAYTONA_API_URL; it ends with /api, as in {DEFAULT_URL}"


async def check_reached(account: Account) -> None:
    """Ask Daytona for one sandbox. What a later call may yet do better (a rate limit, a gateway's error) passes.

    Raises:
        TokenError: the key is refused.
        SettingsError: there can be no host of that name.
        SandboxError: nothing answers there, or something that is not Daytona.
    """
    for pause in (*_PAUSES, None):
        try:
            return _judge(await _answer(account), account)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise SettingsError(
                f"Daytona's address {account.api_url} (DAYTONA_API_URL) is no web address: {error}",
                hint=_ADDRESS,
            ) from error
        except httpx.TransportError as error:
            cause = _cause(error)
            if pause is None or isinstance(cause, (ssl.SSLError, socket.gaierror)):
                raise SandboxError(
                    f"Cannot connect to Daytona at {account.api_url}: {cause or type(error).__name__}",
                    hint=_hint(cause),
                ) from error
            await asyncio.sleep(pause)
    raise AssertionError("the loop returns or raises")


async def _answer(account: Account) -> httpx.Response:
    """Send the question and take the head of the answer; its body is of no interest."""
    # The system's certificates, as the SDK has them.
    context = ssl.create_default_context() if urlsplit(account.api_url).scheme == "https" else False
    headers = {"Authorization": f"Bearer {account.api_key.get_secret_value()}"}
    # Without a proxy of the environment's, as the SDK asks too.
    client_here = httpx.AsyncClient(verify=context, headers=headers, timeout=_PATIENCE, trust_env=False)
    async with client_here as client:
        request = client.build_request("GET", f"{account.api_url}/sandbox", params={"limit": 1})
        asking = asyncio.ensure_future(client.send(request, stream=True))
        try:
            done, _ = await asyncio.wait([asking], timeout=_SLOW)
            if not done:
                _log.warning(
                    "Daytona at %s has not answered for %g s; waiting for up to %g s (DAYTONA_API_URL says where)",
                    account.api_url,
                    _SLOW,
                    _PATIENCE,
                )
                await asyncio.wait([asking], timeout=_PATIENCE - _SLOW)
            if not asking.done():
                raise SandboxError(
                    f"Daytona at {account.api_url} has not answered for {_PATIENCE:g} s",
                    hint="check DAYTONA_API_URL and the network, and see Daytona's status page",
                )
            answer = asking.result()
            await answer.aclose()
            return answer
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


def _judge(answer: httpx.Response, account: Account) -> None:
    status = answer.status_code
    if status == 401:
        raise TokenError(
            f"Daytona at {account.api_url} refused the key",
            hint="check DAYTONA_API_KEY and DAYTONA_API_URL",
        )
    if status == 429 or status >= 500:
        return
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()
    if status == 404 or kind != "application/json":
        what = "404, not found" if status == 404 else f"{status}, with {kind or 'nothing'} instead of JSON"
        raise SandboxError(f"There is no Daytona at {account.api_url}: it answers {what}", hint=_ADDRESS)


def _cause(error: BaseException) -> BaseException | None:
    """Return the system's own error behind one of the client's, None where it has none."""
    found = None
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
        found = error if isinstance(error, OSError) else found
    return found


def _hint(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            "set SSL_CERT_FILE to a file with the certificate of the authority that the server's is signed by"
        )
    if isinstance(cause, ssl.SSLError):
        return "check DAYTONA_API_URL: a server without TLS has an address with http://"
    if isinstance(cause, socket.gaierror):
        return "check the host's name in DAYTONA_API_URL, and this machine's name resolution"
    return "see whether the server in DAYTONA_API_URL runs: `harvest-nb daytona-local` for the stand-in"
