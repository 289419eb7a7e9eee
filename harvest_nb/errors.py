"""Every error this package raises on purpose.

HarvestError
├── SettingsError          a value from the environment, `.env` or a parameter cannot be used
│   └── TokenError         a credential is missing, refused or expired
├── SourceError            a config source is missing, leads out of its root, or dangles
├── EngineError            no container engine can be used
│   └── DiskFullError      the engine has no space left
├── BuildError             a build step failed (`step`, `tail`)
├── SandboxError           a sandbox could not be made or used
│   ├── SandboxGone        it ended while it was in use (`reason`)
│   └── CommandError       a command in it failed (`completed`)
├── RelayError             the stream to a sandbox broke the protocol
├── EndpointError          the loopback endpoint could not start (a port is taken, say)
│   ├── ScenarioError      the agent sent what the script did not expect, or a scenario file is malformed
│   └── CassetteError      a cassette cannot be read or written, or the conversation departed from it
├── SessionError           a session could not start or did not reach a result
│   └── CLINotFound        the `claude` command is missing in the sandbox
├── RunFolderError         a recorded run cannot be read or written
├── CheckError             the validation contract itself is malformed
└── NotebookError          a notebook failed (`notebook`, `cell`, `ename`, `evalue`)
    └── ParameterError     a notebook parameter is unknown or ill-typed

A message names the thing, the place, and what to do; `hint` holds the last part on its own.
"""

from __future__ import annotations

from typing import Any


class HarvestError(Exception):
    """Base of the tree.

    Args:
        message: what went wrong, naming the thing and the place.
        hint: what a person can do about it; appended to the message.
        data: values that a program may want, available as attributes too.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", **data: Any) -> None:
        super().__init__(message, hint, data)
        self.message = message
        self.hint = hint
        self.data = data

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.data))


def _rebuild(cls: type[HarvestError], message: str, hint: str, data: dict[str, Any]) -> HarvestError:
    return cls(message, hint=hint, **data)


class SettingsError(HarvestError):
    """A value from the environment, `.env` or a parameter cannot be used."""

    exit_code = 2


class TokenError(SettingsError):
    """A credential is missing, refused or expired."""


class SourceError(HarvestError):
    """A config source is missing, leads out of its root, or refers to nothing."""


class EngineError(HarvestError):
    """No container engine can be used."""

    exit_code = 3


class DiskFullError(EngineError):
    """The engine has no space left on its disk."""


class BuildError(HarvestError):
    """A build step failed: `step` names it, `tail` holds its last lines."""


class SandboxError(HarvestError):
    """A sandbox could not be made or used."""


class SandboxGone(SandboxError):  # noqa: N818 - reads as what happened
    """A sandbox ended while it was in use; `reason` says how."""


class CommandError(SandboxError):
    """A command in a sandbox failed; `completed` holds its output."""


class RelayError(HarvestError):
    """The stream to a sandbox broke the relay's protocol."""


class EndpointError(HarvestError):
    """The loopback endpoint could not start or serve."""


class ScenarioError(EndpointError):
    """The agent sent something that the scripted conversation did not expect."""


class CassetteError(EndpointError):
    """A cassette cannot be read or written, or the conversation departed from it."""


class SessionError(HarvestError):
    """A session could not start or did not reach a result."""


class CLINotFound(SessionError):  # noqa: N818 - the Claude Agent SDK's own word
    """The `claude` command is missing in the sandbox."""


class RunFolderError(HarvestError):
    """A recorded run cannot be read or written."""


class CheckError(HarvestError):
    """The validation contract itself is malformed."""


class NotebookError(HarvestError):
    """A notebook failed: `notebook`, `cell`, `ename` and `evalue` say where and how."""


class ParameterError(NotebookError):
    """A notebook parameter is unknown or of the wrong type."""

    exit_code = 2
