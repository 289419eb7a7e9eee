"""Recording and playing at the level of HTTP: the file, its secrets, and who gets which answer."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harvest_nb.endpoint import Endpoint, open_endpoint
from harvest_nb.endpoint.cassette import Exchange, Writer, load_cassette
from harvest_nb.endpoint.matching import Line, View
from harvest_nb.endpoint.messages import Reply, Text, ToolUse, Usage, events
from harvest_nb.endpoint.places import Places
from harvest_nb.endpoint.record import recording
from harvest_nb.endpoint.server import serve
from harvest_nb.endpoint.streaming import Streamed, sse
from harvest_nb.errors import CassetteError
from harvest_nb.redact import Redactor
from harvest_nb.sandbox.base import Sandbox
from tests.endpoint.conftest import (
    FolderSandbox,
    asked_for,
    assistant,
    body,
    call,
    leave_in_mid_request,
    post,
    result,
    said,
    sent,
    user,
)

SCENARIO = """
about: two steps
files: {"{workspace}/note.txt": "{nonce}"}
rules:
  - when: {agent: sub}
    text: "from a sub-agent: {prompt}"
  - steps:
      - text: I read it.
        tools: [{Read: {file_path: "{workspace}/note.txt"}}]
        fault: {kind: status, status: 529, retry_after: 0, times: 1}
      - text: "It is {nonce}."
