"""What a meter counts of an answer: the same however its bytes come, and nothing of what is no count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.endpoint.metering import COUNTS, WORDS, Meter
from tests.endpoint.test_gateway import hello, sse


def counted(chunks: Sequence[bytes], *, streamed: bool = True) -> tuple[str, dict[str, Any]]:
    found: list[tuple[str, dict[str, Any]]] = []
    meter = Meter(
        lambda model, counts, final: found.append((model, {**counts, "final": final})),
        "asked",
        400,
        streamed=streamed,
    )
    for chunk in chunks:
        meter.feed(chunk)
    meter.close()
    (one,) = found
    return one


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


PLACES = st.lists(st.integers(0, 5000), max_size=40)


@given(places=PLACES, crlf=st.booleans())
def test_a_stream_is_counted_alike_however_it_is_cut(places: list[int], crlf: bool) -> None:
    data = hello("claude-opus-4-5").replace(b"\n", b"\r\n" if crlf else b"\n")
    assert counted(cut(data, places)) == (
        "claude-opus-4-5",
        {"input_tokens": 11, "output_tokens": 7, "final": True},
    )


USAGE = {
    "input_tokens": 1,
    "output_tokens": 2,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 9,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 5},
    "server_tool_use": {"web_search_requests": 6},
    "speed": "fast",
    "inference_geo": "us",
    "service_tier": "standard",
}


@given(places=PLACES)
def test_an_answer_in_one_piece_of_json(places: list[int]) -> None:
    data = json.dumps({"type": "message", "model": "m", "content": [], "usage": USAGE}).encode()
    assert counted(cut(data, places), streamed=False) == (
        "m",
        {
            **dict(zip(COUNTS, (1, 2, 4, 5, 3, 6), strict=True)),
            "speed": "fast",
            "geo": "us",
            "tier": "standard",
            "final": True,
        },
    )


def test_a_stream_that_ends_early_counts_up_to_there() -> None:
    whole = hello("m")
    name, counts = counted([whole[: whole.index(b"event: message_delta")]])
    assert (name, counts["input_tokens"], counts["final"]) == ("m", 11, False)
    assert 1 <= counts["output_tokens"] <= 7
    # Of one that never came, the input is estimated from the request's 400 bytes.
    assert counted([]) == ("asked", {"input_tokens": 100, "output_tokens": 0, "final": False})


NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "message", "model", *USAGE]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    events=st.lists(st.dictionaries(st.sampled_from(["usage", "message", "model"]), NONSENSE)),
    end=st.binary(),
)
def test_nonsense_counts_nothing_below_zero(events: list[dict[str, Any]], end: bytes) -> None:
    data = sse(*({"type": "message_start", **event} for event in events)) + end
    for streamed in (True, False):
        model, counts = counted([data], streamed=streamed)
        assert len(model) <= 200
        assert set(counts) <= {*COUNTS, *WORDS, "final"}
        assert all(type(counts[name]) is int and counts[name] >= 0 for name in counts.keys() & set(COUNTS))


def test_a_line_without_an_end_is_not_kept() -> None:
    rest = hello("m")
    chunks = [b"data: ", *([b'"usage"' * 20_000] * 40), b"\n", rest]
    assert counted(chunks) == ("m", {"input_tokens": 11, "output_tokens": 7, "final": True})
