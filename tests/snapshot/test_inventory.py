from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from harvest_nb.engine import DockerClient
from harvest_nb.errors import BuildError
from harvest_nb.snapshot import Snapshot
from harvest_nb.snapshot.inventory import COLUMNS, Inventory, inventory
from harvest_nb.snapshot.programs import packages


def package(
    kind: str, name: str, version: str, *licences: str, places: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "type": kind, "name": name, "version": version, "architecture": "amd64" if kind == "apt" else "",
        "homepage": "", "licences": list(licences), "places": list(places),
    }  # fmt: skip


SOME = Inventory(
    "sha256:" + "0" * 64,
    (
        package("apt", "libc6", "2:2.36-9+deb12u14", "LGPL-2.1", "GPL-2+"),
        package("npm", "@a/b", "1.2.3", "MIT", places=("/x/node_modules/@a/b", "/y/node_modules/@a/b")),
        package("npm", "plain", "0.1.0", "(MIT OR Apache-2.0)"),
        package("pip", "Some_Thing", "3", "SEE LICENSE IN README.md"),
        package("npm", "silent", "1.0.0"),
    ),
)


def problems(document: str) -> str | None:
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    return None if error is None else str(error)[:400]


def test_the_frame_has_a_row_a_package():
    frame = SOME.frame
    assert tuple(frame.columns) == COLUMNS
    rows = frame.set_index("name")
    assert rows.loc["libc6", "licence"] == "LGPL-2.1, GPL-2+"
    assert rows.loc["libc6", "purl"] == "pkg:deb/debian/libc6@2:2.36-9%2Bdeb12u14?arch=amd64"
    assert rows.loc["@a/b", "purl"] == "pkg:npm/%40a/b@1.2.3"
    assert rows.loc["@a/b", "places"] == 2
    assert rows.loc["Some_Thing", "purl"] == "pkg:pypi/some-thing@3"
    assert frame["licence"].isna().sum() == 1


def test_the_bill_of_materials_keeps_its_schema_and_says_the_same():
    document = SOME.cyclonedx()
    assert problems(document) is None
    components = {item["name"]: item for item in json.loads(document)["components"]}
    assert len(components) == len(SOME)
    assert components["@a/b"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert components["plain"]["licenses"][0]["expression"] == "(MIT OR Apache-2.0)"
    assert components["Some_Thing"]["licenses"] == [{"license": {"name": "SEE LICENSE IN README.md"}}]
    assert document == Inventory(SOME.image, SOME.packages[::-1]).cyclonedx()


def test_a_document_that_breaks_the_schema_is_found():
    document = json.loads(SOME.cyclonedx())
    document["components"][0]["type"] = "nonsense"
    assert problems(json.dumps(document)) is not None


@pytest.mark.parametrize(
    ("text", "licences"),
    [
        ("Format: https://x\nLicense: MIT\n\nFiles: *\nLicense: GPL-2+\n text\n", ["GPL-2+", "MIT"]),
        ("on Debian systems: `/usr/share/common-licenses/GPL-2'.", ["GPL-2"]),
        ("Permission is hereby granted, free of\n charge, to any person", ["Expat"]),
        ("nothing that is known", []),
    ],
)
def test_debian_copyright_files_are_read(tmp_path, monkeypatch, text, licences):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "copyright").write_text(text)
    monkeypatch.setattr(packages, "COPYRIGHT", f"{tmp_path}/{{}}/copyright")
    assert packages.debian_licences("x") == licences
    assert packages.debian_licences("missing") == []


@pytest.mark.parametrize(
    ("field", "licences"),
    [
        ({"license": "MIT"}, ["MIT"]),
        ({"license": {"type": "ISC", "url": "u"}}, ["ISC"]),
        ({"licenses": [{"type": "MIT"}, {"type": "BSD"}]}, ["BSD", "MIT"]),
        ({}, []),
    ],
)
def test_npm_licences_in_every_form(field, licences):
    assert packages.npm_licences(field) == licences


@pytest.mark.docker
def test_the_snapshots_inventory(snapshot_image: Snapshot):
    found = snapshot_image.inventory
    frame = found.frame
    assert frame["type"].value_counts()["apt"] > 150
    npm = frame[frame["type"] == "npm"].set_index("name")["version"]
    versions = snapshot_image.manifest["versions"]
    assert npm["@anthropic-ai/claude-code"] == versions["cli"]
    assert npm["@anthropic-ai/claude-agent-sdk"] == versions["sdk_typescript"]
    assert "npm" in npm.index
    apt = frame[frame["type"] == "apt"].set_index("name")
    assert str(apt.loc["python3-minimal", "version"]).startswith(versions["python"])
    assert frame["licence"].notna().mean() > 0.98
    assert problems(found.cyclonedx()) is None


@pytest.mark.docker
def test_no_image(engine: DockerClient):
    with pytest.raises(BuildError, match="no image harvest-test-never:made"):
        inventory("harvest-test-never:made", engine)
