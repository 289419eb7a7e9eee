"""What can be said of an image without starting it: from `docker inspect`, its history, its baked manifest."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harvest_nb.checks.base import Group, Outcome, shorten
from harvest_nb.checks.credentials import SHAPES, kinds_in
from harvest_nb.checks.report import Report, Row
from harvest_nb.checks.security import secret_variables
from harvest_nb.checks.variables import foreign_variables
from harvest_nb.snapshot import manifest as manifests

__all__ = ["dockerfile_start", "history_secrets", "validate_image"]

_STARTS = {"Entrypoint": "ENTRYPOINT", "Cmd": "CMD", "User": "USER", "WorkingDir": "WORKDIR"}
_NEVER_SET = ("Healthcheck", "OnBuild", "Shell")  # for programs that run beside, or in images built on it
_SHORTEST = 6  # characters of a secret that is looked for by its value
# `NAME=value` in a step of the history: the classic builder writes build arguments as `|1 NAME=value /bin/sh …`.
_ASSIGNMENT = re.compile(r"(?<![\w$])([A-Za-z_][A-Za-z0-9_]*)=(\"[^\"]*\"|'[^']*'|[^\s;&|]+)")


def validate_image(
    inspect: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    *,
    manifest: bytes | None = None,
    allow: Iterable[str] = (),
    variables: Mapping[str, str] | None = None,
    start: Mapping[str, Any] | None = None,
) -> Report:
    """Rows about the image itself, to be added to those of a sandbox (`report + validate_image(...)`).

    Args:
        inspect: what the engine's `inspect_image` gives: `Id`, `Config` with `User`, `Env`, `Labels`.
        history: what the engine's `history` gives: entries with `CreatedBy`.
        manifest: the bytes of the baked `manifest.json`; without them the labels are not compared (`n/a`).
        allow: variables that may be named like a secret.
        variables: what the image's ENV may set, as the contract's `environment` has it; without it that is not asked.
        start: how a container starts, as `dockerfile_start` gives it; without it that is not asked.
    """
    config = inspect.get("Config") or {}
    labels: Mapping[str, str] = config.get("Labels") or {}
    steps = [str(entry.get("CreatedBy") or "") for entry in history]
    allowed = tuple(allow)
    began = time.monotonic()
    rows = [
        _row(
            "image-user",
            "security",
            "a user that is not root",
            "end the Dockerfile with `USER harvest`",
            lambda: _user(str(config.get("User") or "")),
        ),
        _row(
            "image-environment",
            "security",
            "no secret-like variable in ENV",
            "take the variable out of the Dockerfile; a token comes with the sandbox, and this one must be revoked",
            lambda: _found(
                secret_variables(_pairs(config.get("Env") or []), allowed), "variables", config.get("Env")
            ),
        ),
        _row(
            "image-labels",
            "security",
            "no secret-like label",
            "take the label out of the build, and revoke what it showed",
            lambda: _found(secret_variables(labels, allowed), "labels", labels),
        ),
        _row(
            "image-history",
            "security",
            "no secret in the history's steps",
            "a token was a build argument or stood in a RUN line: revoke it and build without",
            lambda: _history(steps, allowed),
        ),
        _row(
            "image-manifest-label",
            "config",
            "the labels that the baked manifest gives",
            "labels and manifest come from different builds: build the image again",
            (lambda: _labels(labels, manifest)) if manifest is not None else None,
        ),
    ]
    if variables is not None:
        rows.append(
            _row(
                "image-variables",
                "security",
                f"ENV sets only {', '.join(variables)}, each with its usual value",
                "take the variable out of the Dockerfile, or add it to `environment` in the contract",
                lambda: _foreign(_pairs(config.get("Env") or []), variables),
            )
        )
    if start is not None:
        rows.append(
            _row(
                "image-start",
                "security",
                f"{', '.join(start)} as snapshot/Dockerfile sets them, and nothing else that starts",
                "take what starts a container (ENTRYPOINT … ONBUILD) out of what was built on the snapshot",
                lambda: _started(config, start),
            )
        )
    return Report(rows, subject=str(inspect.get("Id", "")), seconds=time.monotonic() - began)


def dockerfile_start(dockerfile: str) -> dict[str, Any]:
    """Return how a container of the last stage starts: `Entrypoint`, `Cmd`, `User`, `WorkingDir`, as Docker has them.

    Args:
        dockerfile: the text; the four stand in it once a stage, commands as JSON.
    """
    stage = re.split(r"^FROM\b", dockerfile, flags=re.MULTILINE)[-1]
    words = dict(re.findall(r"^(ENTRYPOINT|CMD|USER|WORKDIR) +(.+?) *$", stage, re.MULTILINE))
    return {
        name: json.loads(words[word]) if word in ("ENTRYPOINT", "CMD") else words[word]
        for name, word in _STARTS.items()
    }


def _started(config: Mapping[str, Any], start: Mapping[str, Any]) -> Outcome:
    # That it is root, `image-user` says.
    root = not _user(str(config.get("User") or "")).ok
    found = [
        f"{name} is not as snapshot/Dockerfile sets it"
        for name in start
        if config.get(name) != start[name] and not (name == "User" and root)
    ]
    found += [
        f"{name} is set" for name in _NEVER_SET if config.get(name) not in (None, [], {"Test": ["NONE"]})
    ]
    return Outcome(not found, shorten("; ".join(found)) or f"{len(start)} settings")


def _row(check: str, group: Group, expected: str, hint: str, look: Callable[[], Outcome] | None) -> Row:
    start = time.monotonic()
    if look is None:
        return Row(check, group, expected, "the manifest was not given", "n/a", 0.0, "")
    outcome = look()
    seconds = time.monotonic() - start
    return Row(
        check,
        group,
        expected,
        outcome.observed,
        "pass" if outcome.ok else "fail",
        seconds,
        "" if outcome.ok else hint,
    )


def _user(user: str) -> Outcome:
    name = user.partition(":")[0]
    return Outcome(name not in ("", "0", "root"), user or "none, which is root")


def _pairs(environment: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in environment)}


def _found(found: Mapping[str, str], noun: str, everything: Any) -> Outcome:
    if found:
        return Outcome(False, shorten("; ".join(f"{name}: {why}" for name, why in sorted(found.items()))))
    return Outcome(True, f"none in {len(everything or ())} {noun}")


def _foreign(environment: Mapping[str, str], known: Mapping[str, str]) -> Outcome:
    found = foreign_variables(environment, known)
    return Outcome(not found, shorten("; ".join(found)) or f"{len(environment)} known variables")


def _history(steps: Sequence[str], allow: tuple[str, ...]) -> Outcome:
    problems: list[str] = []
    for number, step in enumerate(steps, 1):
        where = f"step {len(steps) - number + 1} of {len(steps)}"
        problems += [f"{where}: shape of a {kind} credential" for kind in sorted(kinds_in(step.encode()))]
        literal = _literals(step)
        problems += [f"{where}: {name} {why}" for name, why in secret_variables(literal, allow).items()]
    return Outcome(not problems, shorten("; ".join(dict.fromkeys(problems))) or f"none in {len(steps)} steps")


def _literals(step: str) -> dict[str, str]:
    assigned = {name: value.strip("\"'") for name, value in _ASSIGNMENT.findall(step)}
    # A reference such as TOKEN=${TOKEN} shows no value.
    return {name: value for name, value in assigned.items() if not value.startswith("$")}


def history_secrets(steps: Sequence[str]) -> dict[str, str]:
    """The secrets that the steps of a history show, by what they are called there; the values are secrets."""
    found: dict[str, str] = {}
    for step in steps:
        literal = _literals(step)
        found |= {name: literal[name] for name in secret_variables(literal)}
        for shape in SHAPES:
            for match in re.finditer(shape.pattern, step, re.MULTILINE):
                found[f"the {shape.kind} credential of the history"] = match.group()
    return {name: value for name, value in found.items() if len(value) >= _SHORTEST}


def _labels(labels: Mapping[str, str], manifest: bytes) -> Outcome:
    try:
        expected = manifests.labels(json.loads(manifest))
    except (ValueError, KeyError, TypeError) as error:
        return Outcome(False, f"manifest.json gives no labels: {type(error).__name__}: {error}")
    # The digest is that of the very bytes in the image, not of the manifest encoded anew.
    expected[manifests.LABEL_MANIFEST] = hashlib.sha256(manifest).hexdigest()
    problems = [
        f"label {name} is {labels.get(name, 'missing')}, the manifest gives {value}"
        for name, value in expected.items()
        if labels.get(name) != value
    ]
    return Outcome(not problems, shorten("; ".join(problems)) or f"{len(expected)} labels agree")
