"""What a layer changes, and images that are made to be read for ever."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks import validate_layers
from harvest_nb.checks.export import Layer, changed_files, read_layers


def packed(*entries: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for fields in entries:
            info = tarfile.TarInfo(fields["name"])
            data = fields.get("data", b"")
            info.size = len(data)
            for name in ("type", "mode", "uid", "mtime", "linkname", "pax_headers"):
                setattr(info, name, fields.get(name, getattr(info, name)))
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def layers(*contents: bytes) -> list[Layer]:
    export = packed(*({"name": f"blobs/sha256/{n}", "data": data} for n, data in enumerate(contents)))
    return list(read_layers(iter([export])).values())


BASE = packed(
    {"name": "usr/bin", "type": tarfile.DIRTYPE, "mode": 0o755},
    {"name": "usr/bin/node", "data": b"node", "mode": 0o755},
    {"name": "usr/bin/git", "data": b"git", "mode": 0o755},
    {"name": "usr/bin/sh", "type": tarfile.SYMTYPE, "linkname": "dash"},
    {"name": "opt/one/a", "data": b"a"},
    {"name": "opt/one/b", "data": b"b"},
)


@pytest.mark.parametrize(
    ("above", "found"),
    [
        ([{"name": "usr/bin/node", "data": b"#!/bin/sh", "mode": 0o755}], ["/usr/bin/node changed"]),
        ([{"name": "usr/bin/git", "data": b"git", "mode": 0o4755}], ["/usr/bin/git mode 755 is 4755"]),
        (
            [{"name": "usr/bin/git", "data": b"git", "mode": 0o755, "uid": 1000}],
            ["/usr/bin/git given to 1000:0"],
        ),
        (
            [{"name": "usr/bin/sh", "type": tarfile.SYMTYPE, "linkname": "/opt/sh"}],
            ["/usr/bin/sh changed"],
        ),
        ([{"name": "usr/bin", "type": tarfile.DIRTYPE, "mode": 0o777}], ["/usr/bin mode 755 is 777"]),
        ([{"name": "usr/bin", "type": tarfile.DIRTYPE, "mode": 0o755, "mtime": 9}], []),
        ([{"name": "usr/bin/git", "data": b"git", "mode": 0o755}], []),
        ([{"name": "usr/bin/git", "data": b"gut", "mode": 0o755}], ["/usr/bin/git changed"]),
        (
            [
                {
                    "name": "usr/bin/git",
                    "data": b"git",
                    "mode": 0o100755,
                    "pax_headers": {"SCHILY.xattr.security.capability": "x"},
                }
            ],
            ["/usr/bin/git changed"],
        ),
        ([{"name": "usr/bin/git", "data": b"git", "mode": 0o100755}], []),
        ([{"name": "usr/bin/.wh.git"}], ["/usr/bin/git removed"]),
        ([{"name": "opt/.wh.one"}], ["/opt/one/a removed", "/opt/one/b removed"]),
        (
            [{"name": "opt/one/.wh..wh..opq"}, {"name": "opt/one/c", "data": b"c"}],
            ["/opt/one/a removed", "/opt/one/b removed", "/opt/one/c added"],
        ),
        (
            [{"name": "opt/new", "data": b"x"}, {"name": "usr/bin/new", "data": b"x"}],
            ["/usr/bin/new added", "/opt/new added"],
        ),
    ],
)
def test_what_a_layer_changes_is_named(above: list[dict[str, Any]], found: list[str]):
    base, changed = layers(BASE, packed(*above))
    assert changed_files([base], [changed]) == found


def test_what_one_layer_adds_and_the_next_removes_is_no_change():
    added = packed({"name": "opt/x", "data": b"x"})
    removed = packed({"name": "opt/.wh.x"})
    below, *above = layers(BASE, added, removed)
    assert changed_files([below], above) == []


def reported(export: Iterable[bytes]) -> str:
    described = {"Id": "sha256:1", "RootFS": {"Layers": ["sha256:" + "a" * 64]}}
    (row,) = validate_layers(described, lambda: export).failures
    assert row.check == "image-layers"
    return row.observed


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path))


def test_an_image_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARVEST_MAX_IMAGE_BYTES", "1000000")
    header = tarfile.TarInfo("01/layer.tar")
    header.size = 1 << 40

    def endless() -> Iterable[bytes]:
        yield header.tobuf(tarfile.GNU_FORMAT)
        while True:
            yield bytes(100_000)

    assert "HARVEST_MAX_IMAGE_BYTES" in reported(endless())


def test_an_image_of_too_many_files_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARVEST_MAX_IMAGE_FILES", "10")
    layer = packed(*({"name": f"file{n}"} for n in range(20)))
    assert "HARVEST_MAX_IMAGE_FILES" in reported([packed({"name": "01/layer.tar", "data": layer})])


def test_a_header_that_would_take_all_memory_is_refused():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    layer = header.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)
    assert "header of 8,589,934,592 bytes" in reported([packed({"name": "01/layer.tar", "data": layer})])


@given(st.binary(max_size=4096))
def test_any_bytes_are_read_to_an_end(data: bytes):
    export = packed(
        {"name": "01/layer.tar", "data": bytes(512) + data}, {"name": "02/layer.tar", "data": data}
    )
    assert all(not layer.entries for layer in read_layers(iter([export])).values())


def test_what_lies_behind_an_end_that_is_none_is_said():
    """Other programs may read on where Python's tarfile takes a header for the end."""
    shown, hidden = packed({"name": "a.txt", "data": b"a"}), packed({"name": "b.txt", "data": b"hidden"})
    block = bytearray(tarfile.BLOCKSIZE)
    block[:5] = b"c.txt"
    block[148:156] = b"0000000\0"  # a checksum that is wrong
    (layer,) = layers(shown[: 2 * tarfile.BLOCKSIZE] + bytes(block) + hidden)
    assert layer.problems
    (whole,) = layers(shown)
    assert whole.problems == []


def test_headers_that_lead_on_for_ever_are_a_problem():
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1
    again = name.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(tarfile.BLOCKSIZE, b"\0")
    (layer,) = layers(packed({"name": "a.txt", "data": b"a"})[: 2 * tarfile.BLOCKSIZE] + again * 3000)
    assert layer.problems


def test_a_hard_link_to_credentials_is_named():
    (layer,) = layers(packed({"name": "root/.netrc", "type": tarfile.LNKTYPE, "linkname": "opt/x"}))
    assert layer.problems == ["file of credentials: /root/.netrc"]


def test_packages_of_somebody_else_are_read_whatever_their_time():
    token = b"ghp_" + b"a1" * 20
    (layer,) = layers(packed({"name": "srv/node_modules/x.txt", "data": token, "mtime": 315532800}))
    assert layer.problems == ["shape of a GitHub credential in /srv/node_modules/x.txt"]
