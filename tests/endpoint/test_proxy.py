"""The proxy at the level of HTTP: what an endpoint elsewhere says in an odd shape, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from harvest_nb.endpoint import Endpoint
from harvest_nb.endpoint.proxy import Keeper, passing_on
from tests.endpoint.conftest import body, post, said, user
from tests.endpoint.test_gateway import Answer, foreign, head, hello

CANARY = "canary-" + "3f9a" * 4


def answering(*parts: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        writer.write(b"".join(parts))

    return answer


@contextlib.asynccontextmanager
async def before(
    answer: Answer, *, token: str = "", **more: Any
) -> AsyncIterator[tuple[Endpoint, list[str]]]:
    """The proxy before a gateway that answers so, and the authorization of each request there."""
    async with foreign(answer) as (url, seen), passing_on(url, token, "gateway", **more) as endpoint:
        yield endpoint, seen


@pytest.mark.parametrize("token", [f"{CANARY}\n", f"{CANARY}\r\nx-more: 1", f"\0{CANARY}"])
async def test_a_credential_that_is_no_header_is_not_told(token: str) -> None:
    async with before(answering(head("200 OK")), token=token) as (endpoint, seen):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert response.json()["error"]["message"] == "the endpoint's credential is no valid header"
    assert seen == []
    assert CANARY not in response.text + str(endpoint.log)


async def test_a_header_line_that_is_none_is_not_told() -> None:
    """What a gateway sends back may hold what it was sent."""
    answer = answering(b"HTTP/1.1 200 OK\r\nauthorization Bearer ", CANARY.encode(), b"\r\n\r\n")
    async with before(answer, token=CANARY) as (endpoint, _):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert "cannot be reached: illegal header line" in response.json()["error"]["message"]
    assert CANARY not in response.text + str(endpoint.log)
