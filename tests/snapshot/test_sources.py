import hashlib
import os
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.errors import SourceError
from harvest_nb.snapshot.sources import SourceMap, Sources, collect, read_map, stage

ENTRIES = [
    ("/app/claude.md", ".claude/CLAUDE.md"),
    ("/app/docs/*", "docs/*"),
    ("/app/seed.json", "config/seed.json"),
]


def source_map(*entries: tuple[str, str], **limits: int) -> SourceMap:
    rows = [{"image": image, "source": source} for image, source in entries or ENTRIES]
    return SourceMap.model_validate({"source": rows, "limits": limits})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "repo"
    for name, text in {
        ".claude/CLAUDE.md": "See `@docs/ai/one.md`.\n",
        "docs/ai/one.md": "One: @docs/two.md\n",
        "docs/two.md": "Zwei äöü\n",
        "config/seed.json": '{"entities": []}\n',
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text, encoding="utf-8")
    return top


def refused(root: Path, *entries: tuple[str, str], **limits: int) -> SourceError:
    with pytest.raises(SourceError) as caught:
        collect(root, source_map=source_map(*entries, **limits))
    return caught.value


def test_every_file_with_its_place_size_and_digest(root):
    sources = collect(root, source_map=source_map())
    assert [(f.image_path, f.source) for f in sources.files] == [
        ("/app/claude.md", ".claude/CLAUDE.md"),
        ("/app/docs/ai/one.md", "docs/ai/one.md"),
        ("/app/docs/two.md", "docs/two.md"),
        ("/app/seed.json", "config/seed.json"),
    ]
    data = (root / "docs/two.md").read_bytes()
    two = sources.files[2]
    assert (two.data, two.size, two.sha256) == (data, len(data), hashlib.sha256(data).hexdigest())
    frame = sources.frame
    assert list(frame.columns) == ["image_path", "source", "size_bytes", "sha256"]
    assert frame["size_bytes"].sum() == sum(f.size for f in sources.files)


def test_names_that_begin_with_a_dot_are_left_out_of_a_folder(root):
    (root / "docs/.DS_Store").write_bytes(b"\xff\xfe")
    assert len(collect(root, source_map=source_map()).files) == 4


@pytest.mark.parametrize("name", [".claude/CLAUDE.md", "config/seed.json"])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    error = refused(root)
    assert f"{name} is missing" in str(error)
    assert error.path == name


def test_a_folder_without_files_is_missing(root):
    error = refused(root, ("/app/mcp/*", "docs/mcp/*"))
    assert "docs/mcp/* is missing" in str(error)
    (root / "docs/mcp/deeper").mkdir(parents=True)
    assert "docs/mcp/* is missing" in str(refused(root, ("/app/mcp/*", "docs/mcp/*")))


def test_a_source_root_that_is_none(tmp_path):
    assert "is not a folder" in str(refused(tmp_path / "nowhere"))


def test_a_link_out_of_the_root(root, tmp_path):
    (tmp_path / "secret.md").write_text("outside\n")
    (root / "docs/leak.md").symlink_to(tmp_path / "secret.md")
    error = refused(root)
    assert error.path == "docs/leak.md"
    assert "leads out of the source root" in str(error)


