from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.errors import RunFolderError, SourceError
from harvest_nb.memory import (
    Entity,
    Graph,
    Relation,
    diff,
    lint,
    merge,
    merge_seed,
    parse_seed,
    parse_store,
    to_store,
)
from harvest_nb.paths import config_dir, snapshot_dir

SEED = config_dir() / "memory-seed.json"
SIX = {
    "HarvestSession",
    "EnvironmentConfig",
    "GitWorkflow",
    "WorkflowProcedures",
    "ErrorPatterns",
    "LearnedPatterns",
}

# Every text that a JSON file can hold, line separators and lone surrogates among them. A surrogate pair in two
# halves is left out: JSON cannot tell it from the character that it stands for.
texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("\u2028\u2029\x85\x1c\n\r\x00\ufeff\ud800")
    ),
    max_size=12,
)
entities = st.builds(Entity, texts, texts, st.lists(texts, max_size=4).map(tuple))
relations = st.builds(Relation, texts, texts, texts)
graphs = st.builds(
    Graph, st.lists(entities, max_size=5).map(tuple), st.lists(relations, max_size=5).map(tuple)
)


@pytest.fixture
def store(tmp_path: Path):
    def write(*lines: object) -> Path:
        path = tmp_path / "memory.jsonl"
        path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
        return path

    return write


def entity(name: str, *observations: str, **more: object) -> dict[str, object]:
    return {
        "type": "entity",
        "name": name,
        "entityType": "thing",
        "observations": list(observations),
        **more,
    }


def relation(source: str, target: str, kind: str = "uses") -> dict[str, object]:
    return {"type": "relation", "from": source, "to": target, "relationType": kind}


class TestSeed:
    def test_it_lints_clean(self):
        problems = lint(SEED)
        assert problems.empty, problems.to_string()

    def test_it_holds_exactly_the_six_entities_and_each_has_something_to_say(self):
        graph = parse_seed(SEED)
        assert len(graph.names) == 6
        assert set(graph.names) == SIX
        counts = graph.frames.entities.set_index("name")["observations"]
        assert counts.between(6, 12).all(), counts.to_dict()

    def test_every_entity_is_related_to_another(self):
        graph = parse_seed(SEED)
        ends = {end for r in graph.relations if r.source != r.target for end in (r.source, r.target)}
        assert ends == SIX

    def test_it_survives_the_store(self):
        graph = parse_seed(SEED)
        assert parse_store(to_store(graph)) == graph

    def test_the_sandbox_makes_the_same_store_of_it(self, tmp_path):
        shutil.copy(SEED, tmp_path / "memory-seed.json")
        store = tmp_path / "store" / "memory.jsonl"
        subprocess.run(
            [sys.executable, "-I", str(snapshot_dir() / "entrypoint.py"), "--seed-only"],
            env={"HARVEST_APP": str(tmp_path), "MEMORY_FILE_PATH": str(store)},
            check=True,
            timeout=30,
        )
        assert parse_store(store) == parse_seed(SEED)
        assert lint(store).empty

    def test_a_missing_seed_is_named(self, tmp_path):
        with pytest.raises(SourceError, match=r"nowhere\.json: No such file"):
            parse_seed(tmp_path / "nowhere.json")

    @pytest.mark.parametrize(
        ("text", "where", "problem"),
        [
            ('{"entities": [],\n "relations": [}', ":2: ", "Expecting value"),
            ("[]", ":1: ", "not a JSON object"),
            ('{"entities": []}', ": ", "'relations' must be a list"),
            (
                '{"entities": [{"name": "A", "entityType": "t"}], "relations": []}',
                ": ",
                "'observations' must be a list of strings",
            ),
            ('{"entities": [7], "relations": []}', ": ", "not a JSON object"),
        ],
    )
    def test_a_malformed_seed_is_an_error_that_says_where(self, tmp_path, text, where, problem):
        path = tmp_path / "seed.json"
        path.write_text(text)
        with pytest.raises(SourceError) as caught:
            parse_seed(path)
        assert f"seed.json{where}" in caught.value.message
        assert problem in caught.value.message
        assert problem in lint(path)["problem"].iloc[0]


