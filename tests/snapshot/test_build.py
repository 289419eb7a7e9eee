"""Real builds with the real engine, of a snapshot that is tiny."""

import asyncio
import hashlib
import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harvest_nb.engine import DockerClient, ImageNotFound, connect
from harvest_nb.errors import BuildError, DiskFullError, EngineError, SettingsError, SourceError
from harvest_nb.sandbox.relay_files import relay_digest
from harvest_nb.snapshot import BuildProgress, Snapshot, build, inspect
from harvest_nb.snapshot.build import _proxy_arguments
from harvest_nb.snapshot.manifest import encode

if TYPE_CHECKING:
    from tests.snapshot.conftest import Tiny
else:
    Tiny = Any  # the tests are no package that could be imported from

pytestmark = pytest.mark.docker


def output(engine: DockerClient, image: str, *argv: str) -> bytes:
    container = engine.containers.create(image, list(argv), entrypoint="", network_disabled=True)
    try:
        container.start()
        container.wait()
        logs: bytes = container.logs()
        return logs
    finally:
        container.remove(force=True)


async def test_a_build_gives_the_image_with_its_sources_and_says_what_is_in_it(tiny: Tiny, engine):
    snapshot = await tiny.build()
    assert snapshot.built
    assert snapshot.tags == (tiny.tag,)
    assert snapshot.seconds > 0
    assert snapshot.size == engine.images.get(tiny.tag).attrs["Size"]
    assert output(engine, snapshot.id, "cat", "/app/claude.md") == b"# Rules\n"
    baked = output(engine, snapshot.id, "cat", "/app/manifest.json")
    assert baked == encode(snapshot.manifest)
    assert (
        snapshot.labels["harvest.manifest.sha256"]
        == hashlib.sha256(baked).hexdigest()
        == snapshot.manifest_hash
    )
    assert snapshot.labels["harvest.cli.version"] == json.loads(baked)["versions"]["cli"] == "2.0.1"
    assert snapshot.labels["harvest.relay.sha256"] == relay_digest(tiny.folder / "relayd")
    assert snapshot.labels["harvest.source.commit"] == "none"
    assert snapshot.sources.to_dict("records") == [
        {
            "image_path": "/app/claude.md",
            "source": "c.md",
            "size_bytes": 8,
            "sha256": hashlib.sha256(b"# Rules\n").hexdigest(),
        }
    ]
    layers = snapshot.layers
    assert list(layers.columns) == ["index", "created", "created_by", "size_bytes", "empty"]
    assert list(layers["index"]) == list(range(len(layers)))
    assert layers["size_bytes"].sum() == snapshot.size
    assert "RUN echo built" in set(layers["created_by"])
    assert any(line.startswith("COPY dir:") for line in layers["created_by"])


async def test_progress_counts_the_steps_and_shows_what_they_write(tiny: Tiny):
    tiny.steps("RUN echo first && echo second")
    await tiny.build()
    assert [p.instruction for p in tiny.progress if p.steps == 0] != []
    steps = [p for p in tiny.progress if p.steps]
    assert sorted({p.step for p in steps}) == list(range(1, steps[0].steps + 1))
    assert [p.line for p in steps if p.instruction.startswith("RUN echo first")][1:] == ["first", "second"]
    assert {p.cached for p in steps if p.line == "second"} == {False}
    assert [p.seconds for p in tiny.progress] == sorted(p.seconds for p in tiny.progress)


async def test_a_second_build_comes_wholly_from_the_cache_and_says_so(tiny: Tiny):
    first = await tiny.build()
    tiny.progress.clear()
    for file in tiny.snapshot.iterdir():
        os.utime(file, (0, 0))
        file.chmod(0o600)
    second = await tiny.build()
    assert (first.built, second.built) == (True, False)
    assert second.id == first.id
    layers = [p for p in tiny.progress if p.line == "Using cache"]
    assert {p.cached for p in layers} == {True}
    assert {p.step for p in layers} == set(range(3, layers[0].steps + 1))


async def test_a_changed_source_is_built_anew(tiny: Tiny, engine):
    first = await tiny.build()
    (tiny.root / "c.md").write_text("# Other rules\n")
    second = await tiny.build()
    assert second.built
    assert second.id != first.id
    assert output(engine, tiny.tag, "cat", "/app/claude.md") == b"# Other rules\n"


async def test_a_failing_step_is_named_with_its_last_lines(tiny: Tiny, engine):
    tiny.steps("RUN echo before", "RUN seq 1 50 >&2; echo the-reason >&2; exit 7", "RUN echo never")
    with pytest.raises(BuildError) as caught:
        await tiny.build()
    error = caught.value
    assert error.step.startswith("Step 6/")
    assert "RUN seq 1 50" in error.step
    lines = error.tail.splitlines()
    assert len(lines) == 20
    assert "the-reason" in lines
    assert "50" in lines
    assert "returned a non-zero code: 7" in str(error)
    assert "the-reason" in str(error)
    assert tiny.containers() == []
    with pytest.raises(ImageNotFound):
        engine.images.get(tiny.tag)


