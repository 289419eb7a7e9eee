from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.redact import LEAST, Redactor
from harvest_nb.session.deltas import Deltas
from tests.memory import peak_memory

VALUE = "ghp_" + "4tQ9vXcZ7LmN2bKpR8sWdYfH"  # in the shape of one, in no file


def delta(text: str, index: int = 0, parent: str | None = None) -> dict[str, Any]:
    return {
        "type": "stream_event", "parent_tool_use_id": parent,
        "event": {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}},
    }  # fmt: skip


def recorded(deltas: Deltas, pieces: list[str]) -> str:
    told = [deltas.safe(delta(piece)) or delta(piece) for piece in pieces]
    return "".join(message["event"]["delta"]["text"] for message in told)


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in at}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def test_blocks_that_never_end_take_no_memory_without_end() -> None:
    deltas = Deltas(Redactor({"GITHUB_TOKEN": VALUE}))
    before = peak_memory(reset=True)
    for number in range(60):
        deltas.safe(delta("x", parent=f"{number}" + "x" * 2_000_000))
    for number in range(5_000):
        deltas.safe(delta(VALUE[:12], index=number))
    assert peak_memory() - before < 40e6
    # The latest are followed.
    assert VALUE[12:] not in str(deltas.safe(delta(VALUE[12:], index=4_999)))


@given(
    st.text("abg_ \n", max_size=20), st.text("abg_ \n", max_size=20), st.lists(st.integers(0), max_size=12)
)
def test_a_value_in_pieces_cannot_be_put_together(before: str, after: str, at: list[int]) -> None:
    text = f"{before} {VALUE} {after} {VALUE}"
    told = recorded(Deltas(Redactor({"GITHUB_TOKEN": VALUE})), cut(text, at))
    assert VALUE[: 4 + LEAST] not in told  # four are the prefix that all such values have
    for start in range(4, len(VALUE) - LEAST + 1):
        assert VALUE[start : start + LEAST] not in told
    assert "[redacted:GITHUB_TOKEN]" in told
    assert told.startswith(before)
    assert f" {after} " in told


@given(st.text("abg_ \n", max_size=60), st.lists(st.integers(0), max_size=12))
def test_everything_else_stays(text: str, at: list[int]) -> None:
    assert recorded(Deltas(Redactor({"GITHUB_TOKEN": "xyz" + VALUE})), cut(text, at)) == text


def test_blocks_and_sub_agents_are_apart() -> None:
    deltas = Deltas(Redactor({"GITHUB_TOKEN": VALUE}))
    assert deltas.safe(delta(VALUE[:4])) is None
    assert deltas.safe(delta(VALUE[4:], index=1)) is None
    assert deltas.safe(delta(VALUE[4:], parent="toolu_1")) is None
    assert deltas.safe(delta(VALUE[4:])) is not None


def test_without_secrets_nothing_is_followed() -> None:
    assert Deltas(Redactor()).safe(delta(VALUE)) is None
