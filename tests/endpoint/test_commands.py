"""The commands that show scenarios and cassettes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from harvest_nb.cli import app
from harvest_nb.endpoint import open_endpoint, scenario_names
from harvest_nb.errors import CassetteError, ScenarioError
from harvest_nb.sandbox.base import Sandbox
from tests.endpoint.conftest import FolderSandbox, body, post, user


def test_scenarios_are_listed_and_checked(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["scenarios", "--json"])
    assert [item["name"] for item in json.loads(done.stdout)] == scenario_names()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("about: x\nrules:\n  - txet: a\n")
    done = CliRunner().invoke(app, ["scenarios", str(wrong)])
    assert isinstance(done.exception, ScenarioError)
    assert f"{wrong}:3:" in str(done.exception)


async def test_a_cassette_is_shown(tmp_path: Path) -> None:
    path, sandbox = tmp_path / "a.cassette", cast(Sandbox, FolderSandbox(tmp_path))
    async with open_endpoint(
        "scripted", scenario="refusal", sandbox=sandbox, prompt="x", record=path
    ) as endpoint:
        await post(endpoint, body(user("do it")))
    told = json.loads(CliRunner().invoke(app, ["cassette", str(path), "--json"]).stdout)
    assert told["exchanges"][0]["request"] == "user: do it"
    assert "do it" in CliRunner().invoke(app, ["cassette", str(path)]).stdout


def test_what_is_no_cassette_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(CassetteError, match="is not a cassette"):
        CliRunner().invoke(app, ["cassette", str(tmp_path / "x")], catch_exceptions=False)
