"""This machine: its programs, run cleanly and cancelled cleanly, and one process at a time."""
