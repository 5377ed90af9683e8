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
from experiments.suites import domain_settings, known_tasks
from worldgym.errors import ConfigError
from worldgym.suite import POLICY, Suite, load_suite
from worldgym.utils.sizes import short

SEED_LIMIT = 1_000_000  # seeds from here on belong to debugging and to evaluation


class BehaviourMix(dict[str, float]):
    """Relative weights of who acts, by behaviour; they need not sum to 1. `policy` is the checkpoint of `--policy`.

    Raises:
        ConfigError: a weight below 0, or none.
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
        out: folder of the dataset; made, continued or added to.
        episodes: size of this collection, counting what an earlier run of it already saved.
        suite: whose tasks and demonstrators; the default one when None.
        tasks: dealt in turn; those that the suite records by default when None.
        mix: who acts how often, by behaviour: `--mix expert=1 policy=0.5`, or `--mix.expert 1`; the suite's default mix
            when nothing is named.
        policy: checkpoint folder of the policy for the behaviour `policy`.
        temperature: sampling temperature of the policy; 0 is greedy.
        world_model: let the policy look at what this world model imagines while its actions are executed in the domain.
            What a policy does when imagination misleads it, and what then really happens, is what a world model and a
            judge most need to see; with it the world model is refreshed and the judge's dreams are closed-loop ones.
        domain: of the suite; `real` is the robot stand-in, whose steps are counted, `soft` a misspecified simulator.
        gap: how wrong `soft` is, 0..1, where the suite has such a gap.
        seed: start seed of episode 0; episode i uses seed + i, below 1,000,000.
        workers: simulator processes; 0 runs in this one.
        split: which scenes and words; only `seen` may be trained on.
        horizon: most steps an episode; the suite's when None.
        image_size: pixels of the main camera, a number or height and width; the suite's when None.
        cameras: the first one is the main camera; the suite's default when empty.
        images: `png`, or `mp4` for at least 128 px.
        shard_episodes: episodes a file; a kill loses at most these.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: precision in which a world model imagines; `auto` leaves it as it was saved.
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
        if unknown := [name for name in self.mix if name not in (*suite.behaviours, POLICY)]:
            raise ConfigError(
                f"suite {suite.name} has no behaviour {unknown[0]!r}; it has {', '.join((*suite.behaviours, POLICY))}"
            )
        for name in ("episodes", "horizon", "shard_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}, expected 0 (this process) or more")
        if self.split not in suite.splits:
            raise ConfigError(f"unknown split {self.split!r}; the splits are {', '.join(suite.splits)}")
        if self.seed < 0 or self.seed + self.episodes > SEED_LIMIT:
            raise ConfigError(
                f"seeds {self.seed}..{self.seed + self.episodes - 1} leave 0..{SEED_LIMIT - 1}, what data may use "
                "(evaluation starts lie above); take a smaller --seed"
            )
        domain_settings(suite, self.domain, self.gap)
        if not 0.0 <= self.gap <= 1.0 or (self.domain == suite.domains[0] and self.gap != 0.0):
            raise ConfigError(f"gap is {self.gap} in domain {self.domain!r}; expected 0..1, and 0 in real")
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if self.world_model is not None and self.policy is None:
            raise ConfigError(
                "--world-model says what a policy looks at: give --policy and --mix policy=1 as well"
            )
        if (self.weights[POLICY] > 0) != (self.policy is not None):
            raise ConfigError(
                "--mix policy=WEIGHT and --policy belong together: give the weight and the checkpoint, or neither"
            )

    @property
    def loaded_suite(self) -> Suite:
        """The suite."""
        return load_suite(self.suite)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every behaviour of the suite and of the policy: as given, else those of its default mix."""
        suite = self.loaded_suite
        given = self.mix if any(self.mix.values()) else suite.mix
        return {name: given.get(name, 0.0) for name in (*suite.behaviours, POLICY)}

    @staticmethod
    def rewrite_arguments(arguments: Sequence[str]) -> list[str]:
        """`--mix.NAME W` and `--mix NAME=W`, as typed, in the one form that tyro reads: `--mix NAME W ...`."""
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
