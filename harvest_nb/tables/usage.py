"""`usage`: what each API response cost in tokens, each counted once.

The counting rule, and what it rests on:

- One response is one `message.id`. Each content block repeats the same usage in a row of its own, and a
  resumed or forked session's file repeats the rows of its ancestors under the same ids.
- Input and cache tokens are the same in all rows of a response. Output is a placeholder from the start of
  the response until the row with a `stop_reason`; a response without one is a lower bound.
- The transcript has final rows (CLI 2.1.98 and later); the stream's assistant rows never are, but its
  last event (`message_delta`, with partial messages on) is.
- Sub-agents' requests are in files of their own, or (2.1.12 to 2.1.81) in progress rows of the main file;
  where both have one, the file counts.
- A response that was tried on several models is one request for each entry of `iterations`.

Which row, file or argument comes first makes no difference: rows are compared by what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from harvest_nb.tables.counts import TOKENS, counts, oddities
from harvest_nb.tables.folder import Run
from harvest_nb.tables.items import Item
from harvest_nb.tables.problems import Problem
from harvest_nb.tables.values import as_dict, as_list, as_str

__all__ = ["TOKENS", "Response", "Share", "counts", "responses", "usage_rows"]

_SOURCES = {"stream": "stream", "nested": "agent_progress", "transcript": "transcript"}


@dataclass(slots=True)
class Share:
    """A response as one run has it."""

    run: Run
    agent: str
    turn: int | None
    seq: int | None
    time: datetime | None
    session: str | None
    nested: bool = False
    n_rows: int = 1

    def add(self, other: Share) -> None:
        """Take in what other rows of the same run say; a progress row knows least about where it belongs."""
        mine, its = ((share.nested, share.agent, share.session or "~") for share in (self, other))
        if its < mine:
            self.agent, self.session, self.nested = other.agent, other.session, other.nested
        self.turn, self.seq = _least(self.turn, other.turn), _least(self.seq, other.seq)
        self.time = _least(self.time, other.time)
        self.n_rows += other.n_rows


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one row says a response used."""

    item: Item
    usage: dict[str, Any]
    final: bool
    source: str
    rank: tuple[bool, bool, int, int, int, int, int]
    """No placeholder, then the larger output."""

    @property
    def spelled(self) -> bytes:
        """Tells apart what ranks the same."""
        said = [self.usage, self.item.model or "", self.item.stop_reason or ""]
        return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)

    @property
    def place(self) -> tuple[str, int, int]:
        return str(self.item.file), self.item.line, self.item.offset


@dataclass(slots=True)
class Response:
    """One API response, put together from all rows of all runs that show it."""

    key: str
    message_id: str | None = None
    request_id: str | None = None
    model: str | None = None
    time: datetime | None = None
    path: Path | None = None
    line: int | None = None
    offset: int | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    source: str = "stream"
    stop_reason: str | None = None
    sidechain: bool = False
    offers: list[_Offer] = field(default_factory=list)
    shares: dict[str, Share] = field(default_factory=dict)

    def note(self, run_id: str, share: Share, offers: list[_Offer]) -> None:
        """Take in rows of one run."""
        known = self.shares.setdefault(run_id, share)
        if known is not share:
            known.add(share)
        self.offers += offers
        self.time = _least(self.time, share.time)

    def settle(self) -> None:
        """Choose between the rows, when all are there."""
        best = _best(self.offers)
        self.usage, self.final, self.source = best.usage, best.final, best.source
        self.path, self.line, self.offset = best.item.file, best.item.line, best.item.offset
        if best.source == "stream_event" or counts(best.usage)["input_tokens"] is None:
            # A stream's last event may leave out, or repeat in sum, what the others say of prompt, speed and place.
            told = [offer for offer in self.offers if counts(offer.usage)["input_tokens"] is not None]
            whole = [offer for offer in told if offer.source != "stream_event"] or told
            if whole:
                self.usage = _merge(_best(whole).usage, best.usage)
        named = [offer for offer in self.offers if offer.item.model]
        self.model = _best(named).item.model if named else None
        stopped = [offer for offer in self.offers if offer.item.stop_reason]
        kept = [offer for offer in stopped if offer.item.source == "transcript"] or stopped
        self.stop_reason = _best(kept).item.stop_reason if kept else None


def _best(offers: list[_Offer]) -> _Offer:
    top = max(offer.rank for offer in offers)
    equal = [offer for offer in offers if offer.rank == top]
    if len(equal) == 1:
        return equal[0]
    most = max(offer.spelled for offer in equal)
    return min((offer for offer in equal if offer.spelled == most), key=lambda offer: offer.place)


def _least(left: Any, right: Any) -> Any:
    return right if left is None else left if right is None else min(left, right)


