"""Who holds a sandbox: a process of this machine, named so that no other process is mistaken for it; and which
namespace a sandbox belongs to.

Process ids are reused, and two machines or two containers can have one host name. So a name has the process's start
too, and the boot and the process namespace in which its id means anything.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import psutil

from harvest_nb.settings import DEFAULT_NAMESPACE, load_settings

__all__ = ["NAMESPACE", "in_namespace", "is_alive", "namespace_filter", "namespace_of", "owner"]

NAMESPACE = "harvest.namespace"
"""The label that names the namespace of a sandbox, a container or a volume."""


def namespace_of(labels: Mapping[str, str]) -> str:
    """Return the namespace that `labels` name; what older versions made has no such label and is in the default one."""
    return labels.get(NAMESPACE, DEFAULT_NAMESPACE)


def namespace_filter(all_namespaces: bool) -> Callable[[Mapping[str, str]], bool]:
    """Return a test of labels: whether they are of this namespace (`HARVEST_NAMESPACE`), or of any.

    Raises:
        SettingsError: the namespace cannot be one.
    """
    mine = load_settings().namespace
    return lambda labels: all_namespaces or namespace_of(labels) == mine


def in_namespace() -> dict[str, str]:
    """Return the label of what this process makes now (`HARVEST_NAMESPACE`). Raises SettingsError."""
    return {NAMESPACE: load_settings().namespace}


def owner() -> str:
    """`host@boot.namespace:pid:start`, this process's name as an owner; `host:pid:start` where there is no /proc."""
    return _name(os.getpid())


@cache
def _name(pid: int) -> str:
    return f"{_place()}:{pid}:{int(psutil.Process(pid).create_time())}"


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        return f"{platform.node()}@{boot[:12]}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # no Linux, or no /proc
        return platform.node()


def is_alive(name: str) -> bool | None:
    """Whether that owner still lives; None when it cannot be seen from here, or is not a name of ours.

    The form `host:pid:start`, which older versions wrote, is looked up on any machine of that name.
    """
    place, _, pid = name.rpartition(":")[0].rpartition(":")
    if place not in (_place(), platform.node()) or not pid.isdigit():
        return None
    try:
        process = psutil.Process(int(pid))
        return (
            abs(int(process.create_time()) - int(name.rpartition(":")[2])) <= 1
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, ValueError):  # it has ended, or its start is no number: none of ours
        return False
