"""Credentials in images: their shapes in text, the files in which programs keep them, and hiding them in reports.

More shapes than `harvest_nb.redact` takes out of runs: an image is searched once, and a false alarm there costs a look.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby

from harvest_nb.redact import SECRET_SHAPES

__all__ = [
    "SHAPES",
    "Shape",
    "credential_file",
    "credential_kinds",
    "hide_credentials",
    "kinds_in",
    "kinds_in_binary",
    "rg_patterns",
]

# A quotation mark is \x22, as ripgrep knows no escaped one.
_EXAMPLE = b"EXAMPLE"  # as in the keys of AWS's documentation
_VALUE = r"[A-Za-z0-9+/_=.~-]"


@dataclass(frozen=True)
class Shape:
    """The shape of a kind of credential.

    Attributes:
        kind: whose credential it is, in words.
        pattern: a regular expression that Python and ripgrep understand alike.
        needles: texts of which a match holds one, for a quick look; without any, the pattern alone is tried.
        sure: whether only a credential looks so. Other people's packages hold examples of the other shapes.
    """

    kind: str
    pattern: str
    needles: tuple[bytes, ...] = ()
    sure: bool = True
    compiled: re.Pattern[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiled", re.compile(self.pattern.encode(), re.MULTILINE))

    def matches(self, text: bytes) -> bool:
        """Return whether a credential of this kind stands in `text`."""
        if self.needles and not any(needle in text for needle in self.needles):
            return False
        return any(_EXAMPLE not in match[0] for match in self.compiled.finditer(text))


def _shape(kind: str, pattern: str, needles: str = "", *, sure: bool = True) -> Shape:
    return Shape(kind, pattern, tuple(needle.encode() for needle in needles.split()), sure)


_PLAIN = r"[^\s/:@'\x22<>(){}\[\]$*`\\]"  # of a user or a password in a URL; what else there is makes it an example
_GITHUB = r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})"
_GOOGLE = r"\b(?:AIza[0-9A-Za-z_-]{35}\b|GOCSPX-[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_-]{20,})"
_GITLAB = r"\bgl(?:pat|dt|rt)-[A-Za-z0-9_-]{16,}"
_SLACK = (
    r"\bxox[a-z]-[0-9]{4,}[A-Za-z0-9-]{6,}|\bxapp-[0-9]-[A-Za-z0-9-]{10,}"
    r"|hooks\.slack\.com/services/T\w+/B\w+/\w{8,}"
)
_OPENAI = r"\bsk-(?:(?:proj|svcacct|admin|or-v1)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{32,})"
_AWS_LINE = r"(?i)aws_(?:secret_access_key|session_token)[\x22']?\s*[=:]\s*[\x22']?[A-Za-z0-9/+]{20,}"
_NPM_REGISTRY = (
    rf"(?:^|:)_(?:authToken|auth|password)\s{{0,32}}=\s*[\x22']?{_VALUE}{{6,}}"
    rf"|npmAuth(?:Token|Ident)\x22?:\s*[\x22']?{_VALUE}{{6,}}"
)
_REGISTRY = rf"\x22(?:auth|identitytoken|registrytoken)\x22\s{{0,32}}:\s{{0,32}}\x22{_VALUE}{{12,4096}}\x22"
_NETRC = r"\bmachine\s{1,32}\S{1,256}\s{1,32}login\s{1,32}\S{1,256}\s{1,32}password\s{1,32}\S"
# A short password of letters alone is an example, as in `user:password@host`.
# Repetitions have bounds wherever something follows them, or a hostile file would take hours.
_URL = rf"://{_PLAIN}{{0,64}}:(?:{_PLAIN}{{0,64}}[0-9]{_PLAIN}{{0,64}}|{_PLAIN}{{14,128}})@[A-Za-z0-9\[]"

_OWN = (
    _shape("Anthropic", r"sk-ant-[A-Za-z0-9_-]{16,}", "sk-ant-"),
    _shape("GitHub", _GITHUB, "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_"),
    _shape("Linear", r"\blin_(?:api|oauth)_[A-Za-z0-9]{20,}", "lin_api_ lin_oauth_"),
    _shape("Google", _GOOGLE, "AIza GOCSPX- ya29."),
    _shape("Sentry", r"\bsntry[us]_[A-Za-z0-9_=+/-]{20,}", "sntryu_ sntrys_"),
    _shape("Daytona", r"\bdtn_[A-Za-z0-9]{40,}", "dtn_"),
    _shape("AWS", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "AKIA ASIA"),
    _shape("AWS", _AWS_LINE, "aws_se AWS_SE"),
    _shape("npm", r"\bnpm_[A-Za-z0-9]{20,}", "npm_"),
    _shape("Slack", _SLACK, "xox xapp- hooks.slack.com"),
    _shape("GitLab", _GITLAB, "glpat- gldt- glrt-"),
    _shape("OpenAI", _OPENAI, "sk-"),
    _shape("Stripe", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}", "k_live_ k_test_"),
    _shape("PyPI", r"\bpypi-AgE[A-Za-z0-9_-]{37,}", "pypi-"),
    _shape("Hugging Face", r"\bhf_[A-Za-z0-9]{30,}", "hf_"),
    _shape("Docker", r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}", "dckr_"),
    _shape("SendGrid", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", "SG."),
    _shape("DigitalOcean", r"\bdo[opr]_v1_[a-f0-9]{64}", "_v1_"),
    _shape("Vault", r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}", "hvs. hvb. hvr."),
    _shape("Azure", r"AccountKey=[A-Za-z0-9+/]{40,}", "AccountKey="),
    _shape("npm registry", _NPM_REGISTRY, "_auth _password npmAuth", sure=False),
    _shape("container registry", _REGISTRY, '"auth" "identitytoken" "registrytoken"', sure=False),
    _shape(
        "netrc",
        r"\bmachine\s{1,32}\S{1,256}\s{1,32}login\s{1,32}\S{1,256}\s{1,32}password\s{1,32}\S",
        "machine",
        sure=False,
    ),
    _shape("private key", r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----", "PRIVATE", sure=False),
    _shape("JWT", r"\beyJ[\w-]{10,256}\.eyJ[\w-]{10,4096}\.[\w-]{10,}", "eyJ", sure=False),
    _shape("URL password", _URL, "://", sure=False),
)
_KINDS = {shape.kind for shape in _OWN}
SHAPES = (
    *_OWN,
    *(Shape(kind, shape.pattern) for kind, shape in SECRET_SHAPES.items() if kind not in _KINDS),
)
"""Every shape that is looked for."""

# Grouped by their first byte, which makes it twice as fast.
_NEEDLES = re.compile(
    b"|".join(
        re.escape(first) + b"(?:" + b"|".join(re.escape(needle[1:]) for needle in needles) + b")"
        for first, needles in groupby(
            sorted({needle for shape in SHAPES if shape.sure for needle in shape.needles}),
            key=lambda needle: needle[:1],
        )
    )
)
_AROUND = 512  # bytes

# In a variable no password is an example.
_IN_A_URL = re.compile(r"://[^\s/:@]{0,256}:[^\s/@]{1,256}@")
_USER_IN_A_URL = re.compile(r"://[^\s/@]{1,512}@")  # which may be a token
_HIDDEN = [re.compile(shape.pattern, re.MULTILINE) for shape in SHAPES]

# Where programs keep what they sign in with: each such file is a finding, whatever stands in it.
_FILES = re.compile(
    r"""(?:^|/)(?:
        [._]netrc | \.git-credentials | \.pypirc | \.pgpass | \.my\.cnf | \.s3cfg | \.boto | \.vault-token
        | \.sentryclirc | \.dockercfg | \.htpasswd | \.(?:ba|z)?sh_history | \.(?:python|node_repl|psql)_history
        | \.docker/config\.json | \.aws/(?:credentials|config) | \.azure/[^/]+ | \.kube/config
        | \.config/(?:gcloud/.+ | gh/hosts\.yml | git/credentials | glab-cli/config\.yml | hub | rclone/rclone\.conf
            | containers/auth\.json | composer/auth\.json)
        | \.cargo/credentials(?:\.toml)? | \.gem/credentials | \.m2/settings(?:-security)?\.xml | \.composer/auth\.json
        | \.ssh/(?!known_hosts).+ | id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)? | ssh_host_\w+_key | \.gnupg/.+
        | \.claude/\.credentials\.json | \.gemini/oauth_creds\.json | \.terraform\.d/credentials\.tfrc\.json
        | \.env(?:\.(?!example|sample|template|dist)[\w-]+)*
    )$""",
    re.VERBOSE,
)


def credential_file(path: str) -> bool:
    """Return whether `path` is a file in which a program keeps credentials, such as `.netrc` or a key of SSH."""
    return _FILES.search(path) is not None


def kinds_in(text: bytes, *, sure: bool = False) -> set[str]:
    """Return the kinds of credentials in `text`; with `sure`, only of those shapes that nothing else has."""
    return {shape.kind for shape in SHAPES if (shape.sure or not sure) and shape.matches(text)}


def kinds_in_binary(data: bytes) -> set[str]:
    """Return the kinds of credentials in bytes that are no text, of those shapes that nothing else has.

    One pass finds where one may begin, as a search for each of the needles would take ten times as long.
    """
    found: set[str] = set()
    seen = 0
    for needle in _NEEDLES.finditer(data):
        if needle.start() >= seen:
            seen = (
                needle.start() + 15 * _AROUND
            )  # of a credential that begins before, enough lies in this piece
            found |= kinds_in(data[max(0, needle.start() - _AROUND) : seen + _AROUND], sure=True)
    return found


def credential_kinds(text: str) -> list[str]:
    """Return the kinds of credentials in the value of a variable or a line of configuration."""
    found = kinds_in(text.encode("utf-8", "replace"))
    if _IN_A_URL.search(text):
        found.add("URL password")
    return sorted(found)


def hide_credentials(text: str) -> str:
    """Return `text` with everything that has a credential's shape replaced."""
    text = _USER_IN_A_URL.sub("://[hidden]@", text)
    for shape in _HIDDEN:
        text = shape.sub("[hidden]", text)
    return text


def rg_patterns(*, sure: bool = False) -> list[str]:
    """Return the patterns as ripgrep's arguments; with `sure`, only of those shapes that nothing else has."""
    return [part for shape in SHAPES if shape.sure or not sure for part in ("-e", f"(?m){shape.pattern}")]