class TestStore:
    @given(graphs)
    def test_round_trip(self, graph):
        assert parse_store(to_store(graph)) == graph

    @given(graphs)
    def test_each_record_is_one_line_of_utf8(self, graph):
        written = to_store(graph)
        lines = written.split(b"\n") if written else []
        assert len(lines) == len(graph.entities) + len(graph.relations)
        assert all(json.loads(line)["type"] in {"entity", "relation"} for line in lines)

    @given(graphs)
    def test_frames_hold_every_record(self, graph):
        frames = graph.frames
        assert len(frames.entities) == len(graph.entities)
        assert frames.entities["observations"].sum() == len(frames.observations)
        assert len(frames.relations) == len(graph.relations)

    def test_bytes_are_those_the_memory_server_writes(self):
        # What JSON.stringify makes of these values, as the server joins them.
        graph = Graph((Entity("Ä", "t", ('q"\\/\x01\u2028', "\ud800")),), (Relation("Ä", "B", "uses"),))
        assert (
            to_store(graph)
            == (
                '{"type":"entity","name":"Ä","entityType":"t","observations":["q\\"\\\\/\\u0001\u2028","\\ud800"]}\n'
                '{"type":"relation","from":"Ä","to":"B","relationType":"uses"}'
            ).encode()
        )

    def test_it_reads_a_path_and_ignores_blank_lines_and_carriage_returns(self, store):
        path = store(json.dumps(entity("A", "one")) + "\r", "", "  ", relation("A", "A"), "")
        assert parse_store(path) == Graph((Entity("A", "thing", ("one",)),), (Relation("A", "A", "uses"),))
        assert parse_store(str(path)) == parse_store(path.read_bytes())

    def test_an_empty_store_is_an_empty_graph(self):
        assert parse_store(b"") == Graph()
        assert to_store(Graph()) == b""

    def test_a_missing_store_is_named(self, tmp_path):
        with pytest.raises(RunFolderError, match=r"gone\.jsonl: No such file"):
            parse_store(tmp_path / "gone.jsonl")

    def test_a_cut_line_is_an_error_that_names_it_unless_told_otherwise(self, store):
        path = store(entity("A"), json.dumps(entity("B"))[:-9], relation("A", "B"))
        with pytest.raises(RunFolderError, match=r"memory\.jsonl:2: "):
            parse_store(path)
        graph = parse_store(path, strict=False)
        assert graph.names == ("A",)
        assert len(graph.relations) == 1


class TestLint:
    def test_a_sound_store_has_no_rows_but_typed_columns(self, store):
        problems = lint(store(entity("A", "x"), entity("B"), relation("A", "B")))
        assert problems.empty
        assert list(problems.columns) == ["line", "kind", "name", "problem"]
        assert problems["line"].dtype == "Int64"

    def test_every_problem_is_a_row_with_its_line(self, store):
        problems = lint(
            store(
                entity("A", "x"),
                "{",
                entity("A", "y", "y"),
                relation("A", "Ghost"),
                relation("A", "Ghost"),
                {"type": "note", "name": "N"},
                entity("B", observations="text"),
                entity(" ", ""),
                '"text"',
                {"type": "relation", "from": "A", "to": None, "relationType": "uses"},
                "[" * 200_000,
                {"type": ["entity"]},
            )
        )
        assert [tuple(row) for row in problems[["line", "kind", "name"]].itertuples(index=False)] == [
            (2, "line", ""),
            (3, "entity", "A"),
            (3, "entity", "A"),
            (4, "relation", "A uses Ghost"),
            (5, "relation", "A uses Ghost"),
            (5, "relation", "A uses Ghost"),
            (6, "line", "N"),
            (7, "entity", "B"),
            (8, "entity", " "),
            (8, "entity", " "),
            (9, "line", ""),
            (10, "relation", "A"),
            (11, "line", ""),
            (12, "line", ""),
        ]
        wanted = [
            "Expecting property name",
            "duplicate entity",
            "duplicate observation",
            "no entity is named 'Ghost'",
            "duplicate relation",
            "no entity is named 'Ghost'",
            "type is 'note'",
            "'observations' must be a list of strings",
            "empty name",
            "empty observation",
            "not a JSON object",
            "'to' must be a string",
            "nested too deeply",
            "type is ['entity']",
        ]
        for text, row in zip(wanted, problems["problem"], strict=True):
            assert text in row

    def test_bytes_that_are_not_utf8_are_a_row(self, tmp_path):
        path = tmp_path / "memory.jsonl"
        path.write_bytes(json.dumps(entity("A")).encode() + b'\n{"type": "\xff"}')
        assert list(lint(path)["problem"]) == ["not UTF-8 at byte 10"]

    @given(graphs)
    def test_what_to_store_writes_is_never_malformed(self, tmp_path_factory, graph):
        path = tmp_path_factory.getbasetemp() / "lint.jsonl"
        path.write_bytes(to_store(graph))
        assert not lint(path)["kind"].eq("line").any()


