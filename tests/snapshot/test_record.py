from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.engine import DockerClient
from harvest_nb.snapshot import BuildProgress
from harvest_nb.snapshot.record import BuildRecord, Difference, compare, find_record, keep_record

if TYPE_CHECKING:
    from tests.snapshot.conftest import Tiny
else:
    Tiny = Any  # the tests are no package that could be imported from

LAYERS = st.lists(st.from_regex(r"sha256:[0-9a-f]{4}", fullmatch=True), min_size=1, max_size=6)


def image(layers: list[str], *, ident: str = "sha256:1", **config: Any) -> dict[str, Any]:
    return {"Id": ident, "RootFS": {"Layers": layers}, "Config": {"User": "harvest", **config}}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path))


def record(inspected: dict[str, Any]) -> BuildRecord:
    keep_record(inspected, "harvest:1")
    found = find_record(inspected)
    assert found is not None
    return found


@given(LAYERS, LAYERS)
def test_layers_on_top_are_a_difference_and_the_same_image_has_none(layers: list[str], more: list[str]):
    built = record(image(layers))
    assert not compare(image(layers), built)
    assert compare(image([*layers, *more]), built).layers == tuple(more)


def test_an_image_is_told_from_the_build_that_it_was_made_from():
    keep_record(image(["a", "b"], ident="sha256:1"), "harvest:1")
    keep_record(image(["a", "b", "c"], ident="sha256:2"), "harvest:2")
    found = find_record(image(["a", "b", "c", "d"], ident="sha256:9"))
    assert found is not None
    assert found.tag == "harvest:2"
    assert find_record(image(["a", "x"])) is None
    assert find_record(image([])) is None


def test_of_two_builds_with_the_same_files_that_with_the_same_settings_is_found():
    keep_record(image(["a"], ident="sha256:1", Env=["A=1"]), "one")
    keep_record(image(["a"], ident="sha256:2", Env=["A=2"]), "two")
    found = find_record(image(["a"], ident="sha256:9", Env=["A=1"]))
    assert found is not None
    assert found.tag == "one"


def test_changed_settings_are_named_without_their_values():
    built = record(image(["a"], Env=["A=1", "B=2"], Labels={"x": "1"}, Entrypoint=["python3"]))
    changed = image(["a"], Env=["A=1", "B=hidden", "C=hidden"], Labels={"x": "hidden"}, Entrypoint=["sh"])
    assert compare(changed, built).settings == ("Entrypoint", "Env (B, C)", "Labels (x)")
    assert compare(image(["a"], Env=["A=1", "B=2"], Labels={"x": "1"}, Hostname="other"), built).settings == (
        "Entrypoint",
    )


def test_a_damaged_record_is_none(tmp_path):
    path = keep_record(image(["a"]), "harvest:1")
    path.write_text("{")
    assert find_record(image(["a"])) is None


@pytest.mark.docker
async def test_a_build_leaves_its_record(tiny: Tiny, engine: DockerClient):
    for _ in ("built", "from the cache"):
        snapshot = await tiny.build()
        inspected = engine.api.inspect_image(snapshot.id)
        found = find_record(inspected)
        assert found is not None
        assert (found.id, found.tag, compare(inspected, found)) == (snapshot.id, tiny.tag, Difference((), ()))


@pytest.mark.docker
async def test_a_record_that_cannot_be_kept_is_told_and_fails_no_build(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    await tiny.build()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "file"))
    said: list[BuildProgress] = []
    snapshot = await tiny.build(on_progress=said.append)
    assert snapshot.tags == (tiny.tag,)
    assert any("cannot compare" in progress.line for progress in said)
