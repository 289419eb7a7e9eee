"""Kinds that ask what the agent could do beyond its task: rights, writable files, authorities, secret variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from harvest_nb.checks.base import Check, Context, Outcome, shorten
from harvest_nb.checks.credentials import credential_kinds
from harvest_nb.redact import SECRET_NAME

__all__ = [
    "AuthoritiesCheck",
    "CapabilitiesCheck",
    "EnvironmentSecretsCheck",
    "NoNewPrivilegesCheck",
    "PermissionsCheck",
    "UserCheck",
    "WritableCheck",
    "capability_names",
    "parse_status",
    "secret_variables",
]

CapabilitySet = Literal["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]

# capabilities(7), in the order of their bits in linux/capability.h.
# fmt: off
_CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)
# fmt: on


def parse_status(text: str) -> dict[str, str]:
    """`/proc/<pid>/status` as field name to value."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def capability_names(mask: str) -> list[str]:
    """Names of the capabilities set in a hexadecimal `mask`; a bit unknown here is `cap_<n>`.

    Raises:
        ValueError: `mask` is no hexadecimal number.
    """
    value = int(mask, 16)
    names = (
        _CAPABILITIES[bit] if bit < len(_CAPABILITIES) else f"cap_{bit}" for bit in range(value.bit_length())
    )
    return [name for bit, name in enumerate(names) if value >> bit & 1]


def secret_variables(environment: Mapping[str, str], allow: Iterable[str] = ()) -> dict[str, str]:
    """Variables that hold something like a secret, by name, with the reason; values are never returned.

    A value counts by its published shape; a name such as `LINEAR_API_KEY` counts when it has any value.
    """
    allowed = set(allow)
    found: dict[str, str] = {}
    for name, value in environment.items():
        if not value or name in allowed:
            continue
        shapes = credential_kinds(value)
        if shapes:
            found[name] = f"shape of a {' and '.join(shapes)} credential"
        elif SECRET_NAME.search(name):
            found[name] = "named like a secret"
    return found


class UserCheck(Check):
    """Programs run as `user`, whose id is not 0, and can become nobody else."""

    kind: Literal["user"]
    user: str
    uid: int | None = None
    """The id that the files of the image were given to; None for any."""

    def expected(self) -> str:
        """The user's name and id, and that it is not root."""
        shown = "" if self.uid is None else f"uid {self.uid}, "
        return f"{self.user}, {shown}uid and gid not 0, in no group root"

    async def observe(self, context: Context) -> Outcome:
        """Ask `id` for real and effective ids and groups."""
        status = parse_status((await context.run(["cat", "/proc/self/status"])).check().text)
        name = (await context.run(["id", "-un"])).text.strip()
        ids = {*status["Uid"].split(), *status["Gid"].split(), *status["Groups"].split()}
        seen = f"{name or 'no name'}, uid {status['Uid'].split()[0]}, gid {status['Gid'].split()[0]}"
        uids = set(status["Uid"].split())
        if name == self.user and self.uid is not None and uids != {str(self.uid)}:
            hint = f"give {self.user} uid {self.uid} again: its workspace and home are closed to another"
            return Outcome(False, f"{seen}: {self.other(', '.join(sorted(uids)))}", hint)
        return Outcome(name == self.user and "0" not in ids, f"{seen}, groups {status['Groups'] or 'none'}")

    def other(self, uid: str) -> str:
        """What is wrong when the user has another id."""
        return f"{self.user} had uid {self.uid} when the image was built, and now has {uid}"

    def account(self, passwd: str) -> str:
        """What is wrong with the user in the text of `/etc/passwd`; empty when nothing is."""
        uids = {line.split(":")[0]: line.split(":")[2] for line in passwd.splitlines() if line.count(":") > 2}
        if self.user not in uids:
            return f"/etc/passwd has no user {self.user}"
        return "" if self.uid is None or uids[self.user] == str(self.uid) else self.other(uids[self.user])


class CapabilitiesCheck(Check):
    """A started process has no capability in any of `sets` (fields of `/proc/self/status`)."""

    kind: Literal["capabilities"]
    sets: tuple[CapabilitySet, ...] = Field(min_length=1)

    def expected(self) -> str:
        """The sets that must be empty."""
        return f"{', '.join(self.sets)} empty"

    async def observe(self, context: Context) -> Outcome:
        """Read the sets and name what is in them."""
        status = parse_status((await context.run(["cat", "/proc/self/status"])).check().text)
        held = {name: capability_names(status[name]) for name in self.sets}
        if not any(held.values()):
            return Outcome(True, "all empty")
        return Outcome(
            False, shorten("; ".join(f"{name}: {', '.join(got)}" for name, got in held.items() if got))
        )


