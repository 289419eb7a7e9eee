"""Config checks on a folder laid out like `/app`, hashed by real programs."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks.config import parse_sums

FILES = {
    "/app/claude.md": ".claude/CLAUDE.md",
    "/app/docs/ai/shared/one.md": "docs/ai/shared/one.md",
    "/app/docs/ai/shared/two words.md": "docs/ai/shared/two words.md",
}
TEXTS = {
    "/app/claude.md": "Read @docs/ai/shared/one.md first, and `@docs/ai/shared`.\n",
    "/app/docs/ai/shared/one.md": "Mail a@docs/nobody, install @anthropic-ai/claude-code.\n",
    "/app/docs/ai/shared/two words.md": "nothing\n",
}


def entry(kind, **fields):
    extra = "".join(f"{key} = {value!r}\n" for key, value in fields.items())
    return f'[[check]]\nname = "c"\ngroup = "config"\nkind = "{kind}"\nhint = "h"\n{extra}'


@pytest.fixture
def app(desk, tmp_path):
    entries = []
    for image_path, source in FILES.items():
        data = TEXTS[image_path].encode()
        for place in (tmp_path / image_path.lstrip("/"), tmp_path / "root" / source):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        entries.append({"image_path": image_path, "source": source, "size": len(data), "sha256": digest})
    (tmp_path / "app" / "manifest.json").write_text(json.dumps({"files": entries}))
    return tmp_path / "app"


path_text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1)


@given(st.dictionaries(path_text, st.from_regex(r"[0-9a-f]{64}", fullmatch=True)))
def test_sums_are_read_back_whatever_the_paths(sums):
    assert parse_sums("".join(f"{digest}  {path}\0" for path, digest in sums.items())) == sums


async def test_everything_in_place_passes(app, run_contract, tmp_path):
    report = await run_contract(entry("manifest"))
    assert (report.rows[0].status, report.rows[0].observed) == ("pass", "3 files")
    report = await run_contract(entry("sources"), source_root=tmp_path / "root")
    assert report.ok
    report = await run_contract(entry("references", least=2))
    assert (report.rows[0].status, report.rows[0].observed) == ("pass", "2 references")


async def test_a_stale_a_missing_and_an_extra_file_are_named(app, run_contract):
    (app / "claude.md").write_text("changed")
    (app / "docs/ai/shared/two words.md").unlink()
    (app / "docs/extra.md").write_text("who put me here")
    (row,) = await run_contract(entry("manifest"))
    assert row.status == "fail"
    assert row.observed.split("; ") == [
        "/app/docs/ai/shared/two words.md is missing",
        "/app/claude.md differs",
        f"{app}/docs/extra.md is not listed",
    ]


@pytest.mark.parametrize("extra", [".mcp.json", ".claude/settings.json", "CLAUDE.md", "docs/link.md"])
async def test_what_would_steer_the_agent_and_is_not_listed_is_named(app, run_contract, extra):
    (app / "workspace/mine.md").write_text("the agent's own")
    (app / "node_modules").symlink_to("/usr/lib/node_modules")
    assert (await run_contract(entry("manifest"))).ok
    (app / extra).parent.mkdir(exist_ok=True)
    (app / extra).symlink_to("claude.md") if extra.startswith("docs") else (app / extra).write_text("{}")
    (row,) = await run_contract(entry("manifest"))
    assert (row.status, row.observed) == ("fail", f"{app}/{extra} is not listed")


async def test_sources_that_moved_on_are_named(app, run_contract, tmp_path):
    (tmp_path / "root/.claude/CLAUDE.md").write_text("newer")
    (tmp_path / "root/docs/ai/shared/one.md").unlink()
    (row,) = await run_contract(entry("sources"), source_root=tmp_path / "root")
    assert row.status == "fail"
    assert "/app/claude.md differs from .claude/CLAUDE.md" in row.observed
    assert "source docs/ai/shared/one.md is missing" in row.observed


async def test_without_a_source_root_nothing_is_compared(app, run_contract):
    (row,) = await run_contract(entry("sources"))
    assert (row.status, row.observed) == ("n/a", "no source root was given")


async def test_a_dangling_reference_is_named_with_its_line(app, run_contract):
    (app / "claude.md").write_text("fine\n\nsee @docs/ai/shared/three.md\n")
    (row,) = await run_contract(entry("references"))
    assert (row.status, row.observed) == ("fail", "@docs/ai/shared/three.md in /app/claude.md:3")


async def test_a_text_that_lost_its_references_is_noticed(app, run_contract):
    (app / "claude.md").write_text("no reference any more\n")
    (row,) = await run_contract(entry("references"))
    assert (row.status, row.observed) == ("fail", "0 references")


@pytest.mark.parametrize("text", ["", "[]", '{"files": []}', None])
async def test_a_manifest_that_says_nothing_is_a_failure(app, run_contract, text):
    (app / "manifest.json").unlink()
    if text is not None:
        (app / "manifest.json").write_text(text)
    (row,) = await run_contract(entry("manifest"))
    assert row.status == "fail"
    assert "manifest.json" in row.observed
    assert row.hint == "build the image again"
    # References are looked for in what is there, so they are not named for the manifest's fault.
    assert (await run_contract(entry("references"))).ok


async def test_the_label_is_compared_with_the_manifests_bytes(app, desk, run_contract):
    (row,) = await run_contract(entry("manifest_label"))
    assert (row.status, row.observed) == ("fail", "the image has no such label")
    desk.manifest_hash = "0" * 64
    assert not (await run_contract(entry("manifest_label"))).ok
    desk.manifest_hash = hashlib.sha256((app / "manifest.json").read_bytes()).hexdigest()
    assert (await run_contract(entry("manifest_label"))).ok
