"""The entry point as a program, in a process of its own, as the image and the host provider start it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harvest_nb.paths import snapshot_dir

PROGRAM = snapshot_dir() / "entrypoint.py"
SEED: dict[str, list[dict[str, object]]] = {
    "entities": [
        {
            "name": "GitWorkflow",
            "entityType": "workflow",
            "observations": ["one subject a commit", "ä \u2028 ö"],
        },
        {"name": "ErrorPatterns", "entityType": "patterns", "observations": []},
    ],
    "relations": [{"from": "GitWorkflow", "to": "ErrorPatterns", "relationType": "avoids"}],
}
WRITES_STORE = "import os; print(open(os.environ['MEMORY_FILE_PATH']).read())"


class Place:
    """An app folder with a seed, and where the store belongs."""

    def __init__(self, root: Path) -> None:
        self.app = root / "app"
        self.store = root / "home" / "memory" / "memory.jsonl"
        self.app.mkdir()
        self.seed(json.dumps(SEED))

    def seed(self, text: str) -> None:
        (self.app / "memory-seed.json").write_text(text, encoding="utf-8")

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        known = {"MEMORY_FILE_PATH": str(self.store), "HARVEST_APP": str(self.app), "PATH": os.defpath}
        return subprocess.run(
            [sys.executable, "-I", str(PROGRAM), *argv],
            env=known | env, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def stored(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.store.read_text(encoding="utf-8").split("\n")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_makes_the_store_and_becomes_the_program(place):
    done = place.run(sys.executable, "-c", "import sys; print('here'); sys.exit(7)")
    assert (done.returncode, done.stdout, done.stderr) == (7, "here\n", "")
    assert place.stored() == [
        *({"type": "entity", **entity} for entity in SEED["entities"]),
        *({"type": "relation", **relation} for relation in SEED["relations"]),
    ]


def test_is_the_same_process_as_its_program(place):
    with subprocess.Popen(
        [sys.executable, "-I", str(PROGRAM), sys.executable, "-c", "import os; print(os.getpid())"],
        env={"MEMORY_FILE_PATH": str(place.store), "HARVEST_APP": str(place.app)},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said, _ = process.communicate(timeout=30)
    assert int(said) == process.pid


def test_the_program_sees_the_store(place):
    done = place.run(sys.executable, "-c", WRITES_STORE)
    assert len(done.stdout.strip().split("\n")) == 3


def test_seed_only_runs_nothing(place):
    done = place.run("--seed-only")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(place.stored()) == 3


def test_leaves_no_other_file(place):
    place.run("--seed-only")
    assert [path.name for path in place.store.parent.iterdir()] == ["memory.jsonl"]


@pytest.mark.parametrize("content", ["", '{"type": "entity"}', "not JSON at all"])
def test_an_existing_store_is_left_alone(place, content):
    place.store.parent.mkdir(parents=True)
    place.store.write_text(content)
    place.seed("not even looked at")
    assert place.run("--seed-only").returncode == 0
    assert place.store.read_text() == content


def test_many_at_once_make_one_whole_store(place):
    argv = [sys.executable, "-I", str(PROGRAM), "--seed-only"]
    env = {"MEMORY_FILE_PATH": str(place.store), "HARVEST_APP": str(place.app)}
    running = [subprocess.Popen(argv, env=env) for _ in range(8)]
    assert [process.wait(timeout=30) for process in running] == [0] * 8
    assert len(place.stored()) == 3
    assert [path.name for path in place.store.parent.iterdir()] == ["memory.jsonl"]


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        ("{", ":1:2: not JSON"),
        ('{"entities": [],\n "relations": [,]}', ":2:16: not JSON"),
        ("[]", "top level"),
        ('{"entities": []}', "top level"),
        ('{"entities": [], "relations": [], "relation": []}', "top level"),
        ('{"entities": {}, "relations": []}', "entities: expected a list"),
        ('{"entities": [{"name": "A"}], "relations": []}', "entities[0]: expected an object with exactly"),
        (
            '{"entities": [{"name": " ", "entityType": "t", "observations": []}], "relations": []}',
            "entities[0].name: expected text",
        ),
        (
            '{"entities": [{"name": "A", "entityType": "t", "observations": [1]}], "relations": []}',
            "entities[0].observations: expected a list of texts",
        ),
        (
            '{"entities": [{"name": "A", "entityType": "t", "observations": []},'
            ' {"name": "A", "entityType": "t", "observations": []}], "relations": []}',
            "entities[1].name: expected a name not used before, found 'A' again",
        ),
        (
            '{"entities": [], "relations": [{"from": "A", "to": "B", "relationType": "r"}]}',
            "relations[0].from: expected the name of an entity, found 'A'",
        ),
    ],
)
def test_a_malformed_seed_is_named_with_its_place(place, seed, said):
    place.seed(seed)
    done = place.run(sys.executable, "-c", "print('must not run')")
    assert (done.returncode, done.stdout) == (65, "")
    assert f"{place.app}/memory-seed.json" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not place.store.parent.exists()


def test_a_missing_seed(place):
    (place.app / "memory-seed.json").unlink()
    done = place.run("--seed-only")
    assert done.returncode == 66
    assert "cannot read the memory seed" in done.stderr


def test_a_seed_that_is_not_text(place):
    (place.app / "memory-seed.json").write_bytes(b"\xff\xfe\x00")
    assert place.run("--seed-only").returncode == 66


@pytest.mark.parametrize("value", ["", "memory.jsonl"])
def test_the_store_needs_an_absolute_path(place, value):
    done = place.run("--seed-only", MEMORY_FILE_PATH=value)
    assert done.returncode == 78
    assert "MEMORY_FILE_PATH" in done.stderr


def test_a_store_that_cannot_be_written(place):
    (place.store.parent.parent).mkdir()
    place.store.parent.write_text("a file where the folder belongs")
    done = place.run("--seed-only")
    assert done.returncode == 73
    assert str(place.store) in done.stderr


def test_a_folder_in_the_place_of_the_store(place):
    place.store.mkdir(parents=True)
    done = place.run("--seed-only")
    assert done.returncode == 73
    assert "exists, but is not a file" in done.stderr
    assert [path.name for path in place.store.parent.iterdir()] == ["memory.jsonl"]


@pytest.mark.parametrize("argv", [[], ["--help"], ["--seed-only", "true"]])
def test_wrong_arguments(place, argv):
    done = place.run(*argv)
    assert done.returncode == 64
    assert "usage" in done.stderr


def test_a_program_that_is_not_there(place):
    done = place.run("no-such-program")
    assert (done.returncode, done.stdout) == (127, "")
    assert "no such program: no-such-program" in done.stderr


def test_a_program_that_cannot_be_run(place):
    done = place.run(str(place.app))
    assert done.returncode == 126


def test_imports_the_standard_library_alone():
    tree = ast.parse(PROGRAM.read_text())
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert roots
    assert roots <= set(sys.stdlib_module_names)
