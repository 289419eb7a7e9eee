"""`harvest-nb chat` and `run` as a person and a pipe use them: the real command, in a real terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from harvest_nb.paths import cache_dir
from harvest_nb.settings import TOKEN_VARIABLES
from harvest_nb.views.diagrams import check_run
from tests.test_cli import COMMAND, call

pytestmark = pytest.mark.slow

READY = "/help says what can be done"
LIMIT = 60


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("runs/*/run.json"))


@contextmanager
def terminal(folder: Path, *arguments: str, cache: Path | None = None) -> Iterator[pexpect.spawn[str]]:
    env = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    if cache is not None:
        # The toolchain of the host provider is shared, and only the history is looked for in the cache.
        cache.mkdir()
        for item in cache_dir().iterdir():
            (cache / item.name).symlink_to(item)
        (cache / "chat-history").unlink(missing_ok=True)
        env["HARVEST_CACHE"] = str(cache)
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "chat", *arguments], cwd=str(folder),
        env={**env, "TERM": "xterm-256color"}, encoding="utf-8", timeout=LIMIT, dimensions=(40, 110),
    )  # fmt: skip
    try:
        child.expect_exact(READY)
        yield child
    finally:
        child.close(force=True)


def gone(folder: Path, provider: str) -> bool:
    """Whether the sandboxes of the runs in `folder` have been removed."""
    listed = call("sandboxes", "--provider", provider, "--json", cwd=folder)
    names = {path.name for path in runs(folder)}
    return not [s for s in json.loads(listed.stdout)["sandboxes"] if s["labels"].get("harvest.run") in names]


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "host"])
def provider(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        request.getfixturevalue("snapshot_image")
    return str(request.param)


def test_a_conversation_in_a_terminal(provider: str, tmp_path: Path) -> None:
    with terminal(
        tmp_path,
        "--provider",
        provider,
        "--allow",
        "Bash",
        "--scenario",
        "conversation",
        cache=tmp_path / "cache",
    ) as chat:
        chat.send("list\r")
        chat.expect_exact("→ ")
        chat.expect_exact("autonomous-agent.md")
        chat.expect_exact("There are:")
        chat.expect(r"2 turns, .* \$0\.\d+")
        chat.send("slow please\r")
        chat.expect_exact("This answer")  # while it is being streamed
        chat.sendcontrol("c")
        chat.expect_exact("cancelled from the desk")
        chat.send("wait\r")
        chat.expect_exact("echo waiting")
        chat.sendcontrol("c")
        chat.expect_exact("in the middle of Bash")
        chat.send("one\x1b\rtwo\r")  # Alt-Enter
        chat.expect_exact("You said: one")
        chat.expect(r"1 turn,")
        chat.send("\x1b[200~pasted\nlines\x1b[201~\r")
        chat.expect_exact("You said: pasted")
        chat.expect(r"1 turn,")
        chat.send(f"my token is sk-ant-{'0123456789' * 3}\r")
        chat.expect(r"1 turn,")
        chat.send("/model claude-haiku-4-5\r")
        chat.expect_exact("The model is claude-haiku-4-5")
        chat.send("/fork\r")
        chat.expect_exact("goes on as a branch")
        chat.send("in a branch\r")
        chat.expect_exact("You said: in a branch")
        chat.expect(r"1 turn,")
        chat.send("/cost\r")
        chat.expect_exact("cancelled (Bash)")
        chat.expect_exact("in all")
        chat.send("/resume\r")
        chat.expect_exact(runs(tmp_path)[0].name)
        chat.send("/nonsense\r")
        chat.expect_exact("There is no command /nonsense")
        chat.sendcontrol("c")  # where nothing runs, it leaves
        chat.expect_exact("interrupted")
        chat.expect_exact("run folder:")
        chat.expect(r"7 prompts, \$0\.\d+ in all, endpoint scripted")
        chat.expect(r"to go on: harvest-nb (chat [^\r]*)\r")
        again = str(chat.match[1]).split() if isinstance(chat.match, re.Match) else []
        chat.expect(pexpect.EOF)
        chat.wait()
        assert chat.exitstatus == 130
    first, branch = runs(tmp_path)
    assert again[:3] == ["chat", "--resume", branch.name]
    assert [again[at + 1] for at, word in enumerate(again) if word == "--allow"] == ["Bash"]
    statuses = [entry["status"] for entry in about(first)["prompts"]]
    assert statuses == ["success", "cancelled", "cancelled", "success", "success", "success"]
    assert [entry["prompt"] for entry in about(first)["prompts"]][3:5] == ["one\ntwo", "pasted\nlines"]
    assert about(branch)["resumed_from"]["run_id"] == first.name
    assert about(branch)["model"] == "claude-haiku-4-5"
    assert [check_run(folder) for folder in (first, branch)] == [[], []]
    assert gone(tmp_path, provider)
    kept = tmp_path / "cache" / "chat-history"
    assert "+in a branch" in kept.read_text()
    assert "sk-ant-" not in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_that_is_ended_from_outside_leaves_nothing(
    provider: str, number: signal.Signals, tmp_path: Path
) -> None:
    with terminal(tmp_path, "--provider", provider, "--allow", "Bash") as chat:
        chat.send("wait\r")
        chat.expect_exact("echo waiting")
        chat.kill(number)
        chat.expect(pexpect.EOF)
        chat.wait()
        assert chat.exitstatus == 128 + number
    (folder,) = runs(tmp_path)
    assert about(folder)["status"] == "cancelled"
    assert check_run(folder) == []
    assert gone(tmp_path, provider)


def test_a_terminal_is_as_before_after_ctrl_c_while_the_chat_is_loaded(tmp_path: Path) -> None:
    child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "chat"], cwd=str(tmp_path), timeout=LIMIT)
    child.waitnoecho(LIMIT)
    child.sendcontrol("c")
    child.expect_exact("interrupted")
    child.expect(pexpect.EOF)
    assert child.getecho()
    child.close()
    assert child.exitstatus == 130


def test_a_prompt_asks_nothing_of_a_terminal_that_may_not_answer(tmp_path: Path) -> None:
    # The word on Ctrl-C would come when the answer has, or after a second.
    with terminal(tmp_path, "--provider", "host") as chat:
        chat.send("/help\r")
        chat.expect_exact("Ctrl-C stops the turn, not the session")
        chat.sendcontrol("c")
        seen = str(chat.before)
        chat.expect_exact("interrupted")
        assert "\x1b[6n" not in seen + str(chat.before)


def test_permission_is_asked_for_in_the_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, "--provider", "host", "--scenario", "ask-permission", "--ask") as chat:
        chat.send("write\r")
        chat.expect_exact("May the agent use Write?")
        chat.send("n\r")
        chat.expect_exact("I was not allowed to write the file")
        chat.expect(r"turns, ")
        chat.send("write\r")
        chat.expect_exact("May the agent use Write?")
        chat.send("yes\r")
        chat.expect_exact("and says hello")
        chat.expect(r"turns, ")
        chat.send("/quit\r")
        chat.expect(pexpect.EOF)
    assert check_run(*runs(tmp_path)) == []
    done = call("chat", "--ask", "--provider", "host", cwd=tmp_path)
    assert done.returncode == 2
    assert "nobody to ask" in done.stderr


NASTY = r"""
about: Says and prints what would command a terminal.
prompt: go
rules:
  - when: {step: 0}
    text: "\e[31mred\e[0m \e]0;by the model\a\e[2J said"
    pace: 0.01
    piece: 6
    tools:
      - Bash: {command: "printf '\\033]0;by a tool\\007\\033[?1049h printed\\n'", description: "\e[2Jdescribed"}
  - text: "Done \e[31magain."
