"""Reads recordings with a format of another package, and checks everything that the format returns.

An exception that the format raises becomes a `DatasetError` that names the format and the episode; the exception is its
cause. Episodes are numbered from 0, as in the dataset.

Example::

    specs = read_specs(kind, source, settings)
    rate = stated_rate(kind, source, specs, settings)
    for episode in read_episodes(kind, source, settings):
        episode.frames
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from worldgym.data.episode import Episode
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import ConfigError, DatasetError, WorldgymError
from worldgym.registry import DATASET_FORMATS, accepted, missing_module
from worldgym.specs import Specs

METHODS = ("detects", "specs", "episodes")


def name_of(kind: Any) -> str:
    """Registered name of a format, or else the name of its class."""
    own = kind.__name__ if hasattr(kind, "__name__") else type(kind).__name__
    return DATASET_FORMATS.name_of(kind) or str(own)


def check_methods(kind: Any) -> None:
    """Check that a format has the methods that an import needs.

    Raises:
        ConfigError: it lacks one.
    """
    lacking = [method for method in METHODS if not callable(getattr(kind, method, None))]
    if lacking:
        raise ConfigError(
            f"the format {name_of(kind)} has no {', '.join(lacking)}; expected the methods detects(source), "
            f"specs(source) and episodes(source); add them to {_place(kind)}"
        )


def read_specs(kind: Any, source: Path, settings: ImportSettings) -> Specs:
    """Read the specs of `source` with a format of another package.

    Raises:
        DatasetError: the format failed, or returned another type than `Specs`.
    """
    specs = _call(kind, "specs", source, settings)
    if not isinstance(specs, Specs):
        raise DatasetError(
            f"the format {name_of(kind)} gave {type(specs).__name__} for {source}; its specs(source) must return "
            "worldgym.specs.Specs"
        )
    return specs


def stated_rate(kind: Any, source: Path, specs: Specs, settings: ImportSettings) -> float | None:
    """Frames per second: the rate of the actions, or else the rate that the format gives; None without both.

    Raises:
        DatasetError: the format failed, or gave no positive number.
    """
    if specs.action is not None:
        return specs.action.hz
    rate = _call(kind, "rate", source, settings) if hasattr(kind, "rate") else None
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, Real) or not math.isfinite(rate) or rate < 0:
        raise DatasetError(
            f"the format {name_of(kind)} gave the rate {rate!r} for {source}; its rate(source) must return the frames "
            "per second, a positive number such as 5.0"
        )
    return float(rate) or None


def check_options(kind: Any, rate: float | None, settings: ImportSettings) -> None:
    """Check that a format which reads no settings was given none, except `limit`, and `fps` if it states no rate.

    Args:
        kind: the format.
        rate: what `stated_rate` returned.
        settings: the settings of the command.

    Raises:
        ConfigError: an option has no effect on this format.
    """
    if "settings" in accepted(kind.episodes, {"settings": settings}):
        return
    plain = ImportSettings(limit=settings.limit)
    if rate is None and settings.fps is not None:
        plain = ImportSettings(limit=settings.limit, fps=settings.fps, actions=settings.actions)
    if settings != plain:
        which = "only --limit, and --fps with --actions, apply" if rate is None else "only --limit applies"
        raise ConfigError(f"of the options {which} to the format {name_of(kind)}; omit the other options")


def frame_rate(kind: Any, rate: float | None, settings: ImportSettings) -> float:
    """Frames per second of the dataset: `rate`, what `stated_rate` returned, or else `settings.fps`.

    Raises:
        ConfigError: neither is given.
    """
    if (fps := rate or settings.fps) is None:
        raise ConfigError(
            "these recordings have no actions, and so no rate of their own, and the format "
            f"{name_of(kind)} states none. Give their frames per second: type --fps 5 --actions absolute"
        )
    return fps


def read_episodes(kind: Any, source: Path, settings: ImportSettings) -> Iterator[Episode]:
    """Read the episodes of `source` with a format of another package.

    Raises:
        DatasetError: at the call, if the format failed or gave nothing to iterate over; while iterating, if it failed,
            or gave something else than an `Episode`.
    """
    episodes = _call(kind, "episodes", source, settings)
    if not isinstance(episodes, Iterable) or isinstance(episodes, Episode):
        raise DatasetError(
            f"the format {name_of(kind)} gave {type(episodes).__name__} for {source}; its episodes(source) must yield, "
            "or return a list of, worldgym.data.Episode"
        )
    return _checked(kind, source, episodes)


def _checked(kind: Any, source: Path, episodes: Iterable[Any]) -> Iterator[Episode]:
    number = 0
    try:
        for episode in episodes:
            if not isinstance(episode, Episode):
                raise TypeError(f"got {type(episode).__name__}, expected worldgym.data.Episode")
            yield episode
            number += 1
    except Exception as error:
        refuse_episode(kind, source, number, error)


def refuse_episode(kind: Any, source: Path, number: int, error: Exception) -> NoReturn:
    """Raise a `DatasetError` for an episode that could not be read or stored because of `error`."""
    _refuse(kind, f"episode {number} (the first one is 0) of {source}", error)


def _call(kind: Any, method: str, source: Path, settings: ImportSettings) -> Any:
    """Call a method of a format, with the settings if it takes them."""
    function: Callable[..., Any] = getattr(kind, method)
    try:
        return function(source, **accepted(function, {"settings": settings}))
    except Exception as error:
        _refuse(kind, f"{method}({source})", error)


def _refuse(kind: Any, where: str, error: Exception) -> NoReturn:
    """Raise an error that names the format; one that the command explains by itself is raised as it is."""
    sentence = isinstance(error, (ConfigError, DatasetError))  # it has its own remedy
    own = sentence and _place(kind).startswith("worldgym.")
    if own or isinstance(error, (WorldgymError, MemoryError)) and not sentence:
        raise error
    if sentence:
        raise (ConfigError if isinstance(error, ConfigError) else DatasetError)(
            _prefixed(kind, where, error)
        ) from error
    if isinstance(error, ModuleNotFoundError) and error.name:
        raise DatasetError(_prefixed(kind, where, missing_module(error.name))) from error
    # The checks of an episode raise a ValueError with a sentence; other messages need the name of their exception.
    reason = str(error) if type(error) is ValueError and str(error) else f"{type(error).__name__}: {error}"
    raise DatasetError(
        f"{_prefixed(kind, where, reason)}. Correct the format ({_place(kind)}), then type the same command, which "
        "keeps the episodes stored so far"
    ) from error


def _prefixed(kind: Any, where: str, reason: object) -> str:
    return f"the format {name_of(kind)} failed on {where}: {reason}"


def _place(kind: Any) -> str:
    """Where a format is defined, as module:class."""
    item = kind if isinstance(kind, type) else type(kind)
    return f"{item.__module__}:{item.__qualname__}"
