"""Every column of every frame as data: type, unit, meaning. Frames are built, checked and documented from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

__all__ = ["COLUMNS", "FRAME_NAMES", "Column", "build", "describe", "to_arrow", "validate"]

_ARROW: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "time": pa.timestamp("us", tz="UTC"),
    # 18 digits leave room for Arrow's products and sums, which may have 38.
    "usd": pa.decimal128(18, 12),
}


class Column(NamedTuple):
    """One column: `kind` is a key of the type table or `category`; `values` closes a category."""

    name: str
    kind: str
    unit: str
    meaning: str
    values: tuple[str, ...] = ()

    @property
    def dtype(self) -> Any:
        """The pandas type: Arrow-backed, or a categorical (ordered as listed where it is closed)."""
        if self.kind == "category":
            return pd.CategoricalDtype(list(self.values)) if self.values else pd.CategoricalDtype()
        return pd.ArrowDtype(_ARROW[self.kind])


_C = Column
_RUN = _C("run_id", "category", "", "the run; key into `runs`")
_AGENT = _C("agent", "category", "", "`main`, or the id of the sub-agent that did it")
_MESSAGE_ID = _C("message_id", "string", "", "the API response's own id (`msg_…`); key into `usage`")
_MODEL = _C("model", "category", "", "the model that answered, as the API named it")
_TURN = _C(
    "turn", "int", "", "number of the turn within the run, from 1, in order of start; key into `turns`"
)
_COPY = _C("is_copy", "bool", "", "an earlier run made it, and this one repeats it; only in the session view")
_PATH = _C("path", "category", "", "the file it was read from; key into `files`")
_COMPONENT = (
    "input", "output", "cache_write_5m", "cache_write_1h", "cache_read", "web_search", "unitemised"
)  # fmt: skip
_REASONS = (
    "equal",
    "no_result",
    "no_rows",
    "count_missing",
    "unpriced_model",
    "mixed_prices",
    "cli_price_unknown",
    "rows_after_result",
    "answered_by_another_model",
    "background_model",
    "placeholder_output",
    "subagents_not_recorded",
    "requests_not_recorded",
    "resumed_process",
    "rows_not_in_result",
    "price_table_differs",
    "unexplained",
)

COLUMNS: Mapping[str, Sequence[Column]] = {
    "files": (
        _C("path", "string", "", "the file; one row each"),
        _C(
            "kind",
            "category",
            "",
            "what it is, by its content: `recording` (a run folder's stream), `stream` (a log), `transcript`, "
            "`result`, `unknown` (JSON, but no record), `other` (beside records; not read), `empty`, `unreadable`",
        ),
        _C("compression", "category", "", "`none`, `gzip` or `zstd`"),
        _C("bytes", "int", "bytes", "size on disk"),
        _C("lines", "int", "lines", "lines, after unpacking"),
        _C("records", "int", "records", "JSON objects read"),
        _C("bad_lines", "int", "lines", "lines with something that could not be read"),
        _C("salvaged_lines", "int", "lines", "lines that were odd and read all the same"),
        _C("versions", "string", "", "versions of the CLI that wrote it"),
        _C("first", "time", "UTC", "earliest time in it"),
        _C("last", "time", "UTC", "latest time in it"),
        _C("sha256", "string", "", "SHA-256 of the file as it is on disk"),
    ),
    "runs": (
        _C(
            "run_id",
            "string",
            "",
            "the run's own name: a run folder's, else the session's, else the file's; one row each",
        ),
        _C(
            "kind",
            "category",
            "",
            "`run_folder`, `stream`, `transcript`, or `stream and transcript` of one session",
        ),
        _C("folder", "string", "", "the run folder, or the folder of its file"),
        _C("path", "string", "", "the run folder, or its (first) file"),
        _C("project", "category", "", "key of the project, as the folders of CLAUDE_CONFIG_DIR are named"),
        _C("cwd", "string", "", "working directory, the first named"),
        _C("branch", "string", "", "git branch, the first named"),
        _C("entrypoint", "category", "", "how the CLI was started: `cli`, `sdk-py`, `sdk-ts` …"),
        _C(
            "status",
            "category",
            "",
            "`success`, `error`, `cancelled`, `died`, `running`, or `unknown`: a copy of a run that had not ended",
        ),
        _C("exit_reason", "string", "", "why it ended, where the recorder could say"),
        _C(
            "result_subtype", "category", "", "`success`, `error_max_turns` …; missing: the log has no result"
        ),
        _C("is_error", "bool", "", "the last result's own flag"),
        _C("prompt", "string", "", "the first prompt"),
        _C("provider", "category", "", "what made the sandbox: `docker`, `daytona`, `host`"),
        _C(
            "endpoint",
            "category",
            "",
            "who answered: `anthropic`, a `gateway`, or on loopback `scripted` or `cassette`",
        ),
        _C("model", "category", "", "the model asked for, or else the main thread's most frequent"),
        _C("models", "string", "", "every model that answered"),
        _C("session_id", "string", "", "the Claude Code session"),
        _C("sandbox_id", "string", "", "the sandbox it ran in"),
        _C("image", "string", "", "image or its digest"),
        _C("manifest_hash", "string", "", "SHA-256 of the manifest baked into the image"),
        _C("cli_version", "category", "", "version of the Claude Code CLI; the last, where it changed"),
        _C("cli_version_first", "category", "", "the first version that wrote to the session"),
        _C("sdk_version", "category", "", "version of the Claude Agent SDK"),
        _C("parameters", "string", "JSON", "parameters of the sweep or notebook that made it"),
        _C("created", "time", "UTC", "when the run folder was made"),
        _C("started", "time", "UTC", "when the run began: for a run folder, when it was made"),
        _C("ended", "time", "UTC", "when it ended; missing while it runs, or when it was killed"),
        _C("duration_s", "float", "s", "`ended` less `started`"),
        _C("sandbox_s", "float", "s", "start of the run to the sandbox being there"),
        _C("cli_s", "float", "s", "start of the run to the CLI process being there"),
        _C("init_s", "float", "s", "start of the run to `system/init`"),
        _C(
            "first_token_s",
            "float",
            "s",
            "start of the run to the first sign of the model, as marked or else as recorded",
        ),
        _C("result_s", "float", "s", "start of the run to the last `result`"),
        _C("n_records", "int", "records", "rows of `records`"),
        _C("n_messages", "int", "messages", "rows of `messages`"),
        _C("n_prompts", "int", "prompts", "prompts sent"),
        _C("n_turns", "int", "turns", "model responses seen, sub-agents included"),
        _C("n_turns_reported", "int", "turns", "`num_turns` of the results, added up; counts differently"),
        _C("n_tool_calls", "int", "calls", "tool calls, sub-agents included"),
        _C("n_tool_errors", "int", "calls", "tool calls that came back as errors"),
        _C("n_responses", "int", "responses", "API responses counted in `usage`"),
        _C("n_not_final", "int", "responses", "of those, how many have a placeholder for output tokens"),
        _C("n_copied", "int", "responses", "responses in its files that another run made (resume, fork)"),
        _C("resumed_from", "string", "", "the run that made most of them, if it is loaded"),
        _C("n_agents", "int", "agents", "sub-agents that answered"),
        _C("n_compactions", "int", "", "times the context was compacted"),
        _C("n_processes", "int", "processes", "CLI processes; reported cost starts at 0 in each"),
        _C("cost_usd", "usd", "USD", "its rows of `costs` added up; missing if one has no price, never 0"),
        _C(
            "cost_source",
            "category",
            "",
            "`source` of those rows; `none`: the cost is not known",
            ("rows", "result", "both", "none"),
        ),
        _C(
            "cost_is_lower_bound",
            "bool",
            "",
            "true where `cost_usd` leaves out tokens whose number is not known",
        ),
        _C(
            "cost_rows_usd",
            "usd",
            "USD",
            "its responses added up, those too that count in another run; missing if one has no price",
        ),
        _C("cost_model_usage_usd", "usd", "USD", "`modelUsage[].costUSD` of the last result of each process"),
        _C("cost_reported_usd", "usd", "USD", "`total_cost_usd` of the last result of each process"),
        _C(
            "cost_endpoint_usd",
            "usd",
            "USD",
            "`endpoint_usage` added up: what passed the proxy before the endpoint; missing without one",
        ),
        _C(
            "cost_repriced_usd",
            "usd",
            "USD",
            "the tokens of `modelUsage` at this table's prices, of the models that answered",
        ),
        _C("residual_usd", "usd", "USD", "`cost_reported_usd` less `cost_rows_usd`"),
        _C(
            "residual_tokens_usd",
            "usd",
            "USD",
            "part of it due to tokens: `cost_repriced_usd` less `cost_rows_usd`",
        ),
        _C(
            "residual_prices_usd", "usd", "USD", "part of it due to prices: reported less `cost_repriced_usd`"
        ),
        _C(
            "residual_reason",
            "category",
            "",
            "why reported and rows differ; see `reconcile.REASONS`",
            _REASONS,
        ),
        _C("residual_parts", "string", "JSON", "USD by reason, as far as tokens and prices explain it"),
        _C("price_version", "category", "", "edition of the price table"),
        _C("price_digest", "category", "", "digest of the price table"),
        _C("n_problems", "int", "problems", "rows of `problems` for this run"),
    ),
    "sessions": (
        _C("session_id", "string", "", "Claude Code session; one row each"),
        _C("project", "category", "", "key of the project"),
        _C("n_runs", "int", "runs", "runs that recorded a part of it"),
        _C("first_run_id", "string", "", "the earliest of them"),
        _C("started", "time", "UTC", "first message"),
        _C("ended", "time", "UTC", "last message"),
        _C("n_prompts", "int", "prompts", "prompts sent, all runs"),
        _C("n_responses", "int", "responses", "API responses, all runs"),
        _C("n_copied", "int", "responses", "responses that another session made and this one repeats"),
        _C("resumed_from", "string", "", "the run they are from"),
        _C("n_agents", "int", "agents", "sub-agents that answered"),
        _C("n_compactions", "int", "", "times the context was compacted"),
        _C("cost_usd", "usd", "USD", "`runs.cost_usd` added up; missing if one of them is"),
    ),
    "records": (
        _RUN,
        _PATH,
        _C("line", "int", "", "line in the file, from 1"),
        _C("offset", "int", "bytes", "where it begins in the unpacked file, from 0"),
        _C("bytes", "int", "bytes", "its length"),
        _C(
            "source",
            "category",
            "",
            "`stream`, `transcript`, or `unknown` (an object that is no record of Claude Code)",
        ),
        _C("seq", "int", "", "number of the message in the run, from 0, as recorded; run folders only"),
        _C("dir", "category", "", "`out`: desk to CLI; `in`: CLI to desk", ("out", "in")),
        _C("time", "time", "UTC", "when the recorder saw it, or its own time stamp"),
        _C("t_s", "float", "s", "the same, from the first message of the run"),
        _C("type", "category", "", "the record's `type`; unknown ones included"),
        _C("subtype", "category", "", "its `subtype`, or the kind of event, progress, attachment or request"),
        _C(
            "sender",
            "category",
            "",
            "who speaks: a person, the desk's SDK, the model, a tool, the CLI itself",
            ("user", "desk", "model", "tool", "cli"),
        ),
        _AGENT,
        _TURN,
        _C("prompt_no", "int", "", "prompts sent up to here"),
        _MESSAGE_ID,
        _C("uuid", "string", "", "the CLI's id of the record"),
        _C("parent_uuid", "string", "", "the record it follows in the conversation"),
        _C("logical_parent_uuid", "string", "", "the same across a compaction"),
        _C("session_id", "string", "", "the session it names, or belongs to"),
        _C("request_id", "string", "", "the API's id of the request"),
        _C("version", "category", "", "version of the CLI that wrote it"),
        _C("is_sidechain", "bool", "", "a sub-agent's"),
        _C("n_blocks", "int", "blocks", "content blocks in it"),
        _C("summary", "string", "", "what it says, at most 100 characters"),
    ),
    "messages": (
        _RUN,
        _C("seq", "int", "", "number of its first record in the run, from 0; run folders only"),
        _C("time", "time", "UTC", "when its first record was seen"),
        _C("t_s", "float", "s", "the same, from the first message of the run"),
        _C("dir", "category", "", "`out`: desk to CLI; `in`: CLI to desk", ("out", "in")),
        _C("type", "category", "", "the message's `type`"),
        _C("subtype", "category", "", "its `subtype`, or the kind of control request"),
        _C("role", "category", "", "`assistant`, `user` or `system`"),
        _C(
            "sender",
            "category",
            "",
            "who speaks: a person, the desk's SDK, the model, a tool, the CLI itself",
            ("user", "desk", "model", "tool", "cli"),
        ),
        _AGENT,
        _TURN,
        _C("prompt_no", "int", "", "prompts sent up to here"),
        _MESSAGE_ID,
        _C("uuid", "string", "", "the CLI's id of the message (of a response: of its first row)"),
        _C("session_id", "string", "", "the session it names"),
        _C("parent_tool_use_id", "string", "", "the call that started the sub-agent it is from"),
        _MODEL,
        _C("stop_reason", "category", "", "why the model stopped, where recorded"),
        _C("is_synthetic", "bool", "", "the CLI wrote it in the model's name: no request was made"),
        _C("is_meta", "bool", "", "the CLI wrote it in the user's name"),
        _C("is_compact_summary", "bool", "", "the summary that a compaction left"),
        _COPY,
        _C("n_rows", "int", "rows", "records that it was put together from"),
        _C("n_blocks", "int", "blocks", "content blocks"),
        _C("chars", "int", "characters", "text in its blocks"),
        _PATH,
        _C("first_line", "int", "", "line of its first record"),
        _C("last_line", "int", "", "line of its last record"),
        _C("summary", "string", "", "what it says, at most 100 characters"),
    ),
    "blocks": (
        _RUN,
        _C("seq", "int", "", "the record it is in; run folders only"),
        _MESSAGE_ID,
        _C("uuid", "string", "", "the record it is in; key into `records`"),
        _C("index", "int", "", "place among the blocks of that message, from 0"),
        _C("kind", "category", "", "`text`, `thinking`, `tool_use`, `tool_result`, `image` …"),
        _AGENT,
        _TURN,
        _COPY,
        _C("tool_use_id", "string", "", "for `tool_use` and `tool_result`; key into `tool_calls`"),
        _C("chars", "int", "characters", "length of `text`"),
        _C("text", "string", "", "its text; for `tool_use` the input as JSON"),
    ),
    "turns": (
        _RUN,
        _TURN,
        _AGENT,
        _MESSAGE_ID,
        _MODEL,
        _C("prompt_no", "int", "", "prompts sent before it"),
        _C("stop_reason", "category", "", "why the model stopped, where recorded"),
        _C("start", "time", "UTC", "when the request could go out: prompt or last tool result was there"),
        _C("start_s", "float", "s", "the same, from the first recorded message of the run"),
        _C("sandbox_s", "float", "s", "run folders, first turn: creation of the sandbox"),
        _C("cli_start_s", "float", "s", "run folders, first turn: from there to the CLI answering"),
        _C(
            "mcp_connect_s", "float", "s", "run folders, first turn: from there to `system/init`: MCP servers"
        ),
        _C("idle_s", "float", "s", "before `start`: nobody but the person could have gone on"),
        _C("wait_s", "float", "s", "request to the first sign of the response"),
        _C("stream_s", "float", "s", "first sign to the last block; 0 if nothing but one block was recorded"),
        _C(
            "tools_s",
            "float",
            "s",
            "end of the response to the last tool result, less hooks; 0 without tools",
        ),
        _C("hooks_s", "float", "s", "hooks around its tools and at its end, where the CLI says how long"),
        _C("total_s", "float", "s", "`wait_s` + `stream_s` + `tools_s` + `hooks_s`"),
        _C("first_sign", "category", "", "what `wait_s` ends with", ("message_start", "block")),
        _C("n_blocks", "int", "blocks", "blocks in the response"),
        _C("n_tool_calls", "int", "calls", "tool calls in it"),
        _COPY,
    ),
    "tool_calls": (
        _RUN,
        _C("tool_use_id", "string", "", "the call; one row each"),
        _C("tool", "category", "", "name of the tool, as the model calls it"),
        _C("server", "category", "", "MCP server it belongs to; missing for built-in tools"),
        _C("mcp_tool", "category", "", "its name at that server"),
        _AGENT,
        _TURN,
        _MESSAGE_ID,
        _C("status", "category", "", "`no_result`: none was recorded", ("ok", "error", "no_result")),
        _C("start", "time", "UTC", "when the call was seen in the stream"),
        _C("start_s", "float", "s", "the same, from the first recorded message of the run"),
        _C("end", "time", "UTC", "when the result was seen, perhaps in a later, resumed session"),
        _C("duration_s", "float", "s", "call seen to result seen: includes permission checks and hooks"),
        _C("permission", "category", "", "the CLI's decision, where it reported one"),
        _C("input", "string", "JSON", "what the tool was given"),
        _C("result", "string", "", "what it gave back, as text"),
        _C("input_chars", "int", "characters", "length of `input`"),
        _C("input_bytes", "int", "bytes", "the same in UTF-8"),
        _C("result_chars", "int", "characters", "length of `result`"),
        _C("result_saved", "bool", "", "the CLI kept the result in a file and sent only its beginning"),
        _C("result_path", "string", "", "that file"),
        _C("spawned_agent", "string", "", "id of the sub-agent that the call started"),
        _COPY,
    ),
    "usage": (
        _RUN,
        _C("session_id", "string", "", "the session"),
        _MESSAGE_ID,
        _C("request_id", "string", "", "the API's id of the request"),
        _C("iteration", "int", "", "0; more only if one response was tried on several models"),
        _AGENT,
        _TURN,
        _MODEL,
        _C("time", "time", "UTC", "when the response was first seen"),
        _C("input_tokens", "int", "tokens", "prompt tokens that touched no cache"),
        _C("output_tokens", "int", "tokens", "tokens written, thinking included; see `output_final`"),
        _C("cache_write_5m_tokens", "int", "tokens", "prompt tokens stored for 5 minutes"),
        _C("cache_write_1h_tokens", "int", "tokens", "prompt tokens stored for 1 hour"),
        _C("cache_read_tokens", "int", "tokens", "prompt tokens read from the cache"),
        _C("thinking_tokens", "int", "tokens", "part of `output_tokens`, where reported"),
        _C("web_search_requests", "int", "searches", "searches on the API's side, charged each"),
        _C("web_fetch_requests", "int", "fetches", "fetches on the API's side, free"),
        _C("output_final", "bool", "", "false: `output_tokens` is a placeholder, a lower bound only"),
        _C(
            "source",
            "category",
            "",
            "row it was taken from: the transcript's, the stream's last event, the stream's assistant row, "
            "a progress row's nested message; or one of several iterations",
            ("transcript", "stream_event", "stream", "agent_progress", "iteration"),
        ),
        _C("is_sidechain", "bool", "", "a sub-agent's request"),
        _COPY,
        _C("n_rows", "int", "rows", "rows that repeat this usage; adding them up counts it that often"),
        _C("speed", "category", "", "`fast` costs more"),
        _C("geo", "category", "", "where inference ran; `us` costs more"),
        _C("tier", "category", "", "service tier; `batch` costs less"),
        _C("cost_usd", "usd", "USD", "its `costs` added up; missing if a part has no price, never 0"),
        _C("price_source", "category", "", "where its rates are from"),
    ),
    "result_usage": (
        _RUN,
        _C("seq", "int", "", "the `result` message; run folders only"),
        _PATH,
        _C("line", "int", "", "line of the `result` in it"),
        _C("result", "int", "", "number of the result in the run, from 0"),
        _C("process", "int", "", "CLI process within the run, from 1: figures below start at 0 in each"),
        _C("is_last", "bool", "", "last result of its process: add up only these"),
        _C(
            "subtype",
            "category",
            "",
            "`success`, `error_max_turns` …; `cost_state`: a transcript's own account",
        ),
        _MODEL,
        _C("input_tokens", "int", "tokens", "since the process started, sub-agents and background included"),
        _C("output_tokens", "int", "tokens", "since the process started"),
        _C("cache_write_5m_tokens", "int", "tokens", "since the process started; older CLIs do not say"),
        _C("cache_write_1h_tokens", "int", "tokens", "since the process started; older CLIs do not say"),
        _C("cache_write_tokens", "int", "tokens", "both kinds of cache write"),
        _C("cache_read_tokens", "int", "tokens", "since the process started"),
        _C("web_search_requests", "int", "searches", "since the process started"),
        _C("cost_usd", "usd", "USD", "the CLI's own estimate (`costUSD`), since the process started"),
        _C("cost_step_usd", "usd", "USD", "the same, since the preceding result of the process"),
        _C(
            "cost_carried_usd",
            "usd",
            "USD",
            "what the CLI carried over from before a resume; taken off all figures here",
        ),
        _C("cost_basis", "category", "", "`list`, or `unknown`: the CLI took another model's prices"),
    ),
    "endpoint_usage": (
        _RUN,
        _C("time", "time", "UTC", "when the answer had been passed on"),
        _MODEL,
        _C("input_tokens", "int", "tokens", "as the answer says"),
        _C(
            "output_tokens",
            "int",
            "tokens",
            "as the answer says; estimated where `is_final` is false",
        ),
        _C(
            "cache_write_5m_tokens",
            "int",
            "tokens",
            "as the answer says; where it tells no kind, all of them",
        ),
        _C("cache_write_1h_tokens", "int", "tokens", "as the answer says"),
        _C("cache_read_tokens", "int", "tokens", "as the answer says"),
        _C("web_search_requests", "int", "searches", "as the answer says"),
        _C("speed", "category", "", "as the answer says; `fast` costs more"),
        _C("geo", "category", "", "where it was answered, as the answer says; `us` costs more"),
        _C("tier", "category", "", "service tier, as the answer says; `batch` costs less"),
        _C(
            "is_final",
            "bool",
            "",
            "false: the answer was cut short, and counts that it did not tell are estimated",
        ),
        _C("cost_usd", "usd", "USD", "at this package's prices; missing if there is no price, never 0"),
    ),
    "costs": (
        _RUN,
        _C("session_id", "string", "", "the session"),
        _MESSAGE_ID,
        _C("iteration", "int", "", "as in `usage`"),
        _AGENT,
        _TURN,
        _MODEL,
        _C("time", "time", "UTC", "when the response was first seen"),
        _C(
            "component",
            "category",
            "",
            "what is charged for; `unitemised`: the CLI reported the sum only, or nothing is known of a response",
            _COMPONENT,
        ),
        _C("units", "int", "tokens", "tokens, or searches for `web_search`"),
        _C("rate_usd", "usd", "USD/Mtok", "USD per million tokens; per 1,000 searches for `web_search`"),
        _C("cost_usd", "usd", "USD", "`units` x `rate_usd`, exact; missing if there is no price, never 0"),
        _C("is_final", "bool", "", "false: units are a placeholder, the cost a lower bound"),
        _C(
            "source",
            "category",
            "",
            "`rows`: of a response; `result`: reported by the result beyond what the rows show",
            ("rows", "result"),
        ),
        _COPY,
        _C("price_source", "category", "", "where the rate is from"),
    ),
    "problems": (
        _C("run_id", "category", "", "the run"),
        _C("path", "string", "", "file or folder"),
        _C("line", "int", "", "line in the file, from 1"),
        _C("offset", "int", "bytes", "where the line begins in the unpacked file, from 0"),
        _C("reason", "category", "", "what is wrong, as a code"),
        _C("salvaged", "bool", "", "true: the content was read all the same"),
        _C("detail", "string", "", "what is wrong, in words"),
    ),
}

FRAME_NAMES = tuple(COLUMNS)


def build(name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame with exactly the columns of `name`, in their order and types, from rows as dicts.

    A key that is no column is a mistake of the caller and raises `KeyError`; an absent one is NA.
    """
    rows = list(rows)
    columns = COLUMNS[name]
    unknown = set().union(*rows) - {column.name for column in columns}
    if unknown:
        raise KeyError(f"no such columns in {name}: {sorted(unknown)}")
    return pd.DataFrame(
        {column.name: _series(column, [row.get(column.name) for row in rows]) for column in columns}
    )


