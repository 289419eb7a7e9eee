import os
import tarfile
from pathlib import Path

import pytest

from harvest_nb.errors import BuildError, SettingsError
from harvest_nb.snapshot.context import FILES, ca_bundle_bytes, packed_context, write_context
from harvest_nb.snapshot.sources import SourceMap, collect

PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def no_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        monkeypatch.delenv(name, raising=False)


def make(top: Path, mode: int = 0o644) -> Path:
    for folder in ("snapshot", "root", "context"):
        (top / folder).mkdir(parents=True)
    for name in FILES:
        (top / "snapshot" / name).write_text(name)
        (top / "snapshot" / name).chmod(mode)
    (top / "relayd").mkdir()
    (top / "relayd" / "launcher.py").write_text("relay")
    (top / "root/a.md").write_text("a")
    return top


def write(top: Path, ca_bundle: bytes = b"") -> Path:
    entries = {"source": [{"image": "/app/docs/a.md", "source": "a.md"}]}
    write_context(
        top / "context",
        snapshot=top / "snapshot",
        relay=top / "relayd",
        sources=collect(top / "root", source_map=SourceMap.model_validate(entries)),
        manifest={"files": []},
        ca_bundle=ca_bundle,
    )
    return top / "context"


def packed(folder: Path) -> bytes:
    with packed_context(folder) as stream:
        return stream.read()


def test_what_is_in_the_context(tmp_path):
    folder = write(make(tmp_path), PEM)
    with packed_context(folder) as stream, tarfile.open(fileobj=stream) as tar:
        names = tar.getnames()
        certificate = tar.extractfile("ca.crt")
        assert certificate is not None
        assert certificate.read() == PEM
    assert names == sorted(names)
    files = {name for name in names if (folder / name).is_file()}
    assert files == {*FILES, "relay.py", "relayd/launcher.py", "ca.crt", "app/docs/a.md", "app/manifest.json"}


def test_the_same_inputs_give_the_same_bytes_whatever_the_modes_and_times(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", mode=0o700)
    os.utime(two / "snapshot/Dockerfile", (1, 1))
    folder = write(two)
    (folder / "app").chmod(0o700)
    assert packed(write(one)) == packed(folder)


@pytest.mark.parametrize("name", [*FILES, "relay"])
def test_a_file_that_is_missing_is_named(tmp_path, name):
    top = make(tmp_path)
    file = top / "relayd" / "launcher.py" if name == "relay" else top / "snapshot" / name
    file.unlink()
    with pytest.raises(BuildError, match="is missing") as caught:
        write(top)
    assert str(file) in str(caught.value)


def test_without_a_bundle_the_file_is_empty(no_bundles):
    assert ca_bundle_bytes() == b""


def test_each_bundle_that_the_environment_names_is_taken_once(no_bundles, monkeypatch, tmp_path):
    other = PEM.replace(b"AAAA", b"BBBB")
    for name, data in {"a.pem": PEM, "b.pem": other, "c.pem": PEM}.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "a.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "c.pem"))
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(tmp_path / "b.pem"))
    assert ca_bundle_bytes() == PEM + b"\n" + other
    assert ca_bundle_bytes(tmp_path / "b.pem") == other


def test_a_folder_of_certificates_is_no_bundle(no_bundles, monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert ca_bundle_bytes() == b""


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_bundle_that_cannot_be_used_is_named(no_bundles, monkeypatch, tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(SettingsError, match=r"ca\.pem \(SSL_CERT_FILE\)"):
        ca_bundle_bytes()
