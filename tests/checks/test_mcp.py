"""The client against servers of a few lines that behave well and badly; the real ones are in test_snapshot."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks import mcp
from harvest_nb.checks.mcp_client import expand_variables, mcp_session
from harvest_nb.errors import SandboxError
from harvest_nb.mcp_servers import MCPServer

SERVER = """
import json, os, sys
tools = os.environ.get("TOOLS", "alpha,beta").split(",")
graph = os.environ.get("GRAPH", '{"entities": [], "relations": []}')
for line in sys.stdin:
    ask = json.loads(line)
    if "id" not in ask or ask["method"] == os.environ.get("HANG"):
        continue
    if ask["method"] == "initialize":
        answer = {"protocolVersion": ask["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "little", "version": "1.2"}}
    elif ask["method"] == "tools/list":
        at = int((ask.get("params") or {}).get("cursor") or 0)
        until = at + int(os.environ.get("PAGE", len(tools)))
        answer = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in tools[at:until]]}
        if until < len(tools):
            answer["nextCursor"] = str(until)
    else:
        text = graph if os.environ.get("TOKEN") != "" else "TOKEN is not set"
        answer = {"content": [{"type": "text", "text": text}]}
    noise = os.environ.get("NOISE")
    if noise:
        print(noise, flush=True)
    sys.stderr.write("x" * 100_000 + "\\n")
    print(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": answer}), flush=True)
"""


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Makes `config/mcp.toml` list one little server, with the given environment and tools."""
    path = tmp_path / "server.py"
    path.write_text(SERVER)

    def one(env=None, tools=("alpha",), token=None, args=(str(path),)):
        server = MCPServer(
            name="little",
            package="none",
            command=sys.executable,
            args=args,
            env=env or {},
            tools=tools,
            token=token,
            why="",
        )
        monkeypatch.setattr(mcp, "mcp_servers", lambda: (server,))
        return server

    return one


def entry(kind="mcp_server", **fields):
    extra = "".join(
        f"{key} = {value!r}\n" for key, value in {"server": "little", "timeout": 20, **fields}.items()
    )
    return f'[[check]]\nname = "c"\ngroup = "mcp"\nkind = "{kind}"\nhint = "h"\n{extra}'


async def test_a_handshake_lists_the_tools(servers, run_contract):
    servers()
    (row,) = await run_contract(entry())
    assert (row.status, row.observed) == ("pass", "little 1.2: 2 tools")


async def test_tools_are_listed_to_the_last_page(servers, run_contract):
    servers(env={"PAGE": "1"}, tools=("alpha", "beta"))
    (row,) = await run_contract(entry())
    assert (row.status, row.observed) == ("pass", "little 1.2: 2 tools")


async def test_a_missing_tool_is_named(servers, run_contract):
    servers(tools=("alpha", "gamma"))
    (row,) = await run_contract(entry())
    assert (row.status, row.observed) == ("fail", "little 1.2: 2 tools, without gamma")


async def test_lines_that_are_no_messages_do_not_end_the_session(servers, run_contract):
    servers(env={"NOISE": "Listening on stdio ..."})
    assert (await run_contract(entry())).ok


async def test_the_last_words_of_a_server_that_ends_are_quoted(servers, run_contract):
    servers(args=("-c", "import sys; sys.exit('LITTLE_KEY is required')"))
    (row,) = await run_contract(entry())
    assert row.status == "fail"
    assert "did not initialize" in row.observed
    assert "LITTLE_KEY is required" in row.observed


async def test_a_silent_server_times_out(servers, run_contract):
    servers(args=("-c", "import time; time.sleep(60)"))
    (row,) = await run_contract(entry(timeout=1))
    assert row.status == "fail"
    assert row.observed.startswith("timed out after 1 s")
    assert row.observed.endswith(" initialize")


async def test_a_server_that_goes_silent_is_told_by_its_step(servers, run_contract):
    servers(env={"HANG": "tools/list"})
    (row,) = await run_contract(entry(timeout=5))
    assert row.status == "fail"
    assert "after initialize" in row.observed
    assert row.observed.endswith(" tools/list")


async def test_the_graph_is_read_from_a_copy(servers, run_contract, desk, tmp_path):
    store = tmp_path / "home" / "memory.jsonl"
    graph = '{"entities": [{"name": "A", "observations": ["x"]}, {"name": "B", "observations": []}], "relations": []}'
    servers(env={"GRAPH": graph})
    (row,) = await run_contract(entry("memory_graph", entities=["A"]))
    assert row.status == "fail"
    assert "memory.jsonl is missing" in row.observed
    store.write_text("the session's own")
    (row,) = await run_contract(entry("memory_graph", entities=["A"]))
    assert (row.status, row.observed) == ("pass", "2 entities, 0 relations")
    (row,) = await run_contract(entry("memory_graph", entities=["A", "B", "C"]))
    assert (row.status, row.observed) == ("fail", "2 entities, without C; B without observations")
    assert store.read_text() == "the session's own"


async def test_a_missing_token_must_be_told(servers, run_contract):
    servers(token="TOKEN")
    fields = {"tool": "alpha", "says": "TOKEN is not set"}
    assert (await run_contract(entry("mcp_missing_token", **fields))).ok
    (row,) = await run_contract(entry("mcp_missing_token", tool="alpha", says="please log in"))
    assert (row.status, row.observed) == ("fail", "TOKEN is not set")
    (row,) = await run_contract(entry("mcp_missing_token", says="TOKEN"))
    assert row.status == "fail"
    servers(
        token="TOKEN",
        args=("-c", "import os, sys; sys.exit('no TOKEN' if not os.environ.get('TOKEN') else 0)"),
    )
    (row,) = await run_contract(entry("mcp_missing_token", says="no TOKEN"))
    assert row.status == "pass", row


async def test_no_process_of_the_server_is_left(desk, tmp_path):
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    async with mcp_session(desk, [sys.executable, str(path)]) as session:
        assert session.server_info is not None
    done = await desk.run(["pgrep", "-f", str(path)])
    assert done.text == ""


async def test_a_program_that_is_missing_is_named(desk):
    with pytest.raises(SandboxError, match="no-such-server"):
        async with mcp_session(desk, ["no-such-server"]):
            pass


@given(st.dictionaries(st.sampled_from(["A", "B", "C_1"]), st.text(max_size=8)))
def test_variables_are_expanded_once(values):
    found = expand_variables({"X": "${A}/${B}-${C_1}", "Y": "$A {B}"}, values)
    a, b, c = (values.get(name, "") for name in ("A", "B", "C_1"))
    assert found == {"X": f"{a}/{b}-{c}", "Y": "$A {B}"}
