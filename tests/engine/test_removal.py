from __future__ import annotations

import secrets

import pytest

from harvest_nb.engine import DockerClient, remove_containers
from harvest_nb.snapshot import Snapshot

pytestmark = pytest.mark.docker


def test_what_is_removed_is_listed_no_more_and_nothing_else_is_touched(
    engine: DockerClient, snapshot_image: Snapshot
) -> None:
    label = f"harvest-test-removal={secrets.token_hex(4)}"
    name, value = label.split("=")
    running, other = (
        engine.containers.run(
            snapshot_image.id, ["sleep", "60"], detach=True, network_mode="none", labels={name: one}
        )
        for one in (value, f"{value}-other")
    )
    try:
        remove_containers(engine.api, {"label": label})
        assert engine.containers.list(all=True, filters={"id": str(running.id)}) == []
        assert [each.id for each in engine.containers.list(filters={"id": str(other.id)})] == [other.id]
    finally:
        remove_containers(engine.api, {"id": str(other.id)})
    remove_containers(engine.api, {"label": label})
