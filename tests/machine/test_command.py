import sys
import threading
import time
from pathlib import Path

import pytest

from harvest_nb.machine import command
from harvest_nb.machine.command import Cancelled, Stop, clean_env, run_lines, unless_stopped


def python(program: str) -> list[str]:
    return [sys.executable, "-u", "-c", program]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_both_outputs_come_line_by_line_and_the_exit_code_is_kept():
    lines: list[str] = []
    done = run_lines(
        python("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"), on_line=lines.append
    )
    assert lines == ["one", "two"]
    assert done.exit_code == 3
    assert done.tail == ("one", "two")


def test_the_tail_is_the_last_twenty_lines():
    done = run_lines(python("for n in range(50): print(n)"))
    assert done.tail == tuple(str(n) for n in range(30, 50))


def test_no_token_reaches_a_program(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a-planted-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    done = run_lines(python("import os; print(dict(os.environ))"))
    assert "a-planted-secret" not in done.tail[0]
    assert "proxy.example" in done.tail[0]
    assert "/usr/sbin" in clean_env()["PATH"]


def test_a_stop_ends_the_whole_process_group_even_one_that_ignores_sigterm(monkeypatch):
    monkeypatch.setattr(command, "_GRACE_SECONDS", 0.3)
    stop, pids = Stop(), list[int]()
    program = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
import os
print(os.getpid()); print(child.pid)
time.sleep(60)
"""

    def line(text: str) -> None:
        pids.append(int(text))
        if len(pids) == 2:
            threading.Timer(0.1, stop.ask).start()

    began = time.monotonic()
    with pytest.raises(Cancelled):
        run_lines(python(program), on_line=line, stop=stop)
    assert time.monotonic() - began < 10
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_a_stop_before_the_start_starts_nothing(tmp_path):
    stop = Stop()
    stop.ask()
    with pytest.raises(Cancelled):
        run_lines(["touch", str(tmp_path / "made")], stop=stop)
    assert not (tmp_path / "made").exists()


def test_a_callback_that_raises_leaves_no_process():
    pids: list[int] = []

    def line(text: str) -> None:
        pids.append(int(text))
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        run_lines(python("import os, time; print(os.getpid()); time.sleep(60)"), on_line=line)
    assert not alive(pids[0])


def test_a_stop_calls_what_was_registered_once_and_later_ones_at_once():
    stop, calls = Stop(), list[str]()
    stop.on_ask(lambda: calls.append("before"))
    stop.ask()
    stop.ask()
    stop.on_ask(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    with pytest.raises(Cancelled):
        stop.wait(60)


def test_what_cannot_be_started_raises():
    with pytest.raises(FileNotFoundError):
        run_lines(["/no/such/program"])


def test_work_that_cannot_be_stopped_is_left_to_itself():
    stop, go_on, done = Stop(), threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(30)
        done.set()

    threading.Timer(0.1, stop.ask).start()
    with pytest.raises(Cancelled):
        unless_stopped(work, stop)
    assert not done.is_set()
    go_on.set()
    assert done.wait(30)
    assert unless_stopped(lambda: 1, Stop()) == 1
    with pytest.raises(ZeroDivisionError):
        unless_stopped(lambda: 1 // 0, Stop())