def _series(column: Column, values: list[Any]) -> pd.Series:
    if column.kind == "category":
        known = column.values or tuple(sorted({value for value in values if value is not None}))
        return pd.Series(pd.Categorical(values, dtype=pd.CategoricalDtype(pd.Index(known, dtype="str"))))
    array = pa.array(values, type=_ARROW[column.kind])
    return pd.Series(pd.arrays.ArrowExtensionArray(array))


def to_arrow(name: str, frame: pd.DataFrame) -> pa.Table:
    """`frame` as an Arrow table with the documented types; categories become dictionaries of text."""
    arrays = []
    for column in COLUMNS[name]:
        series = frame[column.name]
        if column.kind == "category":
            array = pa.array(series.astype("object").where(series.notna(), None), type=pa.string())
            array = array.dictionary_encode()
        else:
            array = pa.array(series, type=_ARROW[column.kind])
        arrays.append(array)
    return pa.table(arrays, names=[column.name for column in COLUMNS[name]])


def validate(name: str, frame: pd.DataFrame) -> list[str]:
    """What is wrong with `frame` as a frame of `name`: columns, order, types. Empty: nothing."""
    wanted = [column.name for column in COLUMNS[name]]
    if list(frame.columns) != wanted:
        return [f"{name}: columns are {list(frame.columns)}, not {wanted}"]
    wrong: list[str] = []
    for column in COLUMNS[name]:
        found = frame[column.name].dtype
        if column.kind == "category":
            if not isinstance(found, pd.CategoricalDtype):
                wrong.append(f"{name}.{column.name}: {found} is not a category")
            elif column.values and list(found.categories) != list(column.values):
                wrong.append(f"{name}.{column.name}: categories {list(found.categories)}")
        elif found != column.dtype:
            wrong.append(f"{name}.{column.name}: {found} is not {column.dtype}")
    return wrong


def describe(name: str | None = None) -> pd.DataFrame:
    """Documentation of the columns of `name`, or of all frames: frame, column, type, unit, meaning."""
    names = [name] if name else list(FRAME_NAMES)
    rows = [
        (frame, column.name, column.kind, column.unit, column.meaning)
        for frame in names
        for column in COLUMNS[frame]
    ]
    table = pd.DataFrame(rows, columns=["frame", "column", "type", "unit", "meaning"])
    return table.drop(columns="frame") if name else table
