"""A wrong address, key or server is said before anything is begun, soon, and with what to do."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from harvest_nb.errors import SandboxError, SettingsError, TokenError
from harvest_nb.sandbox.daytona import Account, DaytonaProvider, given_account
from harvest_nb.sandbox.daytona.reach import check_reached

SOON = 5.0
ANSWER = "HTTP/1.1 {status} Said\r\ncontent-type: {kind}\r\ncontent-length: 2\r\nlocation: /login\r\n\r\n{{}}"


@contextlib.asynccontextmanager
async def answering(text: str | None, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that says the same to everybody, or nothing at all, and its port."""
    leave = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if text is None:
                await leave.wait()
            else:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(text.encode())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        leave.set()


def at(url: str) -> Account:
    return Account(SecretStr("the-key"), url)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:18999/api", "localhost:3000/api", "dtn_a-key", "https:///api", "http://[::1"]
)
def test_an_address_without_a_scheme_is_no_address(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAYTONA_API_KEY", "the-key")
    monkeypatch.setenv("DAYTONA_API_URL", url)
    with pytest.raises(SettingsError, match="DAYTONA_API_URL") as caught:
        given_account(tmp_path)
    assert "http:// or https://" in caught.value.hint
    assert url not in str(caught.value)  # it may be the key


@pytest.mark.parametrize("user", ["user:a-password", "a-password", ":a-password"])
def test_an_address_with_a_password_is_refused_without_showing_it(user: str) -> None:
    with pytest.raises(SettingsError, match="DAYTONA_API_URL") as caught:
        at(f"http://{user}@127.0.0.1:9/api")
    assert "a-password" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "ключ", "two words", "line\nbreak", "é"])
def test_a_key_that_no_request_can_carry_is_refused(key: str) -> None:
    with pytest.raises(TokenError, match="DAYTONA_API_KEY") as caught:
        Account(SecretStr(key))
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("host", ["xn--a", "a" * 64, "a..b", "\u0378.org"])
async def test_a_host_that_cannot_be_is_said(host: str) -> None:
    with pytest.raises((SettingsError, SandboxError), match=r"DAYTONA_API_URL|connect"):
        await check_reached(at(f"http://{host}/api"))


@given(st.text("htps:/.[]a1@ é", max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with contextlib.suppress(SettingsError):
        assert at(text).api_url.lower().startswith(("http://", "https://"))


@pytest.mark.parametrize(
    ("status", "kind", "error", "said"),
    [
        (401, "application/json", TokenError, "refused the key"),
        (404, "application/json", SandboxError, "404"),
        (200, "text/html", SandboxError, "text/html"),
        (302, "text/html", SandboxError, "302"),
        (403, "text/html", SandboxError, "403"),
    ],
)
async def test_what_is_not_daytona_is_said(status: int, kind: str, error: type[Exception], said: str) -> None:
    async with answering(ANSWER.format(status=status, kind=kind)) as port, asyncio.timeout(SOON):
        with pytest.raises(error, match=said) as caught:
            await DaytonaProvider(at(f"http://127.0.0.1:{port}")).create()
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert "DAYTONA_API_URL" in str(caught.value)
    assert "the-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"), [(200, "application/json"), (403, "application/json"), (502, "text/html")]
)
async def test_what_a_later_call_says_better_passes(status: int, kind: str) -> None:
    async with answering(ANSWER.format(status=status, kind=kind)) as port:
        await check_reached(at(f"http://127.0.0.1:{port}/api"))


async def test_a_server_that_never_answers_is_told_of_soon(caplog: pytest.LogCaptureFixture) -> None:
    async with answering(None) as port:
        listing = asyncio.create_task(DaytonaProvider(at(f"http://127.0.0.1:{port}/api")).list())
        async with asyncio.timeout(SOON):
            while "has not answered" not in caplog.text:
                await asyncio.sleep(0.05)
        assert f"127.0.0.1:{port}" in caplog.text
        assert not listing.done()
        listing.cancel()
        await asyncio.gather(listing, return_exceptions=True)


@pytest.mark.parametrize(
    ("url", "said", "hint"),
    [
        ("http://127.0.0.1:9/api", "Connect", "daytona-local"),
        ("https://no-such-host.invalid/api", "Cannot connect", "name"),
    ],
)
async def test_a_server_that_is_not_there_ends_it_soon(url: str, said: str, hint: str) -> None:
    async with asyncio.timeout(SOON):
        with pytest.raises(SandboxError, match=said) as caught:
            await DaytonaProvider(at(url)).create()
    assert url in caught.value.message
    assert hint in caught.value.hint


async def test_a_certificate_that_nobody_trusts_and_no_certificate_are_told_apart(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*made, *named], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    text = ANSWER.format(status=200, kind="application/json")
    async with answering(text, context) as port, asyncio.timeout(SOON):
        with pytest.raises(SandboxError, match="Cannot connect") as untrusted:
            await check_reached(at(f"https://127.0.0.1:{port}/api"))
    assert "SSL_CERT_FILE" in untrusted.value.hint
