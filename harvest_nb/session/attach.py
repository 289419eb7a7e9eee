"""Files of the desk that go along with a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from harvest_nb.errors import SessionError
from harvest_nb.sandbox.base import Sandbox

__all__ = ["attach"]


async def attach(sandbox: Sandbox, prompt: str, attachments: Sequence[Path | str]) -> str:
    """Put files into the sandbox's workspace; returns the prompt with an `@` reference to each.

    Raises:
        SessionError: a file cannot be read, or two have one name.
    """
    if not attachments:
        return prompt
    references: dict[str, str] = {}
    for source in map(Path, attachments):
        if source.name in references:
            raise SessionError(f"Two attachments are named {source.name}", hint="rename one of them")
        try:
            data = await asyncio.to_thread(source.read_bytes)
        except OSError as error:
            raise SessionError(f"Cannot read the attachment {source}: {error.strerror}") from error
        target = sandbox.workspace / source.name
        await sandbox.write(target, data)
        references[source.name] = _reference(target.relative_to(sandbox.workdir))
    return "\n".join([prompt, "", "Attached files:", *references.values()])


def _reference(path: PurePosixPath) -> str:
    text = str(path)
    return f'@"{text}"' if " " in text else f"@{text}"
