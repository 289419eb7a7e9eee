from __future__ import annotations

import pytest
from pydantic import SecretStr

from harvest_nb.providers import name_for
from harvest_nb.sandbox.daytona import Account, DaytonaProvider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sessions import plan
from harvest_nb.snapshot import Snapshot

pytestmark = pytest.mark.docker


def test_each_provider_gets_the_name_it_knows_a_snapshot_by(snapshot_image: Snapshot) -> None:
    # An id of this engine says nothing to Daytona, which has the snapshot under its name.
    daytona = DaytonaProvider(Account(SecretStr("key"), "http://127.0.0.1:1/api"))
    assert name_for(DockerProvider(), snapshot_image) == snapshot_image.id
    assert plan(provider=daytona, snapshot=snapshot_image).snapshot == snapshot_image.tag
    assert plan(provider=daytona, snapshot="mine").snapshot == "mine"
    assert plan(provider=daytona).snapshot == daytona.snapshot
