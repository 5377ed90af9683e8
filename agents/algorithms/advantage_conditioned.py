"""Advantage-conditioned policies: RECAP and RAMP, on a mixture of demonstrations and own attempts.

Values are normalised returns with a reward of -1 a step, 0 at a success and a large loss at a failure: minus the share
of the horizon that success will still take, and -1 where it never comes. The advantage of a chunk is
`A_t = sum r + v_{t+n} - v_t` over its n steps; `I = 1[A > q-quantile of its task]`. The policy clones everything, told
I (and what is foreseen), each dropped with probability 0.2: `-log pi(a|o,l) - alpha log pi(a|I,o,z,l)`, where the share
of dropped rows plays alpha (the paper gives none). Demonstrations count as good.

RECAP is RAMP without foresight: the same update, no tokens, values of a critic that predicts nothing else.

Example::

    values = value_targets(lengths, success, horizon)
    good = indicators(values_of_chunks, logs, quantile=0.7)
    AdvantageConditioned(AdvantageConfig()).update(policy, logs, good, tokens=None)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.algorithms.sft import SFT, SFTConfig
from agents.data.demonstrations import ChunkDataset
from agents.policies.conditioned import FLAGS, ConditionedPolicy, condition_vector
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError


@dataclass(frozen=True)
class AdvantageConfig:
    """Settings of advantage-conditioned cloning.

    Args:
        lr: AdamW learning rate.
        batch_size: chunks a step.
        dropout: chance that a row is told nothing of its advantage, and likewise of what is foreseen.
        quantile: of the advantages of a task, above which a chunk is good.
        demo_share: share of demonstrations in a batch.
        learn: `goal` conditions where the policy goes and leaves how it goes there as it was cloned; `all` both.
        seed: of rows and dropout.
    """

    lr: float = 3e-4
    batch_size: int = 128
    dropout: float = 0.2
    quantile: float = 0.7
    demo_share: float = 0.4
    learn: str = "goal"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if self.lr <= 0 or self.batch_size < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(f"lr must be positive, batch_size at least 1, dropout in [0, 1); got {self}")
        if not 0 < self.quantile < 1 or not 0 <= self.demo_share <= 1:
            raise ConfigError(f"quantile must lie in (0, 1), demo_share in [0, 1]; got {self}")


def value_targets(rollouts: Rollouts, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the states before each chunk, and of the last one.

    Args:
        rollouts: episodes of Real.
        horizon: steps after which an episode has failed.

    Returns:
        `(N,C+1)` float32 in [-1, 0], nan after an episode's end, and `(N,)` chunks of each episode.
    """
    k, n = rollouts.actions.shape[2], rollouts.lengths.numpy()
    won = (rollouts.reward > 0.5).numpy()
    out = np.full((len(rollouts), rollouts.actions.shape[1] + 1), np.nan, np.float32)
    for i, chunks in enumerate(n):
        left = np.arange(chunks, -1, -1) * k
        out[i, : chunks + 1] = -np.minimum(1.0, left / horizon) if won[i] else -1.0
    return out, n


def advantages(
    values: np.ndarray, won: np.ndarray, chunks: np.ndarray, steps: int, horizon: int
) -> np.ndarray:
    """`(N,C)` one-chunk advantages `-steps / horizon + v_{t+1} - v_t`; nan after an episode's end.

    Args:
        values: `(N,C+1)` predicted.
        won: `(N,)` bool; the value of a success is 0, that of a failure -1, whatever is predicted.
        chunks: `(N,)` of each episode.
        steps: of a chunk.
        horizon: that normalises rewards.
    """
    values = values.copy()
    rows = np.arange(len(values))
    values[rows, chunks] = np.where(won, 0.0, -1.0)
    out = -steps / horizon + values[:, 1:] - values[:, :-1]
    out[np.arange(out.shape[1])[None] >= chunks[:, None]] = np.nan
    return out


