"""Files of the desk that go along with a prompt."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from harvest_nb.errors import SessionError
from harvest_nb.files import plain_part, read_regular
from harvest_nb.sandbox.base import Sandbox

__all__ = ["attach"]

_BARE = re.compile(r"[\w./-]*\w", re.ASCII)
"""What the CLI takes for a whole reference without quotation marks."""


async def attach(sandbox: Sandbox, prompt: str, attachments: Sequence[Path | str]) -> str:
    """Put files into the sandbox's workspace, and return the prompt with an `@` reference to each.

    A name that no reference can hold, as with a quotation mark or a line break, is changed in the sandbox.

    Raises:
        SessionError: a file cannot be read, is no regular file, or two have one name.
    """
    if not attachments:
        return prompt
    references: dict[str, str] = {}
    for source in map(Path, attachments):
        name = plain_part(source.name.replace('"', "'"))
        if name in references:
            raise SessionError(f"Two attachments are named {name}", hint="rename one of them")
        try:
            data = await asyncio.to_thread(read_regular, source)
            target = sandbox.workspace / name
            await sandbox.write(target, data, within=sandbox.workspace)
        except OSError as error:
            raise SessionError(f"Cannot attach {source}: {error.strerror}") from error
        references[name] = _reference(target.relative_to(sandbox.workdir))
    return "\n".join([prompt, "", "Attached files:", *references.values()])


def _reference(path: PurePosixPath) -> str:
    text = str(path)
    return f"@{text}" if _BARE.fullmatch(text) else f'@"{text}"'
