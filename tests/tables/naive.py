"""The counting rule a second time, as plainly as it can be written, sharing no code with the package but prices."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from harvest_nb.prices import load_prices

KINDS = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")


def count(top: Path) -> dict[str, dict[str, Any]]:
    """Responses, tokens and cost of the transcripts below `top`, by model."""
    rows = defaultdict(list)
    times: dict[str, str] = {}
    for path in sorted(top.rglob("*.jsonl")):
        for line in path.read_text().strip("\n").split("\n"):
            record = json.loads(line)
            for nested, row in ((False, record), (True, (record.get("data") or {}).get("message"))):
                if not isinstance(row, dict) or row.get("type") != "assistant":
                    continue
                message = row["message"]
                if message.get("usage") and message["model"] != "<synthetic>":
                    rows[message["id"]].append((nested, message))
                    time = row.get("timestamp") or record["timestamp"]
                    times[message["id"]] = min(times.get(message["id"], time), time)
    result: dict[str, dict[str, Any]] = defaultdict(
        lambda: {
            "responses": 0,
            "output_not_final": 0,
            "cost_usd": Decimal(0),
            **{f"{k}_tokens": 0 for k in KINDS},
        }
    )
    prices = load_prices()
    for ident, seen in rows.items():
        real = [message for nested, message in seen if not nested] or [message for _, message in seen]
        stopped = [message for message in real if message.get("stop_reason")]
        best = max(stopped or real, key=lambda message: message["usage"]["output_tokens"])
        final = bool(stopped) and not all(nested for nested, _ in seen)
        iterations = best["usage"].get("iterations") or []
        for usage in iterations if len(iterations) > 1 else [best["usage"]]:
            split = usage.get("cache_creation") or {}
            written = usage.get("cache_creation_input_tokens") or 0
            tokens = {
                "input": usage["input_tokens"],
                "output": usage["output_tokens"],
                "cache_write_5m": split.get("ephemeral_5m_input_tokens", written),
                "cache_write_1h": split.get("ephemeral_1h_input_tokens", 0),
                "cache_read": usage.get("cache_read_input_tokens") or 0,
            }
            model = usage.get("model") or best["model"]
            rates = prices.rates(
                model,
                when=datetime.fromisoformat(times[ident]),
                prompt_tokens=sum(tokens.values()) - tokens["output"],
                speed=best["usage"].get("speed"),
                geo=best["usage"].get("inference_geo"),
                tier=best["usage"].get("service_tier"),
            )
            assert rates is not None
            row = result[model]
            row["responses"] += 1
            row["output_not_final"] += not final
            searches = (usage.get("server_tool_use") or {}).get("web_search_requests") or 0
            for kind, units in {**tokens, "web_search": searches}.items():
                cost = rates.cost(kind, units)
                assert cost is not None
                row["cost_usd"] += cost
                if kind in KINDS:
                    row[f"{kind}_tokens"] += units
    return dict(result)
