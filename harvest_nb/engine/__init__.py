"""The container engine: how it is found, started and spoken to. The `docker` SDK is imported here alone."""

from harvest_nb.engine.client import (
    APIClient,
    APIError,
    CancellableStream,
    Container,
    DockerClient,
    DockerException,
    Image,
    ImageNotFound,
    NotFound,
    connect,
    endpoint,
    engine_errors,
    translate,
)
from harvest_nb.engine.removal import remove_containers
from harvest_nb.engine.setup import ensure

__all__ = [
    "APIClient",
    "APIError",
    "CancellableStream",
    "Container",
    "DockerClient",
    "DockerException",
    "Image",
    "ImageNotFound",
    "NotFound",
    "connect",
    "endpoint",
    "engine_errors",
    "ensure",
    "remove_containers",
    "translate",
]
