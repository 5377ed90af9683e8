"""Advantage-conditioned policies (RECAP and RAMP), trained on demonstrations and on the policy's own episodes.

Rewards are -1 per step, 0 at success, and a large negative value at failure. Returns are normalised by the horizon: the
value of a state is minus the fraction of the horizon that remains until success, or -1 if the episode fails. The
advantage of a chunk of n steps is `A_t = sum r + v_{t+n} - v_t`, and its indicator is
`I = 1[A > q-quantile of its task]`. The policy clones all chunks. It is conditioned on I and, in RAMP, on predicted
future tokens z; each is dropped with probability 0.2. The loss is `-log pi(a|o,l) - alpha log pi(a|I,o,z,l)`. The
fraction of rows with dropped conditions acts as alpha, for which the paper gives no value. Demonstrations have I = 1.

RECAP is the same update without future tokens, with values from a critic that predicts only values.

Example::

    returns, chunks = value_targets(rollouts, horizon)
    good = indicators(advantages(values, won, chunks, steps, horizon), tasks, quantile=0.7)
    AdvantageConditioned(demos, AdvantageConfig()).update(policy, logs, good_rows, tokens=None, steps=100)
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
        batch_size: chunks per step.
        dropout: probability of dropping the advantage indicator of a row, and separately the future tokens of a row.
        quantile: a chunk is good if its advantage exceeds this quantile of the advantages of its task.
        demo_share: fraction of demonstrations in a batch.
        learn: `goal` trains only the goal head on the condition and leaves the action head as it was cloned; `all`
            trains both.
        seed: seed of row sampling and dropout.
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
    """Normalised returns of the state before each chunk and of the final state.

    Args:
        rollouts: real episodes.
        horizon: number of steps after which an episode counts as failed.

    Returns:
        `(N,C+1)` float32 returns in [-1, 0], nan after the end of an episode, and `(N,)` chunks per episode.
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
    """`(N,C)` one-chunk advantages `-steps / horizon + v_{t+1} - v_t`; nan after the end of an episode.

    Args:
        values: `(N,C+1)` predicted values.
        won: `(N,)` bool; the final value is set to 0 for a success and -1 for a failure, whatever the prediction.
        chunks: `(N,)` number of chunks per episode.
        steps: steps per chunk.
        horizon: number of steps by which rewards are normalised.
    """
    values = values.copy()
    rows = np.arange(len(values))
    values[rows, chunks] = np.where(won, 0.0, -1.0)
    out = -steps / horizon + values[:, 1:] - values[:, :-1]
    out[np.arange(out.shape[1])[None] >= chunks[:, None]] = np.nan
    return out


def indicators(advantage: np.ndarray, tasks: list[str], quantile: float) -> np.ndarray:
    """`(N,C)` bool: whether the advantage exceeds the `quantile` of the advantages of its task."""
    good = np.zeros(advantage.shape, bool)
    names = np.asarray(tasks)
    for task in np.unique(names):
        rows = names == task
        level = np.nanquantile(advantage[rows], quantile)
        good[rows] = np.nan_to_num(advantage[rows], nan=-np.inf) > level
    return good


class AdvantageConditioned:
    """Improver that clones logged chunks and demonstrations, conditioned on the advantage indicator.

    Args:
        demos: demonstrations; all count as good.
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
        """Take `steps` supervised steps.

        Args:
            policy: changed in place.
            logs: M chunks of the policy's own episodes, failures included.
            good: `(M,)` bool, advantage indicator of each chunk.
            tokens: `(M,Z)` future tokens predicted before each chunk; None for RECAP.
            demo_tokens: future tokens of the demonstrations.
            steps: optimizer steps.

        Returns:
            loss (nats per action dimension, or nats of the goal position if only the goal head is trained), and good
            (fraction of good rows).
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
        drop_flag, drop_tokens = rng.random((2, len(rows))) < self.config.dropout
        vectors = [
            condition_vector(
                None if drop_flag[i] else bool(good[i]),
                None if tokens is None or drop_tokens[i] else tokens[row],
                size=size,
            )
            for i, row in enumerate(rows)
        ]
        return dataclasses.replace(
            chosen, condition=np.array(vectors, np.float32).reshape(len(rows), FLAGS + size)
        )


def log_rows(rollouts: Rollouts) -> tuple[ChunkDataset, np.ndarray, np.ndarray]:
    """All chunks of all episodes, failures included: the data, and `(M,)` episode index and chunk index of each row.

    Goals are the keyframes of the executed path (`agents.data.demonstrations.keyframes`).
    """
    from agents.algorithms.self_imitation import success_rows

    everything = rollouts.select(torch.arange(len(rollouts)))
    everything.reward = torch.ones(len(rollouts))
    data, _ = success_rows(everything, floor=1.0)
    assert data is not None
    where: Tensor = everything.mask.nonzero()
    return data, where[:, 0].numpy(), where[:, 1].numpy()
