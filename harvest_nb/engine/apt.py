"""Installing packages of the system (Debian, Ubuntu), for the engine and the base image."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from harvest_nb.errors import EngineError
from harvest_nb.machine.command import Finished, Stop, run_lines

__all__ = ["apt_install", "can_install", "os_release"]

_APT = ("apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300")


def os_release(root: Path = Path("/")) -> dict[str, str]:
    """The keys of `/etc/os-release` (`ID`, `ID_LIKE`, `VERSION_CODENAME` …); empty where there is none."""
    file = root / "etc/os-release"
    if not file.is_file():
        return {}
    pairs = (line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def can_install() -> bool:
    """Whether this is Debian or one of its children, and the user root."""
    release = os_release()
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    return bool(family & {"debian", "ubuntu"}) and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: Sequence[str], *, stop: Stop | None = None) -> None:
    """Install `packages` and what they need, nothing that they merely recommend.

    Raises:
        EngineError: apt-get failed, with its last lines.
        Cancelled: `stop` was asked.
    """
    install = [*_APT, "install", "--no-install-recommends", *packages]
    done = _apt(install, stop)
    if done.exit_code != 0:
        # Mostly: lists that are missing (a fresh container) or older than the mirror.
        update = _apt([*_APT, "update"], stop)
        done = _apt(install, stop) if update.exit_code == 0 else update
    if done.exit_code != 0:
        raise EngineError(
            f"apt-get could not install {' '.join(packages)}:\n" + "\n".join(done.tail),
            hint=f"try it by hand: apt-get update && apt-get install {' '.join(packages)}",
            reason="install",
        )


def _apt(argv: list[str], stop: Stop | None) -> Finished:
    return run_lines(argv, env={"DEBIAN_FRONTEND": "noninteractive"}, stop=stop)
