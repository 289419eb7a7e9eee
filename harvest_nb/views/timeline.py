"""Message flow over time: who spoke when, and where each turn's time went."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import Frames
from harvest_nb.views.charts import Chart, scale

__all__ = ["message_flow", "newest_run", "turn_table", "waterfall"]

_PHASES = {
    "wait_s": "waiting for the model",
    "stream_s": "model answers",
    "tools_s": "tools run",
    "hooks_s": "hooks run",
}
_SPANS = ("waiting for the model", "model answers", "tool runs", "message")
_SENDERS = {"user": "prompt", "desk": "desk (SDK)", "cli": "CLI", "model": "model"}
_WIDTH = 640


def newest_run(frames: Frames, run_id: str | None = None) -> str:
    """`run_id` if it is loaded; without one, the id of the run that started last.

    Raises:
        RunFolderError: no such run is loaded.
    """
    runs = frames.runs
    if run_id is not None:
        if run_id not in set(runs["run_id"]):
            raise RunFolderError(f"Run {run_id} is not loaded", hint="frames.runs lists the runs that are")
        return run_id
    if runs.empty:
        raise RunFolderError("No run is loaded", hint="load a folder that holds run folders")
    return str(runs.sort_values("started", na_position="first")["run_id"].iloc[-1])


def message_flow(frames: Frames, run_id: str | None = None) -> Chart:
    """One run as lanes over time: prompts, CLI, model, each tool, each sub-agent.

    A mark is a message; a bar is what lasted: the wait for the model, its answer, a tool's work.
    """
    run = newest_run(frames, run_id)
    found = _turn_spans(frames, run) + _tool_spans(frames, run) + _marks(frames, run)
    spans = pd.DataFrame(found, columns=["lane", "order", "what", "start", "end"])
    lanes = list(dict.fromkeys(spans.sort_values(["order", "start"])["lane"]))
    bars, marks = spans[spans["what"] != "message"], spans[spans["what"] == "message"]
    y = alt.Y("lane:N", sort=lanes, title=None, scale=alt.Scale(domain=lanes))
    x = alt.X("start:Q", title="seconds since the first recorded message")
    colour = alt.Color("what:N", title=None, scale=scale(_SPANS, spans["what"]))
    picture = alt.layer(
        alt.Chart(bars).mark_bar(height=14, minBandSize=1).encode(x=x, x2="end:Q", y=y, color=colour),
        alt.Chart(marks).mark_tick(thickness=2, height=20).encode(x=x, y=y, color=colour),
    )
    turns = frames.turns[frames.turns["run_id"] == run]
    calls = frames.tool_calls[frames.tool_calls["run_id"] == run]
    seconds = max((float(end) for end in spans["end"]), default=0.0)
    subtitle = f"{len(turns)} turns, {len(calls)} tool calls, {seconds:.1f} s"
    title = alt.Title(f"Message flow of run {run}", subtitle=subtitle)
    spec = picture.properties(width=_WIDTH, height=alt.Step(26), title=title)
    return Chart(spec, f"Message flow of run {run}: {subtitle}; lanes {', '.join(lanes)}.")


def waterfall(frames: Frames, run_id: str | None = None) -> Chart:
    """One bar per turn, from the moment its request could go out: wait, answer, tools, hooks."""
    run = newest_run(frames, run_id)
    turns = frames.turns[frames.turns["run_id"] == run].dropna(subset=["start_s", "total_s"])
    tools = _tools_by_turn(frames, run)
    rows: list[dict[str, Any]] = []
    for turn in _records(turns):
        at = float(turn["start_s"])
        label = _turn_label(int(turn["turn"]), str(turn["agent"]), tools.get(int(turn["turn"]), ""))
        for column, phase in _PHASES.items():
            length = float(turn[column])
            rows.append({"turn": label, "phase": phase, "start": at, "end": at + length})
            at += length
    data = pd.DataFrame(rows, columns=["turn", "phase", "start", "end"])
    sums = {phase: float(turns[column].sum()) for column, phase in _PHASES.items()}
    subtitle = ", ".join(f"{phase} {total:.2f} s" for phase, total in sums.items())
    spec = (
        alt.Chart(data)
        .mark_bar(height=16)
        .encode(
            x=alt.X("start:Q", title="seconds since the first recorded message", scale=alt.Scale(zero=False)),
            x2="end:Q",
            y=alt.Y("turn:N", sort=list(dict.fromkeys(data["turn"])), title=None),
            color=alt.Color("phase:N", title=None, scale=scale(tuple(_PHASES.values()))),
        )
        .properties(
            width=_WIDTH,
            height=alt.Step(26),
            title=alt.Title("Where each turn's time went", subtitle=subtitle),
        )
    )
    return Chart(spec, f"Waterfall of {len(turns)} turns of run {run}: {subtitle}.")


def turn_table(frames: Frames, run_id: str | None = None) -> pd.DataFrame:
    """The turns of one run, ready to read: seconds to the hundredth, cost in cents of USD."""
    run = newest_run(frames, run_id)
    turns = frames.turns[frames.turns["run_id"] == run]
    costs = frames.costs[frames.costs["run_id"] == run]
    # `min_count`: a turn without a price shows no cost rather than 0.
    spent = costs.groupby("turn")["cost_usd"].sum(min_count=1)
    tools = _tools_by_turn(frames, run)
    table = pd.DataFrame({"turn": turns["turn"].astype(int), "agent": [_short(a) for a in turns["agent"]]})
    table["tools"] = [tools.get(turn, "") for turn in table["turn"]]
    for column, label in (("wait_s", "wait [s]"), ("stream_s", "answer [s]"), ("tools_s", "tools [s]")):
        table[label] = [_fixed(value, 2) for value in turns[column]]
    cents = [spent.get(turn) for turn in table["turn"]]
    table["cost [US cents]"] = [_fixed(None if pd.isna(c) else float(c) * 100, 3) for c in cents]
    return table.set_index("turn")


def _turn_spans(frames: Frames, run: str) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = []
    turns = frames.turns[frames.turns["run_id"] == run].dropna(subset=["start_s", "wait_s"])
    for turn in _records(turns):
        lane, order = (
            ("model", 3) if turn["agent"] == "main" else (f"sub-agent {_short(str(turn['agent']))}", 5)
        )
        start = float(turn["start_s"])
        sign = start + float(turn["wait_s"])
        base = {"lane": lane, "order": order}
        spans.append({**base, "what": _SPANS[0], "start": start, "end": sign})
        spans.append({**base, "what": _SPANS[1], "start": sign, "end": sign + float(turn["stream_s"])})
    return spans


def _tool_spans(frames: Frames, run: str) -> list[dict[str, Any]]:
    calls = frames.tool_calls[frames.tool_calls["run_id"] == run].dropna(subset=["start_s", "duration_s"])
    return [
        {
            "lane": f"tool {_tool(str(call['tool']))}",
            "order": 4,
            "what": _SPANS[2],
            "start": float(call["start_s"]),
            "end": float(call["start_s"]) + float(call["duration_s"]),
        }
        for call in _records(calls)
    ]


def _marks(frames: Frames, run: str) -> list[dict[str, Any]]:
    records = frames.records
    messages = records[
        (records["run_id"] == run) & (records["type"] != "stream_event") & records["sender"].notna()
    ].dropna(subset=["t_s"])
    lanes = {sender: (lane, order) for order, (sender, lane) in enumerate(_SENDERS.items())}
    marks: list[dict[str, Any]] = []
    for message in _records(messages):
        lane, order = lanes.get(message["sender"], (None, 0))
        if message["agent"] != "main":
            # Of a sub-agent the model's messages: its tools have their bars.
            lane, order = (
                (f"sub-agent {_short(message['agent'])}", 5) if message["sender"] == "model" else (None, 0)
            )
        if lane:
            at = float(message["t_s"])
            marks.append({"lane": lane, "order": order, "what": _SPANS[3], "start": at, "end": at})
    return marks


def _tools_by_turn(frames: Frames, run: str) -> dict[int, str]:
    calls = frames.tool_calls[frames.tool_calls["run_id"] == run].dropna(subset=["turn"])
    names: dict[int, list[str]] = {}
    for call in _records(calls):
        names.setdefault(int(call["turn"]), []).append(_tool(str(call["tool"])))
    return {turn: ", ".join(found) for turn, found in names.items()}


def _turn_label(turn: int, agent: str, tools: str) -> str:
    who = "" if agent == "main" else f" (sub-agent {_short(agent)})"
    return f"{turn}{who}: {tools}" if tools else f"{turn}{who}: answer"


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def _tool(name: str) -> str:
    """`mcp__memory__read_graph` as `memory: read_graph`."""
    parts = name.split("__")
    return f"{parts[1]}: {'__'.join(parts[2:])}" if len(parts) >= 3 and parts[0] == "mcp" else name


def _short(agent: str) -> str:
    return agent if len(agent) <= 8 else agent[:7] + "…"


def _fixed(value: Any, places: int) -> str:
    return "n/a" if value is None or pd.isna(value) else f"{float(value):.{places}f}"
