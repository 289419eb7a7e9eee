"""Which variables an image may set: the contract lists them, as any other may change what its programs do."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harvest_nb.checks.security import secret_variables

__all__ = ["foreign_variables"]


def foreign_variables(environment: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the variables, one sentence each; values are never returned.

    Those that hold a secret are left to the checks that ask for secrets.

    Args:
        environment: the variables.
        known: name to a regular expression that the whole value must match.
    """
    secret = secret_variables(environment)
    return [
        f"{name} is set" if name not in known else f"{name} is not {known[name]}"
        for name, value in sorted(environment.items())
        if name not in secret and (name not in known or not re.fullmatch(known[name], value))
    ]
