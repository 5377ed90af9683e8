"""Settings of `worldgym collect`.

Example::

    config = CollectConfig(out=Path("data/real"), episodes=300, mix={"expert": 1.0})
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.compute import DType
from experiments.suites import domain_settings, known_split, known_tasks
from worldgym.errors import ConfigError
from worldgym.suite import COUNTERFACTUAL, POLICY, Suite, load_suite
from worldgym.utils.sizes import short

SEED_LIMIT = 1_000_000  # larger seeds are reserved for debugging and evaluation


class BehaviourMix(dict[str, float]):
    """Relative weights of behaviours; they need not sum to 1. `policy` is the checkpoint given by `--policy`.

    Raises:
        ConfigError: a weight is negative, or all are zero.
    """

    def __init__(self, *weights: Any, **more: float) -> None:
        super().__init__(*weights, **more)
        for name, weight in self.items():
            if not (np.isfinite(weight) and weight >= 0):
                raise ConfigError(f"mix.{name} is {weight}, expected a weight >= 0")


@dataclass(frozen=True)
class CollectConfig:
    """Collect logged episodes.

    Args:
        out: folder of the dataset; created, continued or extended.
        episodes: size of this collection, including episodes that an earlier run of it already saved.
        suite: suite that provides tasks and demonstrators; None uses the default one.
        tasks: tasks, used in turn; None uses those that the suite records by default.
        mix: weights of the behaviours that act: `--mix expert=1 policy=0.5`, or `--mix.expert 1`; the suite's default
            mix if none are given.
        policy: checkpoint folder of the policy for the behaviour `policy`.
        temperature: sampling temperature of the policy; 0 is greedy.
        world_model: world-model folder. The policy then acts on imagined frames while its actions are executed in the
            domain. This records how a policy acts on wrong predictions and what really happens. Such episodes are the
            most useful data for improving a world model, and for training a judge on closed-loop imagined episodes.
        domain: domain of the suite; `real` stands in for the robot and its steps are counted, `soft` is a misspecified
            simulator.
        gap: degree of misspecification of `soft`, 0..1, if the suite has such a gap.
        seed: start seed of episode 0; episode i uses seed + i, below 1,000,000.
        starts: number of different starts, used in turn with other randomness of the demonstrator; None is one start
            per episode. Few starts make repetitive data.
        workers: simulator processes; 0 runs in this process.
        split: split of scenes and instructions; only `seen` may be used for training.
        horizon: maximum number of steps per episode; None uses the suite's.
        image_size: pixels of the main camera, one number or height and width; None uses the suite's.
        cameras: camera names, the main camera first; the suite's default if empty.
        images: `png`, or `mp4` for frames of at least 128 px.
        shard_episodes: episodes per file; if the process is killed, at most this many are lost.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of the world model; `auto` keeps the precision in which it was saved.
    """

    out: Path = Path("data/real")
    episodes: int = 1000
    suite: str | None = None
    tasks: tuple[str, ...] | None = None
    mix: dict[str, float] = field(default_factory=dict)
    policy: Path | None = None
    temperature: float = 1.0
    world_model: Path | None = None
    domain: str = "real"
    gap: float = 0.0
    seed: int = 0
    starts: int | None = None
    workers: int = 2
    split: str = "seen"
    horizon: int | None = None
    image_size: int | tuple[int, int] | None = None
    cameras: tuple[str, ...] = ()
    images: Literal["png", "mp4"] = "png"
    shard_episodes: int = 50
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        suite = self.loaded_suite
        tasks = known_tasks(suite, suite.default_tasks if self.tasks is None else self.tasks)
        if not tasks:
            raise ConfigError(f"no task given; try --tasks {' '.join(suite.default_tasks)}")
        object.__setattr__(self, "tasks", tasks)
        if self.horizon is None:
            object.__setattr__(self, "horizon", suite.horizon)
        size = suite.specs_for(self.cameras or None, self.image_size).observation.main.size
        object.__setattr__(self, "image_size", short(size))
        object.__setattr__(self, "mix", BehaviourMix(self.mix))
        known = (*suite.behaviours, *self._further, POLICY)
        if unknown := [name for name in self.mix if name not in known]:
            raise ConfigError(f"suite {suite.name} has no behaviour {unknown[0]!r}; it has {', '.join(known)}")
        for name in ("episodes", "horizon", "shard_episodes", "starts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}, expected 0 (this process) or more")
        known_split(suite, self.split)
        if self.starts is not None and self.starts < min(len(tasks), self.episodes):
            raise ConfigError(
                f"--starts {self.starts} leaves {', '.join(tasks[self.starts :])} without a start; give at least "
                f"--starts {len(tasks)}"
            )
        if self.start_count < self.episodes and self.temperature == 0 and self.weights[POLICY] > 0:
            raise ConfigError(
                f"a policy at temperature 0 repeats itself on the same start, and {self.episodes} episodes have "
                f"{self.start_count} starts; leave --starts out, or give --temperature 1"
            )
        if self.seed < 0 or self.seed + self.start_count > SEED_LIMIT:
            raise ConfigError(
                f"seeds {self.seed}..{self.seed + self.start_count - 1} lie outside 0..{SEED_LIMIT - 1}, the range for "
                "data (evaluation uses larger seeds); use a smaller --seed"
            )
        domain_settings(suite, self.domain, self.gap)
        if not 0.0 <= self.gap <= 1.0 or (self.domain == suite.domains[0] and self.gap != 0.0):
            raise ConfigError(f"gap is {self.gap} in domain {self.domain!r}; expected 0..1, and 0 in real")
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if self.world_model is not None and self.policy is None:
            raise ConfigError(
                "--world-model sets the frames that a policy acts on: give --policy and --mix policy=1 as well"
            )
        if (self.weights[POLICY] > 0) != (self.policy is not None):
            raise ConfigError(
                "--mix policy=WEIGHT and --policy belong together: give the weight and the checkpoint, or neither"
            )

    @property
    def start_count(self) -> int:
        """Number of different starts."""
        return self.episodes if self.starts is None else min(self.starts, self.episodes)

    @property
    def loaded_suite(self) -> Suite:
        """Load the suite."""
        return load_suite(self.suite)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every behaviour of the suite and of the policy: the given ones, else the suite's default mix."""
        suite = self.loaded_suite
        given = self.mix if any(self.mix.values()) else suite.mix
        further = [name for name in self._further if given.get(name)]  # as in collections of earlier versions
        return {name: given.get(name, 0.0) for name in (*suite.behaviours, *further, POLICY)}

    @property
    def _further(self) -> tuple[str, ...]:
        """Behaviours of the suite that are in no default mix."""
        return (COUNTERFACTUAL,) if hasattr(self.loaded_suite, "counterfactuals") else ()

    @staticmethod
    def rewrite_arguments(arguments: Sequence[str]) -> list[str]:
        """Rewrite `--mix.NAME W` and `--mix NAME=W` to the form that tyro parses: `--mix NAME W ...`."""
        weights: list[str] = []
        others: list[str] = []
        left = list(arguments)
        while left:
            word = left.pop(0)
            name, equals, value = word.partition("=")
            if name.startswith("--mix."):
                if not equals and left:
                    value = left.pop(0)
                weights += [name.removeprefix("--mix."), value]
            elif word == "--mix":
                while left and not left[0].startswith("--"):
                    weights += re.split("=", left.pop(0), maxsplit=1)
            else:
                others.append(word)
        return [*others, "--mix", *weights] if weights else others