async def test_a_failed_build_goes_on_from_the_failing_step(tiny: Tiny):
    tiny.steps("RUN echo before", "RUN exit 1")
    with pytest.raises(BuildError):
        await tiny.build()
    tiny.steps("RUN echo before", "RUN exit 0")
    tiny.progress.clear()
    await tiny.build()
    assert {p.cached for p in tiny.progress if p.instruction == "RUN echo before"} == {None, True}


async def test_a_dockerfile_that_cannot_be_parsed(tiny: Tiny):
    tiny.steps("RUN echo a", "FETCH something")
    with pytest.raises(BuildError, match="FETCH") as caught:
        await tiny.build()
    assert caught.value.step == "Dockerfile"


async def test_a_file_that_the_context_lacks(tiny: Tiny):
    tiny.steps("COPY nothing-here /x")
    with pytest.raises(BuildError, match="nothing-here") as caught:
        await tiny.build()
    assert "COPY nothing-here" in caught.value.step


async def test_a_missing_source_is_found_before_the_engine_is_asked(tiny: Tiny):
    (tiny.root / "c.md").unlink()
    with pytest.raises(SourceError, match=r"c\.md is missing"):
        await tiny.build()
    assert tiny.images() == []


async def test_a_cancelled_build_leaves_nothing_and_the_loop_is_free_meanwhile(tiny: Tiny):
    tiny.steps("RUN echo finished", "RUN echo begun; sleep 120")
    task = asyncio.create_task(tiny.build())
    await tiny.reaches(lambda: any(p.line == "begun" for p in tiny.progress))
    assert tiny.images() != []
    assert len(tiny.containers()) == 1
    longest, last = 0.0, time.monotonic()
    task.cancel()
    began = time.monotonic()
    while not task.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 20
    assert longest < 0.5
    assert tiny.containers() == []
    assert tiny.images() == []


async def test_cancelling_twice_still_leaves_nothing(tiny: Tiny):
    tiny.steps("RUN echo begun; sleep 120")
    task = asyncio.create_task(tiny.build())
    await tiny.reaches(lambda: any(p.line == "begun" for p in tiny.progress))
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tiny.containers() == []
    assert tiny.images() == []


async def test_what_a_finished_build_made_survives_a_cancelled_one(tiny: Tiny, engine):
    tiny.steps("RUN echo shared")
    kept = await tiny.build()
    tiny.steps("RUN echo shared", "RUN echo begun; sleep 120")
    task = asyncio.create_task(tiny.build(tag=f"{tiny.tag}-other"))
    await tiny.reaches(lambda: any(p.line == "begun" for p in tiny.progress))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.images.get(tiny.tag).id == kept.id
    tiny.steps("RUN echo shared")
    assert not (await tiny.build()).built


async def test_a_progress_callback_that_raises_ends_the_build(tiny: Tiny):
    tiny.steps("RUN echo begun; sleep 120")

    def show(progress: BuildProgress) -> None:
        if progress.line == "begun":
            raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError, match="the display broke"):
        await tiny.build(on_progress=show)
    assert tiny.containers() == []
    assert tiny.images() == []


async def test_seconds_go_on_while_a_step_is_silent(tiny: Tiny):
    tiny.steps("RUN echo begun; sleep 2.5")
    await tiny.build()
    beats = [p.seconds for p in tiny.progress if p.line == "begun"]
    assert len(beats) >= 3
    assert beats[-1] - beats[0] >= 1.5


async def test_two_builds_of_one_tag_wait_for_each_other(tiny: Tiny):
    tiny.steps("RUN sleep 1; echo slow")
    one, two = await asyncio.gather(tiny.build(), tiny.build())
    assert one.id == two.id
    assert {one.built, two.built} == {True, False}
    assert any(p.line.startswith("waiting: another build of") for p in tiny.progress)


async def test_two_builds_of_two_tags_run_at_once(tiny: Tiny, engine):
    tiny.steps("RUN sleep 1; echo slow")
    one, two = await asyncio.gather(tiny.build(), tiny.build(tag=f"{tiny.tag}-two"))
    assert engine.images.get(tiny.tag).id == one.id
    assert engine.images.get(f"{tiny.tag}-two").id == two.id


async def test_one_of_two_builds_on_one_client_is_cancelled_and_the_other_goes_on(tiny: Tiny):
    tiny.steps("RUN echo begun; sleep 3")
    other = asyncio.create_task(tiny.build(tag=f"{tiny.tag}-two", on_progress=None))
    doomed = asyncio.create_task(tiny.build())
    await tiny.reaches(lambda: any(p.line == "begun" for p in tiny.progress))
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert (await other).tags == (f"{tiny.tag}-two",)
    assert tiny.containers() == []