def responses(runs: Iterable[Run]) -> dict[str, Response]:
    """Every response of `runs` by its key, with a share for each run that has it."""
    found: dict[str, Response] = {}
    alias: dict[str, str] = {}
    for run in runs:
        opened: dict[str, dict[str, Any]] = {}
        for item in run.items:
            if item.key is None or item.type not in ("assistant", "stream_event") or item.synthetic:
                continue
            usage, final, source = _offer(item, opened)
            if usage is None:
                continue
            response = found.get(item.key)
            if response is None:
                response = found[item.key] = Response(item.key, item.message_id)
            share = Share(
                run, item.agent or "main", item.turn, item.seq, item.time, item.session,
                nested=item.source == "nested",
            )  # fmt: skip
            response.note(run.run_id, share, [_ranked(item, usage, final, source)])
            response.sidechain = response.sidechain or bool(item.sidechain) or bool(item.parent_call)
            if item.request_id:
                response.request_id = _least(response.request_id, item.request_id)
                if item.message_id:
                    name = f"request {item.request_id}"
                    alias[name] = _least(alias.get(name), item.message_id)
    _join_by_request(found, alias)
    for response in found.values():
        response.settle()
    return found


def _ranked(item: Item, usage: dict[str, Any], final: bool, source: str) -> _Offer:
    found = counts(usage)

    def size(*names: str) -> int:
        known = [count for name in names if (count := found[name]) is not None]
        return sum(known) if known else -1

    # Without a figure there is no final figure.
    final = final and found["output_tokens"] is not None
    rank = (
        source != "agent_progress", final, size("output_tokens"), size("input_tokens"),
        size("cache_read_tokens"), size("cache_write_5m_tokens", "cache_write_1h_tokens"),
        len(as_list(usage.get("iterations"))),
    )  # fmt: skip
    return _Offer(item, usage, final, source, rank)


def _offer(item: Item, opened: dict[str, dict[str, Any]]) -> tuple[dict[str, Any] | None, bool, str]:
    """What a row says about its response's usage, whether that is final, and what kind of row it is."""
    if item.type == "stream_event":
        key = item.key or ""
        if item.subtype == "message_start" and item.usage:
            opened[key] = item.usage
            return item.usage, False, "stream"
        if item.subtype == "message_delta" and item.usage:
            return _merge(opened.get(key, {}), item.usage), item.stop_reason is not None, "stream_event"
        return None, False, "stream"
    source = _SOURCES[item.source]
    # Even a stop reason in the stream comes with the usage of the response's start.
    return item.usage, source == "transcript" and item.stop_reason is not None, source


def _join_by_request(found: dict[str, Response], alias: dict[str, str]) -> None:
    """A row that names only its request belongs to the response of that request."""
    for key in [key for key in found if key in alias]:
        extra, main = found.pop(key), found[alias[key]]
        for run_id, share in extra.shares.items():
            main.note(run_id, share, [])
        main.offers += extra.offers
        main.time = _least(main.time, extra.time)
        main.request_id = _least(main.request_id, extra.request_id)
        main.sidechain = main.sidechain or extra.sidechain


def usage_rows(
    response: Response, share: Share, *, copy: bool, notes: list[Problem]
) -> Iterator[dict[str, Any]]:
    """Rows of `usage` for one response in one run: one, or one for each iteration.

    A count that is missing, or is none (negative, no number, over a billion), is missing, and a problem.
    """
    parts = [as_dict(part) for part in as_list(response.usage.get("iterations"))]
    several = len([part for part in parts if part]) > 1
    tries = [part for part in parts if part] if several else [response.usage]
    for index, usage in enumerate(tries):
        for reason, said in oddities(usage):
            detail = f"{response.key}: {said}"
            where = response.path or share.run.path
            notes.append(
                Problem(where, reason, detail, response.line, response.offset, run_id=share.run.run_id)
            )
        counted = counts(usage)
        yield {
            "run_id": share.run.run_id,
            "session_id": share.session or share.run.session_id,
            "message_id": response.message_id,
            "request_id": response.request_id,
            "response": response.key,
            "iteration": index,
            "agent": share.agent,
            "turn": share.turn,
            "model": as_str(usage.get("model")) or response.model,
            "time": response.time,
            **counted,
            "output_final": response.final and counted["output_tokens"] is not None,
            "source": "iteration" if several else response.source,
            "is_sidechain": response.sidechain,
            "is_copy": copy,
            "n_rows": share.n_rows,
            "speed": as_str(usage.get("speed")) or as_str(response.usage.get("speed")),
            "geo": as_str(usage.get("inference_geo")) or as_str(response.usage.get("inference_geo")),
            "tier": as_str(usage.get("service_tier")) or as_str(response.usage.get("service_tier")),
        }


def _merge(start: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """The usage of a whole response: its last event may leave out, or repeat as 0, what the first said."""
    merged = dict(start)
    for key, value in delta.items():
        if value or key not in merged:
            merged[key] = value
    return merged
