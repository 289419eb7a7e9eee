from __future__ import annotations

from collections.abc import AsyncIterator

from claude_agent_sdk import ClaudeAgentOptions
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.session.transport import _lines, command


def test_the_sdk_still_builds_the_command_this_way() -> None:
    """The method is private: this is the contract on which the pinned SDK is relied upon."""
    argv = command(
        ClaudeAgentOptions(
            system_prompt={"type": "preset", "preset": "claude_code", "append": "RULES"},
            model="m",
            mcp_servers={"x": {"type": "stdio", "command": "c", "args": [], "env": {"T": "${T}"}}},
            include_partial_messages=True,
            strict_mcp_config=True,
            setting_sources=[],
        )
    )
    assert argv[:4] == ["claude", "--output-format", "stream-json", "--verbose"]
    assert argv[argv.index("--append-system-prompt") + 1] == "RULES"
    assert '"T": "${T}"' in argv[argv.index("--mcp-config") + 1]
    assert {"--include-partial-messages", "--strict-mcp-config", "--setting-sources="} <= set(argv)
    assert argv[-2:] == ["--input-format", "stream-json"]


async def test_a_permission_callback_is_routed_over_the_stream() -> None:
    async def allow(*_: object) -> object:
        raise AssertionError

    argv = command(ClaudeAgentOptions(can_use_tool=allow))  # type: ignore[arg-type]
    assert argv[argv.index("--permission-prompt-tool") + 1] == "stdio"


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
async def test_lines_do_not_depend_on_where_chunks_end(data: bytes, sizes: list[int]) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        rest = data
        for size in [*sizes, len(data) or 1]:
            if rest:
                yield rest[:size]
            rest = rest[size:]

    wanted = data.split(b"\n")
    if wanted[-1] == b"":
        wanted.pop()
    assert [line async for line, _ in _lines(chunks(), 1 << 30)] == wanted
