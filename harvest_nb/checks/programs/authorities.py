"""Compares trusted certificates with those Debian's package shipped: `authorities.py <variables…>`, JSON out."""

import base64
import binascii
import hashlib
import json
import os
import re
import sys
from pathlib import Path

PEM = re.compile(
    rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----(.+?)-----END (?:TRUSTED )?CERTIFICATE-----", re.DOTALL
)
SHIPPED = Path("/usr/share/ca-certificates")
SUMS = Path("/var/lib/dpkg/info/ca-certificates.md5sums")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LINKS = Path("/etc/ssl/certs")
LOCAL = Path("/usr/local/share/ca-certificates")


def certificates(path: Path) -> "set[str]":
    """SHA-256 of the DER form of every certificate in a PEM file; a block that is no base64 counts as it is."""
    found = set()
    for block in PEM.findall(path.read_bytes()):
        try:
            der = base64.b64decode(block, validate=False)
        except binascii.Error:
            der = block
        found.add(hashlib.sha256(der).hexdigest())
    return found


foreign: "list[str]" = []
sums = {}
if SUMS.is_file():
    for line in SUMS.read_text().splitlines():
        digest, _, name = line.partition("  ")
        sums["/" + name] = digest
else:
    foreign.append(f"{SUMS} is missing: nothing says what the package shipped")

shipped: "set[str]" = set()
for path in sorted(SHIPPED.rglob("*.crt")):
    # MD5 is what dpkg records; a forged file would have to keep both its checksum and a valid certificate.
    if sums.get(str(path)) == hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest():
        shipped |= certificates(path)
    else:
        foreign.append(f"{path} is not as the package shipped it")

places = [BUNDLE] if BUNDLE.is_file() else []
if LINKS.is_dir():
    places += [path for path in sorted(LINKS.iterdir()) if path.is_file() and path != BUNDLE]
if LOCAL.is_dir():
    places += sorted(path for path in LOCAL.rglob("*") if path.is_file())
for variable in sys.argv[1:]:
    value = os.environ.get(variable, "")
    if value and Path(value).is_file():
        places.append(Path(value))
    elif value and Path(value).is_dir():
        places += [path for path in sorted(Path(value).iterdir()) if path.is_file()]

trusted: "set[str]" = set()
seen: "set[str]" = set()
for path in places:
    held = certificates(path)
    trusted |= held
    extra = held - shipped - seen
    seen |= extra
    if extra:
        foreign.append(f"{path} holds {len(extra)} that Debian does not ship")

json.dump({"foreign": foreign, "trusted": len(trusted), "shipped": len(shipped)}, sys.stdout)
