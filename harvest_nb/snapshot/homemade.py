"""The base image that is put together here: Debian's packages by `mmdebstrap`, Node.js from the package registry."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harvest_nb.engine import DockerClient, DockerException, engine_errors, translate
from harvest_nb.engine.apt import apt_install, can_install
from harvest_nb.errors import BuildError, DiskFullError
from harvest_nb.machine.command import Stop, StoppableFile, run_lines, unless_stopped
from harvest_nb.machine.held import holding
from harvest_nb.paths import snapshot_dir
from harvest_nb.snapshot.apt import debian_sources
from harvest_nb.snapshot.nodepkg import Package, fetch, write_tree

__all__ = ["Recipe", "assemble", "read_recipe"]

HOME_MADE = "harvest-base"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_EPOCH = "315532800"  # 1980-01-01: what mmdebstrap writes bears this time, so that the same packages give the same base
# The official image's user 1000 is `node`; a Dockerfile must find the same numbers taken on either base.
_HOOKS = (
    'chroot "$1" groupadd --gid 1000 node',
    'chroot "$1" useradd --uid 1000 --gid node --shell /bin/bash --create-home node',
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
)


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    amd64: Package
    arm64: Package
    npm: Package


class Recipe(BaseModel):
    """What `snapshot/base.toml` says about the base that is put together here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    python: str
    """Version of the suite's Python 3, which its patches do not change."""
    include: tuple[str, ...]
    path_exclude: tuple[str, ...]
    path_include: tuple[str, ...]
    node: dict[str, _Node]

    def reference(self, node: str, architecture: str) -> str:
        """The tag of the base for one major version of Node; another recipe has another tag."""
        everything = self.model_dump(mode="json", exclude={"node", "python"}) | {
            "node": self.node[node].model_dump(mode="json"),
            "architecture": architecture,
            "hooks": _HOOKS,
            "epoch": _EPOCH,
        }
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        return f"{HOME_MADE}:{self.suite}-node{node}-{digest[:12]}"


def read_recipe(file: Path | None = None) -> Recipe:
    """The recipe in `file` (default: `snapshot/base.toml`).

    Raises:
        BuildError: it is missing or malformed.
    """
    source = file or snapshot_dir() / "base.toml"
    try:
        return Recipe.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise BuildError(f"Cannot read {source}: {error}", step="base image", tail="") from error


def assemble(
    client: DockerClient,
    recipe: Recipe,
    node_version: str,
    architecture: str,
    reference: str,
    say: Callable[[str], None],
    stop: Stop,
) -> None:
    """Make the home-made base for `node_version` and name it `reference`.

    Raises:
        BuildError: it cannot be made. DiskFullError, EngineError, Cancelled.
    """
    node: _Node = recipe.node[node_version]
    program = _mmdebstrap(say, stop)
    with (
        tempfile.TemporaryDirectory(prefix="harvest-base-") as name,
        holding(f"the folder {name}", f"rm -r {shlex.quote(name)}"),
    ):
        folder = Path(name)
        folder.chmod(0o755)  # without root, mmdebstrap reads it as another user
        tree, result = folder / "node.tar", folder / "base.tar"
        packages = (node.arm64 if architecture == "arm64" else node.amd64, node.npm)
        files = [fetch(package, say=say, stop=stop) for package in packages]
        unless_stopped(lambda: write_tree(tree, *files), stop)
        tree.chmod(0o644)  # as the folder, whatever the umask
        say(f"installing Debian {recipe.suite} and Node.js {node.version} with mmdebstrap (about a minute)")
        done = run_lines(
            [program, *_mmdebstrap_arguments(recipe, architecture, tree, result)],
            on_line=lambda line: say(line) if line.startswith("I: ") else None,
            # What one that is killed has unpacked goes with the folder; without root it belongs to another user.
            env={"SOURCE_DATE_EPOCH": _EPOCH, **({} if os.geteuid() else {"TMPDIR": name})},
            stop=stop,
        )
        if done.exit_code != 0:
            tail = "\n".join(done.tail)
            kind = DiskFullError if "no space left on device" in tail.lower() else BuildError
            raise kind(
                f"mmdebstrap could not make the base image (exit code {done.exit_code}):\n{tail}",
                hint="see whether this machine reaches Debian's packages: `apt-get update`",
                step="base image: mmdebstrap",
                tail=tail,
            )
        say(f"importing {result.stat().st_size / 1e6:.0f} MB as {reference}")
        repository, tag = reference.rsplit(":", 1)
        api: Any = client.api  # partly untyped
        with (
            engine_errors(f"importing {reference}"),
            holding(f"the image {reference}, if the engine has it", f"docker image rm {reference}"),
            StoppableFile(result, stop) as file,
        ):
            answer = api.import_image(file, repository, tag, changes=_changes(node, recipe))
            # One that came in spite of `stop` is whole, and the next build begins with it.
        _check_import(str(answer), reference)
        stop.check()


def _mmdebstrap_arguments(recipe: Recipe, architecture: str, tree: Path, result: Path) -> list[str]:
    options = [
        "--variant=minbase",
        f"--architectures={architecture}",
        f"--include={','.join(recipe.include)}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.path_exclude),
        *(f"--dpkgopt=path-include={pattern}" for pattern in recipe.path_include),
        f"--customize-hook=tar-in {shlex.quote(str(tree))} /",
        *(f"--customize-hook={hook}" for hook in _HOOKS),
    ]
    if _KEYRING.is_file():
        options.append(f"--keyring={_KEYRING}")
    return [*options, recipe.suite, str(result), *debian_sources(recipe.suite)]


def _changes(node: _Node, recipe: Recipe) -> list[str]:
    return [
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f"ENV NODE_VERSION={node.version}",
        f"LABEL harvest.base={recipe.suite}-node{node.version}",
        'CMD ["node"]',
    ]


def _check_import(answer: str, reference: str) -> None:
    for line in answer.splitlines():
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            raise translate(DockerException(str(event["error"])), f"importing {reference}")


def _mmdebstrap(say: Callable[[str], None], stop: Stop) -> str:
    """The program's path; installed with apt-get where it is missing and may be.

    Raises:
        BuildError: it is missing and cannot be installed here.
    """
    found = shutil.which("mmdebstrap")
    if found:
        return found
    if not can_install():
        raise BuildError(
            "No container registry can be reached, and the base image cannot be put together: "
            "this machine has no mmdebstrap",
            hint="`sudo apt-get install mmdebstrap` (Debian, Ubuntu), or `docker pull` / `docker load` the "
            "official image",
            step="base image: mmdebstrap",
            tail="",
        )
    packages = ["mmdebstrap"] + ([] if _KEYRING.is_file() else ["debian-archive-keyring"])
    say(f"installing {', '.join(packages)} with apt-get")
    apt_install(packages, stop=stop)
    return shutil.which("mmdebstrap") or "mmdebstrap"
