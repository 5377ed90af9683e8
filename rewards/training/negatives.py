"""Which (frame, instruction) pairs teach a judge: successes, near misses, and true frames under wrong words.

A judge that sees each success only with its own instruction learns "something was achieved" and ignores the words;
one that sees only distant failures learns "the hand is near". So negatives are: the frames just before success, the
other unsolved frames of Real, and solved frames under the instruction of another object, place or verb. Another
instruction may be true as well (pushing a cube to the left also reaches it): words of another verb are used
only when they name another object.

Example::

    pairs = PairSampler(arrays, np.arange(len(arrays)))
    rows, texts, labels, kinds = pairs.sample(128, np.random.default_rng(0))
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from worldgym.errors import DatasetError

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "orange",
    "cyan",
    "white",
    "black",
    "pink",
    "brown",
    "grey",
)
SHAPES = ("cube", "cylinder", "ball", "block", "sphere", "box", "tray", "bowl", "drawer", "button")
SIDES = ("left", "right", "front", "back")
KINDS = ("success", "near_miss", "unsolved", "wrong_place", "wrong_object", "wrong_verb")
"""What a pair is; only `success` is positive."""

NEAR = 4  # frames before the first success that count as a near miss


def goal_of(task: str, instruction: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(task, object words in order, place words): equal for paraphrases, different for different goals.

    Example:
        >>> goal_of("push", "slide the red cube into the left area")
        ('push', ('red', 'cube'), ('left',))
    """
    words = re.findall(r"[a-z]+", instruction.lower())
    # A place that every instruction of a task names (the tray) is no object that could be confused.
    objects = tuple(w for w in words if w in (*COLOURS, *SHAPES) and w not in ("tray", "white"))
    return task, objects, tuple(sorted({w for w in words if w in SIDES}))


