"""A stand-in for Daytona on loopback: its API, for the unmodified SDK, backed by the Docker engine.

For tests, notebooks and desks without an account. It says of itself that it is a stand-in, refuses calls without its
key, imitates the real one's quirks, and lets things go wrong on purpose.
"""

from harvest_nb.daytona_local.faults import FAULTS, Faults
from harvest_nb.daytona_local.server import LocalDaytona, local_daytona

__all__ = ["FAULTS", "Faults", "LocalDaytona", "local_daytona"]
