"""Every notebook is executed through papermill, as CI and the demo do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.notebooks import parameters, run_notebook
from harvest_nb.paths import notebook_paths


def given(path: Path, provider: str, runs: Path) -> Mapping[str, Any]:
    known = {parameter.name for parameter in parameters(path)}
    return {k: v for k, v in {"provider": provider, "runs_dir": str(runs)}.items() if k in known}


@pytest.mark.docker
@pytest.mark.notebook
@pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_result(path: Path, snapshot_image: object, tmp_path: Path) -> None:
    result = run_notebook(
        path, tmp_path / "out", given(path, "docker", tmp_path / "runs"), cwd=tmp_path
    ).check()
    assert result.outcome == "ok"
    assert result.result


@pytest.mark.notebook
@pytest.mark.parametrize(
    "path",
    [path for path in notebook_paths() if path.stem in ("00_tour", "04_run_session")],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_without_an_engine(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVEST_ENGINE", "off")
    result = run_notebook(
        path, tmp_path / "out", given(path, "host", tmp_path / "runs"), cwd=tmp_path
    ).check()
    assert result.outcome == "ok"
    assert result.result
