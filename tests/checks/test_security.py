from __future__ import annotations

import asyncio
import base64
import os
import secrets
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks.security import capability_names, parse_status, secret_variables


def entry(kind, **fields):
    extra = "".join(f"{key} = {value!r}\n".replace("True", "true") for key, value in fields.items())
    return f'[[check]]\nname = "c"\ngroup = "security"\nkind = "{kind}"\nhint = "h"\n{extra}'


@given(st.sets(st.integers(0, 63)))
def test_every_set_bit_gets_a_name_of_its_own(bits):
    names = capability_names(f"{sum(1 << bit for bit in bits):016x}")
    assert len(set(names)) == len(bits)
    assert ("sys_admin" in names) == (21 in bits)
    assert ("chown" in names) == (0 in bits)
    assert ("checkpoint_restore" in names) == (40 in bits)
    assert ("cap_41" in names) == (41 in bits)


def test_dockers_default_capabilities_are_named():
    # What a container without --cap-drop shows.
    names = capability_names("00000000a80425fb")
    assert {"chown", "setuid", "net_raw", "mknod", "sys_chroot"} <= set(names)
    assert len(names) == 14


def test_a_mask_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="invalid literal"):
        capability_names("none")


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Za-z_]{0,12}", fullmatch=True), st.from_regex(r"[\w ]{0,9}", fullmatch=True)
    )
)
def test_a_status_file_is_read_back(fields):
    text = "".join(f"{name}:\t{value}\n" for name, value in fields.items())
    assert parse_status(text) == {name: value.strip() for name, value in fields.items()}


def test_this_machines_own_status_file_has_the_fields():
    status = parse_status(Path("/proc/self/status").read_text())
    assert {"Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs"} <= set(status)


def test_secret_variables_go_by_name_and_by_shape():
    shaped = "ghp_" + secrets.token_hex(20)
    found = secret_variables(
        {
            "PATH": "/usr/bin",
            "HARMLESS": shaped,
            "GITHUB_TOKEN": "x",
            "MY_API_KEY": "",
            "KEYBOARD": "us",
            "AUTHOR": "a",
        }
    )
    assert set(found) == {"HARMLESS", "GITHUB_TOKEN"}
    assert shaped not in str(found)
    assert secret_variables({"GITHUB_TOKEN": "x"}, allow=["GITHUB_TOKEN"]) == {}


async def test_capabilities_of_this_machines_process_are_found(run_contract):
    (row,) = await run_contract(entry("capabilities", sets=["CapEff", "CapBnd"]))
    status = parse_status(Path("/proc/self/status").read_text())
    assert (row.status == "pass") == (int(status["CapEff"], 16) == 0 and int(status["CapBnd"], 16) == 0)


async def test_writing_is_really_tried(run_contract, tmp_path):
    docs = tmp_path / "app" / "docs"
    docs.mkdir()
    (docs / "page.md").write_text("as it was")
    (row,) = await run_contract(
        entry("writable", closed=["{workdir}/docs/**", "/proc"], open=["{workspace}"])
    )
    assert row.status == "fail"
    assert f"{docs}/page.md is writable" in row.observed
    assert f"{docs} is writable" in row.observed
    assert "/proc is writable" not in row.observed
    assert [path.name for path in docs.iterdir()] == ["page.md"]
    assert (docs / "page.md").read_text() == "as it was"


async def test_what_must_be_open_and_is_closed_or_missing_is_named(run_contract):
    (row,) = await run_contract(entry("writable", open=["/proc", "{workspace}/gone", "{workspace}"]))
    assert row.status == "fail"
    assert row.observed.startswith("/proc is not writable; ")
    assert row.observed.endswith("/workspace/gone is missing")


async def test_a_credential_in_a_file_is_found_and_never_shown(run_contract, tmp_path):
    # ripgrep is the image's; a desk may lack it, so this one speaks its options.
    (tmp_path / "bin" / "rg").write_text(
        '#!/bin/sh\nfor last; do :; done\ngrep -rlZE "ghp_[A-Za-z0-9]{30,}" "$last" || exit 1\n'
    )
    (tmp_path / "bin" / "rg").chmod(0o755)
    (row,) = await run_contract(entry("file_secrets", paths=[str(tmp_path / "app")]))
    assert row.status == "pass"
    token = "ghp_" + secrets.token_hex(20)
    leak = tmp_path / "app" / "leak.txt"
    leak.write_text(f"token={token}\n")
    (row,) = await run_contract(entry("file_secrets", paths=[str(tmp_path / "app")]))
    assert (row.status, row.observed) == ("fail", str(leak))
    assert token not in str(row)


async def test_a_search_that_could_not_be_made_does_not_pass(run_contract, tmp_path):
    rg = tmp_path / "bin" / "rg"
    # What ripgrep does with a pattern that it cannot take, and with a folder that is closed or missing.
    rg.write_text("#!/bin/sh\necho 'regex parse error' >&2\nexit 2\n")
    rg.chmod(0o755)
    (row,) = await run_contract(entry("file_secrets", paths=["/app"]))
    assert (row.status, row.observed) == ("fail", "rg ended with 2: regex parse error")
    # A closed folder, under a loader that has a word for every program.
    rg.write_text(
        "#!/bin/sh\necho \"ERROR: ld.so: object '/x.so' cannot be preloaded: ignored.\" >&2\nexit 2\n"
    )
    (row,) = await run_contract(entry("file_secrets", paths=["/app"]))
    assert row.status == "pass"
    rg.write_text("#!/bin/sh\nexit 2\n")
    (row,) = await run_contract(entry("file_secrets", paths=["/app"]))
    assert row.status == "pass"


async def test_a_foreign_authority_is_named_by_its_file(run_contract, tmp_path, desk):
    foreign = tmp_path / "company.pem"
    body = base64.encodebytes(secrets.token_bytes(600)).decode()
    foreign.write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    desk._env["NODE_EXTRA_CA_CERTS"] = str(foreign)
    (row,) = await run_contract(entry("authorities", variables=["NODE_EXTRA_CA_CERTS"]))
    assert row.status == "fail"
    assert f"{foreign} holds 1 that Debian does not ship" in row.observed


async def test_the_user_is_asked_of_the_kernel(run_contract):
    me = (await asyncio.create_subprocess_exec("id", "-un", stdout=asyncio.subprocess.PIPE)).communicate
    name = (await me())[0].decode().strip()
    (row,) = await run_contract(entry("user", user=name))
    assert row.observed.startswith(f"{name}, uid {os.getuid()}, gid {os.getgid()}, groups")
    assert (row.status == "fail") == (0 in {os.getuid(), os.getgid(), *os.getgroups()})
    (row,) = await run_contract(entry("user", user=name, uid=os.getuid() + 1))
    assert row.status == "fail"
    assert f"had uid {os.getuid() + 1}" in row.observed
    (row,) = await run_contract(entry("user", user="somebody-else"))
    assert row.status == "fail"
