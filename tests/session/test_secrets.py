"""A canary for each variable that may be given, in a session whose agent prints all it has."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from claude_agent_sdk import Message
from nbconvert import HTMLExporter

from harvest_nb.endpoint.messages import Block, Text
from harvest_nb.endpoint.scripted import Conversation, Script, Step, scripted
from harvest_nb.engine import DockerClient
from harvest_nb.errors import TokenError
from harvest_nb.notebooks import run_notebook
from harvest_nb.redact import Redactor
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import LIVE, Setup, open_session
from harvest_nb.session.options import SessionOptions
from harvest_nb.settings import TOKEN_VARIABLES
from tests.session.conftest import about, bash, conversation, echo, stream
from tests.session.test_faults import HERE

pytestmark = pytest.mark.slow

# Of its own environment the CLI hands its tools all but its own credential; that lies in /proc.
SHOW = (
    "all() { tr '\\0' '\\n' < /proc/$PPID/environ | grep -E '_TOKEN|_KEY'; }; all; all | base64; "
    "all | base64 -w0; echo; all | od -tx1; all | od -An -v -tx1 | tr -d ' \\n'; all | python3 -c "
    '"import sys, urllib.parse as u; print(u.quote(sys.stdin.read(), safe=chr(10)))"'
)
NAMES = ("GITHUB_TOKEN", "LINEAR_API_KEY", "GEMINI_API_KEY", "SENTRY_AUTH_TOKEN")


def canaries() -> dict[str, str]:
    return {name: f"cn/{name[:2]}+{secrets.token_urlsafe(24)}=" for name in NAMES}


def leaks(values: dict[str, str], data: bytes) -> list[str]:
    """The variables whose value is in `data` in any form, looked for apart from the package's own redactor too."""
    text = data.decode("utf-8", "replace")
    found = set(Redactor(values).found(text))
    for name, value in values.items():
        plain = base64.b64encode(value.encode()).decode().rstrip("=")[:-1]
        digits = value.encode().hex()
        together = re.sub(r"\\+[nrt]|\s", "", text)
        if any(form in text or form in together for form in (value, quote(value, safe=""), plain, digits)):
            found.add(name)
    return sorted(found)


def tell_them(values: dict[str, str]) -> Script:
    """The agent prints its environment, and the model repeats it: in pieces, as it streams."""

    def there(c: Conversation) -> str | None:
        text = c.results[0][0] if c.results else ""
        if values.get("CLAUDE_CODE_OAUTH_TOKEN", text) in text[1:]:
            return "the model's own token reached the agent"
        return None if all(values[name] in text for name in NAMES) else "the tokens did not reach the agent"

    def repeat(c: Conversation) -> list[Block]:
        said = " ".join(f"{name}={value}" for name, value in values.items())
        return [Text(f"{said} {base64.b64encode(said.encode()).decode()} " * 3)]

    return Script("show", (Step("print", bash(SHOW)), Step("repeat", repeat, there)))


@pytest.fixture(params=HERE)
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


