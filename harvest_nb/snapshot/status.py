"""Config sources and the image side by side: what is in it as it is now, what is missing, what has drifted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harvest_nb.errors import SourceError
from harvest_nb.snapshot.sources import SourceMap, listed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STATES", "source_status"]

STATES: Mapping[str, str] = {
    "in the image": "the image holds the source as it is now",
    "drifted": "the image holds an older or another version of it",
    "missing": "the image does not hold it: it is new, or there is no image",
    "no source": "the image holds it, and its source is gone",
}
"""What the `state` column says."""


def source_status(
    manifest: Mapping[str, Any] | None,
    source_root: Path | None = None,
    *,
    source_map: SourceMap | None = None,
) -> pd.DataFrame:
    """One row a config file: `image_path`, `source`, `size_bytes`, `sha256`, `baked_sha256`, `state`.

    Unlike `collect`, a source that cannot be used is a row too, with the reason in `problem`.

    Args:
        manifest: that of the image (`Snapshot.manifest`), or None where there is none yet.
        source_root: the checkout that holds the sources (default: the enclosing repository).
        source_map: which ones (default: `config/sources.toml`).

    Raises:
        SourceError: the map, or the source root itself, cannot be used.
    """
    import pandas as pd

    baked = {entry["image_path"]: entry for entry in (manifest or {}).get("files", [])}
    rows: list[tuple[object, ...]] = []
    for image_path, source, data in listed(source_root, source_map=source_map):
        before = baked.pop(image_path, {}).get("sha256")
        problem = str(data.message) if isinstance(data, SourceError) else None
        sha256 = None if isinstance(data, SourceError) else hashlib.sha256(data).hexdigest()
        size = None if isinstance(data, SourceError) else len(data)
        if sha256 is None:
            state = "no source" if before else "missing"
        else:
            state = "missing" if before is None else "in the image" if before == sha256 else "drifted"
        rows.append((image_path, source, size, sha256, before, state, problem))
    rows += [
        (path, entry["source"], None, None, entry["sha256"], "no source", None)
        for path, entry in baked.items()
    ]
    columns = ["image_path", "source", "size_bytes", "sha256", "baked_sha256", "state", "problem"]
    frame = pd.DataFrame(rows, columns=columns).astype(
        dict.fromkeys(columns, "string") | {"size_bytes": "Int64"}
    )
    return frame.sort_values("image_path", ignore_index=True)