def indicators(advantage: np.ndarray, tasks: list[str], quantile: float) -> np.ndarray:
    """`(N,C)` bool: above the quantile of the task's advantages."""
    good = np.zeros(advantage.shape, bool)
    names = np.asarray(tasks)
    for task in np.unique(names):
        rows = names == task
        level = np.nanquantile(advantage[rows], quantile)
        good[rows] = np.nan_to_num(advantage[rows], nan=-np.inf) > level
    return good


class AdvantageConditioned:
    """Improver: clones logged chunks and demonstrations, told how good each was.

    Args:
        demos: demonstrations, all of them good.
        config: settings.
    """

    def __init__(self, demos: ChunkDataset, config: AdvantageConfig | None = None) -> None:
        self.config = config or AdvantageConfig()
        self.demos = demos
        self.iteration = 0
        c = self.config
        self._sft = SFT(SFTConfig(lr=c.lr, batch_size=c.batch_size, weight_decay=0.0, learn=c.learn))

    def update(
        self,
        policy: ConditionedPolicy,
        logs: ChunkDataset,
        good: np.ndarray,
        tokens: np.ndarray | None = None,
        demo_tokens: np.ndarray | None = None,
        *,
        steps: int = 24,
    ) -> dict[str, float]:
        """`steps` supervised steps.

        Args:
            policy: changed in place.
            logs: M chunks of own attempts, failures included.
            good: `(M,)` bool, the indicator of each.
            tokens: `(M,Z)` what was foreseen before each; None for RECAP.
            demo_tokens: the same of the demonstrations.
            steps: optimizer steps.

        Returns:
            loss (nats a dimension; of the place, where the pointer learns alone), good (share of good rows).
        """
        c = self.config
        rng = np.random.default_rng((c.seed, 31, self.iteration))
        self.iteration += 1
        shown = round(c.demo_share * c.batch_size)
        own = rng.integers(0, len(logs), steps * (c.batch_size - shown))
        demo = rng.integers(0, len(self.demos), steps * shown)
        parts = [
            self._conditioned(logs, own, good[own], tokens, rng, policy.size),
            self._conditioned(self.demos, demo, np.ones(len(demo), bool), demo_tokens, rng, policy.size),
        ]
        from agents.algorithms.self_imitation import join

        mixed = join(*(part for part in parts if len(part))) if all(map(len, parts)) else max(parts, key=len)
        self._sft.reseed(int(rng.integers(2**31)))
        losses = self._sft.steps(policy, mixed, rng.permutation(len(mixed)), steps)
        return {"loss": float(np.mean(losses)), "good": float(good.mean())}

    def _conditioned(
        self,
        data: ChunkDataset,
        rows: np.ndarray,
        good: np.ndarray,
        tokens: np.ndarray | None,
        rng: np.random.Generator,
        size: int,
    ) -> ChunkDataset:
        chosen = data.select(rows)
        silent, blind = rng.random((2, len(rows))) < self.config.dropout
        vectors = [
            condition_vector(
                None if silent[i] else bool(good[i]),
                None if tokens is None or blind[i] else tokens[row],
                size=size,
            )
            for i, row in enumerate(rows)
        ]
        return dataclasses.replace(
            chosen, condition=np.array(vectors, np.float32).reshape(len(rows), FLAGS + size)
        )


def log_rows(rollouts: Rollouts) -> tuple[ChunkDataset, np.ndarray, np.ndarray]:
    """All chunks of all episodes, failures included: data, and `(M,)` episode and chunk of each row.

    Goals are those of `agents.data.demonstrations.keyframes` along the path that was taken.
    """
    from agents.algorithms.self_imitation import success_rows

    everything = rollouts.select(torch.arange(len(rollouts)))
    everything.reward = torch.ones(len(rollouts))
    data, _ = success_rows(everything, floor=1.0)
    assert data is not None
    where: Tensor = everything.mask.nonzero()
    return data, where[:, 0].numpy(), where[:, 1].numpy()
