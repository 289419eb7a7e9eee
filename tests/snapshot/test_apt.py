from pathlib import Path

import pytest

from harvest_nb.snapshot.apt import debian_sources

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = f"""\
Types: deb
URIs: http://mirror.example/debian
# a comment
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {KEYS}

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: {KEYS}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    return tmp_path


def write(machine: Path, name: str, text: str) -> None:
    (machine / "etc/apt" / name).write_text(text)


def test_the_machines_mirror_with_updates_and_security(machine):
    write(machine, "sources.list.d/debian.sources", DEB822)
    assert debian_sources("bookworm", machine) == [
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]


def test_the_older_form(machine):
    write(
        machine,
        "sources.list",
        "# comment\ndeb http://mirror.example/debian bookworm main non-free # x\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        f"deb [arch=amd64 signed-by={KEYS}] https://other.example/sec bookworm-security main\n",
    )
    assert debian_sources("bookworm", machine) == [
        "deb http://mirror.example/debian bookworm main",
        "deb https://other.example/sec bookworm-security main",
    ]


def test_on_another_release_the_name_is_exchanged(machine):
    (machine / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=trixie\n")
    write(machine, "sources.list.d/debian.sources", DEB822.replace("bookworm", "trixie"))
    assert debian_sources("bookworm", machine)[0] == "deb http://mirror.example/debian bookworm main"


@pytest.mark.parametrize(
    "text",
    [
        "deb https://packages.example/cloud cloud-sdk-bookworm main\n",
        "deb [signed-by=/usr/share/keyrings/vendor.gpg] https://vendor.example/debian bookworm main\n",
        "deb https://vendor.example/linux/debian bookworm stable\n",
        "deb http://user:secret@mirror.example/debian bookworm main\n",
        "deb cdrom:[Debian] bookworm main\n",
        "deb http://mirror.example/debian-security bookworm-security main\n",
    ],
)
def test_other_sources_are_passed_over(machine, text):
    write(machine, "sources.list", text)
    assert debian_sources("bookworm", machine) == []


def test_a_source_that_is_switched_off(machine):
    write(machine, "sources.list.d/debian.sources", "Enabled: no\n" + DEB822)
    assert debian_sources("bookworm", machine) == []


def test_another_distribution_has_none(machine):
    (machine / "etc/os-release").write_text("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n")
    write(machine, "sources.list.d/debian.sources", DEB822)
    assert debian_sources("bookworm", machine) == []
    assert debian_sources("bookworm", machine / "nowhere") == []
