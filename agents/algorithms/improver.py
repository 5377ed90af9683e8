"""Create improvers by name; base class of improvers with one optimizer.

Example::

    improver = make_improver("filtered_bc", lr=1e-4, seed=0, demos=demos)
    improver.update(policy, rollouts)["loss"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from worldgym.errors import ConfigError
from worldgym.registry import IMPROVERS, accepted
from worldgym.utils.train_state import TrainState, plain_facts

NEEDED = ("update", "save", "load")


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
        ConfigError: an unknown name, or a class that lacks one of these methods.
    """
    kind = IMPROVERS.get(name)
    if lacking := [method for method in NEEDED if not hasattr(kind, method)]:
        raise ConfigError(
            f"improver {name!r} ({kind.__name__}) cannot be used for RL: it has no {', '.join(lacking)}. Take "
            "'grpo' or 'filtered_bc', or derive the class from agents.algorithms.improver.OptimizerImprover"
        )
    make = getattr(kind, "for_rl", kind)
    return make(**accepted(make, settings))
