"""The memory graph: the seed that is baked into the snapshot, and the store that the MCP memory server keeps."""

from harvest_nb.memory.change import diff, merge, merge_seed
from harvest_nb.memory.graph import Entity, Frames, Graph, Relation, lint, parse_seed, parse_store, to_store

__all__ = [
    "Entity",
    "Frames",
    "Graph",
    "Relation",
    "diff",
    "lint",
    "merge",
    "merge_seed",
    "parse_seed",
    "parse_store",
    "to_store",
]