"""


def test_neither_agent_nor_tool_commands_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "nasty.yaml").write_text(NASTY)
    with terminal(tmp_path, "--provider", "host", "--allow", "Bash", "--scenario", "nasty.yaml") as chat:
        chat.send("[red] go\r")
        chat.expect(r"2 turns, ")
        seen = str(chat.before)
        chat.send("/cost\r")  # the prompt is no markup either
        chat.expect_exact("[red] go")
        chat.send("/quit\r")
        chat.expect(pexpect.EOF)
    for word in ("said", "printed", "described", "again"):
        assert word in seen
    for sequence in ("\x1b]0;", "\x1b[2J", "\x1b[?1049h", "\x1b[31m"):
        assert sequence not in seen


def test_a_question_is_shown_in_full_on_a_narrow_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, "--provider", "host", "--scenario", "ask-permission", "--ask") as chat:
        chat.setwinsize(24, 40)
        chat.send("write\r")
        chat.expect_exact("May the agent use Write?")
        chat.expect_exact("content: hello nonce-")
        chat.expect_exact("[N]o:")
        chat.sendcontrol("c")
        chat.expect_exact("in the middle of Write")
        stopped = str(chat.before)
        chat.send("/quit\r")
        chat.expect(pexpect.EOF)
    assert "stopped" in stopped
    assert "The user doesn't want to proceed" not in stopped  # that is for the model
    assert "[Request interrupted" not in stopped


def test_commands_that_cannot_be_are_refused_and_the_chat_goes_on(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("attached")
    with terminal(tmp_path, "--provider", "host") as chat:
        for typed, says in (
            ("/Helq", "There is no command /helq"),
            ("/cost please", "/cost takes nothing after it"),
            ("/attach absent.txt", "Cannot attach absent.txt: No such file"),
            ("/attach", "no file"),
            ("/attach note.txt", "goes: note.txt"),
            ("hello", "1 turn, "),
            ("/fork no-such-message", "holds no message no-such-message"),
            ("/resume no-such-run", "There is no run no-such-run"),
            ("again", "1 turn, "),
        ):
            chat.send(f"{typed}\r")
            chat.expect_exact(says)
        chat.send("/QUIT\r")
        chat.expect_exact("ending the session")
        chat.sendcontrol("c")  # which it is doing already
        chat.expect(pexpect.EOF)
        chat.wait()
        assert chat.exitstatus == 0
    (folder,) = runs(tmp_path)
    assert [entry["prompt"] for entry in about(folder)["prompts"]] == ["hello", "again"]
    assert gone(tmp_path, "host")


def test_a_run_that_is_interrupted_says_what_there_is_of_it(provider: str, tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    arguments = ["wait", "--scenario", "conversation", "--provider", provider, "--allow", "Bash"]
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "run", *arguments], cwd=str(tmp_path), env=clean, encoding="utf-8",
        timeout=LIMIT, dimensions=(40, 200),
    )  # fmt: skip
    child.expect_exact("echo waiting")
    child.sendcontrol("c")
    child.expect_exact("interrupted")
    child.expect(r"cancelled from the desk, in the middle of Bash; ")  # in the flow
    # A CLI on a busy machine may be ended before it has said what it cost.
    cost = r"(\$0\.\d+|cost unknown)"
    child.expect(rf"cancelled from the desk, in the middle of Bash, [^\n]* s, {cost}, endpoint scripted")
    (folder,) = runs(tmp_path)
    child.expect_exact(f"run folder: {folder}")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
    assert about(folder)["status"] == "cancelled"
    assert gone(tmp_path, provider)


def test_an_interrupted_run_is_a_document_too(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    arguments = [
        "run",
        "wait",
        "--scenario",
        "conversation",
        "--provider",
        "host",
        "--allow",
        "Bash",
        "--json",
    ]
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=clean, stdout=subprocess.PIPE) as child:
        until(
            lambda: any("echo waiting" in path.read_text() for path in tmp_path.glob("runs/*/stream.jsonl"))
        )
        child.send_signal(signal.SIGTERM)
        told = json.loads(child.communicate(timeout=LIMIT)[0])
    assert child.returncode == 128 + signal.SIGTERM
    assert (told["status"], told["cut_short"], told["ok"]) == ("cancelled", ["Bash"], False)
    assert told["cost_usd"] > 0


def until(true: Callable[[], bool]) -> None:
    """Wait for something that a child process does."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("said", ["hello\n", "wait\n"])
