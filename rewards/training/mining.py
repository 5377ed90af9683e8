"""Hard example mining: frames that a trained judge misclassifies, or nearly, are drawn more often.

Most randomly drawn failures of a good policy are easy to classify. The ones that matter in imagined RL, such as a hand
one centimetre too high above the right object, are one in thirty. Therefore a trained judge scores frames that policies
have reached, and each frame is drawn with a probability proportional to the judge's error (bootstrapping of false
positives, Sung and Poggio 1998; online hard example mining, Shrivastava et al. 2016).

Example::

    hard = HardFrames.mine(judge, arrays, np.arange(len(arrays)), np.random.default_rng(0))
    rows, texts, labels = hard.sample(64, rng)       # half of them solved
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldgym.errors import DatasetError

if TYPE_CHECKING:
    from rewards.models.learned import LearnedJudge
    from worldgym.data.reader import EpisodeArrays

logger = logging.getLogger(__name__)
EASY, SURE = 0.02, 0.05  # smallest weight of a failure and of a success: correctly classified frames are still drawn


@dataclass(frozen=True)
class HardFrames:
    """Solved and unsolved frames with the instruction of their episode, and the probability of drawing each.

    Args:
        rows: `(unsolved, solved)` frame indices.
        chances: `(unsolved, solved)` probabilities of drawing each frame.
        texts: instruction of each episode.
        owner: `(F,)` episode index of each frame.
    """

    rows: tuple[np.ndarray, np.ndarray]
    chances: tuple[np.ndarray, np.ndarray]
    texts: list[str]
    owner: np.ndarray

    @classmethod
    def mine(
        cls,
        judge: LearnedJudge,
        arrays: EpisodeArrays,
        episodes: np.ndarray,
        rng: np.random.Generator,
        *,
        limit: tuple[int, int] = (90_000, 30_000),
    ) -> HardFrames:
        """Score frames of `episodes` with `judge`; those of policy rollouts, or of all if these have none of a kind.

        Args:
            judge: a trained judge.
            arrays: logs from the real domain.
            episodes: `(M,)` indices, without held-out episodes.
            rng: draws the frames that are scored.
            limit: largest numbers of unsolved and of solved frames.

        Raises:
            DatasetError: there are no solved or no unsolved frames.
        """
        owner = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
        solved_before = np.concatenate(
            [np.maximum.accumulate(arrays.success[arrays.rows(i)]) for i in range(len(arrays))]
        )
        solved, unsolved = (
            _of_policy(frames, owner, arrays, episodes, what)
            for frames, what in ((arrays.success, "solved"), (~solved_before, "unsolved"))
        )
        if not len(solved) or not len(unsolved):
            raise DatasetError(
                f"mining needs solved and unsolved frames; got {len(solved)} and {len(unsolved)}. Collect rollouts of "
                "a policy: worldgym collect --policy DIR --mix.policy 1"
            )
        rows = tuple(rng.permutation(r)[:n] for r, n in zip((unsolved, solved), limit, strict=True))
        predicted = [believed(judge, arrays, r, owner) for r in rows]
        errors = (np.clip(predicted[0], EASY, 1), np.clip(1 - predicted[1], SURE, 1))
        return cls(
            (rows[0], rows[1]),
            (errors[0] / errors[0].sum(), errors[1] / errors[1].sum()),
            list(arrays.instructions),
            owner,
        )

    def sample(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Draw frame indices `(count,)`, instructions and labels `(count,)` float32; half of the frames are solved."""
        share = (count - count // 2, count // 2)
        parts = [
            rng.choice(rows, n, p=chance)
            for rows, chance, n in zip(self.rows, self.chances, share, strict=True)
        ]
        rows = np.concatenate(parts)
        labels = np.repeat(np.array([0.0, 1.0], np.float32), share)
        return rows, [self.texts[self.owner[row]] for row in rows], labels


def _of_policy(
    frames: np.ndarray, owner: np.ndarray, arrays: EpisodeArrays, episodes: np.ndarray, what: str
) -> np.ndarray:
    """Indices of the chosen frames `(F,)` bool of policy rollouts among `episodes`, or of all of them."""
    from_policy = np.array([arrays.behaviours[i] == "policy" for i in episodes], bool)
    own, every = (np.flatnonzero(frames & np.isin(owner, part)) for part in (episodes[from_policy], episodes))
    if from_policy.any() and not len(own):
        logger.warning(
            "none of the %d rollouts of a policy has %s frames; those of the other episodes are mined",
            from_policy.sum(), what,
        )  # fmt: skip
    return own if len(own) else every


@torch.no_grad()
def believed(
    judge: LearnedJudge, arrays: EpisodeArrays, rows: np.ndarray, owner: np.ndarray, batch: int = 512
) -> np.ndarray:
    """Predicted probability of success `(N,)` of frames `rows (N,)` with the instructions of their episodes."""
    out = []
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        verdict = judge.score(
            torch.from_numpy(arrays.frames[part])[:, None],
            [arrays.instructions[owner[row]] for row in part],
            torch.from_numpy(arrays.states[part]),
        )
        out.append(verdict.p_success.cpu().numpy())
    return np.concatenate(out)
