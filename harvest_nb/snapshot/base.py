"""The image that the snapshot starts from: the official one where it can be had, else one put together here."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from harvest_nb.engine import (
    APIError,
    DockerClient,
    DockerException,
    Image,
    ImageNotFound,
    NotFound,
    engine_errors,
    translate,
)
from harvest_nb.errors import BuildError, DiskFullError
from harvest_nb.machine.command import Stop, unless_stopped
from harvest_nb.machine.locks import one_at_a_time
from harvest_nb.snapshot.homemade import Recipe, assemble, read_recipe

__all__ = ["Base", "resolve_base"]

OFFICIAL = "node:{node}-bookworm-slim"
OLD_DAYS = 30
"""A base older than this is pointed out: Debian's security updates come with a new one."""
_REGISTRY_SECONDS = 10.0


@dataclass(frozen=True)
class Base:
    """A base image that the engine has.

    `reference` is what `FROM` takes, `official` tells the two kinds apart, `node` and `python` are the full
    versions, `digest` is that of its layers, `created` when it was made.
    """

    reference: str
    id: str
    official: bool
    node: str
    python: str
    digest: str
    created: datetime

    @property
    def days(self) -> int:
        """Its age."""
        return (datetime.now(UTC) - self.created).days


def resolve_base(
    client: DockerClient,
    node_version: str = "20",
    *,
    say: Callable[[str], None],
    stop: Stop | None = None,
    recipe: Recipe | None = None,
    pull: bool = False,
) -> Base:
    """The base for `node_version`: the official image if the engine has it, else the home-made one if it
    is there, else the official one from the registry, else the home-made one, put together now.

    Args:
        client: the engine, whose architecture decides.
        node_version: Node's major version.
        say: gets one line a step.
        stop: ends the work when asked.
        recipe: of the home-made base (default: `snapshot/base.toml`).
        pull: get it anew, with the packages of today, also where the engine has one.

    Raises:
        BuildError: neither can be had; DiskFullError, EngineError: the engine failed; Cancelled.
    """
    stop, recipe = stop or Stop(), recipe or read_recipe()
    official = OFFICIAL.format(node=node_version)
    here = _local(client, official)
    if here is not None and not pull:
        say(f"using {official}, which the engine has")
        return _told(_base(official, here, recipe, official=True), say)
    with engine_errors("asking for its architecture"):
        architecture = str(client.version()["Arch"])
    known = node_version in recipe.node and architecture in {"amd64", "arm64"}
    reference = recipe.reference(node_version, architecture) if known else ""
    old = _local(client, reference) if known else None
    if old is not None and not pull:
        say(f"using {reference}, put together before")
        return _told(_base(reference, old, recipe, official=False), say)
    stop.check()
    refusal = _registry_refusal(client, official, stop)
    if refusal is None:
        say(f"pulling {official}")
        refusal = _pull(client, official, say, stop)
        if refusal is None:
            return _base(official, _present(client, official), recipe, official=True)
    if here is not None:
        say(f"no registry gives {official} ({refusal}); using the one that the engine has")
        return _told(_base(official, here, recipe, official=True), say)
    if not known:
        raise BuildError(
            f"{official} cannot be pulled ({refusal}), and there is no recipe for Node {node_version} on "
            f"{architecture}",
            hint=f"known: Node {', '.join(sorted(recipe.node))} on amd64 and arm64; or `docker pull {official}`",
            step="base image",
            tail=refusal,
        )
    say(f"no registry gives {official} ({refusal}); putting an equivalent together")
    with one_at_a_time(f"base {reference}", say=say, stop=stop):
        here = _local(client, reference)
        # Another process may have made it meanwhile, which is new enough for `pull` too.
        if here is None or (old is not None and here.id == old.id):
            assemble(client, recipe, node_version, architecture, reference, say, stop)
            here = _present(client, reference)
            if old is not None:
                _let_go(client, str(old.id))
    return _base(reference, here, recipe, official=False)


def _told(base: Base, say: Callable[[str], None]) -> Base:
    if base.days > OLD_DAYS:
        say(f"{base.reference} is {base.days} days old: `harvest-nb build --pull` gets today's packages")
    return base


def _let_go(client: DockerClient, image: str) -> None:
    """Remove a base that has lost its name, unless a snapshot still stands on it."""
    with engine_errors("removing the base that was replaced"):
        try:
            if not client.images.get(image).tags:
                client.api.remove_image(image, noprune=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:
                raise


def _local(client: DockerClient, reference: str) -> Image | None:
    with engine_errors(f"looking for {reference}"):
        try:
            return client.images.get(reference)
        except ImageNotFound:
            return None


def _present(client: DockerClient, reference: str) -> Image:
    with engine_errors(f"looking for {reference}"):
        return client.images.get(reference)


def _base(reference: str, image: Image, recipe: Recipe, *, official: bool) -> Base:
    settings = (image.attrs["Config"].get("Env") or []) if image.attrs.get("Config") else []
    layers = "".join(image.attrs["RootFS"]["Layers"])
    return Base(
        reference,
        str(image.id),
        official,
        node=next(
            (item.split("=", 1)[1] for item in settings if item.startswith("NODE_VERSION=")), "unknown"
        ),
        python=recipe.python,
        digest=f"sha256:{hashlib.sha256(layers.encode()).hexdigest()}",
        created=datetime.fromisoformat(image.attrs["Created"][:19] + "+00:00"),
    )


def _registry_refusal(client: DockerClient, reference: str, stop: Stop) -> str | None:
    """Why no registry gives `reference`; None when one does. Takes ten seconds at most."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            client.images.get_registry_data(reference)
            answer.append(None)
        except APIError as error:
            answer.append(str(error.explanation or error))
        except (DockerException, OSError) as error:
            answer.append(str(error))

    # The engine waits for a network that swallows packets far longer than a person would.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    for _ in range(int(_REGISTRY_SECONDS / 0.1)):
        thread.join(0.1)
        stop.check()
        if answer:
            return answer[0]
    return f"no answer within {_REGISTRY_SECONDS:.0f} s"


def _pull(client: DockerClient, reference: str, say: Callable[[str], None], stop: Stop) -> str | None:
    repository, tag = reference.rsplit(":", 1)
    # A connection that breaks in the middle is no answer of a registry.
    with engine_errors(f"pulling {reference}"):
        try:
            events = unless_stopped(
                lambda: client.api.pull(repository, tag=tag, stream=True, decode=True), stop
            )
            # Each in a thread that can be left: a registry that has stalled sends none.
            while (event := unless_stopped(lambda: next(events, None), stop)) is not None:
                if "error" in event:
                    failure = translate(DockerException(str(event["error"])), f"pulling {reference}")
                    if isinstance(failure, DiskFullError):
                        raise failure
                    return str(event["error"])
                if event.get("status") in {"Pull complete", "Download complete"}:
                    say(f"pulling {reference}: {event.get('id', '')} {event['status'].lower()}")
        except APIError as error:
            return str(error.explanation or error)
    return None
