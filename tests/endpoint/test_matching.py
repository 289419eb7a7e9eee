"""When two requests are the same request, and how it is told that they are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.endpoint.conversation import Conversation
from harvest_nb.endpoint.matching import View, diff, view_of
from harvest_nb.endpoint.places import Places, rewrite
from harvest_nb.endpoint.record import parse_sse
from tests.endpoint.conftest import REMINDER, assistant, body, call, result, user

APP = Places({"workdir": "/app", "workspace": "/app/workspace", "home": "/home/harvest", "session": "s-1"})
HOST = Places({"workdir": "/x/9f/app", "workspace": "/x/9f/app/workspace", "home": "/x/9f/home"})
NOTICE = (
    "<system-reminder>\n<task-notification>\n<task-id>a</task-id>\n</task-notification>\n</system-reminder>"
)


def view(*messages: Any, places: Places = APP, agent: str = "", **more: Any) -> View:
    headers = {"x-claude-code-agent-id": agent} if agent else {}
    return view_of(Conversation(body(*messages, **more), headers), places.to_marks)


def turn(root: str, ident: str, output: str) -> list[Any]:
    return [
        user(REMINDER, f"look at {root}/workspace/a.txt"),
        assistant(
            {"type": "thinking", "thinking": ident}, call(ident, "Read", file_path=f"{root}/docs/x.md")
        ),
        user(result(ident, output), REMINDER),
    ]


def test_what_differs_between_machines_does_not_count() -> None:
    here = view(*turn("/app", "toolu_01aaaaaaaaaa", "one"))
    there = view(*turn("/x/9f/app", "toolu_01bbbbbbbbbb", "two"), places=HOST)
    assert here.digest == there.digest
    assert [line.key for line in here.lines] == [
        "agent: main",
        "user: look at {harvest:workspace}/a.txt",
        'assistant calls Read {"file_path": "{harvest:workdir}/docs/x.md"}',
        "Read succeeded",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("as of 2026-11-24", "as of 2027-01-02"),
        ("at 2026-11-24T15:00:01.5Z", "at 2026-11-25 16:00"),
        ("see 0f8fad5b-d9cb-469f-a165-70867728950e", "see 7c9e6679-7425-40de-944b-e07fc1f90ae7"),
        ("commit 59c3082aa11bb", "commit 617e6a0bb22cc"),
        ("call toolu_01aaaaaaaaaa", "call toolu_01bbbbbbbbbb"),
    ],
)
def test_dates_and_ids_do_not_count(one: str, other: str) -> None:
    assert view(user(one)).digest == view(user(other)).digest


@pytest.mark.parametrize(
    "other",
    [
        [user("look elsewhere")],
        turn("/app", "t", "one")[:2],
        [*turn("/app", "t", "one")[:1], assistant(call("t", "Read", file_path="/app/docs/y.md"))],
        [*turn("/app", "t", "one")[:2], user(result("t", "denied", failed=True))],
        [*turn("/app", "t", "one"), assistant("done"), user("and now?")],
    ],
)
def test_what_was_said_and_done_counts(other: list[Any]) -> None:
    assert view(*other).digest != view(*turn("/app", "t", "one")).digest


def test_defaults_that_the_cli_fills_in_do_not_count() -> None:
    bare = [user("x"), assistant(call("a", "Edit", old_string="1"))]
    filled = [user("x"), assistant(call("a", "Edit", old_string="1", replace_all=False, limit=None))]
    other = [user("x"), assistant(call("a", "Edit", old_string="1", replace_all=True))]
    assert view(*bare).digest == view(*filled).digest != view(*other).digest


def test_sub_agents_and_whole_answers_count() -> None:
    assert view(user("x")).digest != view(user("x"), agent="a1").digest
    assert view(user("x"), agent="a1").digest == view(user("x"), agent="b2").digest
    assert view(user("x")).digest != view(user("x"), stream=False).digest


def test_how_many_notices_came_in_between_does_not_count() -> None:
    start = [user("go"), assistant(call("a", "Agent")), user(result("a", "launched")), assistant("waiting")]
    apart = view(*start, user(NOTICE), assistant("one is back"), user(NOTICE))
    together = view(*start, user(NOTICE, NOTICE))
    assert apart.digest == together.digest
    assert (apart.notified, together.notified) == (2, 2)
    worked = [assistant(call("b")), user(result("b", "x"))]
    assert view(*start, user(NOTICE), *worked, user(NOTICE)).digest != apart.digest


def test_paths_are_only_replaced_where_they_are_paths() -> None:
    for text in ("/application", "/opt/app", "my-/app", "/app.txt", "/app2"):
        assert APP.to_marks(text) == text
    assert APP.to_marks("in /app, /app/x; file:///app.") == (
        "in {harvest:workdir}, {harvest:workdir}/x; file://{harvest:workdir}."
    )


def deltas(pieces: list[str], kind: str = "input_json_delta", name: str = "partial_json") -> list[Any]:
    return [
        {"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: piece}} for piece in pieces
    ]


@given(
    st.lists(
        st.sampled_from(["/app", "/app/workspace", "/ap", "p", " x ", "/home/harvest", '"', "ä"]), max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_places_survive_however_a_text_is_cut(parts: list[str], random: Any) -> None:
    text = json.dumps({"command": " ".join(parts)}, ensure_ascii=False)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    marked = rewrite(deltas(pieces), APP.to_marks)
    assert len(marked) == len(pieces)
    assert "".join(event["delta"]["partial_json"] for event in marked) == APP.to_marks(text)
    back = rewrite(marked, HOST.from_marks)
    moved = "".join(event["delta"]["partial_json"] for event in back)
    assert json.loads(moved)["command"] == HOST.from_marks(APP.to_marks(" ".join(parts)))
    assert HOST.to_marks(moved) == APP.to_marks(text)


@given(
    st.lists(st.text(max_size=8), max_size=6),
    st.randoms(use_true_random=False),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_streams_events_are_found_however_it_is_cut(texts: list[str], random: Any, end: str) -> None:
    events = [{"type": "ping", "text": text} for text in texts]
    stream = "".join(
        f"event: ping{end}data: {json.dumps(e)}{end}{end}: a comment{end}{end}" for e in events
    ).encode()
    cuts = sorted(random.randrange(len(stream) + 1) for _ in range(random.randrange(8)))
    chunks = [
        (float(number), stream[a:b])
        for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(stream)], strict=True))
    ]
    assert [data for _, data in parse_sse(chunks)] == events


def test_a_diff_shows_where_two_conversations_part() -> None:
    old = view(*turn("/app", "t", "the file"), assistant("so it is"), user("next"))
    new = view(*turn("/app", "t", "no such file")[:2], user(result("t", "no such file", failed=True)))
    assert diff(old.lines, new.lines).splitlines() == [
        "    user: look at {harvest:workspace}/a.txt",
        '    assistant calls Read {"file_path": "{harvest:workdir}/docs/x.md"}',
        "  - Read succeeded: the file",
        "  + Read failed: no such file",
        "  - assistant: so it is",
        "  - user: next",
    ]


def test_a_diff_of_long_lines_shows_the_difference() -> None:
    lines = diff(view(user("a" * 500 + "old")).lines, view(user("a" * 500 + "new")).lines).splitlines()
    assert lines[1].endswith("old")
    assert lines[2].endswith("new")
    assert all(len(line) < 300 for line in lines)
