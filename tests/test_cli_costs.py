"""`harvest-nb costs` and `harvest-nb prices`: what programs read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harvest_nb.cli import app
from harvest_nb.cli.costs import own_transcripts
from harvest_nb.errors import RunFolderError
from harvest_nb.prices import load_prices
from tests.tables.transcripts import MODEL, Transcript, call, usage

FIRST, SECOND = "11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A CLAUDE_CONFIG_DIR with two sessions, the second a fork of the first that asks on, a day later."""
    one = Transcript(FIRST)
    one.user(0, "Is it?")
    one.answer(1, "msg_1", usage(100, 10, 0, 1000), call("t1", "Bash"), call("t2", "Read"), stop="tool_use")
    one.answer(2, "msg_2", usage(0, 4, 0, 0, 1000), model="claude-haiku-4-5", stop=None)
    one.write(tmp_path / "projects" / "-home-me-app" / f"{FIRST}.jsonl")
    two = Transcript(SECOND, rows=[{**row, "sessionId": SECOND} for row in one.rows])
    two.answer(86_400, "msg_3", usage(10), model="claude-nonsense-9")
    two.write(tmp_path / "projects" / "-home-me-lib" / f"{SECOND}.jsonl")
    return tmp_path


def ask(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_json_is_as_promised(config):
    found = ask("costs", config, "--json")
    # 300 + 150 + 6,000 millionths; 4 x 5 + 1,000 x 0.1
    assert found["rows"] == [
        {
            "model": "claude-sonnet-4-5",
            "responses": 1,
            "input_tokens": 100,
            "output_tokens": 10,
            "output_not_final": 0,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 1000,
            "cache_read_tokens": 0,
            "cost_usd": 0.00645,
        },
        {
            "model": "claude-haiku-4-5",
            "responses": 1,
            "input_tokens": 0,
            "output_tokens": 4,
            "output_not_final": 1,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "cache_read_tokens": 1000,
            "cost_usd": 0.00012,
        },
        {
            "model": "claude-nonsense-9",
            "responses": 1,
            "input_tokens": 10,
            "output_tokens": 0,
            "output_not_final": 0,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "cache_read_tokens": 0,
            "cost_usd": None,
        },
    ]
    table = load_prices()
    assert {key: found[key] for key in ("total_usd", "priced_usd", "problems", "prices")} == {
        "total_usd": None,
        "priced_usd": 0.00657,
        "problems": 1,
        "prices": {"version": table.version, "digest": table.digest},
    }


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("day", ["2026-06-01", "2026-06-02"]),
        ("session", [FIRST, SECOND]),
        ("tool", ["Bash + Read", "(no tool)"]),
        ("project", ["-home-me-app", "-home-me-lib"]),
    ],
)
def test_rows_add_up_whatever_they_are_made_for(config, by, names):
    found = ask("costs", config, "--by", by, "--json")
    assert [row[by] for row in found["rows"]] == names
    assert sum(row["responses"] for row in found["rows"]) == 3
    assert found["priced_usd"] == 0.00657
    assert found["rows"][-1]["cost_usd"] is None


def test_the_session_view_has_each_session_whole(config):
    found = ask("costs", config, "--by", "session", "--view", "session", "--json")
    assert {row["session"]: row["responses"] for row in found["rows"]} == {FIRST: 2, SECOND: 3}
    assert found["priced_usd"] == 0.01314


def test_a_person_is_told_what_the_total_leaves_out(config):
    done = CliRunner().invoke(app, ["costs", str(config)], catch_exceptions=False)
    assert "total at least 0.0066 USD" in done.output
    assert "claude-nonsense-9, without a price or a count" in " ".join(done.output.split())
    assert "at least: 1 responses" in " ".join(done.output.split())
    assert "no price" in done.output


def test_counts_that_nobody_knows_are_not_counted_as_0_in_silence(tmp_path):
    log = Transcript(FIRST)
    log.answer(1, "msg_1", usage(100, 10, 0, 0, 500))
    log.answer(2, "msg_2", {**usage(20, 5), "cache_read_input_tokens": -1})
    log.answer(3, "msg_3", {"output_tokens": 3})
    log.answer(4, "msg_4", usage(7, 1), model="claude-haiku-4-5")
    log.write(tmp_path / "a.jsonl")
    found = ask("costs", tmp_path, "--json")
    first, second = found["rows"] if found["rows"][0]["model"] == MODEL else found["rows"][::-1]
    assert first["counts_unknown"] == {
        "input_tokens": 1,
        "cache_write_5m_tokens": 1,
        "cache_write_1h_tokens": 1,
        "cache_read_tokens": 2,
    }
    assert (first["input_tokens"], first["output_tokens"], first["cache_read_tokens"]) == (120, 18, 500)
    assert first["cost_usd"] is None
    assert "counts_unknown" not in second  # the keys of a row of which all is known are fixed
    shown = CliRunner().invoke(app, ["costs", str(tmp_path)], catch_exceptions=False).output
    words = " ".join(shown.split())
    assert f"{MODEL} 3 ≥120 18 0 ≥0 ≥0 ≥500 no price" in words
    assert "claude-haiku-4-5 1 7 1 0 0 0 0 0.0000" in words
    assert "at least: 2 responses do not say all their counts" in words


def test_without_a_path_it_is_this_machines_transcripts(config, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(config))
    assert len(ask("costs", "--json")["rows"]) == 3
    monkeypatch.delenv("CLAUDE_CONFIG_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(RunFolderError, match="no Claude Code transcripts"):
        own_transcripts()
    (tmp_path / "home" / ".claude" / "projects").mkdir(parents=True)
    assert own_transcripts() == [tmp_path / "home" / ".claude" / "projects"]


def test_the_price_table_says_what_it_is():
    found = ask("prices", "opus-4-6", "mythos-5", "--json")
    assert {row["model"] for row in found["rows"]} == {
        "claude-opus-4-6",
        "claude-mythos-5",
        "claude-mythos-5-1",
        "claude-mythos-5-2",
    }
    assert found["age_days"] >= 0
    assert found["edition"] in found["version"]
    assert all(row["source"] for row in found["rows"])
    before = ask("prices", "opus-4-6", "--date", "2026-03-01", "--json")
    assert "prompt > 200k" in {row["when"] for row in before["rows"]}
    assert "prompt > 200k" not in {row["when"] for row in ask("prices", "opus-4-6", "--json")["rows"]}
    shown = CliRunner().invoke(app, ["prices", "opus-4-6"], catch_exceptions=False).output
    assert "days old" in shown
    assert "x1.1" in shown
