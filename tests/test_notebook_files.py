"""The stored notebooks: without outputs, readable top to bottom, and with a result at the end."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from harvest_nb.notebooks import parameters
from harvest_nb.paths import notebook_paths

PATHS = notebook_paths()
every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
_CELLS, _LINES = 25, 10
_STRIPPED = "metadata.papermill cell.metadata.papermill metadata.language_info cell.metadata.execution"


def read(path: Path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_they_are_numbered_without_gaps():
    assert [int(path.stem[:2]) for path in PATHS] == list(range(len(PATHS)))
    assert len(PATHS) >= 7


@every
def test_format_and_kernel(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"


@every
def test_nothing_of_an_execution_is_stored(path):
    for cell in code_cells(read(path)):
        assert cell.outputs == []
        assert cell.execution_count is None


@every
def test_ids_are_unique(path):
    ids = [cell.id for cell in read(path).cells]
    assert len(set(ids)) == len(ids)


@every
def test_it_starts_with_a_heading_and_has_one(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert sum(len(re.findall(r"^# ", text, re.MULTILINE)) for text in prose) == 1


@every
def test_it_stays_short(path):
    notebook = read(path)
    assert len(notebook.cells) <= _CELLS
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= _LINES, cell.source


@every
def test_its_parameters_can_be_given_and_are_explained(path):
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    found = parameters(path)
    assert found
    assert [p.name for p in found if not p.help] == []


@every
def test_it_ends_with_a_result(path):
    last = ast.parse(code_cells(read(path))[-1].source).body[-1]
    assert isinstance(last, ast.Expr)
    assert isinstance(last.value, ast.Call)
    assert isinstance(last.value.func, ast.Name)
    assert last.value.func.id == "emit"


@every
def test_what_it_requires_is_a_known_word(path):
    requires = read(path).metadata.get("harvest", {}).get("requires", [])
    assert set(requires) <= {"docker"}


def test_nbstripout_has_nothing_to_strip():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nbstripout",
            "--verify",
            "--keep-id",
            "--extra-keys",
            _STRIPPED,
            *map(str, PATHS),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
