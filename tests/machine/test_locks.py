import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.machine.locks import one_at_a_time
from harvest_nb.paths import locks_dir

HOLDER = """
import sys, time
from harvest_nb.machine.locks import one_at_a_time
with one_at_a_time("thing", say=print):
    print("held", flush=True)
    time.sleep(60)
"""


pytestmark = pytest.mark.usefixtures("own_locks")


def test_the_second_waits_for_the_first_and_says_so():
    order: list[str] = []
    inside = threading.Event()

    def first() -> None:
        with one_at_a_time("thing", say=order.append):
            inside.set()
            time.sleep(0.3)
            order.append("first done")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(5)
    with one_at_a_time("thing", say=order.append):
        order.append("second in")
    thread.join()
    assert order == ["waiting: another thing is under way", "first done", "second in"]


def test_a_holder_that_is_killed_holds_nothing():
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        stop = Stop()
        threading.Timer(0.3, stop.ask).start()
        with pytest.raises(Cancelled), one_at_a_time("thing", say=lambda _: None, stop=stop):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    said: list[str] = []
    with one_at_a_time("thing", say=said.append):
        assert said == []


def test_different_names_do_not_wait():
    with one_at_a_time("a/b:c", say=print), one_at_a_time("a/b:d", say=print):
        assert len(list(locks_dir().iterdir())) == 2


def test_caches_of_their_own_do_not_keep_processes_from_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "one"))
    with one_at_a_time("thing", say=print):
        monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "two"))
        stop = Stop()
        threading.Timer(0.3, stop.ask).start()
        with pytest.raises(Cancelled), one_at_a_time("thing", say=print, stop=stop):
            pass


def test_a_folder_of_locks_that_is_a_link_is_refused(own_locks: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (own_locks / f"harvest-nb-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="TMPDIR"):
        locks_dir()