def test_a_chat_with_a_pipe_that_stays_open_can_be_stopped(
    said: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    arguments = ["chat", "--provider", "host", "--allow", "Bash"]
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=tmp_path, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(said.encode())
        child.stdin.flush()
        ready = "echo waiting" if said == "wait\n" else '"type":"result"'
        until(lambda: any(ready in path.read_text() for path in tmp_path.glob("runs/*/stream.jsonl")))
        child.send_signal(number)
        assert child.stdout is not None
        assert child.stderr is not None
        out, err = child.stdout.read().decode(), child.stderr.read().decode()
        assert child.wait(LIMIT) == code
    assert "Traceback" not in out + err
    if number == signal.SIGINT:
        assert "run folder:" in out
    assert gone(tmp_path, "host")


def piped(text: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=clean,
        input=text,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_prompts_come_from_a_pipe_too(tmp_path: Path) -> None:
    done = piped("hello\n\nlist\n/cost\n", "chat", "--provider", "host", "--allow", "Bash", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "You said: hello" in done.stdout
    assert "autonomous-agent.md" in done.stdout
    assert "in all" in done.stdout
    whole = piped("first line\n/cost\n", "chat", "--one", "--provider", "host", cwd=tmp_path)
    assert "You said: first line\n/cost" in whole.stdout
    refused = piped("hello\n", "chat", "--provider", "host", "--scenario", "fault-401", cwd=tmp_path)
    assert refused.returncode == 1
    assert "CLAUDE_CODE_OAUTH_TOKEN" in refused.stdout


def test_a_run_takes_files_schemas_limits_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "prompt.md").write_text("list")
    (tmp_path / "note.txt").write_text("attached")
    common = ("--provider", "host", "--json")
    first = call(
        "run", "--file", "prompt.md", "--attach", "note.txt", "--scenario", "conversation", "--allow", "Bash", *common,
        cwd=tmp_path,
    )  # fmt: skip
    told = json.loads(first.stdout)
    assert told["ok"]
    assert "note.txt" in told["text"]
    again = json.loads(
        piped("more", "run", "-", "--resume", told["id"], "--fork", *common, cwd=tmp_path).stdout
    )
    assert again["text"] == "You said: more"
    assert again["session_id"] != told["session_id"]
    (tmp_path / "schema.json").write_text(
        json.dumps(
            {"type": "object", "properties": {"title": {"type": "string"}, "pages": {"type": "integer"}}}
        )
    )
    shaped = call(
        "run", "How many pages?", "--schema", "schema.json", "--scenario", "structured-output", "--allow", "Bash",
        *common, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(shaped.stdout)["structured"] == {"title": "Shared pages", "pages": 8}
    short = call(
        "run",
        "list",
        "--scenario",
        "conversation",
        "--allow",
        "Bash",
        "--max-turns",
        "1",
        *common,
        cwd=tmp_path,
    )
    assert (short.returncode, json.loads(short.stdout)["status"]) == (1, "error")
    assert [check_run(folder) for folder in runs(tmp_path)] == [[]] * 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "prompt or --file"),
        (["run", "x", "--file", "y"], "prompt or --file"),
        (["run", "--file", "absent.md"], "absent.md"),
        (["run", "x", "--schema", "absent.json"], "absent.json"),
        (["run", "x", "--schema", "broken.json"], "broken.json"),
        (["run", "x", "--attach", "absent.csv"], "absent.csv"),
        (["run", "-"], "empty"),
        (["run", ""], "empty"),
        (["run", "x", "--scenario", "absent"], "absent"),
        (["run", "x", "--endpoint", "absent.cassette"], "absent.cassette"),
        (["run", "x", "--record", "absent/x.cassette"], "absent/x.cassette"),
        (["run", "x", "--resume", "absent"], "There is no run absent"),
        (["run", "x", "--network", "perhaps"], "perhaps"),
        (["chat", "--scenario", "absent"], "absent"),
        (["run", "x", "--fork"], "need --resume"),
        (["run", "x", "--live", "--endpoint", "scripted"], "contradict"),
    ],
)
def test_a_call_that_makes_no_sense_is_exit_code_two(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
