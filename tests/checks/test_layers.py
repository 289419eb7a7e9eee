"""Secrets in layers, on a real image of a few steps, and on what is no image at all."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvest_nb.checks import validate_layers
from harvest_nb.checks.layers import scan_layers
from harvest_nb.engine import DockerClient

TOKEN = "ghp_" + secrets.token_hex(20)
COVERED = ("COPY note /opt/note", "COPY nothing /opt/note")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path))


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def image(engine: DockerClient, request: pytest.FixtureRequest) -> Iterator[str]:
    lines = ["FROM scratch", *request.param]
    tag = f"harvest-test-layers:{secrets.token_hex(4)}"
    context = io.BytesIO(
        packed(Dockerfile="\n".join(lines).encode(), note=TOKEN.encode(), nothing=b"nothing")
    )
    # No cache: layers shared with another build must not be removed with this image.
    said = list(
        engine.api.build(fileobj=context, custom_context=True, tag=tag, rm=True, decode=True, nocache=True)
    )
    assert not [line["error"] for line in said if "error" in line]
    yield tag
    # Not with noprune: its own steps go too.
    engine.api.remove_image(tag, force=True)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("image", "found"),
    [
        (COVERED, True),
        (("COPY nothing /opt/note",), False),
    ],
    indirect=["image"],
    ids=["covered", "clean"],
)
def test_what_a_layer_holds_is_named_and_never_shown(engine: DockerClient, image: str, found: bool):
    described = engine.api.inspect_image(image)
    exports: list[int] = []

    def export() -> Iterator[bytes]:
        exports.append(1)
        yield from engine.api.get_image(image, chunk_size=1 << 20)

    report = validate_layers(described, export)
    assert report.ok is not found
    assert TOKEN not in report.to_json()
    if found:
        (row,) = report.failures
        assert "shape of a GitHub credential in /" in row.observed
        assert row.hint
    # What was clean is known, what was not is looked at again.
    again = validate_layers(described, export)
    assert again.ok is not found
    assert len(exports) == (2 if found else 1)


def test_a_layer_that_was_not_exported_is_a_failure():
    described = {"Id": "sha256:1", "RootFS": {"Layers": ["sha256:" + "a" * 64]}}
    report = validate_layers(described, lambda: iter([packed(x=b"no layer")]))
    assert [row.check for row in report.failures] == ["image-layers"]
    assert "was not exported" in report.failures[0].observed


def test_both_layouts_of_an_archive_are_read():
    token = TOKEN.encode()
    layer = packed(opt__note=token, opt__other=b"nothing")
    for name in ("0123__layer.tar", "blobs__sha256__0123"):
        found = scan_layers(iter([packed(**{name: layer})]))
        assert list(found.values()) == [["shape of a GitHub credential in /opt/note"]]


def test_other_peoples_packages_hold_examples_of_some_shapes_and_tokens_of_none():
    key = b"-----BEGIN RSA PRIVATE KEY-----"
    layer = packed(app__node_modules__theirs=key, app__node_modules__ours=TOKEN.encode(), app__key=key)
    (found,) = scan_layers(iter([packed(blobs__sha256__01=layer)])).values()
    assert found == [
        "shape of a GitHub credential in /app/node_modules/ours",
        "shape of a private key credential in /app/key",
    ]


@pytest.mark.parametrize("before", [1, 9000, 5_000_000, 1024 * 1024 - 10])
def test_in_a_file_that_is_no_text_only_what_is_sure_is_named(before: int):
    note = b"SQLite\0" + b"\1ghp_\0" * (before // 6) + TOKEN.encode() + b"\0" * 2_000_000
    key = b"ELF\0-----BEGIN RSA PRIVATE KEY-----\0://user:pass12word@host"
    layer = packed(opt__note=note, usr__bin__openssl=key)
    (found,) = scan_layers(iter([packed(blobs__sha256__01=layer)])).values()
    assert found == ["shape of a GitHub credential in /opt/note"]


def test_a_file_of_credentials_is_named_by_its_name_unless_it_is_empty():
    layer = packed(
        **{"root__.netrc": b"x", "home__.netrc": b"", "home__.ssh__id_rsa": b"\0", "etc__note": b"x"}
    )
    (found,) = scan_layers(iter([packed(blobs__sha256__01=layer)])).values()
    assert found == ["file of credentials: /root/.netrc", "file of credentials: /home/.ssh/id_rsa"]


@pytest.mark.parametrize("note", [b"-- pass-phrase --", b"\0\1pass-phrase\0"])
def test_what_a_step_shows_is_looked_for_in_the_files(note: bytes):
    history = [{"CreatedBy": "/bin/sh -c printf 'NOTE_TOKEN=pass-phrase' > /opt/note"}]
    layer = packed(opt__note=note)
    (found,) = scan_layers(iter([packed(blobs__sha256__01=layer)]))
    described = {"Id": "sha256:1", "RootFS": {"Layers": [found]}}
    report = validate_layers(described, lambda: iter([packed(blobs__sha256__01=layer)]), history=history)
    (row,) = report.failures
    assert row.check == "image-layers"
    assert "the value of NOTE_TOKEN in /opt/note" in row.observed
    assert "pass-phrase" not in report.to_json()


def test_a_layer_that_removes_a_file_does_not_hide_what_the_one_before_holds():
    layers = {
        "01__layer.tar": packed(opt__note=TOKEN.encode()),
        "02__layer.tar": packed(**{"opt__.wh.note": b""}),
    }
    found = scan_layers(iter([packed(**layers)]))
    assert list(found.values()) == [["shape of a GitHub credential in /opt/note"], []]


@pytest.mark.parametrize("before", [0, 5_000_000, 1024 * 1024 - 10, 3 * 1024 * 1024 - 30])
def test_a_credential_is_found_wherever_it_stands_in_a_file_of_any_size(before: int):
    note = b"x" * before + b" " + TOKEN.encode() + b" " + b"y" * 2_000_000
    found = scan_layers(iter([packed(blobs__sha256__01=packed(opt__note=note))]))
    assert list(found.values()) == [["shape of a GitHub credential in /opt/note"]]