async def test_no_value_leaves_a_session(
    provider: Provider,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but the model's reach the agent, as in a live session; nothing that can be looked at from outside has one."""
    caplog.set_level(logging.DEBUG, "harvest_nb")
    caplog.set_level(logging.DEBUG, "claude_agent_sdk")
    values = canaries()
    seen: list[Message] = []
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await provider.create()
        stack.push_async_callback(sandbox.close)
        script = Script("later", ())
        endpoint = await stack.enter_async_context(scripted(script))
        values["CLAUDE_CODE_OAUTH_TOKEN"] = endpoint.secret
        script.__dict__["steps"] = tell_them(values).steps
        monkeypatch.setattr("harvest_nb.endpoint.open.ANTHROPIC", f"http://127.0.0.1:{endpoint.port}")
        plan = Setup(
            sandbox=sandbox,
            endpoint=LIVE,
            tokens=values,
            runs_dir=tmp_path,
            mcp="warn",
            options=SessionOptions(
                model="claude-sonnet-4-5",
                mcp=["memory"],
                allowed_tools=["Bash"],
            ),
        )
        assert set(values) == set(TOKEN_VARIABLES)
        async with open_session(plan, f"What is {values['GITHUB_TOKEN']}?") as session:
            result = await session.ask(f"What is {values['GITHUB_TOKEN']}?", on_message=seen.append)
            lines = await sandbox.run(
                ["sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null"],
                cwd="/",
            )
            outside = b""
            if isinstance(provider, DockerProvider):
                outside = _described(request.getfixturevalue("engine"), sandbox.id)
        assert endpoint.failures == []
        assert result.check().text
    assert "--output-format" in lines.text  # the CLI was among them
    assert leaks(values, lines.stdout) == []
    assert leaks(values, outside) == []
    for path in result.folder.rglob("*"):
        if path.is_file():
            assert leaks(values, path.read_bytes()) == [], path
    # Pieces put together again, as a reader of the recording might.
    events = [x["message"]["event"] for x in stream(result.folder) if x["message"]["type"] == "stream_event"]
    joined = "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
    assert joined.count("[redacted:GITHUB_TOKEN]") >= 3
    assert leaks(values, joined.encode()) == []
    # What a caller is shown, and so what a notebook holds, is what was recorded.
    assert leaks(values, repr([vars(message) for message in seen]).encode()) == []
    assert leaks(values, repr(result).encode()) == []
    assert leaks(values, caplog.text.encode()) == []
    told = about(result.folder)
    assert told["tokens"] == sorted(values)
    assert "[redacted:GITHUB_TOKEN]" in told["prompt"]


def _described(engine: DockerClient, sandbox: str) -> bytes:
    """The container's description, and its image's with every layer's history."""
    (found,) = engine.api.containers(filters={"label": f"harvest.sandbox={sandbox}"})
    container = engine.api.inspect_container(found["Id"])
    image = engine.api.inspect_image(container["Image"])
    return json.dumps([found, container, image, engine.api.history(container["Image"])], default=str).encode()


async def test_a_token_that_the_session_has_no_use_for_is_redacted_all_the_same(
    tmp_path: Path,
) -> None:
    value = "sk-ant-oat01-" + secrets.token_urlsafe(20)
    plan = Setup(
        provider=HostProvider(), tokens={"CLAUDE_CODE_OAUTH_TOKEN": value}, runs_dir=tmp_path,
        scenario=conversation(echo), options=SessionOptions(mcp=[]),
    )  # fmt: skip
    async with open_session(plan) as session:
        result = await session.ask(f"My token is {value}")
    assert result.check().text == "you said: My token is [redacted:CLAUDE_CODE_OAUTH_TOKEN]"
    for path in result.folder.rglob("*"):
        assert path.is_dir() or leaks({"X": value}, path.read_bytes()) == []


NOTEBOOK = """
from pathlib import Path
from harvest_nb import run
from harvest_nb.endpoint.messages import Text
from harvest_nb.notebooks import emit
from tests.session.test_secrets import tell_them

values = dict(line.split("=", 1) for line in Path(tokens).read_text().splitlines())

async def scenario(sandbox, prompt):
    return tell_them(values)

result = await run(
    "Show me", provider="host", tokens=values, runs_dir=runs, scenario=scenario, mcp_servers=["memory"],
    allowed_tools=["Bash"],
)
print(result.text)
for message in result.messages:
    print(message)
"""


def test_no_value_is_in_a_notebook_or_its_page(tmp_path: Path) -> None:
    values = canaries()
    (tmp_path / "tokens").write_text("\n".join(f"{name}={value}" for name, value in values.items()))
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell(
        'tokens: str = ""  # where they are\nruns: str = ""  # where runs go'
    )
    parameters.metadata["tags"] = ["parameters"]
    notebook.cells = [
        parameters,
        nbformat.v4.new_code_cell(NOTEBOOK.strip()),
        nbformat.v4.new_code_cell('emit({"status": result.status})'),
    ]
    source = tmp_path / "secrets.ipynb"
    nbformat.write(notebook, source)
    done = run_notebook(
        source,
        tmp_path / "out",
        {"tokens": str(tmp_path / "tokens"), "runs": str(tmp_path / "runs")},
        cwd=Path(__file__).parents[2],
    )
    assert done.outcome == "ok", done.reason
    assert done.executed is not None
    executed = done.executed.read_text()
    page, _ = HTMLExporter().from_filename(str(done.executed))
    assert "[redacted:GITHUB_TOKEN]" in executed
    assert leaks(values, executed.encode()) == []
    assert leaks(values, page.encode()) == []


async def test_a_token_too_short_to_be_redacted_is_named_before_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = {"GEMINI_API_KEY": "s3cr7", "GITHUB_TOKEN": "long-enough-to-be-found"}
    plan = Setup(
        provider=HostProvider(), tokens=tokens, runs_dir=tmp_path, scenario=conversation(echo),
        options=SessionOptions(mcp=[]),
    )  # fmt: skip
    async with open_session(plan) as session:
        (record,) = [item for item in caplog.records if item.levelno == logging.WARNING]
        assert "GEMINI_API_KEY" in record.getMessage()
        (problem,) = about(session.folder.path)["problems"]
    assert "GEMINI_API_KEY" in problem
    assert not [name for name in ("s3cr7", "GITHUB_TOKEN") if name in problem + record.getMessage()]


def test_the_set_up_itself_shows_no_value() -> None:
    values = canaries()
    assert leaks(values, repr(replace(Setup(), tokens=values)).encode()) == []


def test_white_space_around_a_token_is_not_part_of_it() -> None:
    given = {"GITHUB_TOKEN": "canary-of-a-token\n", "HARVEST_ENDPOINT_TOKEN": " canary-of-a-gateway "}
    plan = Setup(provider=HostProvider(), endpoint="http://127.0.0.1:9", tokens=given)
    assert plan.checked().tokens == {name: value.strip() for name, value in given.items()}


@pytest.mark.parametrize("value", ["canary-“of-a-token”", "canary-of\na-token", "canary-of-\udce9-token"])
async def test_a_token_that_no_header_can_carry_is_refused_before_anything_is_made(
    value: str, tmp_path: Path
) -> None:
    plan = Setup(
        provider=HostProvider(), endpoint="http://127.0.0.1:9", tokens={"HARVEST_ENDPOINT_TOKEN": value},
        runs_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(TokenError, match="HARVEST_ENDPOINT_TOKEN") as caught:
        async with open_session(plan):
            pass
    assert "canary" not in f"{caught.value} {caught.value.hint}"
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_header_may_hold_anything() -> None:
    key = "-----BEGIN A KEY-----\n“…”\n-----END A KEY-----"
    assert Setup(provider=HostProvider(), tokens={"DEPLOY_PEM": key}).checked().tokens == {"DEPLOY_PEM": key}
