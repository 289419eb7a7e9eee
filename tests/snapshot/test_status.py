from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harvest_nb.errors import SourceError
from harvest_nb.snapshot.sources import SourceMap, collect
from harvest_nb.snapshot.status import STATES, source_status

MAP = SourceMap.model_validate(
    {
        "source": [
            {"image": "/app/claude.md", "source": "c.md"},
            {"image": "/app/docs/*", "source": "docs/*"},
        ]
    }
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("c.md", "docs/a.md", "docs/b.md"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def baked(root: Path) -> dict[str, Any]:
    files = collect(root, source_map=MAP).files
    return {"files": [{"image_path": f.image_path, "source": f.source, "sha256": f.sha256} for f in files]}


def states(manifest: dict[str, Any] | None, root: Path) -> dict[str, str]:
    frame = source_status(manifest, root, source_map=MAP)
    assert set(frame["state"]) <= set(STATES)
    return dict(zip(frame["image_path"], frame["state"], strict=True))


def test_without_an_image_all_are_missing(root):
    assert set(states(None, root).values()) == {"missing"}


def test_each_state(root):
    manifest = baked(root)
    assert set(states(manifest, root).values()) == {"in the image"}
    (root / "c.md").write_text("# Other\n")
    (root / "docs" / "new.md").write_text("# New\n")
    (root / "docs" / "b.md").unlink()
    assert states(manifest, root) == {
        "/app/claude.md": "drifted",
        "/app/docs/a.md": "in the image",
        "/app/docs/b.md": "no source",
        "/app/docs/new.md": "missing",
    }


def test_a_source_that_cannot_be_used_is_a_row_with_its_reason(root, tmp_path):
    manifest = baked(root)
    (root / "c.md").unlink()
    (root / "docs" / "a.md").write_bytes(b"\xff")
    frame = source_status(manifest, root, source_map=MAP).set_index("image_path")
    assert frame.loc["/app/claude.md", "state"] == "no source"
    assert "c.md is missing" in str(frame.loc["/app/claude.md", "problem"])
    assert "not UTF-8" in str(frame.loc["/app/docs/a.md", "problem"])
    assert frame["problem"].notna().sum() == 2


def test_an_empty_folder_is_a_row(root):
    for file in (root / "docs").iterdir():
        file.unlink()
    frame = source_status(None, root, source_map=MAP)
    assert frame.loc[frame["image_path"] == "/app/docs/*", "state"].tolist() == ["missing"]


def test_another_checkout(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "docs").mkdir()
    (other / "docs" / "a.md").write_text("# elsewhere\n")
    (other / "c.md").write_text("# c.md\n")
    assert states(baked(root), other) == {
        "/app/claude.md": "in the image",
        "/app/docs/a.md": "drifted",
        "/app/docs/b.md": "no source",
    }


def test_a_root_that_is_none(tmp_path):
    with pytest.raises(SourceError, match="not a folder"):
        source_status(None, tmp_path / "nowhere", source_map=MAP)
