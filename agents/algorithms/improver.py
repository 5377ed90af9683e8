"""Create improvers by name; base class of improvers with one optimizer.

Example::

    improver = make_improver("filtered_bc", lr=1e-4, seed=0, demos=demos)
    improver.update(policy, rollouts)["loss"]
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from worldgym.errors import ConfigError, WorldgymError
from worldgym.registry import IMPROVERS, accepted
from worldgym.utils.train_state import TrainState, plain_facts

NEEDED = ("update", "save", "load")
PASSED = (WorldgymError, OSError, MemoryError, ImportError, torch.cuda.OutOfMemoryError)
"""Exceptions of an improver that keep their class: their messages say enough, or commands explain them."""


class OptimizerImprover:
    """Base class of improvers with one optimizer: iteration count, `save` and `load`.

    A subclass sets `config` (a dataclass) and defines `update` and `make_optimizer`.
    """

    config: Any
    iteration: int = 0
    _optimizer: torch.optim.Optimizer | None = None

    def make_optimizer(self, policy: Any) -> torch.optim.Optimizer:
        """Create an optimizer for the trained weights."""
        return torch.optim.AdamW(policy.parameters(), lr=self.config.lr, weight_decay=0.0)

    def optimizer(self, policy: Any) -> torch.optim.Optimizer:
        """Return the optimizer, created on first use."""
        if self._optimizer is None:
            self._optimizer = self.make_optimizer(policy)
        return self._optimizer

    def save(self, policy: Any, folder: str | Path, meta: dict[str, Any] | None = None) -> None:
        """Write the policy's weights, the optimizer's state, the iteration count and `meta`; no pickle."""
        values = {"iteration": self.iteration, "config": plain_facts(vars(self.config)), "user": meta or {}}
        TrainState(folder).save(policy, self.optimizer(policy), values)

    def load(self, policy: Any, folder: str | Path) -> dict[str, Any]:
        """Inverse of `save`; returns its `meta`."""
        values = TrainState(folder).load(policy, self.optimizer(policy))
        self.iteration = int(values["iteration"])
        return dict(values["user"])


def make_improver(name: str, **settings: Any) -> Any:
    """Create the registered improver `name` by its classmethod `for_rl` if it has one, else by its constructor.

    Args:
        name: name in `worldgym.registry.IMPROVERS`.
        **settings: settings of the run: `lr`, `updates` (optimizer steps per round), `seed`, `learn` (`all` or a policy
            component), `demos` (`ChunkDataset`). Only those that the callable names are passed.

    Returns:
        an object with `update(policy, rollouts)`, `save(policy, folder, meta)` and `load(policy, folder) -> meta`.

    Raises:
        ConfigError: an unknown name, a class that lacks one of these methods, or one that cannot be created from these
            settings.
    """
    kind = IMPROVERS.get(name)
    if lacking := [method for method in NEEDED if not hasattr(kind, method)]:
        raise ConfigError(
            f"improver {name!r} ({kind.__name__}) cannot be used for RL: it has no {', '.join(lacking)}. Take "
            "'grpo' or 'filtered_bc', or derive the class from agents.algorithms.improver.OptimizerImprover"
        )
    make = getattr(kind, "for_rl", kind)
    given = accepted(make, settings)
    if missing := [name for name in required(make) if name not in given]:
        raise ConfigError(
            f"improver {name!r} ({kind.__name__}) needs the argument {', '.join(missing)}, which an RL run does not "
            f"give; it gives {', '.join(settings)}. Give the argument a default, or define a classmethod for_rl with "
            "these settings"
        )
    try:
        return make(**given)
    except PASSED:
        raise
    except Exception as error:
        raise ConfigError(
            f"improver {name!r} ({kind.__name__}) could not be created: {raised(error)}"
        ) from error


def required(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments of `function` without a default."""
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = inspect.signature(function).parameters.values()
    return [p.name for p in given if p.kind in plain and p.default is p.empty]


def updated(
    name: str, improver: Any, policy: Any, rollouts: Any, reserved: Collection[str] = ()
) -> dict[str, float]:
    """Call `improver.update` and check its metrics.

    Args:
        name: registered name of the improver, for messages.
        improver: the improver.
        policy: changed in place.
        rollouts: rollouts of the round.
        reserved: names that the metrics must not have.

    Raises:
        ConfigError: the improver raised an exception, or the metrics are not numbers by name, or have a reserved name.
    """
    who = f"improver {name!r} ({type(improver).__name__})"
    try:
        metrics = improver.update(policy, rollouts)
    except PASSED:
        raise
    except Exception as error:
        raise ConfigError(
            f"{who} failed: {raised(error)}. WORLDGYM_DEBUG=1 shows the traceback of a command"
        ) from error
    expected = "expected a dict of numbers by name, such as {'loss': 0.5}"
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"{who} returned {_kind(metrics)} from update; {expected}")
    numbers: dict[str, float] = {}
    for key, value in metrics.items():
        try:
            numbers[str(key)] = float(value) if not isinstance(value, str) else _refuse(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{who} returned {key!r}: {_kind(value)} from update; {expected}") from error
    if taken := sorted(set(numbers) & set(reserved)):
        raise ConfigError(
            f"{who} returned the metrics {', '.join(taken)}, which the trainer computes itself; rename them, for "
            f"example to {name}_{taken[0]}"
        )
    return numbers


def raised(error: BaseException) -> str:
    """An exception in one line: class, message, and the file and line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in last)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{where}"


def _refuse(value: str) -> float:
    raise ValueError(f"{value!r} is a text")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    size = f" of shape {tuple(shape)}" if shape else ""
    return f"a {type(value).__name__}{size}" if size else f"a {type(value).__name__}, {value!r:.60}"
