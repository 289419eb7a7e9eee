"""Says what keeps hosts from being found by their names: `names.py`, prints sentences as JSON."""

import ipaddress
import json
import re
import socket
import sys
from pathlib import Path


def lines(path: str) -> "list[list[str]]":
    """The words of each line, without comments; none where there is no such file."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return []
    return [words for line in text.splitlines() if (words := re.split("[#;]", line)[0].split())]


def address(text: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    """The address, or None where the text is none."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


problems = []
# Without a line of its own the C library asks DNS, then files.
asked = [re.match(r"hosts\s*:\s*(.*)", " ".join(words)) for words in lines("/etc/nsswitch.conf")]
hosts = next((re.findall(r"\[[^\]]*\]|[^\s\[\]]+", found[1]) for found in asked if found), ["dns", "files"])
known = {"files", "dns", "myhostname", "resolve", "mymachines", "mdns4_minimal"}
if "dns" not in hosts and "resolve" not in hosts:
    problems.append(f"/etc/nsswitch.conf asks no DNS for hosts: {' '.join(hosts)}")
# What may stand before DNS is asked: the reaction to a name that was found, or of services that know all of theirs.
usual = {"[SUCCESS=return]", "resolve [!UNAVAIL=return]", "mdns4_minimal [NOTFOUND=return]"}
before = hosts[: hosts.index("dns")] if "dns" in hosts else hosts
for service, action in zip(["", *before], before, strict=False):
    if action.startswith("[") and not {action, f"{service} {action}"} & usual:
        problems.append(f"/etc/nsswitch.conf stops before DNS for hosts: {' '.join(hosts)}")
        break
if "files" not in hosts:
    problems.append("/etc/nsswitch.conf asks no files for hosts: 127.0.0.1 has no name")
strange = [word for word in hosts if word.isidentifier() and word not in known]
if strange:
    problems.append(f"/etc/nsswitch.conf asks {', '.join(strange)} for hosts")

own = {socket.gethostname(), "localhost", "localhost.localdomain"}
for words in lines("/etc/hosts"):
    names = [name for name in words[1:] if name not in own and not name.startswith("ip6-")]
    if names:
        problems.append(f"/etc/hosts names {', '.join(names)}")

resolver = lines("/etc/resolv.conf")
servers = [words[1] for words in resolver if words[0] == "nameserver" and len(words) > 1]
if resolver and not any(address(server) for server in servers):
    problems.append("/etc/resolv.conf names no server of names")
json.dump(problems, sys.stdout)
