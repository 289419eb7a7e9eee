"""What the snapshot's layers weigh, how long a rebuild takes, and the same contents from a naive Dockerfile.

    .venv/bin/python benchmarks/snapshot.py [--naive] [--repeats 5] [--json FILE]

The rebuilds are builds of a tag of their own on a warm cache, and their medians are shown: nothing changed, one
config file changed (a new text each time), the entry point changed. `--naive` also builds `naive.Dockerfile` from
the same base with the same packages without a cache, which takes minutes, and rebuilds it with one config file
changed. Everything made here is removed again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from harvest_nb.engine import connect
from harvest_nb.paths import data_root, snapshot_dir
from harvest_nb.snapshot import Snapshot, build
from harvest_nb.snapshot.base import resolve_base
from harvest_nb.snapshot.cache import forget
from harvest_nb.snapshot.context import ca_bundle_bytes

TAG, NAIVE = "harvest-bench:snapshot", "harvest-bench:naive"
HERE = Path(__file__).resolve().parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--naive", action="store_true")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    client = connect(timeout=600)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        root, parts = Path(name) / "root", Path(name) / "snapshot"
        for source in (".claude", "docs/ai", "docs/mcp"):
            shutil.copytree(data_root() / source, root / source)
        (root / "config").mkdir()
        shutil.copy(data_root() / "config" / "memory-seed.json", root / "config")
        shutil.copytree(snapshot_dir(), parts)
        try:
            first = make(root, parts)
            found["layers"] = layers(first)
            found["seconds"] = {
                "unchanged": timed(given.repeats, lambda: make(root, parts)),
                "one config file": timed(given.repeats, lambda: make(touched(root), parts)),
                "entry point": timed(given.repeats, lambda: make(root, touched_entry(parts))),
            }
            found["bytes"] = {"snapshot": first.size}
            if given.naive:
                seconds, size = naive(client, root, given.repeats)
                found["naive seconds"], found["bytes"]["naive"] = seconds, size
        finally:
            for tag in (TAG, NAIVE):
                if client.images.list(name=tag):
                    client.api.remove_image(tag, noprune=True)
            forget(client, TAG)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def make(root: Path, parts: Path) -> Snapshot:
    return asyncio.run(build(tag=TAG, source_root=root, snapshot=parts))


def timed(repeats: int, work: Any) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.monotonic()
        work()
        times.append(round(time.monotonic() - start, 2))
    return times


def touched(root: Path) -> Path:
    file = root / "docs" / "ai" / "shared" / "testing.md"
    with file.open("a") as out:
        out.write(f"\n<!-- {time.time_ns()} -->\n")
    return root


def touched_entry(parts: Path) -> Path:
    with (parts / "entrypoint.py").open("a") as out:
        out.write(f"# {time.time_ns()}\n")
    return parts


def layers(snapshot: Snapshot) -> list[dict[str, Any]]:
    frame = snapshot.layers.query("not empty")
    return [
        {"megabytes": round(row.size_bytes / 1e6, 1), "step": row.created_by[:90]}
        for row in frame.itertuples()
    ]


def naive(client: Any, root: Path, repeats: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of a first build and of rebuilds with one config file changed, and the size."""
    base = resolve_base(client, say=lambda _: None)
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        shutil.copytree(root, context, dirs_exist_ok=True)
        shutil.copy(HERE / "naive.Dockerfile", context / "Dockerfile")
        shutil.copy(snapshot_dir() / "package.json", context)
        (context / "ca.crt").write_bytes(ca_bundle_bytes())

        def run(*options: str) -> None:
            argv = [
                "docker",
                "build",
                "-q",
                *options,
                "-t",
                NAIVE,
                "--build-arg",
                f"BASE_IMAGE={base.reference}",
            ]
            subprocess.run([*argv, str(context)], check=True, stdout=subprocess.DEVNULL,
                           env={**os.environ, "DOCKER_BUILDKIT": "0"})  # fmt: skip

        def again() -> None:
            touched(context)
            run()

        first = timed(1, lambda: run("--no-cache"))
        return {"first": first, "one config file": timed(min(repeats, 2), again)}, client.images.get(
            NAIVE
        ).attrs["Size"]


def show(found: dict[str, Any]) -> None:
    for layer in found["layers"]:
        print(f"{layer['megabytes']:8.1f} MB  {layer['step']}")
    for what, size in found["bytes"].items():
        print(f"{size / 1e6:8.1f} MB  {what}")
    for group in ("seconds", "naive seconds"):
        for what, times in found.get(group, {}).items():
            print(f"{statistics.median(times):8.2f} s   {group.removesuffix('seconds')}{what}  {times}")


if __name__ == "__main__":
    main()