"""
ASKED = assistant("I read it.", call("t", "Read", file_path="WORKSPACE/note.txt"))


def conversation(sandbox: FolderSandbox) -> list[dict[str, Any]]:
    asked = json.loads(json.dumps(ASKED).replace("WORKSPACE", str(sandbox.workspace)))
    return [body(user("read")), body(user("read"), asked, user(result("t", "whatever")))]


def place(tmp_path: Path, name: str) -> FolderSandbox:
    return FolderSandbox(tmp_path / name)


@contextlib.asynccontextmanager
async def opened(spec: str | Path, sandbox: FolderSandbox, **more: Any) -> AsyncIterator[Endpoint]:
    async with open_endpoint(spec, sandbox=cast(Sandbox, sandbox), prompt="read", **more) as endpoint:
        yield endpoint


@pytest.fixture
async def cassette(tmp_path: Path) -> Path:
    """The two-step scenario, recorded: a fault, a retry, a second step, two sub-agents."""
    scenario, path = tmp_path / "two.yaml", tmp_path / "two.cassette"
    scenario.write_text(SCENARIO)
    here = place(tmp_path, "recorded")
    first, second = conversation(here)
    async with opened("scripted", here, scenario=scenario, record=path) as endpoint:
        assert endpoint.kind == "scripted"
        assert (await post(endpoint, first)).status_code == 529
        assert (await post(endpoint, first)).status_code == 200
        assert "It is nonce-" in said(await post(endpoint, second))
        for number in (1, 2):
            await post(endpoint, body(user(f"part {number}")), x_claude_code_agent_id=f"a{number}")
        assert endpoint.statuses == [529, 200, 200, 200, 200]
        assert not path.exists()  # only a finished recording takes the name
    assert not path.with_name("two.cassette.part").exists()
    return path


async def test_the_header_says_what_it_is(cassette: Path) -> None:
    header = json.loads(cassette.read_text().splitlines()[0])
    assert header["format"] == "harvest-nb cassette"
    assert header["version"] == 2
    assert header["models"] == ["claude-sonnet-4-5"]
    assert header["exchanges"] == 5
    assert list(header["files"]) == ["{harvest:workspace}/note.txt"]


async def test_it_answers_elsewhere_as_it_was_answered(cassette: Path, tmp_path: Path) -> None:
    there = place(tmp_path, "elsewhere")
    first, second = conversation(there)
    async with opened(cassette, there) as endpoint:
        assert (endpoint.kind, endpoint.model) == ("cassette", "claude-sonnet-4-5")
        # Whoever asks first: sub-agents and the main agent are told apart by what they say.
        part = body(user("part 2"))
        assert said(await post(endpoint, part, x_claude_code_agent_id="z")) == "from a sub-agent: part 2"
        refused = await post(endpoint, first)
        assert (refused.status_code, refused.headers["retry-after"]) == (529, "0")
        assert refused.json()["error"]["type"] == "overloaded_error"
        again = await post(endpoint, first)
        assert said(again) == "I read it."
        assert asked_for(again) == {"file_path": f"{there.workspace}/note.txt"}
        one, two = await post(endpoint, second), await post(endpoint, second)  # a fork asks again
        answer = said(one)
        assert said(two) == answer
        # Each answer is a response of its own: tables count a message's id once.
        assert sent(one)[0]["message"]["id"] != sent(two)[0]["message"]["id"]
    assert answer == f"It is {(Path(there.workspace) / 'note.txt').read_text()}."
    assert endpoint.failures == []
    assert "again" in endpoint.log[-1].note


async def test_a_conversation_that_departs_stops_with_a_diff(cassette: Path, tmp_path: Path) -> None:
    there = place(tmp_path, "elsewhere")
    first, second = conversation(there)
    second["messages"][-1] = user(result("t", "File does not exist.", failed=True))
    async with opened(cassette, there) as endpoint:
        await post(endpoint, first)
        response = await post(endpoint, second)
        assert response.status_code == 400
        assert (await post(endpoint, first)).status_code == 400  # it stays stopped
    (failure,) = endpoint.failures
    assert failure in response.json()["error"]["message"]
    assert "departed from two.cassette. The nearest of its 5 exchanges is number 2" in failure
    recorded = (
        r"\n  - Read succeeded: 8 characters, SHA-256 [0-9a-f]{16}…\n  \+ Read failed: File does not exist\."
    )
    assert re.search(recorded, failure)
    assert "whatever" not in cassette.read_text()


async def test_a_request_of_another_kind_is_shown_as_it_came(cassette: Path, tmp_path: Path) -> None:
    async with opened(cassette, place(tmp_path, "elsewhere")) as endpoint:
        await post(endpoint, body(user("a title?"), tools=()))
    assert "nothing was recorded for a request like this (agent: side)" in endpoint.failures[0]
    assert "+ user: a title?" in endpoint.failures[0]


async def test_a_recording_can_be_recorded(cassette: Path, tmp_path: Path) -> None:
    there, copy = place(tmp_path, "elsewhere"), tmp_path / "copy.cassette"
    async with opened(cassette, there, record=copy) as endpoint:
        for request in conversation(there):
            await post(endpoint, request)
        await post(endpoint, body(user("something else")))
        assert len(endpoint.failures) == 1
    assert [e.status for e in load_cassette(copy).exchanges] == [529, 200, 400]


def signed(header: dict[str, Any], body: str) -> str:
    """A cassette whose digest is right, as somebody may make one."""
    header = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(f"{json.dumps(header, sort_keys=True)}\n{body}".encode()).hexdigest()
    return json.dumps(header | {"sha256": digest}) + f"\n{body}"


def with_line(text: str, line: str) -> str:
    """A cassette of this one line."""
    return signed(json.loads(text.splitlines()[0]) | {"exchanges": 1}, f"{line}\n")


def without(text: str, name: str) -> str:
    """A cassette whose first line lacks a field."""
    first, _, body = text.partition("\n")
    return signed({key: value for key, value in json.loads(first).items() if key != name}, body)


def having(text: str, **fields: Any) -> str:
    """A cassette with these fields in its first line."""
    first, _, body = text.partition("\n")
    return signed(json.loads(first) | fields, body)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is cut: "),
        (lambda text: text[: text[:-1].rindex("\n") + 1], "is cut: 4 of 5 exchanges"),
        (lambda text: text.replace("I read it", "I ate it"), "has been changed since"),
        (lambda text: text.replace("note.txt", "profile", 1), "has been changed since"),
        (lambda text: text.replace('"version": 2', '"version": 1'), "is of version 1, and version 2 is read"),
        (lambda _: "hello\n", "is not a cassette"),
        (lambda _: "", "is not a cassette"),
        (lambda _: "{}\n", "is not a cassette"),
        (lambda text: text.replace('"exchanges": 5, ', ""), "is malformed: KeyError: 'exchanges'"),
        (lambda text: text.replace('"exchanges": 5, ', '"exchanges": "5", '), "is malformed: TypeError"),
        (lambda text: text.replace('"sha256"', '"sha"'), "is malformed: KeyError: 'sha256'"),
        (lambda text: without(text, "created"), "is malformed: KeyError: 'created'"),
        (lambda text: without(text, "models"), "is malformed: KeyError: 'models'"),
        (lambda text: having(text, files=[]), "is malformed: TypeError: `files`"),
        (lambda text: having(text, files={"a": 1}), "is malformed: TypeError: `files`"),
        (lambda text: having(text, models=[1]), "is malformed: TypeError: `models`"),
        (lambda text: with_line(text, "5"), "is malformed: TypeError"),
        (lambda text: with_line(text, "{}"), "is malformed: KeyError: 'request'"),
        (lambda text: with_line(text, "{"), "is malformed: JSONDecodeError"),
    ],
)
async def test_what_is_wrong_with_a_file_is_named(
    damage: Any, message: str, cassette: Path, tmp_path: Path
) -> None:
    cassette.write_text(damage(cassette.read_text()))
    with pytest.raises(CassetteError, match=message):
        async with opened(cassette, place(tmp_path, "elsewhere")):
            pass


async def test_a_missing_file_and_an_unwritable_one_are_named(tmp_path: Path) -> None:
    here = place(tmp_path, "here")
    with pytest.raises(CassetteError, match="No such file"):
        async with opened(tmp_path / "none.cassette", here):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(CassetteError, match="Cannot write cassette"):
        async with opened("scripted", here, scenario="refusal", record=tmp_path / "file" / "x.cassette"):
            pass


CANARY = "canary+/" + "3f9a" * 8
TOKEN = "upstream-" + "77aa" * 8


async def test_no_secret_reaches_the_file(tmp_path: Path) -> None:
    """The endpoint echoes secrets in every form and place it has, in pieces of three characters."""
    shown = [
        CANARY,
        quote(CANARY, safe=""),
        *(base64.b64encode(b"x" * lead + CANARY.encode() + b"yz").decode() for lead in range(3)),
        TOKEN,
        base64.b64encode(f"user:{TOKEN}".encode()).decode(),
        "sk-ant-" + "api03-" + "a" * 24,
    ]
    got: dict[str, str] = {}

    async def echo(request: Request) -> Response:
        got.update(request.headers)
        secret = request.query_params.get("secret", "")
        text = " ".join([*shown, secret])
        reply = Reply((Text(text), ToolUse("Bash", {"command": text})), Usage(1, 1), "m", piece=3)
        if not (await request.json())["stream"]:
            return JSONResponse({"error": text}, 500, {"set-cookie": f"s={CANARY}", "x-echo": CANARY})
        headers = {"content-type": "text/event-stream", "set-cookie": f"s={CANARY}", "request-id": CANARY}
        return Streamed(sse(events(reply)), headers=headers)

    path = tmp_path / "secret.cassette"
    sandbox = place(tmp_path, "here")
    app = Starlette(routes=[Route("/v1/messages", echo, methods=["POST"])])
    async with (
        serve(app) as port,
        recording(
            path,
            upstream=f"http://127.0.0.1:{port}",
            token=TOKEN,
            places=Places.of(cast(Sandbox, sandbox)),
            files={f"{sandbox.workspace}/x": f"holds {CANARY}"},
            secrets_given={"GITHUB_TOKEN": CANARY},
            kind="anthropic",
        ) as endpoint,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        for stream in (True, False):
            request = body(user(f"my token is {CANARY}"), assistant("ok"), user(f"and {endpoint.secret}"))
            response = await client.post(
                f"http://127.0.0.1:{endpoint.port}/v1/messages?secret={endpoint.secret}",
                json=request | {"stream": stream},
                headers={
                    "authorization": f"Bearer {endpoint.secret}",
                    "x-api-key": CANARY,
                    "cookie": f"session={CANARY}",
                },
            )
            assert CANARY in response.text or stream  # what the CLI gets is untouched
            assert "set-cookie" not in response.headers
            if stream:
                assert CANARY in said(response)
                assert endpoint.secret in said(response)  # the query was passed on
    # The endpoint got its own credential and nothing of the other side's.
    assert got["authorization"] == f"Bearer {TOKEN}"
    assert "cookie" not in got
    assert "x-api-key" not in got
    text = path.read_text()
    joined = text + "".join(
        event["delta"].get("text") or event["delta"].get("partial_json", "")
        for exchange in load_cassette(path).exchanges
        for _, event in exchange.events or []
        if event["type"] == "content_block_delta"
    )
    for form in [*shown, endpoint.secret]:
        assert form not in joined
        assert form[8:-8] not in joined
    assert joined.count("[redacted:GITHUB_TOKEN]") >= 10
    assert "[redacted:UPSTREAM_TOKEN]" in joined
    assert "[redacted:Anthropic]" in joined


async def test_a_disk_that_is_full_is_the_runs_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "add", full)
    here, path = place(tmp_path, "here"), tmp_path / "full.cassette"
    async with opened("scripted", here, scenario="refusal", record=path) as endpoint:
        assert said(await post(endpoint, body(user("go")))) == "I cannot help with that."
        assert endpoint.failures == [f"Cannot write cassette {path}: No space left on device"]


@contextlib.asynccontextmanager
async def recorded_from(
    answer: bytes, path: Path, sandbox: FolderSandbox, kind: str = "text/event-stream"
) -> AsyncIterator[Endpoint]:
    """A recording of an endpoint that answers everything with these bytes."""

    async def say(_: Request) -> Response:
        return Response(answer, media_type=kind)

    app = Starlette(routes=[Route("/v1/messages", say, methods=["POST"])])
    async with (
        serve(app) as port,
        opened(f"http://127.0.0.1:{port}", sandbox, record=path) as endpoint,
    ):
        yield endpoint


def event(**data: Any) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def delta(said_: Any) -> bytes:
    return event(type="content_block_delta", index=0, delta=said_)


HALVES = delta({"type": "text_delta", "text": "\ud83d"}) + delta({"type": "text_delta", "text": "\ude00"})


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (HALVES, "text/event-stream"),
        (delta({"type": "text_delta", "text": "\ud83d"}), "text/event-stream"),
        (b'event: x\ndata: "\\ud83d"\n\n', "text/event-stream"),
        (b'{"text": "\\ud83d"}', "application/json"),
        (b'"\\ud83d"', "application/json"),
    ],
)
async def test_half_a_surrogate_pair_is_recorded_and_played(answer: bytes, kind: str, tmp_path: Path) -> None:
    """An endpoint that cuts a text in pieces of UTF-16, as JavaScript does, cuts pairs too."""
    path, here = tmp_path / "half.cassette", place(tmp_path, "here")
    request = body(user("go"), assistant("\ud83d"), user("on \ude00"))
    async with recorded_from(answer, path, here, kind) as endpoint:
        recorded = await post(endpoint, request)
        assert recorded.content == answer
        assert endpoint.failures == []
    assert len(load_cassette(path).exchanges) == 1
    async with opened(path, here) as endpoint:
        played = await post(endpoint, request)
        assert played.status_code == 200
        if kind == "text/event-stream" and b"delta" in answer:
            assert sent(played) == sent(recorded)
        # One that departs is refused with a diff that holds such a half.
        refused = await post(endpoint, body(user("go"), assistant("\ud83d"), user("off \ude00")))
        assert "\\ude00" in refused.json()["error"]["message"]


async def test_files_that_are_no_text_are_recorded(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x.cassette", Redactor())
    writer.files = {"/x": b"\xff\xfe".decode("utf-8", "surrogateescape")}
    writer.finish()
    (text,) = load_cassette(tmp_path / "x.cassette").files.values()
    assert text.encode("utf-8", "surrogateescape") == b"\xff\xfe"


NO_DELTAS = [
    event(type="content_block_delta", index=0),
    delta(None),
    delta("text"),
    delta([1]),
    delta({"type": "text_delta", "text": None}),
    event(type="content_block_delta", index=[0], delta={"type": "text_delta", "text": "x"}),
]


@pytest.mark.parametrize("answer", NO_DELTAS)
async def test_a_delta_that_is_none_is_passed_on_and_recorded(answer: bytes, tmp_path: Path) -> None:
    path, here = tmp_path / "odd.cassette", place(tmp_path, "here")
    async with recorded_from(answer, path, here) as endpoint:
        assert (await post(endpoint, body(user("go")))).content == answer
        assert endpoint.failures == []
    async with opened(path, here) as endpoint:
        assert (await post(endpoint, body(user("go")))).content == answer


async def test_an_exchange_that_cannot_be_recorded_is_the_runs_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> None:
        raise ValueError("unheard of")

    monkeypatch.setattr(Writer, "add", odd)
    path, here = tmp_path / "odd.cassette", place(tmp_path, "here")
    async with recorded_from(HALVES, path, here) as endpoint:
        assert (await post(endpoint, body(user("go")))).content == HALVES
        assert endpoint.failures == [f"Cannot record an exchange to {path}: ValueError: unheard of"]


async def test_a_request_that_cannot_be_recorded_is_passed_on(tmp_path: Path) -> None:
    path, here = tmp_path / "odd.cassette", place(tmp_path, "here")
    async with recorded_from(HALVES, path, here) as endpoint:
        assert (await post(endpoint, {"no": "messages"})).content == HALVES
        (failure,) = endpoint.failures
        assert failure.startswith(f"Cannot record an exchange to {path}: ")


async def test_two_recordings_to_one_path_do_not_meet(tmp_path: Path) -> None:
    path, here = tmp_path / "one.cassette", place(tmp_path, "here")
    path.with_name("one.cassette.part").write_text("left behind by a run that was killed\n")
    async with opened("scripted", here, scenario="refusal", record=path) as endpoint:
        await post(endpoint, body(user("go")))
        with pytest.raises(CassetteError, match="another run is recording to it"):
            async with opened("scripted", here, scenario="refusal", record=path):
                pass
        await post(endpoint, body(user("go on")))
    assert len(load_cassette(path).exchanges) == 2
    async with opened("scripted", here, scenario="refusal", record=path) as endpoint:
        await post(endpoint, body(user("go")))  # after it, as before
    assert len(load_cassette(path).exchanges) == 1
    assert [file.name for file in tmp_path.glob("one*")] == ["one.cassette"]


def test_what_was_not_written_is_not_built_upon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(number: int, *lines: str) -> Exchange:
        view = View(tuple(Line(line) for line in lines))
        return Exchange(number, "m", view, 200, {}, None, {}, "whole")

    writer = Writer(tmp_path / "x.cassette", Redactor())
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_file", Mock(write=Mock(side_effect=OSError(errno.ENOSPC, "full"))))
        with pytest.raises(OSError, match="full"):
            writer.add(exchange(0, "a", "b"))
    writer.add(exchange(1, "a", "b", "c"))
    writer.finish()
    (only,) = load_cassette(tmp_path / "x.cassette").exchanges
    assert [line.key for line in only.view.lines] == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("kind", ["scripted", "cassette"])
async def test_a_client_that_leaves_in_mid_request_is_noted(
    kind: str, path: str, cassette: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = cassette if kind == "cassette" else kind
    more = {"scenario": "refusal"} if kind == "scripted" else {}
    async with opened(spec, place(tmp_path, "there"), **more) as endpoint:
        await leave_in_mid_request(endpoint, path)
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{endpoint.port}{path}"
            headers = {"authorization": f"Bearer {endpoint.secret}"}
            response = await client.post(url, content=b'{"model"', headers=headers)
        assert response.status_code == 400
    assert [(event.status, event.note[:15]) for event in endpoint.log] == [(400, "no request body")] * 2
    assert caplog.records == []


async def test_times_are_kept_and_played_when_asked_for(tmp_path: Path) -> None:
    scenario, path = tmp_path / "slow.yaml", tmp_path / "slow.cassette"
    scenario.write_text("about: slow\nrules: [{text: abcdefgh, piece: 2, pace: 0.1}]\n")
    here = place(tmp_path, "here")
    async with opened("scripted", here, scenario=scenario, record=path) as endpoint:
        await post(endpoint, body(user("go")))
    times = [at for at, _ in load_cassette(path).exchanges[0].events or []]
    assert times == sorted(times)
    assert times[-1] >= 0.35
    async with opened(path, here, pace=1.0) as endpoint:
        response = await post(endpoint, body(user("go")))
    assert response.elapsed.total_seconds() >= 0.35
    assert said(response) == "abcdefgh"


@pytest.mark.parametrize(
    "fault", ["{kind: cut, after: 3, times: 1}", "{kind: malformed, after: 2, times: 1}"]
)
async def test_a_broken_stream_is_broken_again(fault: str, tmp_path: Path) -> None:
    scenario, path = tmp_path / "broken.yaml", tmp_path / "broken.cassette"
    scenario.write_text(f"about: broken\nrules: [{{text: hello, fault: {fault}}}]\n")
    here = place(tmp_path, "here")

    async def ask(endpoint: Endpoint) -> list[str]:
        got = []
        for _ in range(2):
            try:
                got.append((await post(endpoint, body(user("go")))).text[-60:])
            except httpx.RemoteProtocolError:
                got.append("cut")
        return got

    async with opened("scripted", here, scenario=scenario, record=path) as endpoint:
        recorded = await ask(endpoint)
    async with opened(path, here) as endpoint:
        played = await ask(endpoint)
    assert played[0].strip() == recorded[0].strip()
    assert sent(httpx.Response(200, text=played[1])) != []


@pytest.mark.slow
async def test_a_stream_that_hung_hangs_again(tmp_path: Path) -> None:
    path, here = tmp_path / "hang.cassette", place(tmp_path, "here")

    async def ask(endpoint: Endpoint) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await post(endpoint, body(user("go")), timeout=0.5)

    for scenario in ("fault-hang", "fault-hang-mid-stream"):
        async with opened("scripted", here, scenario=scenario, record=path) as endpoint:
            await ask(endpoint)
        assert load_cassette(path).exchanges[0].ending == "left"
        async with opened(path, here) as endpoint:
            await ask(endpoint)


async def test_an_endpoint_that_cannot_be_reached_is_a_recorded_failure(tmp_path: Path) -> None:
    sandbox = cast(Sandbox, place(tmp_path, "here"))
    async with serve(Starlette()) as port:
        pass
    async with recording(
        tmp_path / "none.cassette",
        upstream=f"http://127.0.0.1:{port}",
        token=TOKEN,
        places=Places.of(sandbox),
        files={},
        secrets_given={},
        kind="anthropic",
    ) as endpoint:
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert "cannot be reached" in response.json()["error"]["message"]


def test_a_recording_without_an_exchange_takes_no_others_place(cassette: Path) -> None:
    before = cassette.read_bytes()
    Writer(cassette, Redactor()).finish()
    assert cassette.read_bytes() == before
    assert [item.name for item in cassette.parent.iterdir() if ".part" in item.name] == []
    empty = cassette.with_name("new.cassette")
    Writer(empty, Redactor()).finish()
    assert list(load_cassette(empty).exchanges) == []
