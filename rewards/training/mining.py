"""Frames on which a judge is wrong, or nearly: what to show it again.

Why: drawn at random, failures of a good policy are nearly all easy, and the ones that imagined RL will meet, a hand one
centimetre too high above the right thing, are one in thirty. So a trained judge looks at the frames that policies have
reached, and those are drawn in proportion to how wrong it is about them (bootstrapping of false positives, Sung and
Poggio 1998; online hard example mining, Shrivastava et al. 2016).

Example::

    hard = HardFrames.mine(judge, arrays, np.arange(len(arrays)), np.random.default_rng(0))
    rows, texts, labels = hard.sample(64, rng)       # half of them solved
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldgym.errors import DatasetError

if TYPE_CHECKING:
    from rewards.models.learned import LearnedJudge
    from worldgym.data.reader import EpisodeArrays

EASY, SURE = 0.02, 0.05  # the least weight of a failure and of a success: what is right stays in sight


@dataclass(frozen=True)
class HardFrames:
    """Solved and unsolved frames under their own instruction, with chances.

    Args:
        rows: `(unsolved, solved)` frame indices.
        chances: of each.
        texts: instruction of each frame's episode, by episode.
        owner: `(F,)` episode of each frame.
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
        """Let `judge` look at frames of `episodes`, those of policies where there are any.

        Args:
            judge: that is wrong somewhere.
            arrays: Real's logs.
            episodes: `(M,)` indices; none held out may be among them.
            rng: draws which frames are looked at.
            limit: unsolved and solved frames, at most.

        Raises:
            DatasetError: nothing solved, or nothing unsolved.
        """
        owner = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
        of_policy = np.array([arrays.behaviours[i] == "policy" for i in episodes])
        chosen = np.zeros(len(arrays), bool)
        chosen[episodes[of_policy] if of_policy.any() else episodes] = True
        solved_before = np.concatenate(
            [np.maximum.accumulate(arrays.success[arrays.rows(i)]) for i in range(len(arrays))]
        )
        solved = np.flatnonzero(chosen[owner] & arrays.success)
        unsolved = np.flatnonzero(chosen[owner] & ~solved_before)
        if not len(solved) or not len(unsolved):
            raise DatasetError(
                f"mining needs solved and unsolved frames; got {len(solved)} and {len(unsolved)}. Collect rollouts of "
                "a policy: worldgym collect --policy DIR --mix.policy 1"
            )
        rows = tuple(rng.permutation(r)[:n] for r, n in zip((unsolved, solved), limit, strict=True))
        p = [believed(judge, arrays, r, owner) for r in rows]
        wrong = (np.clip(p[0], EASY, 1), np.clip(1 - p[1], SURE, 1))
        return cls(
            (rows[0], rows[1]),
            (wrong[0] / wrong[0].sum(), wrong[1] / wrong[1].sum()),
            list(arrays.instructions),
            owner,
        )

    def sample(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Frame indices `(count,)`, instructions and labels `(count,)` float32, half of them solved."""
        share = (count - count // 2, count // 2)
        parts = [
            rng.choice(rows, n, p=chance)
            for rows, chance, n in zip(self.rows, self.chances, share, strict=True)
        ]
        rows = np.concatenate(parts)
        labels = np.repeat(np.array([0.0, 1.0], np.float32), share)
        return rows, [self.texts[self.owner[row]] for row in rows], labels


@torch.no_grad()
def believed(
    judge: LearnedJudge, arrays: EpisodeArrays, rows: np.ndarray, owner: np.ndarray, batch: int = 512
) -> np.ndarray:
    """`(N,)` probability of success that the judge gives frames `rows (N,)` under their episodes' words."""
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
