"""Work of other packages that is put off until somebody needs it."""

from __future__ import annotations

import sys
import threading
from importlib.util import find_spec, module_from_spec
from typing import Any

__all__ = ["parse_iris_late"]


def parse_iris_late() -> None:
    """Let `rfc3987_syntax` compile its grammar at its first use instead of at its import.

    `claude_agent_sdk` and `nbformat` load `jsonschema`, which loads that package for a format, internationalised URLs,
    that neither asks for; compiling the grammar is more than a third of the time in which `harvest-nb run` starts
    (`benchmarks/README.md`). Everything in the package works as it does without this.
    """
    name = "rfc3987_syntax"
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    loader, lock, begun = spec.loader, threading.RLock(), threading.Event()

    def load() -> None:
        with lock:  # the package's own import may ask for a name of it
            if not begun.is_set():
                begun.set()
                loader.exec_module(module)  # its names take the place of those below

    def is_valid_syntax(term: str, value: str) -> bool:
        load()
        return bool(module.is_valid_syntax(term, value))

    def others(attribute: str) -> Any:
        if not attribute.startswith("__"):
            load()
        try:
            return module.__dict__[attribute]
        except KeyError:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}") from None

    # The one name that `jsonschema` takes at its import is there; any other, and the first use of this one, loads.
    module.__dict__.update(is_valid_syntax=is_valid_syntax, __getattr__=others)
    sys.modules[name] = module
