"""Taking a sandbox up that cannot be taken up, against a Daytona of a few lines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from daytona.common.errors import create_daytona_error
from pydantic import SecretStr

from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.daytona import Account, DaytonaProvider

BEFORE = {"harvest.sandbox": "one", "harvest.owner": "elsewhere:7:1"}


class Daytona:
    """One sandbox and its client. The first claim is heard, and then `answer` is what its caller gets."""

    def __init__(self, answer: str, unreachable: bool) -> None:
        self.answer, self.labels, self.toolbox_proxy_url = answer, dict(BEFORE), "http://toolbox"
        self.id, self.state = "remote", SimpleNamespace(value="started")
        self.claimed = asyncio.Event()
        self.open = 0
        self.unreachable = unreachable  # once it is claimed

    def client(self, _account: object) -> Any:
        self.open += 1
        return self

    async def close(self, _client: object) -> None:
        self.open -= 1

    async def get(self, _name: str, request_timeout: float) -> Any:
        if self.unreachable and self.claimed.is_set():
            raise OSError("no route")
        return SimpleNamespace(**{**vars(self), "labels": dict(self.labels), "set_labels": self.set_labels})

    async def list(self, _query: object, request_timeout: float) -> Any:
        if request_timeout < 0:
            yield None

    async def set_labels(self, labels: dict[str, str], request_timeout: float) -> None:
        self.labels = dict(labels)
        if not self.claimed.is_set():
            self.claimed.set()
            if self.answer == "none":
                await asyncio.sleep(600)
            raise create_daytona_error("the answer was lost", status_code=400)


@pytest.mark.parametrize("answer", ["none", "refused"])
@pytest.mark.parametrize("unreachable", [False, True])
async def test_a_claim_without_an_answer_is_given_back(
    answer: str, unreachable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    daytona = Daytona(answer, unreachable)

    async def reached(_account: object) -> None:
        pass

    monkeypatch.setattr("harvest_nb.sandbox.daytona.provider.check_reached", reached)
    for module in ("provider", "holding"):
        monkeypatch.setattr(f"harvest_nb.sandbox.daytona.{module}.new_client", daytona.client)
        monkeypatch.setattr(f"harvest_nb.sandbox.daytona.{module}.close_client", daytona.close)
    getting = asyncio.create_task(DaytonaProvider(Account(SecretStr("key"), "http://127.0.0.1:1")).get("one"))
    await asyncio.wait_for(daytona.claimed.wait(), 10)
    if answer == "none":
        getting.cancel()
    with pytest.raises(asyncio.CancelledError if answer == "none" else SandboxError):
        await getting
    assert (daytona.labels == BEFORE) is not unreachable
    assert daytona.open == 0
