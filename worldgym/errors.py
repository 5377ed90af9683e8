"""Exceptions that worldgym raises for problems that the user can fix.

Each message states the value it got, the value it expected and what to type next, so the command line prints the
message without a traceback. The classes also inherit from the matching built-in exception (`ValueError`,
`ImportError`, ...), so `except ValueError` works.

Example::

    from worldgym.errors import ConfigError
    raise ConfigError("horizon is 0; it must be at least 1. Try --horizon 40.")
"""

from __future__ import annotations


class WorldgymError(Exception):
    """Base class of all exceptions in this module."""


class ConfigError(WorldgymError, ValueError):
    """A setting or an argument has an invalid value."""


class DatasetError(WorldgymError, ValueError):
    """A dataset is missing, empty, damaged, or in a format that this version cannot read."""


class CheckpointError(WorldgymError, ValueError):
    """A checkpoint is missing, damaged, or has weights of other shapes."""


class DivergedError(WorldgymError, ArithmeticError):
    """A loss, a gradient or a weight has become NaN or infinite in training."""


class DependencyError(WorldgymError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


class RenderingError(WorldgymError, RuntimeError):
    """No OpenGL backend works; the message names the system package to install."""


class JudgeUnavailableError(WorldgymError, RuntimeError):
    """A judge no longer returns verdicts. The run is paused; the same command continues it later."""


class ServerUnavailableError(WorldgymError, ConnectionError):
    """A server of a policy or a world model does not answer. Running episodes are invalid; the run can be continued."""


class ShadowedPackageError(WorldgymError, ImportError):
    """One of the project's import names (`envs`, `agents`, ...) resolves to a package of another project."""


UNBUILDABLE = (
    WorldgymError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError,
)  # fmt: skip
"""Exceptions from building a network with damaged settings or weights; loaders convert them to CheckpointError."""
