"""A tiny snapshot that builds in seconds on the real base image, and is gone afterwards."""

import asyncio
import json
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.engine import APIError, DockerClient
from harvest_nb.snapshot import BuildProgress, Snapshot, build
from harvest_nb.snapshot.sources import SourceMap


def lockfile(cli: str = "2.0.1", sdk: str = "0.2.1") -> dict[str, Any]:
    return {
        "lockfileVersion": 3,
        "packages": {
            "": {"name": "tiny"},
            "node_modules/@anthropic-ai/claude-code": {"version": cli},
            "node_modules/@anthropic-ai/claude-agent-sdk": {"version": sdk},
        },
    }


@dataclass
class Tiny:
    """One tiny snapshot: its folders, and how it is built."""

    engine: DockerClient
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    progress: list[BuildProgress] = field(default_factory=list)
    map: SourceMap = field(
        default_factory=lambda: SourceMap.model_validate(
            {"source": [{"image": "/app/claude.md", "source": "c.md"}]}
        )
    )

    def __post_init__(self) -> None:
        self.snapshot.mkdir()
        self.root.mkdir()
        (self.root / "c.md").write_text("# Rules\n")
        (self.folder / "relayd").mkdir()
        (self.folder / "relayd" / "launcher.py").write_text("print('relay')\n")
        (self.snapshot / "package.json").write_text("{}\n")
        (self.snapshot / "package-lock.json").write_text(json.dumps(lockfile()))
        (self.snapshot / "entrypoint.py").write_text("print('entry')\n")
        (self.snapshot / "memory_server.py").write_text("print('server')\n")
        self.steps("RUN echo built")

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshot"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def tag(self) -> str:
        return f"harvest-test-{self.mark}:tiny"

    def steps(self, *lines: str) -> None:
        """The Dockerfile: the base, a label by which all that it makes is found, the sources, these steps."""
        head = ["ARG BASE_IMAGE", "FROM ${BASE_IMAGE}", f"LABEL harvest.test={self.mark}", "COPY app/ /app/"]
        (self.snapshot / "Dockerfile").write_text("\n".join([*head, *lines]) + "\n")

    def build(self, tag: str | None = None, **more: Any) -> Coroutine[Any, Any, Snapshot]:
        more.setdefault("on_progress", self.progress.append)
        return build(
            tag=tag or self.tag,
            source_root=self.root,
            client=self.engine,
            snapshot=self.snapshot,
            relay=self.folder / "relayd",
            source_map=self.map,
            **more,
        )

    def images(self) -> list[str]:
        found = self.engine.api.images(all=True, filters={"label": f"harvest.test={self.mark}"})
        return [str(image["Id"]) for image in found]

    def containers(self) -> list[str]:
        found = self.engine.api.containers(all=True, filters={"label": f"harvest.test={self.mark}"})
        return [str(container["Id"]) for container in found]

    async def reaches(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    def remove(self) -> None:
        for container in self.containers():
            self.engine.api.remove_container(container, force=True)
        # Newest first; a parent can go only when its children have.
        for _ in range(40):
            left = self.images()
            if not left:
                return
            for image in left:
                try:
                    self.engine.api.remove_image(image, force=True)
                except APIError as error:
                    if error.status_code not in {404, 409}:
                        raise
        raise AssertionError(f"images of the test are left: {left}")


@pytest.fixture
def tiny(engine: DockerClient, tmp_path: Path) -> Iterator[Tiny]:
    made = Tiny(engine, tmp_path)
    yield made
    made.remove()