class TestDiff:
    def test_what_a_run_added_and_removed(self):
        before = Graph((Entity("A", "t", ("old", "kept")),), (Relation("A", "A", "is"),))
        after = Graph(
            (Entity("A", "t", ("kept", "new")), Entity("B", "u", ("first",))), (Relation("A", "B", "uses"),)
        )
        assert [tuple(row) for row in diff(before, after).itertuples(index=False)] == [
            ("removed", "observation", "A", "old"),
            ("removed", "relation", "A", "A is A"),
            ("added", "observation", "A", "new"),
            ("added", "entity", "B", "u"),
            ("added", "observation", "B", "first"),
            ("added", "relation", "A", "A uses B"),
        ]

    def test_relations_that_read_alike_are_told_apart(self):
        before = Graph(relations=(Relation("A", "z", "x y"),))
        after = Graph(relations=(Relation("A", "y z", "x"),))
        assert list(diff(before, after)["change"]) == ["removed", "added"]

    @given(graphs)
    def test_a_graph_does_not_differ_from_itself_in_another_order(self, graph):
        turned = Graph(graph.entities[::-1], graph.relations[::-1])
        assert diff(graph, turned).empty

    @given(graphs, graphs)
    def test_the_way_back_is_the_mirror_image(self, one, other):
        there, back = diff(one, other), diff(other, one)
        mirrored = back.replace({"change": {"added": "removed", "removed": "added"}})
        assert sorted(map(tuple, there.to_numpy())) == sorted(map(tuple, mirrored.to_numpy()))


class TestMerge:
    @given(graphs, graphs)
    def test_nothing_is_lost_and_the_seed_is_in_it(self, graph, seed):
        merged = merge(graph, seed)
        changes = diff(graph, merged)
        assert not (changes["change"] == "removed").any()
        assert merged.relations[: len(graph.relations)] == graph.relations
        for old, new in zip(graph.entities, merged.entities, strict=False):
            assert (new.name, new.entity_type) == (old.name, old.entity_type)
            assert new.observations[: len(old.observations)] == old.observations
        assert set(seed.names) <= set(merged.names)
        assert set(seed.relations) <= set(merged.relations)

    @given(graphs, graphs)
    def test_once_merged_there_is_nothing_to_add(self, graph, seed):
        merged = merge(graph, seed)
        assert merge(merged, seed) == merged

    def test_a_store_gets_what_it_lacks_and_keeps_its_lines_to_the_byte(self, store, tmp_path):
        seed = tmp_path / "seed.json"
        seed.write_text(
            json.dumps(
                {
                    "entities": [
                        {"name": "A", "entityType": "other", "observations": ["old", "new"]},
                        {"name": "B", "entityType": "thing", "observations": ["b"]},
                    ],
                    "relations": [{"from": "A", "to": "B", "relationType": "uses"}],
                }
            )
        )
        learned = '{"type": "entity",  "name":"C", "entityType": "x", "observations": [], "more": 1}'
        path = store(learned, entity("A", "mine", "old", more=2))
        added = merge_seed(path, seed)
        lines = path.read_text().split("\n")
        assert lines[0] == learned
        assert json.loads(lines[1]) == entity("A", "mine", "old", "new", more=2)
        assert [json.loads(line) for line in lines[2:]] == [entity("B", "b"), relation("A", "B")]
        assert set(added["change"]) == {"added"}
        assert lint(path).empty
        before = path.read_bytes()
        assert merge_seed(path, seed).empty
        assert path.read_bytes() == before

    @given(graphs)
    def test_the_file_says_what_the_graph_does(self, tmp_path_factory, graph):
        path = tmp_path_factory.mktemp("merge") / "memory.jsonl"
        path.write_bytes(to_store(graph))
        merge_seed(path, SEED)
        assert parse_store(path) == merge(graph, parse_seed(SEED))

    def test_a_malformed_store_is_left_alone(self, store):
        path = store("{", entity("A"))
        with pytest.raises(RunFolderError, match=r"memory\.jsonl|memory store:1"):
            merge_seed(path, SEED)
        assert path.read_text().startswith("{\n")

    def test_a_store_in_use_is_refused(self, store):
        path = store(entity("A"))
        with Path(f"{path}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RunFolderError, match="in use by a memory server"):
                merge_seed(path, SEED)
        assert not merge_seed(path, SEED).empty
