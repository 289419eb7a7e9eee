import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.snapshot.references import Reference, dangling, references

FILES = {"/app/claude.md", "/app/docs/ai/shared/a.md", "/app/docs/mcp/b_c.md"}
TOP = {"claude.md", "docs"}


def paths(text: str) -> list[str]:
    return [reference.path for reference in references(text, TOP)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("See @docs/ai/shared/a.md.", ["docs/ai/shared/a.md"]),
        ("(`@docs/ai/shared/a.md`)", ["docs/ai/shared/a.md"]),
        ("**@docs/mcp/b_c.md**, @claude.md: x", ["docs/mcp/b_c.md", "claude.md"]),
        ("@./x and @../y.md and @~/z and @/app/q", ["./x", "../y.md", "~/z", "/app/q"]),
        ("| `@docs/x.md` |\n|---|\n| @docs/y.md |", ["docs/x.md", "docs/y.md"]),
        ("a folder @docs/ai/shared/", ["docs/ai/shared/"]),
        ("@elsewhere/notes.md", ["elsewhere/notes.md"]),
    ],
)
def test_what_is_a_reference(text, found):
    assert paths(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "`@anthropic-ai/claude-code` and @playwright/mcp",
        "ask @octocat",
        "somebody@docs/x.md and a@example.com",
        "`@docs/…`, @docs/<page>.md, @docs/*.md, @docs/{a,b}.md, @docs/...",
        "```\n@example.md\n@decorator\n```",
        "text\n\n    @example.md\n",
        "<!--\n@example.md @scope/package\n-->",
    ],
)
def test_what_is_none(text):
    assert paths(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "```\n@docs/example.md\n```",
        "text\n\n    @docs/example.md\n",
        "<!--\n@docs/example.md\n-->",
        "[a page](@docs/example.md)",
        "| a |\n|---|\n| `@docs/example.md` |",
        "> - # @docs/example.md",
        "```sh\ncat `@docs/example.md`\n```",
        "[page]: @docs/example.md",
    ],
)
def test_a_page_of_the_image_counts_wherever_it_is_written(text):
    assert paths(text) == ["docs/example.md"]


def test_the_line_is_that_of_the_reference():
    text = "# Title\n\none\ntwo `@docs/a.md`\nthree @docs/b.md\n"
    assert references(text, TOP) == [Reference("docs/a.md", 4), Reference("docs/b.md", 5)]


def test_targets_start_at_app():
    assert Reference("docs/./a/../b.md", 1).target == "/app/docs/b.md"
    assert Reference("../etc/passwd", 1).target == "/etc/passwd"


def test_files_and_their_folders_are_there_and_nothing_else():
    text = (
        "@docs/ai/shared/a.md @docs/ai @docs/mcp/ @claude.md @docs/ai/shared/gone.md @../x.md @/app/claude.md"
    )
    assert [reference.path for reference in dangling(text, FILES)] == ["docs/ai/shared/gone.md", "../x.md"]


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}([_-][a-z0-9]{1,4})?", fullmatch=True)
PATHS = st.builds(
    lambda folders, name: "/".join(["docs", *folders, name + ".md"]), st.lists(NAMES, max_size=3), NAMES
)


@given(
    st.sets(PATHS, min_size=1, max_size=6),
    PATHS,
    st.sampled_from(["{}", "`{}`", "see {}.", "- ({})", "**{}**"]),
)
def test_only_what_is_missing_dangles(files, wanted, form):
    text = form.format(f"@{wanted}")
    known = {f"/app/{file}" for file in files}
    expected = [] if wanted in files else [wanted]
    # A path may be a folder of another file's path.
    if any(file.startswith(f"{wanted}/") for file in files):
        expected = []
    assert [reference.path for reference in dangling(text, known)] == expected
