"""A scripted model behind a real Messages API on loopback: everything but the model is real.

Each answer first checks what the agent sent (the results of the tools that the answer before asked for), so that
a tool that did not really run ends the run with an error. Which answer is due is read from the conversation
itself, so retries, resumed sessions and many sessions at once need no state; only faults that end after some
times are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harvest_nb.endpoint.conversation import Conversation
from harvest_nb.endpoint.endpoint import Endpoint
from harvest_nb.endpoint.faults import Fault, faulty
from harvest_nb.endpoint.messages import Block, Reply, Text, Usage, error_body, events, whole
from harvest_nb.endpoint.player import Answer, Player, Script, Step
from harvest_nb.endpoint.server import body_of, no_body, serve
from harvest_nb.endpoint.streaming import Streamed, sse
from harvest_nb.errors import ScenarioError

__all__ = ["Conversation", "Endpoint", "Script", "Step", "scripted"]

_CHARACTERS_A_TOKEN = 3.6  # of English text and code, measured on recorded sessions
_USAGE = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_input_tokens",
    "cache_write_5m": "cache_creation_5m",
    "cache_write_1h": "cache_creation_1h",
}


class _Application:
    def __init__(self, player: Player, secret: str) -> None:
        self.player = player
        self.endpoint = Endpoint(0, secret, scenario=player.name)
        self._cached = 0
        self._met: Counter[tuple[object, ...]] = Counter()

    def routes(self) -> list[Route]:
        return [
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
        ]

    async def messages(self, request: Request) -> Response:
        note = partial(self.endpoint.note, "POST", "/v1/messages")
        if not is_bearer(request, self.endpoint.secret):
            note(401, "not this run's credential")
            return JSONResponse(error_body("authentication_error", "not this run's credential"), 401)
        try:
            _, body = await body_of(request)
            conversation = Conversation(body, request.headers)
        except (ValueError, ClientDisconnect) as error:
            return no_body(self.endpoint, "/v1/messages", error)
        self.endpoint.requests += 1
        try:
            answer = self._answer(conversation)
        except ScenarioError as error:
            self.endpoint.failures.append(error.message)
            note(400, error.message)
            complaint = f"scripted endpoint, {error.message}"
            return JSONResponse(error_body("invalid_request_error", complaint), 400)
        fault, times = self._fault(conversation, answer)
        reply = Reply(
            tuple(answer.blocks), self._usage(body, answer), body["model"], answer.stop, answer.piece
        )
        if fault is not None:
            status = {"status": fault.status, "hang": 200 if fault.after else None}.get(fault.kind, 200)
            note(status, f"{answer.name}: fault {fault}, {times}")
            await asyncio.sleep(answer.delay)
            return faulty(fault, reply, stream=bool(body.get("stream")))
        note(200, answer.name)
        if not body.get("stream"):
            await asyncio.sleep(answer.delay)
            return JSONResponse(whole(json.loads(item["data"]) for item in events(reply)))
        return Streamed(
            sse(events(reply), answer.pace),
            start_delay=answer.delay,
            on_close=lambda done: None if done else note(200, f"{answer.name}: the client closed it"),
        )

    def _answer(self, c: Conversation) -> Answer:
        if c.agent == "compact":
            return Answer("compaction", [Text(c.summary)])
        if c.agent == "side":  # a request of the CLI's own, such as a title, unless the player wants it
            with contextlib.suppress(ScenarioError):
                if not isinstance(self.player, Script):
                    return self.player.answer(c)
            return Answer("side request", [Text("Harvest")])
        return self.player.answer(c)

    def _fault(self, c: Conversation, answer: Answer) -> tuple[Fault | None, str]:
        """The fault that this request meets now, and which time it is."""
        if answer.fault is None:
            return None, ""
        key = (answer.name, c.session, c.agent_id, len(c.messages))
        self._met[key] += 1
        if answer.fault.times is None:
            return answer.fault, f"time {self._met[key]}"
        if self._met[key] > answer.fault.times:
            return None, ""
        return answer.fault, f"time {self._met[key]} of {answer.fault.times}"

    def _usage(self, body: Mapping[str, Any], answer: Answer) -> Usage:
        """Figures as a caching endpoint would report them: what an earlier request sent is read from the cache."""
        prompt = int(
            len(json.dumps([body.get("system"), body.get("tools"), body["messages"]])) / _CHARACTERS_A_TOKEN
        )
        output = _length(answer.blocks)
        fresh = min(prompt, 4)
        read = min(self._cached, prompt - fresh)
        self._cached = max(self._cached, prompt - fresh)
        written = prompt - fresh - read
        hour = '"ttl": "1h"' in json.dumps(body.get("system"))
        counted = Usage(
            input_tokens=fresh,
            output_tokens=max(1, int(output / _CHARACTERS_A_TOKEN)),
            cache_read_input_tokens=read,
            cache_creation_5m=0 if hour else written,
            cache_creation_1h=written if hour else 0,
        )
        return dataclasses.replace(counted, **{_USAGE[name]: value for name, value in answer.usage.items()})

    async def count_tokens(self, request: Request) -> Response:
        try:
            content, _ = await body_of(request)
        except (ValueError, ClientDisconnect) as error:
            return no_body(self.endpoint, "/v1/messages/count_tokens", error)
        self.endpoint.note("POST", "/v1/messages/count_tokens", 200)
        return JSONResponse({"input_tokens": int(len(content) / _CHARACTERS_A_TOKEN)})


def _length(blocks: Sequence[Block]) -> int:
    return sum(len(json.dumps(vars(block), default=str)) for block in blocks)


def is_bearer(request: Request, secret: str) -> bool:
    """Whether the request carries `secret` as its bearer token or API key."""
    given = request.headers.get("authorization", "")
    key = request.headers.get("x-api-key", "")
    return secrets.compare_digest(given, f"Bearer {secret}") or secrets.compare_digest(key, secret)


@contextlib.asynccontextmanager
async def scripted(player: Player, *, port: int = 0) -> AsyncIterator[Endpoint]:
    """Serve what `player` (a `Script`, say) answers on loopback, under a secret of its own.

    Raises:
        EndpointError: the port is taken.
    """
    application = _Application(player, secrets.token_hex(24))
    async with serve(Starlette(routes=application.routes()), port=port) as bound:
        application.endpoint.port = bound
        yield application.endpoint