def test_a_linked_folder_out_of_the_root(root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.md").write_text("outside\n")
    (root / "docs/leak").symlink_to(tmp_path / "outside")
    error = refused(root)
    assert error.path == "docs/leak"
    assert "leads out of the source root" in str(error)


def test_a_parent_folder_that_is_a_link_out_of_the_root(root, tmp_path):
    (root / "config").rename(tmp_path / "config")
    (root / "config").symlink_to(tmp_path / "config")
    assert "leads out of the source root" in str(refused(root))


def test_links_within_the_root_are_followed(root):
    (root / "docs/three.md").symlink_to("two.md")
    (root / "shared").mkdir()
    (root / "shared/four.md").write_text("four\n")
    (root / "docs/more").symlink_to("../shared")
    found = {f.image_path: f.data for f in collect(root, source_map=source_map()).files}
    assert found["/app/docs/three.md"] == found["/app/docs/two.md"]
    assert found["/app/docs/more/four.md"] == b"four\n"


def test_a_folder_that_is_linked_into_itself(root):
    (root / "docs/ai/again").symlink_to("..")
    assert "a folder that it is in" in str(refused(root))


@pytest.mark.parametrize("name", [".claude/CLAUDE.md", "docs/loop.md"])
def test_a_link_that_leads_to_itself(root, name):
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(Path(name).name)
    error = refused(root)
    assert name in error.message
    assert error.data["path"] == name


def test_a_folder_that_may_not_be_read():
    # Not in pytest's own folder, which nobody else may enter; and root may read everything.
    with TemporaryDirectory() as name:
        root = Path(name)
        (root / "docs/closed").mkdir(parents=True)
        (root / "docs/closed/one.md").write_text("one\n")
        root.chmod(0o755)
        (root / "docs/closed").chmod(0)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            error = refused(root, ("/app/docs/*", "docs/*"))
        finally:
            os.seteuid(was)
    assert error.message == "Config source docs/closed cannot be read: Permission denied"
    assert error.data["path"] == "docs/closed"


def test_a_dangling_link_is_missing(root):
    (root / "docs/gone.md").symlink_to("nowhere.md")
    assert "docs/gone.md is missing" in str(refused(root))


def test_two_sources_for_one_path(root):
    error = refused(root, ("/app/docs/*", "docs/*"), ("/app/docs/two.md", ".claude/CLAUDE.md"))
    assert "Two sources for /app/docs/two.md: docs/two.md and .claude/CLAUDE.md" in str(error)


def test_the_manifest_is_the_builds_own(root):
    assert "the manifest" in str(refused(root, ("/app/manifest.json", "config/seed.json")))


def test_a_path_that_would_be_file_and_folder(root):
    error = refused(root, ("/app/docs", "docs/two.md"), ("/app/docs/ai.md", "docs/two.md"))
    assert "would be a file" in str(error)


def test_a_dangling_reference_is_named_with_file_line_and_target(root):
    (root / "docs/two.md").write_text("fine\n\nsee `@docs/ai/gone.md`\nand @docs/also.md\n")
    error = refused(root)
    assert error.problems == [
        "docs/two.md:3: @docs/ai/gone.md (no /app/docs/ai/gone.md in the image)",
        "docs/two.md:4: @docs/also.md (no /app/docs/also.md in the image)",
    ]
    assert all(problem in str(error) for problem in error.problems)


def test_a_reference_to_the_baked_manifest_is_none_that_dangles(root):
    (root / "docs/two.md").write_text("see @manifest.json\n")
    assert len(collect(root, source_map=source_map()).files) == 4


def test_what_is_not_utf8_is_named_with_its_line(root):
    (root / "docs/two.md").write_bytes(b"one\ntwo \xe4\n")
    error = refused(root)
    assert error.path == "docs/two.md"
    assert "0xe4 in line 2" in str(error)


def test_what_is_not_json(root):
    (root / "config/seed.json").write_text('{"entities": [}')
    error = refused(root)
    assert error.path == "config/seed.json"
    assert "is not JSON" in str(error)


def test_a_file_over_the_limit(root):
    (root / "docs/two.md").write_text("x" * 101)
    assert "larger than 100 bytes" in str(refused(root, file_bytes=100))
    (root / "docs/two.md").write_text("x" * 100)
    assert len(collect(root, source_map=source_map(file_bytes=100)).files) == 4


def test_all_together_over_the_limit(root):
    total = sum(f.size for f in collect(root, source_map=source_map()).files)
    assert len(collect(root, source_map=source_map(total_bytes=total)).files) == 4
    assert "together" in str(refused(root, total_bytes=total - 1))


def test_what_is_not_a_file(root):
    os.mkfifo(root / "docs/pipe.md")
    assert "docs/pipe.md is not a file" in str(refused(root))
    assert "docs/ai is not a file" in str(refused(root, ("/app/docs/ai", "docs/ai")))


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("/etc/passwd", "docs/two.md"),
        ("/app/../etc/x", "docs/two.md"),
        ("/app/x", "../outside"),
        ("/app/x", "/etc/passwd"),
        ("/app/*/x.md", "docs/two.md"),
        ("/app/docs*", "docs*"),
        ("/app//x.md", "docs/two.md"),
        ("/app/", "docs/two.md"),
    ],
)
def test_a_path_in_the_map_that_is_none(tmp_path, image, source):
    file = tmp_path / "sources.toml"
    file.write_text(f'[[source]]\nimage = "{image}"\nsource = "{source}"\n')
    with pytest.raises(SourceError, match=r"sources\.toml"):
        read_map(file)


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "",
        '[[source]]\nimage = "/app/x"\n',
        '[[source]]\nimage = "/app/x"\nsource = "x"\ntypo = 1\n',
        '[limits]\nfile_bytes = 0\n[[source]]\nimage = "/app/x"\nsource = "x"\n',
        '[[source]]\nimage = "/app/x/*"\nsource = "x"\n',
    ],
)
def test_a_map_that_cannot_be_used(tmp_path, text):
    file = tmp_path / "sources.toml"
    file.write_text(text)
    with pytest.raises(SourceError, match=r"sources\.toml"):
        read_map(file)


def test_a_map_that_is_missing(tmp_path):
    with pytest.raises(SourceError, match="Cannot read"):
        read_map(tmp_path / "sources.toml")


SEGMENT = st.from_regex(r"[a-zA-Z0-9_-][a-zA-Z0-9_. -]{0,7}", fullmatch=True).filter(
    lambda s: s.strip(". ") == s
)
TREES: Any = st.dictionaries(
    st.lists(SEGMENT, min_size=1, max_size=3).map("/".join),
    st.text(st.characters(codec="utf-8", exclude_characters="@"), max_size=200),
    min_size=1,
    max_size=6,
).filter(
    lambda tree: (
        not any(a != b and b.startswith(f"{a}/") for a in tree for b in tree)
        and not any(name.endswith(".json") for name in tree)
    )
)


@given(TREES)
def test_whatever_the_tree_what_is_staged_is_what_was_there(tree: dict[str, str]):
    with TemporaryDirectory() as name:
        top = Path(name)
        for path, text in tree.items():
            (top / "in/docs" / path).parent.mkdir(parents=True, exist_ok=True)
            (top / "in/docs" / path).write_bytes(text.encode())
        sources: Sources = collect(top / "in", source_map=source_map(("/app/d/*", "docs/*")))
        stage(sources, top / "out")
        staged = {
            PurePosixPath(p.relative_to(top / "out/app/d")).as_posix(): p.read_bytes().decode()
            for p in (top / "out").rglob("*")
            if p.is_file()
        }
    assert staged == tree
    assert list(sources.frame["image_path"]) == sorted(f"/app/d/{path}" for path in tree)


def test_staging_never_mixes_with_what_is_there(root, tmp_path):
    (tmp_path / "context/app").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        stage(collect(root, source_map=source_map()), tmp_path / "context")


def test_this_repositorys_own_sources_are_whole():
    paths = {f.image_path for f in collect().files}
    assert {"/app/claude.md", "/app/autonomous-agent.md", "/app/memory-seed.json"} <= paths
    assert any(path.startswith("/app/docs/ai/shared/") for path in paths)
    assert any(path.startswith("/app/docs/mcp/") for path in paths)
