"""Scenario files: reading them, and what their rules answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from harvest_nb.endpoint import Endpoint, open_endpoint, scenario_names
from harvest_nb.endpoint.faults import Fault
from harvest_nb.endpoint.library import FOLDER, load_scenario
from harvest_nb.endpoint.placeholders import NAMES, check_placeholders, filler
from harvest_nb.endpoint.scenario import AnswerSpec, Expect, UsageSpec, When
from harvest_nb.errors import ScenarioError
from harvest_nb.sandbox.base import Sandbox
from tests.endpoint.conftest import (
    FolderSandbox,
    asked_for,
    assistant,
    body,
    call,
    post,
    result,
    said,
    sent,
    user,
)

Opened = Callable[[str], AbstractAsyncContextManager[Endpoint]]


@pytest.fixture
def sandbox(tmp_path: Path) -> FolderSandbox:
    return FolderSandbox(tmp_path / "sandbox")


@pytest.fixture
def opened(tmp_path: Path, sandbox: FolderSandbox) -> Opened:
    """Opens an endpoint on a scenario's text."""

    @asynccontextmanager
    async def with_text(text: str) -> AsyncIterator[Endpoint]:
        path = tmp_path / "given.yaml"
        path.write_text(text)
        async with open_endpoint(
            "scripted", scenario=path, sandbox=cast(Sandbox, sandbox), prompt="go"
        ) as endpoint:
            yield endpoint

    return with_text


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_is_one_and_says_what_it_is_for(name: str) -> None:
    scenario = load_scenario(name)
    assert len(scenario.about) > 40
    assert scenario.prompt.strip()


def test_there_is_one_for_each_fault_of_an_endpoint() -> None:
    faults = {rule.fault.kind for n in scenario_names() for rule in load_scenario(n).rules if rule.fault}
    assert faults == {"status", "hang", "cut", "malformed", "empty", "nothing", "error_event"}
    statuses = {
        (rule.fault.status, rule.fault.retry_after is not None, rule.fault.times is None)
        for n in scenario_names()
        for rule in load_scenario(n).rules
        if rule.fault is not None and rule.fault.kind == "status"
    }
    assert {(401, False, True), (403, False, True)} <= statuses
    for status in (429, 500, 529):
        assert {(status, False, False), (status, True, False), (status, False, True)} <= statuses


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("about: x\nrules:\n  - text: a\n    txet: b\n", 4, r"rules\[0\]\.txet"),
        ("about: x\nrules:\n  - when: {step: first}\n    text: a\n", 3, r"rules\[0\]\.when\.step"),
        ("about: x\nrules:\n  - name: nothing\n", 3, "needs `steps`, or an answer"),
        ("about: x\nrules:\n  - text: a\n    steps:\n      - text: b\n", 3, "`steps` and `text` exclude"),
        ("about: x\nrules:\n  - tools:\n      - Bash: {command: ls}\n        Read: {}\n", 3, "one `Name"),
        ("about: x\nrules:\n  - text: see {workspce}\n", 3, "did you mean {workspace}"),
        ("about: x\nrules:\n  - when: {prompt: '/(/'}\n    text: a\n", 3, "not a regular expression"),
        (
            "about: x\nrules:\n  - text: a\n    fault: {kind: hang, status: 500}\n",
            4,
            "goes with `kind: status`",
        ),
        ("about: x\nrules: []\n", 2, "rules"),
        ("rules:\n  - text: a\n", 1, "about"),
    ],
)
def test_an_error_names_file_line_and_place(text: str, line: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert f"{path}:{line}:" in caught.value.message
    assert re.search(message, caught.value.message)
    assert "examples" in caught.value.hint


def test_what_is_no_scenario_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("about: [")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ScenarioError, match="cannot be read as YAML"):
        load_scenario(tmp_path / "broken.yaml")
    with pytest.raises(ScenarioError, match="is not a scenario"):
        load_scenario(tmp_path / "list.yaml")
    with pytest.raises(ScenarioError, match=r"no scenario file .*none\.yaml"):
        load_scenario(tmp_path / "none.yaml")
    with pytest.raises(ScenarioError, match="did you mean 'sub-agents'"):
        load_scenario("sub-agent")


def test_placeholders_are_filled_and_other_braces_left() -> None:
    fill = filler({"workdir": "/app", "nonce": "n1"}, ["one", "two"])
    given = {"command": "echo {nonce} {result.2} ${workdir} {a: 1} {result.9}", "deep": ["{workdir}/x", 3]}
    assert fill(given) == {"command": "echo n1 two $/app {a: 1} ", "deep": ["/app/x", 3]}
    assert fill("{result}") == "one\ntwo"
    for name in NAMES:
        assert check_placeholders(f"{{{name}}}") == f"{{{name}}}"


