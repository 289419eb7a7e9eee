"""One place that finds a Docker engine, and turns the SDK's errors into this package's.

The engine is looked for where the `docker` command looks: `DOCKER_HOST`, else `DOCKER_CONTEXT`, else the
current context of `~/.docker/config.json` (Docker Desktop makes one), else the default socket.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harvest_nb.errors import DiskFullError, EngineError
from harvest_nb.settings import load_settings

if TYPE_CHECKING:
    from docker import APIClient, ContextAPI, DockerClient
    from docker.context.config import get_current_context_name, get_meta_file
    from docker.errors import APIError, DockerException, ImageNotFound, NotFound
    from docker.models.containers import Container
    from docker.models.images import Image
    from docker.tls import TLSConfig
    from docker.types import CancellableStream
    from docker.utils import kwargs_from_env
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    SDK_MISSING: str | None
else:
    try:
        from docker import APIClient, ContextAPI, DockerClient
        from docker.context.config import get_current_context_name, get_meta_file
        from docker.errors import APIError, DockerException, ImageNotFound, NotFound
        from docker.models.containers import Container
        from docker.models.images import Image
        from docker.tls import TLSConfig
        from docker.types import CancellableStream
        from docker.utils import kwargs_from_env
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        SDK_MISSING = None
    except ModuleNotFoundError as error:
        # Tables and sessions work without the extra: importing stays possible, connecting says what is missing.
        SDK_MISSING = error.name or str(error)

        class _Absent:
            """Stands for a type of the SDK where it is not installed; nothing is ever one."""

        APIClient = ContextAPI = DockerClient = Container = Image = TLSConfig = CancellableStream = _Absent

        class RequestException(Exception):  # noqa: D101, N818
            pass

        class HTTPError(Exception):  # noqa: D101
            pass

        class DockerException(Exception):  # noqa: D101, N818
            pass

        class APIError(DockerException):  # noqa: D101
            pass

        class NotFound(APIError):  # noqa: D101, N818
            pass

        class ImageNotFound(NotFound):  # noqa: D101
            pass


__all__ = [
    "APIClient",
    "APIError",
    "CancellableStream",
    "Container",
    "DockerClient",
    "DockerException",
    "Endpoint",
    "HTTPError",
    "Image",
    "ImageNotFound",
    "NotFound",
    "RequestException",
    "connect",
    "endpoint",
    "engine_errors",
    "translate",
]

_FIRST_SECONDS = 10.0
_ANY_VERSION = "1.24"  # of the API: all engines answer /version in it
DEFAULT_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class Endpoint:
    """Where the engine is to be found, and what said so (`DOCKER_HOST`, a context's name, `default`)."""

    host: str
    said_by: str
    tls: TLSConfig | None = None

    @property
    def local_default(self) -> bool:
        """Whether this is the machine's own engine, the only one that may be started from here."""
        kind, _, path = self.host.removeprefix("http+").partition("://")
        return kind == "unix" and os.path.realpath(f"/{path}") == os.path.realpath(
            DEFAULT_SOCKET.removeprefix("unix://")
        )


def endpoint() -> Endpoint:
    """The engine's address as the `docker` command would choose it.

    Raises:
        EngineError: the SDK is missing, or the context that is asked for does not exist or cannot be read.
    """
    if SDK_MISSING is not None:
        raise EngineError(
            f"The Docker SDK for Python is not installed (no module named {SDK_MISSING!r})",
            hint="pip install 'harvest-nb[docker]'",
            reason="sdk",
        )
    host = os.environ.get("DOCKER_HOST", "").strip()
    if host:
        try:
            tls = kwargs_from_env().get("tls")
        except DockerException as error:
            raise EngineError(
                f"DOCKER_HOST={host} cannot be used: {error}",
                hint="check DOCKER_TLS_VERIFY and DOCKER_CERT_PATH",
                reason="invalid",
            ) from error
        return Endpoint(host, "DOCKER_HOST", tls or None)
    name = os.environ.get("DOCKER_CONTEXT", "").strip() or get_current_context_name()
    if name == "default":
        return Endpoint(DEFAULT_SOCKET, "default")
    try:
        # The SDK raises a bare Exception for a file that cannot be read, so it is read here first.
        json.loads(Path(get_meta_file(name)).read_text(encoding="utf-8"))["Endpoints"]["docker"]["Host"]
        context = ContextAPI.get_context(name)
    except (OSError, ValueError, KeyError, TypeError, DockerException) as error:
        raise EngineError(
            f"The Docker context {name!r} does not exist or cannot be read: {error!r}",
            hint="`docker context ls` shows what there is, `docker context use default` goes back",
            reason="invalid",
        ) from error
    assert context is not None
    return Endpoint(str(context.Host), f"context {name}", context.TLSConfig or None)


def connect(timeout: float = 60) -> DockerClient:
    """A client of the running engine; nothing is started.

    Args:
        timeout: seconds that one answer of the engine may take; the first contact gets 10 at most.

    Raises:
        EngineError: with `reason` `off`, `sdk`, `invalid`, `absent`, `permission` or `unreachable`.
    """
    if load_settings().engine == "off":
        raise EngineError(
            "HARVEST_ENGINE=off forbids using a Docker engine",
            hint="unset HARVEST_ENGINE, or use provider='host'",
            reason="off",
        )
    found = endpoint()
    try:
        _knock(found.host, min(_FIRST_SECONDS, timeout))
        # Asked by a client of its own: the SDK leaves sockets open when its constructor finds no engine.
        with closing(_client(found, _ANY_VERSION, min(_FIRST_SECONDS, timeout))) as first:
            answer = first.version()
        return _client(found, str(answer["ApiVersion"]), timeout)
    except (DockerException, RequestException, HTTPError, OSError, ValueError) as error:
        raise _unreachable(error, found) from error
    except (KeyError, TypeError) as error:
        raise _unreachable(DockerException("what answers there is no Docker engine"), found) from error


def _client(found: Endpoint, version: str, timeout: float) -> DockerClient:
    from harvest_nb.engine.unix import close_what_cannot_connect  # it needs the SDK

    client = DockerClient(
        base_url=found.host,
        version=version,
        tls=found.tls or False,
        timeout=timeout,  # type: ignore[arg-type]  # seconds; requests takes fractions
        use_ssh_client=found.host.startswith("ssh://"),
    )
    close_what_cannot_connect(client.api)
    return client


def _knock(host: str, timeout: float) -> None:
    """Raise the system's own error where nothing listens on a Unix socket."""
    kind, _, path = host.removeprefix("http+").partition("://")
    if kind == "unix":
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(timeout)
            knock.connect(f"/{path.lstrip('/')}")


def _unreachable(error: BaseException, found: Endpoint) -> EngineError:
    where = f"{found.host} ({found.said_by})"
    answer = _first(error, APIError)
    if answer is not None:
        denied = answer.status_code in {401, 403}
        return EngineError(
            f"The Docker engine at {where} refused: {answer.explanation or answer}",
            hint="ask its owner for access" if denied else "restart the engine, or look into its log",
            reason="permission" if denied else "unreachable",
        )
    if _first(error, PermissionError) is not None:
        return EngineError(
            f"No permission for the Docker engine at {where}",
            hint="add yourself to its group (`sudo usermod -aG docker $USER`, then log in again), or use sudo",
            reason="permission",
        )
    if found.local_default:
        cause = _first(error, OSError)
        gone = cause is not None and cause.errno in {errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR}
        return EngineError(
            f"No Docker engine answers at {where}" + ("" if gone else f": {_plain(error)}"),
            hint="`harvest-nb doctor` says how to get one; provider='host' works without",
            reason="absent" if gone else "unreachable",
        )
    return EngineError(
        f"The Docker engine at {where} cannot be reached: {_plain(error)}",
        hint="start it there, or correct DOCKER_HOST or the context (`docker context use default`)",
        reason="unreachable",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything it was made from: causes, contexts, and exceptions passed as arguments."""
    queue, seen = [error], set[int]()
    while queue:
        one = queue.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inside = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        queue += [item for item in inside if isinstance(item, BaseException)]


def _first(error: BaseException, kind: type[Any]) -> Any:
    # requests' own exceptions are OSErrors without a number; the one wanted is the system's.
    for one in _chain(error):
        if isinstance(one, kind) and not (kind is OSError and one.errno is None):
            return one
    return None


def _plain(error: BaseException) -> str:
    cause = _first(error, OSError)
    if isinstance(cause, socket.gaierror):
        return f"its name is not known ({cause.strerror})"
    if cause is not None and cause.strerror:
        return str(cause.strerror)
    if any("timed out" in str(one).lower() for one in _chain(error)):
        return "no answer in time"
    return str(error)


def translate(error: BaseException, doing: str) -> EngineError:
    """This package's error for one of the SDK's, which happened while `doing` (a phrase such as "pulling x").

    `DiskFullError` where the engine says that it has no space left, else `EngineError`.
    """
    text = getattr(error, "explanation", None) or str(error)
    if "no space left on device" in text.lower():
        return DiskFullError(
            f"The Docker engine's disk is full ({doing}): {text}",
            hint="make room with `docker system prune`, or give the engine a larger disk",
        )
    # The SDK's own errors for what the engine answers are exceptions of requests, too.
    if isinstance(error, (RequestException, HTTPError)) and not isinstance(error, DockerException):
        return EngineError(
            f"The Docker engine stopped answering ({doing}): {_plain(error)}",
            hint="see whether it still runs: `docker info`",
            reason="unreachable",
        )
    return EngineError(f"The Docker engine refused ({doing}): {text}", hint="", reason="refused")


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Within it, every error of the SDK is raised as this package's (see `translate`)."""
    try:
        yield
    except (DockerException, RequestException, HTTPError) as error:
        raise translate(error, doing) from error
