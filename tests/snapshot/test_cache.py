"""What builds leave on the engine to go on from: named, one set a tag, and gone when superseded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harvest_nb.engine import DockerClient
from harvest_nb.errors import BuildError
from harvest_nb.snapshot.cache import building, cache_name, forget

if TYPE_CHECKING:
    from tests.snapshot.conftest import Tiny
else:
    Tiny = Any

# No build of somebody else may be waited for, or spared.
pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("own_locks")]


def two_stages(tiny: Tiny, toolchain: str, *lines: str) -> None:
    label = f"LABEL harvest.test={tiny.mark}"
    text = ["ARG BASE_IMAGE", "FROM ${BASE_IMAGE} AS toolchain", label, f"RUN {toolchain} > /made",
            "FROM ${BASE_IMAGE}", label, "COPY --from=toolchain /made /made", "COPY app/ /app/", *lines]  # fmt: skip
    (tiny.snapshot / "Dockerfile").write_text("\n".join(text) + "\n")


def dangling(tiny: Tiny) -> list[str]:
    filters: dict[str, Any] = {"label": f"harvest.test={tiny.mark}", "dangling": True}
    return [str(image["Id"]) for image in tiny.engine.api.images(filters=filters)]


def kept(tiny: Tiny) -> dict[str, str]:
    """Part to image id, of this test's cache."""
    images = tiny.engine.images.list(filters={"label": f"harvest.test={tiny.mark}"})
    names = {name: str(image.id) for image in images for name in image.tags}
    prefix = cache_name(tiny.tag, "")
    return {name.removeprefix(prefix): ident for name, ident in names.items() if name.startswith(prefix)}


@pytest.mark.parametrize("tag", ["a:b", "registry.example:5000/some/where:tag", "x" * 200])
def test_names_are_valid_and_of_one_tag_alone(tag):
    name = cache_name(tag, "toolchain")
    assert len(name.split(":", 1)[1]) <= 128
    assert name.count(":") == 1
    assert name != cache_name(f"{tag}.", "toolchain")


async def test_the_builder_stage_is_named_and_the_superseded_one_removed(tiny: Tiny, engine: DockerClient):
    two_stages(tiny, "echo one")
    await tiny.build()
    first = kept(tiny)
    assert set(first) == {"toolchain"}
    assert dangling(tiny) == []
    two_stages(tiny, "echo two")
    old = (await tiny.build()).id
    second = kept(tiny)
    assert set(second) == {"toolchain"}
    assert second != first
    assert not [image for image in dangling(tiny) if image in first.values()]
    assert first["toolchain"] not in tiny.images()
    # The second build's own cache is whole.
    again = await tiny.build()
    assert (again.id, again.built) == (old, False)


async def test_another_tags_stage_stays(tiny: Tiny):
    two_stages(tiny, "echo one")
    await tiny.build()
    await tiny.build(tag=f"{tiny.tag}-other")
    first = kept(tiny)["toolchain"]
    two_stages(tiny, "echo two")
    await tiny.build()
    assert kept(tiny)["toolchain"] != first
    assert first in tiny.images()
    two_stages(tiny, "echo one")
    assert not (await tiny.build(tag=f"{tiny.tag}-other")).built


async def test_nothing_is_removed_while_another_build_may_go_on_from_it(tiny: Tiny):
    two_stages(tiny, "echo one")
    await tiny.build()
    first = kept(tiny)["toolchain"]
    two_stages(tiny, "echo two")
    with building():
        await tiny.build()
    assert first in kept(tiny).values()
    assert dangling(tiny) == [] or first not in dangling(tiny)
    two_stages(tiny, "echo two", "RUN echo more")
    await tiny.build()
    assert first not in tiny.images()


async def test_a_failed_build_leaves_nothing_without_a_name_and_the_next_goes_on_there(tiny: Tiny):
    two_stages(tiny, "echo one", "RUN echo before", "RUN exit 3")
    with pytest.raises(BuildError):
        await tiny.build()
    assert set(kept(tiny)) == {"toolchain", "unfinished"}
    assert dangling(tiny) == []
    assert tiny.containers() == []
    two_stages(tiny, "echo one", "RUN echo before", "RUN exit 0")
    tiny.progress.clear()
    await tiny.build()
    assert {p.cached for p in tiny.progress if p.instruction == "RUN echo before"} == {None, True}
    assert set(kept(tiny)) == {"toolchain"}
    assert dangling(tiny) == []


async def test_what_a_tag_has_kept_can_be_let_go(tiny: Tiny, engine: DockerClient):
    two_stages(tiny, "echo one")
    await tiny.build()
    await tiny.build(tag=f"{tiny.tag}-other")
    stage = kept(tiny)["toolchain"]
    forget(engine, tiny.tag)
    assert kept(tiny) == {}
    assert stage in tiny.images()
    forget(engine, f"{tiny.tag}-other")
    assert stage not in tiny.images()


async def test_a_build_that_fails_at_once_names_nothing(tiny: Tiny):
    tiny.steps()
    (tiny.snapshot / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN exit 3\n")
    with pytest.raises(BuildError):
        await tiny.build()
    assert kept(tiny) == {}
    assert not [t for t in tiny.engine.images.list(name="harvest-base") if any("cache" in n for n in t.tags)]