class NoNewPrivilegesCheck(Check):
    """`NoNewPrivs` is set: no setuid program can raise the agent's rights."""

    kind: Literal["no_new_privileges"]

    def expected(self) -> str:
        """The kernel's flag."""
        return "NoNewPrivs 1"

    async def observe(self, context: Context) -> Outcome:
        """Read the flag of a started process."""
        status = parse_status((await context.run(["cat", "/proc/self/status"])).check().text)
        flag = status.get("NoNewPrivs", "not reported")
        return Outcome(flag == "1", f"NoNewPrivs {flag}")


class PermissionsCheck(Check):
    """No file on the image's file system has any of the mode bits `mode`, outside `allow`.

    `mode` is `find`'s notation (`/6000`: setuid or setgid, `-0002`: writable by everybody); a folder in
    `allow` covers what is in it. `types` are `find`'s letters: `f` files, `d` folders.
    """

    kind: Literal["permissions"]
    mode: str = Field(pattern=r"^[/-][0-7]{1,4}$")
    types: str = Field(default="f", pattern=r"^[fd](,[fd])?$")
    allow: tuple[str, ...] = ()

    def expected(self) -> str:
        """The mode, and where it is allowed."""
        return f"no mode {self.mode} outside {', '.join(self.allow) or 'nothing'}"

    async def observe(self, context: Context) -> Outcome:
        """Search everything that the agent's user can reach; a folder closed to it hides nothing from it."""
        argv = ["find", "/", "-xdev", "-type", self.types, "-perm", self.mode, "-print0"]
        done = await context.run(argv)
        if done.exit_code not in (0, 1):
            return Outcome(
                False, f"find ended with {done.exit_code}: {shorten(done.stderr.decode('utf-8', 'replace'))}"
            )
        paths = [path for path in done.text.split("\0") if path]
        allowed = [context.expand(place) for place in self.allow]
        found = [p for p in paths if not any(p == place or p.startswith(f"{place}/") for place in allowed)]
        return Outcome(
            not found, shorten(", ".join(sorted(found))) if found else f"none; {len(paths)} allowed"
        )


class WritableCheck(Check):
    """What the agent may write and what not, really tried: files opened for writing, folders written into."""

    kind: Literal["writable"]
    closed: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def expected(self) -> str:
        """The paths on both sides."""
        return f"not writable: {', '.join(self.closed) or 'none'}; writable: {', '.join(self.open) or 'none'}"

    async def observe(self, context: Context) -> Outcome:
        """Try each path, and everything in each closed folder."""
        closed = [context.expand(path) for path in self.closed]
        opened = [context.expand(path) for path in self.open]
        found = await context.python("writable", str(len(closed)), *closed, *opened)
        # A closed path that is missing cannot be written; whether it should be there is the manifest's question.
        absent = [path for path in found["missing"] if path in opened]
        problems = (
            [f"{path} is writable" for path in found["written"]]
            + [f"{path} is not writable" for path in found["refused"]]
            + [f"{path} is missing" for path in absent]
        )
        return Outcome(
            not problems, shorten("; ".join(problems)) if problems else f"{found['tried']} paths tried"
        )


class AuthoritiesCheck(Check):
    """The sandbox trusts no certificate authority that Debian's `ca-certificates` does not ship.

    Looked at: the system bundle, its folder of links, `/usr/local/share/ca-certificates`, and the files that
    `variables` name. Shipped is what dpkg's checksums of the package say, so a file slipped in counts.
    """

    kind: Literal["authorities"]
    variables: tuple[str, ...] = ()

    def expected(self) -> str:
        """Only shipped authorities."""
        return "only authorities that Debian ships"

    async def observe(self, context: Context) -> Outcome:
        """Compare certificates by the SHA-256 of their DER form."""
        found = await context.python("authorities", *self.variables)
        if found["foreign"]:
            return Outcome(False, shorten("; ".join(found["foreign"])))
        if not found["trusted"]:
            return Outcome(
                False, "no certificate authority at all", "ca-certificates is missing or its bundle empty"
            )
        return Outcome(True, f"{found['trusted']} trusted, {found['shipped']} shipped")


class EnvironmentSecretsCheck(Check):
    """The environment that the image gives holds nothing like a secret, besides the variables in `allow`.

    Asked are process 1, a program that is started as the agent's CLI is, and a login shell.
    """

    kind: Literal["environment_secrets"]
    allow: tuple[str, ...] = ()

    def expected(self) -> str:
        """No secret-like variable."""
        return "no secret-like variable"

    async def observe(self, context: Context) -> Outcome:
        """Read the environment; names are shown, values never."""
        variables = await context.environment()
        found = secret_variables(variables, self.allow)
        login = secret_variables(await context.login_variables(), self.allow)
        found |= {name: f"{why}, set by the login shell" for name, why in login.items() if name not in found}
        if found:
            return Outcome(False, shorten("; ".join(f"{name}: {why}" for name, why in sorted(found.items()))))
        return Outcome(bool(variables), f"none in {len(variables)} variables")
