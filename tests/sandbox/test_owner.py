"""Who is taken for a sandbox's owner, and who is not."""

from __future__ import annotations

import os
import platform

import psutil
import pytest

from harvest_nb.sandbox.owner import is_alive, owner

START = int(psutil.Process().create_time())


def test_this_process_lives_in_either_form_of_its_name() -> None:
    assert is_alive(owner()) is True
    assert is_alive(f"{platform.node()}:{os.getpid()}:{START}") is True


def test_one_that_has_ended_or_whose_id_another_has_now_is_dead() -> None:
    place = owner().rsplit(":", 2)[0]
    assert is_alive(f"{place}:4000000:{START}") is False
    assert is_alive(f"{place}:{os.getpid()}:{START - 100}") is False
    assert is_alive(f"{platform.node()}:4000000:{START}") is False


@pytest.mark.parametrize("place", ["{node}@0123456789ab.4026531836", "elsewhere", "elsewhere@0123456789ab.1"])
def test_one_of_another_machine_or_container_is_unknown_whatever_its_host_is_called(place: str) -> None:
    assert is_alive(f"{place.format(node=platform.node())}:4000000:{START}") is None


@pytest.mark.parametrize("name", ["", "nobody", "a:b:c"])
def test_what_is_no_name_is_unknown(name: str) -> None:
    assert is_alive(name) is None
