import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from harvest_nb.engine import APIError, DockerClient, client, connect, endpoint, translate
from harvest_nb.engine.client import DockerException, engine_errors
from harvest_nb.errors import DiskFullError, EngineError

pytestmark = pytest.mark.usefixtures("no_docker_settings")

Answering = Callable[[int, bytes], str]


def refused(**more: float) -> EngineError:
    with pytest.raises(EngineError) as caught:
        connect(**more)
    return caught.value


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to open everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def write_context(config: Path, name: str, host: str) -> None:
    if not (config / "config.json").exists():
        (config / "config.json").write_text("{}")
    folder = config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (folder / "meta.json").write_text(json.dumps(meta))


def test_off_is_obeyed_before_anything_is_looked_for(monkeypatch):
    monkeypatch.setenv("HARVEST_ENGINE", "off")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    error = refused()
    assert error.reason == "off"
    assert "HARVEST_ENGINE=off" in str(error)
    assert "provider='host'" in error.hint


def test_no_socket_where_the_engine_should_be(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "DEFAULT_SOCKET", f"unix://{tmp_path}/docker.sock")
    error = refused()
    assert error.reason == "absent"
    assert f"{tmp_path}/docker.sock" in str(error)


def test_a_socket_that_nobody_listens_on_any_more(monkeypatch, tmp_path):
    path = tmp_path / "docker.sock"
    with closing(socket.socket(socket.AF_UNIX)) as left_over:
        left_over.bind(str(path))
    monkeypatch.setattr(client, "DEFAULT_SOCKET", f"unix://{path}")
    assert refused().reason == "absent"


def test_no_permission_for_the_socket(monkeypatch):
    with tempfile.TemporaryDirectory() as folder, closing(socket.socket(socket.AF_UNIX)) as server:
        path = Path(folder) / "docker.sock"
        path.parent.chmod(0o755)
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(client, "DEFAULT_SOCKET", f"unix://{path}")
        with as_nobody():
            error = refused()
        monkeypatch.undo()
    assert error.reason == "permission"
    assert "usermod -aG docker" in error.hint


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "permission"), (401, "permission"), (500, "unreachable")]
)
def test_an_engine_that_refuses(monkeypatch, answering: Answering, status, reason):
    monkeypatch.setenv("DOCKER_HOST", answering(status, b'{"message": "not today"}'))
    error = refused()
    assert error.reason == reason
    assert "not today" in str(error)


def test_something_else_that_answers(monkeypatch, answering: Answering):
    monkeypatch.setenv("DOCKER_HOST", answering(200, b'{"hello": "world"}'))
    assert refused().reason == "unreachable"


def test_a_remote_engine_on_a_closed_port(monkeypatch):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
    error = refused()
    assert error.reason == "unreachable"
    assert f"tcp://127.0.0.1:{port} (DOCKER_HOST)" in str(error)
    assert "refused" in str(error)


def test_a_remote_engine_whose_name_is_unknown(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://no-such-engine.invalid:2375")
    error = refused()
    assert error.reason == "unreachable"
    assert "name is not known" in str(error)


def test_an_engine_that_never_answers(monkeypatch, tmp_path):
    path = tmp_path / "silent.sock"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))
        server.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        error = refused(timeout=0.3)
    assert error.reason == "unreachable"
    assert "no answer in time" in str(error)


@pytest.mark.parametrize("host", ["nonsense://x", "tcp://host:notaport"])
def test_an_address_that_is_none(monkeypatch, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    error = refused()
    assert error.reason == "unreachable"
    assert host in str(error)


def test_tls_asked_for_without_certificates(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2376")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    error = refused()
    assert error.reason == "invalid"
    assert "DOCKER_CERT_PATH" in error.hint


def test_the_current_context_is_used(tmp_path):
    config = tmp_path / "docker-config"
    (config / "config.json").write_text(json.dumps({"currentContext": "desktop-linux"}))
    write_context(config, "desktop-linux", "unix:///desktop.sock")
    found = endpoint()
    assert (found.host, found.said_by) == ("unix:///desktop.sock", "context desktop-linux")
    assert not found.local_default


def test_a_context_from_the_environment_wins_and_docker_host_wins_over_it(tmp_path, monkeypatch):
    config = tmp_path / "docker-config"
    (config / "config.json").write_text(json.dumps({"currentContext": "one"}))
    write_context(config, "one", "unix:///one.sock")
    write_context(config, "two", "tcp://two:2375")
    monkeypatch.setenv("DOCKER_CONTEXT", "two")
    assert endpoint().host == "tcp://two:2375"
    monkeypatch.setenv("DOCKER_HOST", "unix:///three.sock")
    assert endpoint().host == "unix:///three.sock"


def test_a_context_that_does_not_exist_is_named(tmp_path):
    (tmp_path / "docker-config" / "config.json").write_text(json.dumps({"currentContext": "gone"}))
    error = refused()
    assert error.reason == "invalid"
    assert "'gone'" in str(error)
    assert "docker context" in error.hint


def test_a_context_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_context(tmp_path / "docker-config", "torn", "unix:///x.sock")
    [meta] = (tmp_path / "docker-config").rglob("meta.json")
    meta.write_text('{"Name": "torn", "Endp')
    monkeypatch.setenv("DOCKER_CONTEXT", "torn")
    error = refused()
    assert error.reason == "invalid"
    assert "'torn'" in str(error)


@pytest.mark.docker
def test_a_context_leads_to_the_real_engine(engine: DockerClient, tmp_path, monkeypatch):
    write_context(tmp_path / "docker-config", "mine", "unix:///var/run/docker.sock")
    monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    with closing(connect()) as own:
        assert own.info()["ID"] == engine.info()["ID"]


def test_without_the_sdk_importing_works_and_connecting_says_what_to_install(tmp_path):
    program = """
import sys
sys.modules["docker"] = None
import harvest_nb.engine, harvest_nb.snapshot
from harvest_nb.errors import EngineError
try:
    harvest_nb.engine.connect()
except EngineError as error:
    print(error.reason, "|", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith("sdk | ")
    assert "pip install 'harvest-nb[docker]'" in done.stdout


def test_a_full_disk_is_told_apart():
    text = "failed to register layer: write /var/lib/docker/overlay2/x: no space left on device"
    error = translate(DockerException(text), "pulling node:20")
    assert isinstance(error, DiskFullError)
    assert "pulling node:20" in str(error)
    assert "docker system prune" in error.hint


def test_other_errors_of_the_sdk_become_engine_errors():
    with pytest.raises(EngineError, match="stopped answering") as caught, engine_errors("listing"):
        raise requests.exceptions.ConnectionError("gone")
    assert caught.value.reason == "unreachable"
    assert not isinstance(caught.value, DiskFullError)
    with pytest.raises(EngineError, match=r"refused \(listing\): why not"), engine_errors("listing"):
        raise DockerException("why not")


def test_what_the_engine_answers_is_a_refusal_and_no_silence():
    with (
        pytest.raises(EngineError, match=r"refused \(saving\): no such thing") as caught,
        engine_errors("saving"),
    ):
        raise APIError("404", explanation="no such thing")
    assert caught.value.reason == "refused"


def test_an_error_keeps_its_reason_across_processes(monkeypatch):
    monkeypatch.setenv("HARVEST_ENGINE", "off")
    assert pickle.loads(pickle.dumps(refused())).reason == "off"
