"""The real CLI, resumed and forked: what each process reports, and what it only repeats."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.tables import load
from tests.tables import observe_cli_prices as observed
from tests.tables.transcripts import MODEL, model_usage, result, stream, streamed, usage, write_lines

ONE = Decimal("0.02805")
"""1,000 tokens of each kind with claude-sonnet-4-5: 3,000 + 15,000 + 3,750 + 6,000 + 300 millionths."""
SESSION = "77777777-0000-4000-8000-000000000007"


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Asks the CLI one question in a process of its own; gives what it printed, as JSON."""
    handler = type("Handler", (observed._Endpoint,), {"asked": [], "case": ["mixed"]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "CLAUDE_CODE_OAUTH_TOKEN": "made-up",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }

    def run(*more: str, form: str = "stream-json") -> list[dict[str, Any]]:
        argv = [str(observed.PROGRAM), "-p", "Is it?", "--output-format", form, "--model", MODEL]
        argv += ["--verbose"] if form == "stream-json" else []
        done = subprocess.run(
            [*argv, *more], capture_output=True, text=True, env=environment, cwd=home / "work", check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    yield run
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_resumed_and_a_forked_session_cost_what_they_add(ask, tmp_path):
    first = ask()
    session = first[-1]["session_id"]
    again = ask("--resume", session)
    fork = ask("--resume", session, "--fork-session")
    assert [Decimal(str(said[-1]["total_cost_usd"])) for said in (first, again, fork)] == [
        ONE,
        2 * ONE,
        3 * ONE,
    ]
    logs = [write_lines(tmp_path / f"{n}.jsonl", said) for n, said in enumerate((first, again, fork))]
    whole = load(*logs)
    assert whole.costs["cost_usd"].sum() == whole.runs["cost_usd"].sum() == 3 * ONE
    assert list(whole.runs["n_processes"]) == [2, 1]
    assert list(whole.runs["residual_reason"]) != ["unexplained"] * 2
    # Each log alone: what its own process cost, not what the CLI carried over.
    for path, carried in zip(logs, (0, ONE, 2 * ONE), strict=True):
        frames = load(path)
        assert frames.costs["cost_usd"].sum() == ONE
        assert frames.result_usage["cost_carried_usd"].sum() == carried
        assert frames.usage["input_tokens"].sum() == 1000
    # The transcripts: each response once, whatever their own accounts say.
    kept = load(tmp_path / "home" / ".claude")
    assert kept.costs["cost_usd"].sum() == kept.runs["cost_usd"].sum() == 3 * ONE
    assert kept.runs["n_copied"].sum() == 2
    assert kept.problems.empty, kept.problems.to_string()
    # And both together.
    both = load(tmp_path)
    assert both.costs["cost_usd"].sum() == 3 * ONE


@pytest.mark.slow
def test_results_printed_alone_of_a_resumed_and_a_forked_session(ask, tmp_path):
    """`--output-format json`: the CLI carries over and does not say so."""
    (first,) = ask(form="json")
    session = first["session_id"]
    (again,) = ask("--resume", session, form="json")
    (fork,) = ask("--resume", session, "--fork-session", form="json")
    assert [Decimal(str(said["total_cost_usd"])) for said in (first, again, fork)] == [ONE, 2 * ONE, 3 * ONE]
    paths = [tmp_path / f"{name}.json" for name in ("b", "a", "c")]  # no order of names tells
    for path, said in zip(paths, (first, again, fork), strict=True):
        path.write_text(json.dumps(said))
    # A session of which all is there: each process costs what it adds.
    for order in (paths[:2], paths[1::-1]):
        frames = load(*order)
        assert frames.costs["cost_usd"].sum() == frames.runs["cost_usd"].sum() == 2 * ONE
        assert frames.result_usage["cost_carried_usd"].tolist() == [0, ONE]
        assert frames.problems.empty
    assert load(paths[0]).problems.empty
    # One that began elsewhere: it cannot be told, and so is told.
    for path, cost in zip(paths[1:], (2 * ONE, 3 * ONE), strict=True):
        alone = load(path)
        assert alone.problems["reason"].tolist() == ["carried_cost_unclear"]
        assert alone.runs["cost_usd"].tolist() == [cost]
    # With the transcript, its rows say what it was.
    transcripts = tmp_path / "home" / ".claude" / "projects"
    whole = load(*paths[:2], *transcripts.glob(f"*/{session}.jsonl"))
    assert whole.costs["cost_usd"].sum() == 2 * ONE
    assert "carried_cost_unclear" not in set(whole.problems["reason"])


def test_single_results_of_one_session_in_files_of_their_own(tmp_path):
    """An older CLI begins at 0 in each process; a newer one (it says `subagent_stats`) carries over."""
    for number, total in enumerate((0.01, 0.03)):
        told = {**result(total, {MODEL: model_usage(1000, 0, 0, 0, 0, total)}), "session_id": SESSION}
        (tmp_path / f"{number}.json").write_text(json.dumps(told))
    assert load(tmp_path).runs["cost_reported_usd"].tolist() == [Decimal("0.04")]
    for number, total in enumerate((0.01, 0.03)):
        told = {
            **result(total, {MODEL: model_usage(1000 + number, 0, 0, 0, 0, total)}),
            "session_id": SESSION,
        }
        (tmp_path / f"{number}.json").write_text(json.dumps({**told, "subagent_stats": {"spawned": 0}}))
    assert load(tmp_path).runs["cost_reported_usd"].tolist() == [Decimal("0.03")]


def test_two_branches_of_one_session_printed_alone(tmp_path):
    """Both hold what the session had cost before; the second holds nothing of the first."""
    for name, own, all_of_it, cost in (
        ("a", 1000, 1000, 0.003), ("b", 2000, 3000, 0.009), ("c", 4000, 5000, 0.015),
    ):  # fmt: skip
        told = result(cost, {MODEL: model_usage(all_of_it, 0, 0, 0, 0, cost)}, usage=usage(own, 0))
        told |= {"session_id": SESSION, "uuid": name, "subagent_stats": {"spawned": 0}}
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    frames = load(tmp_path)
    assert frames.runs["cost_usd"].tolist() == [Decimal("0.021")]
    assert frames.problems.empty


def test_a_process_that_carries_nothing_over_costs_all_it_says(tmp_path):
    """Its own usage is all there is, though an earlier one would fit in it."""
    for name, own in (("a", 1000), ("b", 5000)):
        told = result(own * 3e-6, {MODEL: model_usage(own, 0, 0, 0, 0, own * 3e-6)}, usage=usage(own, 0))
        told |= {"session_id": SESSION, "uuid": name, "subagent_stats": {"spawned": 0}}
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    frames = load(tmp_path)
    assert frames.runs["cost_usd"].tolist() == [Decimal("0.018")]
    assert frames.problems.empty


@pytest.mark.parametrize("background", [0, 10])
def test_thousands_of_results_printed_alone_take_no_longer_for_each(tmp_path, background):
    lines = []
    for number in range(1, 3001):
        models = {MODEL: model_usage(1000 * number, 0, 0, 0, 0, 0.003 * number)}
        if background:
            spent = model_usage(background * number, 0, 0, 0, 0, 0.00001 * number)
            models["claude-haiku-4-5"] = spent
        told = result(sum(one["costUSD"] for one in models.values()), models, usage=usage(1000, 0))
        lines.append({**told, "session_id": SESSION, "uuid": f"u{number}", "subagent_stats": {"spawned": 0}})
    path = write_lines(tmp_path / "a.jsonl", lines)
    begun = time.process_time()
    frames = load(path)
    assert time.process_time() - begun < 20
    assert frames.runs["cost_usd"].tolist() == [Decimal("9.03" if background else "9")]
    assert set(frames.problems["reason"]) == ({"carried_cost_unclear"} if background else set())


def test_a_log_that_was_split_between_its_results_is_still_one_process(tmp_path):
    first = result(0.003, {MODEL: model_usage(1000, 0, 0, 0, 0, 0.003)})
    second = result(0.009, {MODEL: model_usage(3000, 0, 0, 0, 0, 0.009)})
    said = [streamed("msg_1", usage(1000)), first, streamed("msg_2", usage(2000)), second]
    lines = stream(SESSION, *said)
    write_lines(tmp_path / "0.jsonl", lines[:3])
    write_lines(tmp_path / "1.jsonl", lines[3:])
    frames = load(tmp_path)
    assert frames.runs["cost_usd"].tolist() == [Decimal("0.009")]
    assert frames.costs["cost_usd"].sum() == Decimal("0.009")
