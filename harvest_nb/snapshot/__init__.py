"""The snapshot image: what goes into it, the base that it starts from, and how it is built."""

from harvest_nb.snapshot.build import BuildProgress, build
from harvest_nb.snapshot.image import Snapshot, inspect
from harvest_nb.snapshot.status import source_status

__all__ = ["BuildProgress", "Snapshot", "build", "inspect", "source_status"]
