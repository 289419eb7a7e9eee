"""Diagrams: true to the code, the same bytes each time, and never stale."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harvest_nb.errors import RunFolderError
from harvest_nb.mcp_servers import mcp_servers
from harvest_nb.paths import data_root
from harvest_nb.snapshot.sources import read_map
from harvest_nb.views import diagrams
from harvest_nb.views.diagrams.inventory import floor_of
from harvest_nb.views.diagrams.render import render
from harvest_nb.views.diagrams.states import END, START, TRANSITIONS, state_of

ROOT = data_root()
FOLDER, PAGE = ROOT / "docs" / "diagrams", ROOT / "ARCHITECTURE.md"
NAMES = list(diagrams.DIAGRAMS)


# Files


def test_the_committed_diagrams_are_what_the_code_gives():
    stale = diagrams.check(FOLDER, PAGE)
    assert stale == [], "run `python -m harvest_nb.views.diagrams --write`"


@pytest.mark.slow
def test_a_fresh_rendering_gives_the_committed_bytes():
    diagram = diagrams.config_map()
    committed = (FOLDER / "config_map.svg").read_text()
    assert re.sub(r"<!-- \w+ \w+ -->\n", "", committed) == render(diagram)


def test_check_names_what_is_stale_missing_or_left_over(tmp_path):
    folder, page = tmp_path / "docs" / "diagrams", tmp_path / "PAGE.md"
    marks = "".join(f"<!-- diagram {name} -->\n<!-- end diagram {name} -->\n" for name in NAMES)
    page.write_text(f"# Page\n\n{marks}")
    diagrams.write_all(folder, page)
    assert diagrams.check(folder, page) == []
    assert diagrams.write_all(folder, page) == []
    assert "(docs/diagrams/overview.svg)" in page.read_text()

    (folder / "resume.mmd").unlink()
    (folder / "old.svg").write_text("<svg/>")
    svg = folder / "cancel.svg"
    svg.write_text(svg.read_text().replace("interrupt", "interupt"))
    page.write_text(
        page.read_text().replace("relevance-api-node", "another").replace("diagram floors -->", "x -->")
    )
    assert set(diagrams.check(folder, page)) == {
        "resume.mmd is missing",
        "old.svg belongs to no diagram",
        "cancel.svg is stale",
        "the diagram overview in PAGE.md is stale",
        "PAGE.md has no diagram floors",
    }


@pytest.mark.slow
def test_a_changed_svg_is_rendered_anew_instead_of_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path))
    diagram = diagrams.Diagram("tiny", "Tiny", "flowchart LR\n  a --> b\n")
    first = diagrams.to_svg(diagram)
    kept = next(tmp_path.rglob("*.svg"))
    kept.write_text(first.replace("</svg>", "<!-- tampered --></svg>"))
    diagrams.to_svg.cache_clear()
    assert diagrams.to_svg(diagram) == first == kept.read_text()


def test_sources_do_not_depend_on_the_order_of_a_set():
    program = "from harvest_nb.views import diagrams as d; print(d.overview().source, d.build().source)"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert "classDef desk" in next(iter(seen))
    assert "Warning" not in next(iter(seen))


@pytest.mark.parametrize("name", NAMES)
def test_an_svg_stands_alone(name):
    text = (FOLDER / f"{name}.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.get("id") == f"diagram-{name.replace('_', '-')}"
    assert "my-svg" not in text
    assert "foreignObject" not in text
    assert float(root.get("width", "0")) > 100
    assert root[1].tag.endswith("rect")  # the light ground
    assert root[1].get("fill") == "#ffffff"
    assert not re.search(r"(href|src)=\"https?:", text)


def test_ids_of_two_diagrams_do_not_collide():
    ids = [set(re.findall(r'\bid="([^"]+)"', (FOLDER / f"{name}.svg").read_text())) for name in NAMES]
    shared = {i for n, one in enumerate(ids) for other in ids[n + 1 :] for i in one & other}
    assert shared == set()


# Truth


def test_the_config_map_shows_every_entry():
    source = diagrams.config_map().source
    for entry in read_map().source:
        assert f'"{entry.source}"' in source
        assert f'"{entry.image}"' in source


def test_the_inventory_shows_every_server_with_its_token():
    source = diagrams.mcp_inventory().source
    for server in mcp_servers():
        assert server.command in source
        assert f"{len(server.tools)} tool" in source
        assert server.token is None or server.token in source


def test_the_state_diagram_shows_every_step():
    source = diagrams.message_states().source
    assert source.count("-->") == len(TRANSITIONS)


def test_the_package_keeps_to_its_floors():
    wrong = []
    for path in sorted((ROOT / "harvest_nb").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        own = floor_of(module)
        assert own is not None
        for name in _imports(path):
            other = floor_of(name)
            if other is not None and other > own:
                wrong.append(f"{module} (floor {own}) imports {name} (floor {other})")
    assert wrong == []


def test_tables_import_nothing_that_runs_agents():
    running = {"claude_agent_sdk", "docker", "daytona"}
    for path in (ROOT / "harvest_nb" / "tables").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & running, path
        own = {name for name in _imports(path) if name.startswith("harvest_nb.")}
        assert not {n for n in own if (floor_of(n) or 0) in (2, 3, 4)}, path


@pytest.mark.parametrize("package", ["docker", "daytona"])
def test_a_providers_library_is_imported_in_one_place(package):
    homes = {
        path.relative_to(ROOT).parts[1]
        for path in (ROOT / "harvest_nb").rglob("*.py")
        if any(name.split(".")[0] == package for name in _imports(path))
    }
    assert len(homes) <= 1, homes


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Only the relay imports relatively: in a sandbox it is a package of another name.
            assert node.level == 0 or path.parent.name == "relayd", f"{path} imports relatively"
            here = path.relative_to(ROOT).parts[: -node.level or None] if node.level else ()
            module = ".".join([*here, *filter(None, [node.module])])
            found += [f"{module}.{a.name}" for a in node.names] if module == "harvest_nb" else [module]
    return found


# The stream


def message(kind: str, *blocks: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "message": {"content": [{"type": block} for block in blocks]}, **more}


def recorded(direction: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"seq": 1, "t": 0.0, "dir": direction, "message": content}


INIT = {"type": "system", "subtype": "init"}
RESULT = {"type": "result", "subtype": "success"}
# As the claude CLI 2.1.330 streamed them, partial messages left in; the cancel came while a tool ran.
PLAIN = [
    recorded("out", {"type": "control_request", "request": {"subtype": "initialize"}}),
    recorded("in", {"type": "control_response"}),
    recorded("out", {"type": "user", "message": {"role": "user", "content": "go"}}),
    recorded("in", {"type": "system", "subtype": "session_state_changed"}),
    recorded("in", INIT),
    recorded("in", {"type": "stream_event"}),
    recorded("in", message("assistant", "thinking")),
    recorded("in", message("assistant", "text")),
    recorded("in", message("assistant", "tool_use")),
    recorded("in", message("assistant", "tool_use")),
    recorded("in", {"type": "rate_limit_event"}),
]
DONE = [
    recorded("in", message("user", "tool_result")),
    recorded("in", message("user", "tool_result")),
    recorded("in", {"type": "stream_event"}),
    recorded("in", message("assistant", "text")),
    recorded("in", RESULT),
]
CANCELLED = [
    recorded("out", {"type": "control_request", "request": {"subtype": "interrupt"}}),
    recorded("in", {"type": "control_response"}),
    recorded("in", message("user", "tool_result")),
    recorded("in", message("user", "tool_result")),
    recorded("in", message("user", "text")),
    recorded("in", {"type": "result", "subtype": "error_during_execution"}),
]


# Cancelled before init: the CLI is ended without a word, and another one is started for the next prompt.
UNHEARD = [*PLAIN[:4], recorded("in", {"type": "command_lifecycle", "state": "queued"})]


@pytest.mark.parametrize(
    "stream",
    [
        PLAIN + DONE,
        PLAIN + CANCELLED,
        PLAIN + CANCELLED + PLAIN + DONE,
        UNHEARD + UNHEARD + PLAIN + DONE,
        PLAIN * 2 + DONE,
    ],
)
def test_observed_streams_are_paths(stream):
    assert diagrams.check_transitions(stream) == []


@pytest.mark.parametrize("stream", [PLAIN + DONE, PLAIN + CANCELLED, PLAIN + CANCELLED + PLAIN + DONE])
def test_so_are_the_clis_own_words_alone(stream):
    assert diagrams.check_transitions([entry["message"] for entry in stream if entry["dir"] == "in"]) == []


def test_a_subagents_messages_do_not_move_the_main_thread():
    inner = [message("user", parent_tool_use_id="t"), message("assistant", "text", parent_tool_use_id="t")]
    stream = [INIT, message("assistant", "tool_use"), *inner, message("user", "tool_result"), RESULT]
    assert diagrams.check_transitions(stream) == []


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        ([INIT, message("user", "tool_result"), RESULT], "message 2: init → tool_result is no step"),
        ([message("assistant", "text"), RESULT], "message 1: start → assistant is no step"),
        ([INIT, RESULT, {"type": "stream_event"}], "stream_event after result, outside of any turn"),
        ([INIT, RESULT, message("assistant", "text"), RESULT], "result → assistant is no step"),
        ([INIT, {"type": "novelty"}, RESULT], "message 2, after init: the type 'novelty'"),
        ([INIT, message("assistant", "tool_use")], "ends after message 2 at tool_use, without a result"),
        ([], "ends after message 0 at start"),
        (UNHEARD + PLAIN[2:] + DONE, "prompt → prompt is no step"),
    ],
)
def test_what_is_not_a_path_is_named(stream, says):
    problems = diagrams.check_transitions(stream)
    assert len(problems) == 1
    assert says in problems[0]


def test_a_run_that_was_cut_off_may_end_anywhere(tmp_path):
    stream = "\n".join(json.dumps(entry) for entry in PLAIN) + '\n{"seq": 12, "mess'
    (tmp_path / "stream.jsonl").write_text(stream)
    (tmp_path / "run.json").write_text('{"status": "died"}')
    assert diagrams.check_run(tmp_path) == []
    (tmp_path / "run.json").write_text('{"status": "success"}')
    with pytest.raises(RunFolderError, match="line 12"):
        diagrams.check_run(tmp_path)
    with pytest.raises(RunFolderError, match="cannot be read as a run folder"):
        diagrams.check_run(tmp_path / "absent")


def test_every_state_can_be_reached_and_can_end():
    reached = {START}
    while more := {b for a, b in TRANSITIONS if a in reached} - reached:
        reached |= more
    assert reached == {START, END, *diagrams.STATES}
    assert state_of(RESULT) == "result"
