"""Recorded runs to typed pandas frames. Nothing here runs agents: files alone are enough."""

from harvest_nb.tables.columns import validate
from harvest_nb.tables.frames import Frames
from harvest_nb.tables.loading import load
from harvest_nb.tables.reconcile import REASONS

__all__ = ["REASONS", "Frames", "load", "validate"]
