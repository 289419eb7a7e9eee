"""The key and the port that a stand-in keeps: the same from start to start, and nobody else's to read."""

from __future__ import annotations

import contextlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.daytona_local.kept import checked_key, keep_port, kept, kept_path
from harvest_nb.errors import SettingsError, TokenError

pytestmark = pytest.mark.usefixtures("own_locks")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "cache"))


def test_they_stay_the_same_and_only_their_owner_may_read_them() -> None:
    first = kept()
    keep_port(4711)
    assert (kept().key, kept().port) == (first.key, 4711)
    assert stat.S_IMODE(kept_path().stat().st_mode) == 0o600
    assert [path.name for path in kept_path().parent.iterdir()] == [kept_path().name]
    renewed = kept(fresh=True)
    assert renewed.key != first.key
    assert renewed.port == 4711
    kept_path().unlink()
    assert kept().key != renewed.key


def test_several_that_start_at_once_agree() -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len({found.key for found in threads.map(lambda _: kept(), range(8))}) == 1


@pytest.mark.parametrize("spoil", ["open", "garbled", "pipe", "another"])
def test_what_cannot_be_trusted_is_replaced_or_refused(spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    first, path = kept(), kept_path()
    if spoil == "open":
        path.chmod(0o644)
    elif spoil == "garbled":
        path.write_text("{")
    elif spoil == "another":
        path.write_text('{"key": "two words", "port": 1}')
    else:
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(SettingsError, match="Cannot keep"):
            kept()
        return
    assert kept().key != first.key
    assert str(path) in caplog.text
    assert first.key not in caplog.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(st.text(max_size=20))
def test_a_key_is_one_that_a_header_can_carry_or_refused(key: str) -> None:
    with contextlib.suppress(TokenError):
        assert {*checked_key(key)} <= {chr(code) for code in range(33, 127)}
