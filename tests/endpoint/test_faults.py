"""Each fault, as a client sees it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from harvest_nb.endpoint import Endpoint, open_endpoint
from harvest_nb.sandbox.base import Sandbox
from tests.endpoint.conftest import FolderSandbox, body, post, said, sent, user


def opened(tmp_path: Path, fault: str) -> Any:
    path = tmp_path / "fault.yaml"
    path.write_text(f"about: a fault\nrules: [{{text: hello, fault: {fault}}}]\n")
    sandbox = cast(Sandbox, FolderSandbox(tmp_path))
    return open_endpoint("scripted", scenario=path, sandbox=sandbox, prompt="go")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
async def test_a_status_has_the_apis_own_body(status: int, kind: str, tmp_path: Path) -> None:
    async with opened(tmp_path, f"{{kind: status, status: {status}}}") as endpoint:
        response = await post(endpoint, body(user("go")))
    assert response.status_code == status
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == kind
    assert "retry-after" not in response.headers
    assert endpoint.failures == []  # it is what was asked for


async def test_a_fault_that_ends_is_counted_for_each_request_and_session(tmp_path: Path) -> None:
    fault = "{kind: status, status: 429, retry_after: 1.5, should_retry: true, times: 2}"
    async with opened(tmp_path, fault) as endpoint:
        answers = [await post(endpoint, body(user("go")), x_claude_code_session_id="a") for _ in range(3)]
        other = await post(endpoint, body(user("go")), x_claude_code_session_id="b")
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "1.5"
    assert answers[0].headers["x-should-retry"] == "true"
    assert said(answers[2]) == "hello"
    assert other.status_code == 429
    assert endpoint.statuses == [429, 429, 200, 429]
    assert "time 2 of 2" in endpoint.log[1].note


@pytest.mark.parametrize("after", [0, 2])
async def test_a_hang_stays_until_the_client_goes(after: int, tmp_path: Path) -> None:
    async with opened(tmp_path, f"{{kind: hang, after: {after}}}") as endpoint:
        url = f"http://127.0.0.1:{endpoint.port}/v1/messages"
        headers = {"authorization": f"Bearer {endpoint.secret}"}
        got = [b""]

        async def read() -> None:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=0.7) as client,
                client.stream("POST", url, json=body(user("go")), headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    got[0] += chunk

        with pytest.raises(httpx.ReadTimeout):
            await read()
        assert got[0].count(b"event: ") == after


async def test_a_cut_ends_in_mid_body_without_a_word_on_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with opened(tmp_path, "{kind: cut, after: 3}") as endpoint:
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                await post(endpoint, body(user("go")))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_malformed_stream_ends_with_what_is_no_json(tmp_path: Path) -> None:
    async with opened(tmp_path, "{kind: malformed, after: 2}") as endpoint:
        text = (await post(endpoint, body(user("go")))).text
    assert text.endswith('data: {"type": "conte\n\n')
    assert "message_stop" not in text


async def test_an_error_event_comes_within_the_stream(tmp_path: Path) -> None:
    async with opened(tmp_path, "{kind: error_event, after: 2}") as endpoint:
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 200
    assert sent(response)[-1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"},
    }


async def test_empty_and_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, "{kind: empty}") as endpoint:
        kinds = [event["type"] for event in sent(await post(endpoint, body(user("go"))))]
        whole = (await post(endpoint, body(user("go"), stream=False))).json()
    assert kinds == ["message_start", "message_delta", "message_stop"]
    assert whole["content"] == []
    async with opened(tmp_path, "{kind: nothing}") as endpoint:
        response = await post(endpoint, body(user("go")))
    assert (response.status_code, response.content) == (200, b"")


async def test_a_request_for_a_whole_answer_meets_the_same_fault(tmp_path: Path) -> None:
    async with opened(tmp_path, "{kind: error_event, after: 2}") as endpoint:
        assert (await post(endpoint, body(user("go"), stream=False))).status_code == 529
    async with opened(tmp_path, "{kind: malformed, after: 2}") as endpoint:
        with pytest.raises(ValueError, match="Unterminated"):
            (await post(endpoint, body(user("go"), stream=False))).json()
    async with opened(tmp_path, "{kind: cut, after: 2}") as endpoint:
        with pytest.raises(httpx.RemoteProtocolError):
            await post(endpoint, body(user("go"), stream=False))


async def test_a_client_that_goes_in_mid_stream_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "slow.yaml"
    path.write_text("about: slow\nrules: [{text: a long answer that comes slowly, pace: 0.2, piece: 2}]\n")

    async def leave(endpoint: Endpoint) -> None:
        url = f"http://127.0.0.1:{endpoint.port}/v1/messages"
        headers = {"authorization": f"Bearer {endpoint.secret}"}
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("POST", url, json=body(user("go")), headers=headers) as response,
        ):
            async for _ in response.aiter_raw():
                return

    sandbox = cast(Sandbox, FolderSandbox(tmp_path))
    async with open_endpoint("scripted", scenario=path, sandbox=sandbox, prompt="go") as endpoint:
        await leave(endpoint)
        for _ in range(50):
            if len(endpoint.log) == 2:
                break
            await asyncio.sleep(0.02)
    assert "the client closed it" in endpoint.log[1].note
