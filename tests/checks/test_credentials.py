from __future__ import annotations

import secrets
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks.credentials import (
    credential_file,
    credential_kinds,
    hide_credentials,
    kinds_in,
    kinds_in_binary,
)

WORD = secrets.token_hex(20) + "7"
EXAMPLES = {
    f"npm_{WORD}": "npm",
    f"xoxb-1234567890-{WORD}": "Slack",
    f"https://hooks.slack.com/services/T01234567/B01234567/{WORD}": "Slack",
    f"glpat-{WORD[:20]}": "GitLab",
    f"sk-proj-{WORD}": "OpenAI",
    f"sk-ant-api03-{WORD}": "Anthropic",
    f"ghs_{WORD}": "GitHub",
    f"github_pat_{WORD}": "GitHub",
    f"lin_oauth_{WORD}": "Linear",
    f"sntryu_{WORD}": "Sentry",
    "AKIA" + "ABCDEFGH23456789": "AWS",
    f"aws_secret_access_key = {WORD}": "AWS",
    f"AIza{WORD[:35]}": "Google",
    f"pypi-AgE{WORD}": "PyPI",
    f"hf_{WORD}": "Hugging Face",
    f"dckr_pat_{WORD}": "Docker",
    f"sk_live_{WORD}": "Stripe",
    f"//registry.example/:_authToken={WORD}": "npm registry",
    f"npmAuthToken: {WORD}": "npm registry",
    f'"auth": "{WORD}"': "container registry",
    f"https://user:{WORD}@github.com": "URL password",
    f"machine example.com login me password {WORD}": "netrc",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "private key",
}


@given(
    st.sampled_from(sorted(EXAMPLES)),
    st.text(alphabet=" \n\t;äé,", max_size=40),
    st.text(alphabet=" \n\t;äé,", max_size=40),
)
def test_each_shape_is_found_and_hidden_wherever_it_stands(example: str, before: str, after: str):
    text = f"{before}\n{example}\n{after}"
    assert EXAMPLES[example] in kinds_in(text.encode())
    assert EXAMPLES[example] in credential_kinds(text)
    hidden = hide_credentials(text)
    assert WORD not in hidden
    assert kinds_in(hidden.encode()) == set()


@given(st.sampled_from(sorted(EXAMPLES)), st.binary(max_size=2000), st.integers(0, 40))
def test_among_bytes_each_shape_is_found_that_nothing_else_has(example: str, before: bytes, hits: int):
    data = before + b"\0sk-\0" * hits + b"\0" + example.encode() + b"\0" + before
    assert kinds_in(example.encode(), sure=True) <= kinds_in_binary(data) <= kinds_in(data, sure=True)


@pytest.mark.parametrize(
    "text",
    [
        "postgres://user:password@localhost/db, or https://${USER}:${TOKEN}@github.com",
        "npm_config_registry, npm_package_json, sk-ant-..., ghp_xxx, glpat-<token>, task-1234",
        "the URL http://127.0.0.1:8080/x@y and ssh://git@github.com:22/a/b",
        '{"auth": "none"}, _authToken=${NPM_TOKEN}',
        "machine learning password",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str):
    assert kinds_in(text.encode()) == set()


def test_in_a_variable_a_short_password_counts_too():
    assert credential_kinds("http://user:pw@proxy.example:3128") == ["URL password"]
    assert hide_credentials("via http://user:pw@proxy.example") == "via http://[hidden]@proxy.example"
    assert credential_kinds("http://proxy.example:3128") == []


@pytest.mark.parametrize(
    "path",
    [
        "/root/.docker/config.json",
        "/home/harvest/.netrc",
        "/srv/deep/er/.git-credentials",
        "/home/harvest/.ssh/id_ed25519",
        "/home/harvest/.ssh/authorized_keys",
        "/opt/keys/id_rsa",
        "/home/harvest/.config/gh/hosts.yml",
        "/home/harvest/.config/gcloud/application_default_credentials.json",
        "/home/harvest/.claude/.credentials.json",
        "/app/.env",
        "/app/.env.production",
        "/root/.bash_history",
    ],
)
def test_a_file_of_credentials_is_known_by_its_name(path: str):
    assert credential_file(path)


@pytest.mark.parametrize(
    "path",
    [
        "/app/.env.example",
        "/home/harvest/.ssh/known_hosts",
        "/opt/id_rsa.pub",
        "/app/config.json",
        "/a/x.netrc",
    ],
)
def test_other_files_are_not(path: str):
    assert not credential_file(path)


HOSTILE = [
    b"://a:" + b"1" * (1 << 18),
    b"-eyJ" * (1 << 16),
    b"machine " * (1 << 15),
    b"machine" + b" " * (1 << 18),
    b"-----BEGIN " * (1 << 15),
    b'"auth"' + b" " * (1 << 18),
    b"_auth " * (1 << 16),
    b"://a:1" * (1 << 16),
    b"hooks.slack.com/services/T" * (1 << 13),
]


def test_no_text_takes_a_shape_long():
    began = time.process_time()
    for text in HOSTILE:
        kinds_in(text)
        hide_credentials(text.decode())
    assert time.process_time() - began < 20  # hours, where a repetition has no bound


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "xoxb-your-token-here",
        "to-pypi-using-github-actions-and-trusted-publishers-of-a-repository",
        "let _auth = require('./auth')",
        '{"auth": "required"}',
    ],
)
def test_what_only_looks_like_a_credential_is_none(text: str):
    assert kinds_in(text.encode()) == set()