def test_the_page_on_scenarios_names_every_field_and_its_example_is_one(tmp_path: Path) -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    for model in (When, Expect, AnswerSpec, Fault, UsageSpec):
        missing = [name for name in model.model_fields if f"`{name}`" not in page and f"{name}:" not in page]
        assert missing == [], model.__name__
    for name in NAMES:
        assert f"{{{name}}}" in page
    (tmp_path / "example.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert len(load_scenario(tmp_path / "example.yaml").rules) == 2


async def test_a_rule_is_chosen_by_what_the_conversation_holds(opened: Opened) -> None:
    text = """
about: choosing
rules:
  - when: {agent: sub}
    text: to a sub-agent
  - when: {agent: side}
    text: a title
  - when: {prompt: '/^list\\b/', step: 0}
    tools: [{Bash: {command: "ls {workdir}"}}]
  - when: {tool: Bash, failed: true}
    expect: {error: true}
    text: "it failed: {result}"
  - when: {tool: Bash, result: README}
    text: there is a README
  - when: {prompt_number: 1}
    text: a second prompt
  - when: {prompt: hello}
    text: hello back
"""
    asked = assistant(call("a"))
    async with opened(text) as endpoint:
        assert said(await post(endpoint, body(user("x")), x_claude_code_agent_id="a1")) == "to a sub-agent"
        assert said(await post(endpoint, body(user("x"), tools=()))) == "a title"
        assert asked_for(await post(endpoint, body(user("list it"))))["command"].endswith("/app")
        failed = body(user("list it"), asked, user(result("a", "no such file", failed=True)))
        assert said(await post(endpoint, failed)) == "it failed: no such file"
        found = body(user("list it"), asked, user(result("a", "README.md")))
        assert said(await post(endpoint, found)) == "there is a README"
        assert (
            said(await post(endpoint, body(user("hello"), assistant("hi"), user("you")))) == "a second prompt"
        )
        assert said(await post(endpoint, body(user("say hello")))) == "hello back"
        nothing = await post(endpoint, body(user("anything else")))
        assert nothing.status_code == 400
        assert "no rule for this request: agent main, step 0, prompt 'anything else'" in endpoint.failures[0]


async def test_steps_follow_each_other_and_the_last_one_goes_on(opened: Opened) -> None:
    text = """
about: steps
rules:
  - steps:
      - tools: [{Bash: {command: date}}, {Bash: {command: id}}]
      - text: "got {result.2}"
"""
    async with opened(text) as endpoint:
        first = sent(await post(endpoint, body(user("go"))))
        assert [e["content_block"]["name"] for e in first if e["type"] == "content_block_start"] == [
            "Bash"
        ] * 2
        assert first[-2]["delta"]["stop_reason"] == "tool_use"
        both = user(result("a", "today"), result("b", "me"))
        second = body(user("go"), assistant(call("a"), call("b")), both)
        assert said(await post(endpoint, second)) == "got me"
        third = body(*second["messages"], assistant("got me"), user(REMINDED))
        assert said(await post(endpoint, third)) == "got "


REMINDED = "<system-reminder>\n[SYSTEM NOTIFICATION - NOT USER INPUT]\n</system-reminder>"


@pytest.mark.parametrize(
    ("expect", "results", "complaint"),
    [
        ("{}", [], "expected 1 tool results, got 0"),
        ("{}", [("boom", True)], "the tool failed: boom"),
        ("{error: true}", [("fine", False)], "should have failed"),
        ("{contains: needle}", [("hay", False)], "expected 'needle' in the tool's result, got 'hay'"),
        ("{contains: '{nonce}'}", [("nonce", False)], "expected 'nonce-"),
        (r"{matches: '^\d+$'}", [("ten", False)], "to match"),
        ("{equals: ten}", [("eleven", False)], "to be 'ten'"),
        ("{offers: Read}", [("x", False)], "does not offer Read"),
        ("{system: rules}", [("x", False)], "in the system prompt"),
    ],
)
async def test_a_tool_that_did_not_do_its_work_fails(
    expect: str, results: list[tuple[str, bool]], complaint: str, opened: Opened
) -> None:
    text = f"""
about: expectations
rules:
  - steps:
      - tools: [{{Bash: {{command: date}}}}]
      - name: look
        expect: {expect}
        text: fine
"""
    brought = user(*(result("a", text, failed=failed) for text, failed in results), REMINDED)
    async with opened(text) as endpoint:
        response = await post(endpoint, body(user("go"), assistant(call("a")), brought))
        assert response.status_code == 400
        assert complaint in endpoint.failures[0]
        assert "rules[0].steps[1] (look) of scenario “given”" in endpoint.failures[0]
        assert endpoint.failures[0] in response.json()["error"]["message"]


async def test_files_are_written_with_the_same_nonce(opened: Opened, sandbox: FolderSandbox) -> None:
    text = """
about: files
files: {"{workspace}/deep/note.txt": "the word is {nonce}"}
rules: [{text: "{nonce} {home}"}]
"""
    async with opened(text) as endpoint:
        nonce, home = said(await post(endpoint, body(user("go")))).split()
    assert (Path(sandbox.workspace) / "deep" / "note.txt").read_text() == f"the word is {nonce}"
    assert home == str(sandbox.home)


async def test_figures_and_stop_reason_can_be_given(opened: Opened) -> None:
    text = """
about: figures
rules: [{text: "no", usage: {input: 7, output: 9, cache_read: 11, cache_write_5m: 13}, stop_reason: refusal}]
"""
    async with opened(text) as endpoint:
        end = sent(await post(endpoint, body(user("go"))))[-2]
    assert end["delta"]["stop_reason"] == "refusal"
    usage = end["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["cache_read_input_tokens"]) == (7, 9, 11)
    assert usage["cache_creation"]["ephemeral_5m_input_tokens"] == 13


async def test_an_answer_can_be_had_whole(opened: Opened) -> None:
    text = "about: whole\nrules: [{thinking: hm, text: hello, tools: [{Bash: {command: ls}}]}]\n"
    async with opened(text) as endpoint:
        message: dict[str, Any] = (await post(endpoint, body(user("go"), stream=False))).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][2]["input"] == {"command": "ls"}
    assert message["stop_reason"] == "tool_use"


async def test_the_log_tells_what_was_answered(opened: Opened) -> None:
    async with opened("about: log\nrules: [{name: greet, text: hi}]\n") as endpoint:
        await post(endpoint, body(user("go")))
        await post(endpoint, body(user("go")), secret="guessed")
    assert [(event.method, event.status) for event in endpoint.log] == [("POST", 200), ("POST", 401)]
    assert "greet" in endpoint.log[0].note
    assert endpoint.requests == 1
    assert endpoint.secret not in repr(endpoint)
