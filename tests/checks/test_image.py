from __future__ import annotations

import json
import secrets

import pytest

from harvest_nb.checks import dockerfile_start, failed_start, validate_image
from harvest_nb.errors import SandboxError
from harvest_nb.paths import snapshot_dir
from harvest_nb.snapshot import manifest as manifests

MANIFEST = {
    "schema": 2,
    "source_root_name": "harvest",
    "source_commit": "abc",
    "source_dirty": False,
    "files": [],
    "versions": {
        "cli": "2.1",
        "sdk_python": "0.2",
        "sdk_typescript": "0.3",
        "node": "20.1",
        "python": "3.11",
    },
    "base": "base:1",
    "base_digest": "sha256:d",
    "relay_sha256": "r",
}
BYTES = manifests.encode(MANIFEST)


def image(user="harvest", env=("PATH=/usr/bin",), labels=None):
    labels = manifests.labels(MANIFEST) if labels is None else labels
    return {"Id": "sha256:1", "Config": {"User": user, "Env": list(env), "Labels": labels}}


HISTORY = [
    {"CreatedBy": "/bin/sh -c #(nop)  USER harvest"},
    {"CreatedBy": "|1 BASE_IMAGE=node:20 /bin/sh -c export TOKEN_FILE=$HOME/x; npm ci --no-audit"},
]


def failures(**options):
    report = validate_image(
        options.pop("inspect", image()),
        options.pop("history", HISTORY),
        manifest=options.pop("manifest", BYTES),
    )
    assert not options
    return {row.check: row.observed for row in report.failures}


def test_a_good_image_passes_every_check():
    report = validate_image(image(), HISTORY, manifest=BYTES)
    assert report.ok
    assert len(report) == 5
    assert {row.status for row in report} == {"pass"}


def test_without_a_manifest_the_labels_are_not_compared():
    report = validate_image(image(), HISTORY)
    assert [row.check for row in report if row.status == "n/a"] == ["image-manifest-label"]


@pytest.mark.parametrize("user", ["", "0", "root", "root:root", "0:0"])
def test_root_is_named(user):
    assert set(failures(inspect=image(user=user))) == {"image-user"}


def test_secrets_are_named_and_never_shown():
    token = "ghp_" + secrets.token_hex(20)
    cases = {
        "image-environment": {"inspect": image(env=[f"NOTE={token}"])},
        "image-labels": {"inspect": image(labels=manifests.labels(MANIFEST) | {"note": token})},
        "image-history": {"history": [*HISTORY, {"CreatedBy": f"|1 NOTE={token} /bin/sh -c true"}]},
    }
    for check, change in cases.items():
        found = failures(**change)
        assert set(found) == {check}
        assert token not in str(found)
        assert "GitHub" in found[check]


def test_a_build_argument_named_like_a_secret_is_found():
    history = [*HISTORY, {"CreatedBy": "|1 NPM_TOKEN=abcdef /bin/sh -c npm ci"}]
    assert failures(history=history) == {"image-history": "step 1 of 3: NPM_TOKEN named like a secret"}


def test_a_variable_that_the_contract_does_not_know_is_named():
    known = {"PATH": ".*", "LANG": r"C\.UTF-8"}
    env = ["PATH=/usr/bin", "LANG=tr_TR.UTF-8", "NODE_OPTIONS=--require=/opt/inject.js"]
    report = validate_image(image(env=env), HISTORY, manifest=BYTES, variables=known)
    (row,) = report.failures
    assert row.check == "image-variables"
    assert "LANG" in row.observed
    assert "NODE_OPTIONS" in row.observed
    assert "inject" not in row.observed
    assert validate_image(image(), HISTORY, manifest=BYTES, variables=known).ok


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"Entrypoint": ["/opt/start"]}, ["Entrypoint"]),
        ({"Cmd": None}, ["Cmd"]),
        ({"User": "daemon", "WorkingDir": "/"}, ["User", "WorkingDir"]),
        ({"Healthcheck": {"Test": ["CMD", "/opt/x"]}, "Shell": ["/opt/sh", "-c"]}, ["Healthcheck", "Shell"]),
    ],
)
def test_an_image_that_starts_otherwise_than_the_dockerfile_has_it_is_named(change, found):
    start = dockerfile_start((snapshot_dir() / "Dockerfile").read_text())
    inspected = image()
    inspected["Config"] |= start | change
    report = validate_image(inspected, HISTORY, manifest=BYTES, start=start)
    assert [row.check for row in report.failures] == (["image-start"] if found else [])
    assert all(name in row.observed for row in report.failures for name in found)


def test_the_password_of_a_proxy_is_named_by_its_variable_and_never_shown():
    proxy = "http://user:pw12345@proxy.example:3128"
    history = [{"CreatedBy": f"/bin/sh -c #(nop)  ENV HTTPS_PROXY={proxy}"}]
    found = failures(inspect=image(env=[f"HTTPS_PROXY={proxy}"]), history=history)
    assert set(found) == {"image-environment", "image-history"}
    assert "HTTPS_PROXY" in found["image-environment"]
    assert "pw12345" not in str(found)


def test_labels_of_another_build_are_named():
    labels = manifests.labels(MANIFEST)
    assert (
        "harvest.cli.version"
        in failures(inspect=image(labels=labels | {"harvest.cli.version": "1"}))["image-manifest-label"]
    )
    other = json.dumps(MANIFEST).encode()
    assert "harvest.manifest.sha256" in failures(manifest=other)["image-manifest-label"]
    assert "no labels" in failures(manifest=b"{}")["image-manifest-label"]


def test_a_sandbox_that_does_not_start_is_a_failed_report():
    report = failed_start(SandboxError("Its container was ended with exit code 66"), "image:1")
    assert not report.ok
    assert report.failures[0].check == "start"
    assert "memory-seed.json is missing" in report.failures[0].observed
    assert failed_start(SandboxError("There is no image x", hint="build it")).failures[0].hint == "build it"
