"""Fetching a log from Daytona whole, as far as it may go: the SDK's own call takes whatever comes into memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from daytona import DaytonaConnectionError, DaytonaError
from daytona.common.errors import create_daytona_error

__all__ = ["LogTooLarge", "fetch_log"]


class LogTooLarge(Exception):  # noqa: N818 - a state of the log, not a mistake
    """A log is larger than it may be."""


async def fetch_log(
    ask: Callable[..., Awaitable[aiohttp.ClientResponse]], *ids: str, most: int, timeout: float
) -> dict[str, str]:
    """Return a log's parts, `output`, `stdout` and `stderr`.

    Args:
        ask: the SDK's generated call `…_without_preload_content`, which leaves the body to its caller.
        ids: what the call is about.
        most: bytes of the answer.
        timeout: seconds for all of it.

    Raises:
        LogTooLarge: the answer is larger than `most`.
        DaytonaError: Daytona refuses, or cannot be reached.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            answer = await ask(*ids, _request_timeout=float(timeout))
            try:
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > most:
                        raise LogTooLarge(f"larger than {most:,} bytes")
            finally:
                answer.close()
    except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
        raise DaytonaConnectionError(f"cannot fetch a log: {str(error) or type(error).__name__}") from error
    try:
        told: Any = json.loads(body)
    except ValueError:
        told = None
    if answer.status >= 400:
        message = told.get("message") if isinstance(told, dict) else None
        said = message or body[:200].decode("utf-8", "replace")
        raise create_daytona_error(str(said), status_code=answer.status, headers=dict(answer.headers))
    if not isinstance(told, dict):
        raise DaytonaError("the answer with a log is no JSON object", status_code=answer.status)
    return {name: str(told.get(name) or "") for name in ("output", "stdout", "stderr")}
