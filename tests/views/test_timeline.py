"""What the timeline shows is what the frames say."""

from __future__ import annotations

import pytest

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import load
from harvest_nb.views.timeline import message_flow, newest_run, turn_table, waterfall


def rows(chart):
    """All data in a chart."""
    return [row for data in chart.spec.to_dict()["datasets"].values() for row in data]


def test_the_flow_has_a_lane_for_everybody(frames):
    chart = message_flow(frames)
    lanes = {row["lane"] for row in rows(chart)}
    assert {"prompt", "CLI", "model", "tool Bash", "tool memory: read_graph", "sub-agent toolu_s…"} == lanes
    assert "3 turns, 2 tool calls, 5.0 s" in chart.svg
    assert "seconds since the first recorded message" in chart.svg


def test_bars_last_as_long_as_the_tools(frames):
    bars = {row["lane"]: row for row in rows(message_flow(frames)) if row["what"] == "tool runs"}
    graph = bars["tool memory: read_graph"]
    assert (graph["start"], graph["end"]) == (2.0, 2.5)


def test_the_waterfall_follows_each_turn_through_its_phases(frames):
    chart = waterfall(frames)
    first = {row["phase"]: (row["start"], row["end"]) for row in rows(chart) if row["turn"].startswith("1:")}
    # Ready at the init (1.0 s), answered at 2.0 s, the tool's result at 2.5 s.
    assert first["waiting for the model"] == (1.0, 2.0)
    assert first["tools run"] == (2.0, 2.5)
    assert "1: memory: read_graph" in chart.svg
    assert "3: answer" in chart.svg


def test_the_table_is_ready_to_read(frames):
    table = turn_table(frames)
    assert list(table.columns) == [
        "agent",
        "tools",
        "wait [s]",
        "answer [s]",
        "tools [s]",
        "cost [US cents]",
    ]
    # 1,000 x 3 + 100 x 15 + 100,000 x 0.3 = 34,500 millionths of a dollar.
    assert list(table.loc[1]) == ["main", "memory: read_graph", "1.00", "0.00", "0.50", "3.450"]
    assert table.loc[2, "wait [s]"] == "n/a"


def test_the_newest_run_is_taken_unless_one_is_named(record):
    folders = [record("run-2", begin=1_795_000_500), record("run-1")]
    frames = load(*folders)
    assert newest_run(frames) == "run-2"
    assert newest_run(frames, "run-1") == "run-1"
    assert "run run-1" in message_flow(frames, "run-1").description
    with pytest.raises(RunFolderError, match="run-3"):
        newest_run(frames, "run-3")


def test_a_run_that_never_spoke_still_has_its_charts(record):
    folder = record()
    (folder / "stream.jsonl").write_text("")
    frames = load(folder)
    assert "0 turns" in message_flow(frames).description
    assert "0 turns" in waterfall(frames).description
    assert turn_table(frames).empty
