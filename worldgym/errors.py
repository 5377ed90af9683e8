"""The errors that worldgym raises on purpose.

Each message says what was got, what was expected and what to type next, so the command line can print it alone,
without a traceback. They also inherit the built-in error that a caller would expect (`ValueError`, `ImportError`, ...),
so `except ValueError` keeps working.

Example::

    from worldgym.errors import ConfigError
    raise ConfigError("horizon is 0; it must be at least 1. Try --horizon 40.")
"""

from __future__ import annotations


class WorldgymError(Exception):
    """Base class of every error that worldgym raises on purpose."""


class ConfigError(WorldgymError, ValueError):
    """A setting or an argument has a value that can't work."""


class DatasetError(WorldgymError, ValueError):
    """A dataset is missing, empty, damaged, or written in a format this version doesn't read."""


class CheckpointError(WorldgymError, ValueError):
    """A checkpoint is missing, damaged, or made for other shapes."""


class DependencyError(WorldgymError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class RenderingError(WorldgymError, RuntimeError):
    """No working OpenGL backend; the message names the system package that brings it."""


class JudgeUnavailableError(WorldgymError, RuntimeError):
    """A judge has stopped giving verdicts; the run is paused, and the same command goes on later."""


class ShadowedPackageError(WorldgymError, ImportError):
    """One of the project's import names (`envs`, `agents`, ...) resolves to somebody else's package."""


UNBUILDABLE = (
    WorldgymError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError,
)  # fmt: skip
"""What building a network from damaged settings or weights raises; loaders turn it into a CheckpointError."""