async def test_a_step_that_fills_the_disk_is_told_apart(tiny: Tiny):
    tiny.steps("RUN dd if=/dev/zero of=/dev/shm/much bs=1M count=4096")
    with pytest.raises(DiskFullError, match="No space left on device") as caught:
        await tiny.build()
    assert "RUN dd" in caught.value.step
    assert "docker system prune" in caught.value.hint


async def test_an_engine_that_is_not_there(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineError, match=r"none\.sock"):
        await build(tag="harvest-test-never:made")


async def test_inspecting_an_image_that_is_not_there(engine):
    with pytest.raises(BuildError, match="harvest-test-never:made") as caught:
        inspect("harvest-test-never:made", engine)
    assert "harvest-nb build" in caught.value.hint


async def test_inspecting_another_image_says_what_it_lacks_and_leaves_no_container(tiny: Tiny, engine):
    tiny.steps("RUN rm /app/manifest.json")
    with pytest.raises(BuildError, match=r"it has no /app/manifest\.json"):
        await tiny.build()
    assert tiny.containers() == []


async def test_a_manifest_that_was_changed_after_the_build_is_found_out(tiny: Tiny):
    tiny.steps("""RUN echo '{"files": []}' > /app/manifest.json""")
    with pytest.raises(BuildError, match="is not the one that its label names"):
        await tiny.build()


@pytest.mark.parametrize(
    "step",
    [
        "RUN echo '{' > /app/manifest.json",
        r"RUN printf '\377\376' > /app/manifest.json",
        "RUN rm /app/manifest.json && mkdir /app/manifest.json",
    ],
)
async def test_a_manifest_that_cannot_be_read_is_told(tiny: Tiny, step: str):
    tiny.steps(step)
    with pytest.raises(BuildError, match=r"/app/manifest\.json in .* cannot be read"):
        await tiny.build()
    assert tiny.containers() == []


async def test_inspect_finds_the_same_as_the_build(tiny: Tiny, engine):
    made = await tiny.build()
    seen = inspect(tiny.tag, engine)
    assert (seen.id, seen.size, seen.manifest, seen.built) == (made.id, made.size, made.manifest, False)
    assert seen.layers.equals(made.layers)
    assert tiny.tag in repr(seen)


async def test_a_snapshot_shows_the_tag_that_was_asked_for(tiny: Tiny, engine):
    first = await tiny.build(tag=f"{tiny.tag}-z")
    second = await tiny.build(tag=f"{tiny.tag}-a")
    assert first.id == second.id
    assert (first.tag, second.tag) == (f"{tiny.tag}-z", f"{tiny.tag}-a")
    assert inspect(f"{tiny.tag}-z", engine).tag == f"{tiny.tag}-z"
    assert inspect(first.id, engine).tag == f"{tiny.tag}-a"
    plain = f"harvest-test-{tiny.mark}"
    assert (await tiny.build(tag=plain)).tag == f"{plain}:latest"


async def test_the_same_layers_give_the_same_digest(tiny: Tiny):
    first = await tiny.build()
    again = await tiny.build()
    (tiny.root / "c.md").write_text("# Other\n")
    assert first.digest == again.digest != (await tiny.build()).digest


@pytest.mark.parametrize(
    ("proxy", "passed_on"),
    [
        ("http://proxy.example:3128", True),
        ("proxy.example:3128", True),
        ("http://127.0.0.1:3128", False),
        ("127.0.0.1:3128", False),
        ("localhost:3128", False),
        ("user:word@localhost:3128", False),
        ("http://[::1]:3128", False),
    ],
)
def test_a_proxy_that_a_container_can_reach_is_passed_on(monkeypatch, proxy, passed_on):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "localhost,[::1],127.0.0.1")
    arguments = _proxy_arguments()
    assert arguments.get("HTTPS_PROXY") == (proxy if passed_on else None)
    assert arguments["NO_PROXY"] == "localhost,[::1],127.0.0.1"


def test_a_proxy_that_is_no_address_is_named_before_anything_is_built(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://[::1")
    with pytest.raises(SettingsError, match="https_proxy"):
        _proxy_arguments()


def test_the_real_image_builds_and_its_second_build_is_cached(snapshot_image: Snapshot):
    with closing(connect()) as client:
        seen = inspect(snapshot_image.id, client)
    assert seen.labels["harvest.cli.version"] == seen.manifest["versions"]["cli"]
    assert set(seen.sources["image_path"]) >= {
        "/app/claude.md",
        "/app/autonomous-agent.md",
        "/app/memory-seed.json",
    }
    assert not any("CERTIFICATE" in line or "ca.crt" in line for line in seen.layers["created_by"])