class PairSampler:
    """Draws balanced pairs from some episodes of a dataset.

    Args:
        arrays: from `EpisodeDataset.load_arrays()`.
        episodes: indices of the episodes to use.
        near_share: share of near misses among the negatives; 0 leaves such frames out altogether, for ablations.

    Raises:
        ValueError: without any success or any failure there is nothing to tell apart.
    """

    def __init__(self, arrays: EpisodeArrays, episodes: np.ndarray, near_share: float = 0.3) -> None:
        self.arrays, self.near_share = arrays, near_share
        self.owner = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
        used = np.isin(self.owner, episodes)
        success = np.asarray(arrays.success, bool)
        self.solved = np.flatnonzero(used & success)
        self.unsolved = np.flatnonzero(used & ~success)
        near = np.zeros(len(success), bool)
        for i in episodes:
            rows = arrays.rows(int(i))
            flips = np.flatnonzero(np.diff(success[rows].astype(np.int8)) != 0)
            for f in flips:  # both before a success and after one was lost
                near[rows.start + max(0, f - NEAR + 1) : min(rows.start + f + 1 + NEAR, rows.stop)] = True
            if not success[rows].any():  # and the best moments of failed episodes
                near[rows.start + np.argsort(arrays.progress[rows])[-NEAR:]] = True
        self.near = np.flatnonzero(used & ~success & near)
        if near_share == 0:
            self.unsolved = np.flatnonzero(used & ~success & ~near)
        if len(self.solved) == 0 or len(self.unsolved) == 0:
            raise DatasetError(
                f"need solved and unsolved frames to train a judge; got {len(self.solved)} and {len(self.unsolved)}. "
                "Collect experts and failures: worldgym collect --help"
            )
        self.goals = [goal_of(t, s) for t, s in zip(arrays.tasks, arrays.instructions, strict=True)]
        by_goal: dict[tuple, set[str]] = defaultdict(set)
        for i in episodes:
            by_goal[self.goals[i]].add(arrays.instructions[i])
        self.texts = {goal: sorted(texts) for goal, texts in by_goal.items()}
        self.by_task: dict[str, list[tuple]] = defaultdict(list)
        for goal in sorted(self.texts):
            self.by_task[goal[0]].append(goal)
        self._false: dict[tuple, tuple[list, list, list, list]] = {}
        # Every task equally often, else the judge is best where successes are cheap.
        self._pools = {name: self._per_task(getattr(self, name)) for name in ("solved", "unsolved", "near")}

    def _per_task(self, rows: np.ndarray) -> list[np.ndarray]:
        tasks = np.asarray(self.arrays.tasks)[self.owner[rows]]
        return [rows[tasks == task] for task in np.unique(tasks)]

    def _draw(self, name: str, rng: np.random.Generator) -> int:
        pools = self._pools[name] or self._pools["unsolved"]
        return int(rng.choice(pools[rng.integers(len(pools))]))

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
        """`count` pairs, half of them positive.

        Returns:
            rows `(count,)` of the frames, instructions, labels `(count,)` float32, kinds (see `KINDS`).
        """
        rows, texts, labels, kinds = [], [], [], []
        for i in range(count):
            if i % 2 == 0:
                row, kind = self._draw("solved", rng), "success"
            else:
                u = rng.random()
                if u < self.near_share:
                    row, kind = self._draw("near", rng), "near_miss"
                elif u < self.near_share + 0.25:
                    row, kind = self._draw("unsolved", rng), "unsolved"
                else:
                    row, kind = self._draw("solved", rng), "wrong"
            goal = self.goals[self.owner[row]]
            if kind == "wrong":
                found = self._wrong(goal, rng)
                if found is None:
                    row, kind = self._draw("unsolved", rng), "unsolved"
                    goal = self.goals[self.owner[row]]
                else:
                    goal, kind = found
            options = self.texts[goal]  # any paraphrase of the goal has the same label
            rows.append(row)
            texts.append(options[rng.integers(len(options))])
            labels.append(float(kind == "success"))
            kinds.append(kind)
        return np.asarray(rows), texts, np.asarray(labels, np.float32), kinds

    def any_rows(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` frames, half of them solved."""
        others = np.concatenate([self.unsolved, self.near])
        return np.concatenate([rng.choice(self.solved, count // 2), rng.choice(others, count - count // 2)])

    def any_words(self, row: int, rng: np.random.Generator) -> str:
        """A sentence to ask about frame `row`: its own, the same verb with another goal, or anything."""
        own = self.goals[self.owner[row]]
        if rng.random() < 0.4:
            goal = own
        else:
            pool = self.by_task[own[0]] if rng.random() < 0.7 else sorted(self.texts)
            goal = pool[rng.integers(len(pool))]
        options = self.texts[goal]
        return options[rng.integers(len(options))]

    def _wrong(self, goal: tuple, rng: np.random.Generator) -> tuple[tuple, str] | None:
        """A goal of the logs that is false where `goal` is true, hardest kinds first."""
        place, half, objects, verbs = self._pools_of(goal)
        if place and rng.random() < 0.3:
            return place[rng.integers(len(place))], "wrong_place"
        if objects and (not verbs or rng.random() < 0.7):
            pool = half if half and rng.random() < 0.6 else objects
            return pool[rng.integers(len(pool))], "wrong_object"
        if verbs:
            return verbs[rng.integers(len(verbs))], "wrong_verb"
        return (place[rng.integers(len(place))], "wrong_place") if place else None

    def _pools_of(self, goal: tuple) -> tuple[list, list, list, list]:
        """False goals: another place, another object that shares a word, any other object, another verb and object."""
        if goal not in self._false:
            task, objects, places = goal
            same = self.by_task[task]
            place = [g for g in same if g[1] == objects and g[2] != places]
            other = [g for g in same if g[1] != objects]
            half = [g for g in other if set(g[1]) & set(objects)]
            verbs = [g for t in self.by_task if t != task for g in self.by_task[t] if g[1] != objects]
            self._false[goal] = (place, half, other, verbs)
        return self._false[goal]
