"""Sample the training pairs (frame, instruction) of a judge: successes, near misses, frames with wrong instructions.

A judge that is trained on each success with its own instruction only learns "something was achieved" and ignores the
instruction. A judge that is trained on distant failures only learns "the hand is near". Therefore the negatives are
frames just before success, other unsolved frames of the logs, and solved frames with the instruction of another object,
place or task. An instruction of another task may also be true of a frame (pushing a cube to the left also reaches it),
so it is used only if it names another object.

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
"""Kinds of pairs; only `success` is positive."""

NEAR = 4  # number of frames on either side of a success that count as near misses


def goal_of(task: str, instruction: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Extract a goal (task, object words in order, place words), which is equal for all paraphrases of one goal.

    Example:
        >>> goal_of("push", "slide the red cube into the left area")
        ('push', ('red', 'cube'), ('left',))
    """
    words = re.findall(r"[a-z]+", instruction.lower())
    # The tray is left out: every instruction of its task names it, so it cannot be confused with another object.
    objects = tuple(w for w in words if w in (*COLOURS, *SHAPES) and w not in ("tray", "white"))
    return task, objects, tuple(sorted({w for w in words if w in SIDES}))


class PairSampler:
    """Draws pairs from some episodes of a dataset, balanced between positives and negatives and between tasks.

    Args:
        arrays: logs, from `EpisodeDataset.load_arrays()`.
        episodes: indices of the episodes to use.
        near_share: share of near misses among the negatives; 0 excludes these frames completely, for ablations.

    Raises:
        ValueError: there are no solved or no unsolved frames.
    """

    def __init__(self, arrays: EpisodeArrays, episodes: np.ndarray, near_share: float = 0.3) -> None:
        self.arrays, self.near_share = arrays, near_share
        self.owner = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
        used = self._used = np.isin(self.owner, episodes)
        success = np.asarray(arrays.success, bool)
        self.solved = np.flatnonzero(used & success)
        self.unsolved = np.flatnonzero(used & ~success)
        near = np.zeros(len(success), bool)
        for i in episodes:
            rows = arrays.rows(int(i))
            flips = np.flatnonzero(np.diff(success[rows].astype(np.int8)) != 0)
            for f in flips:  # frames around the start and around the end of a success
                near[rows.start + max(0, f - NEAR + 1) : min(rows.start + f + 1 + NEAR, rows.stop)] = True
            if not success[rows].any():  # and the frames of highest progress in failed episodes
                near[rows.start + np.argsort(arrays.progress[rows])[-NEAR:]] = True
        self.near = np.flatnonzero(used & ~success & near)
        if near_share == 0:
            self.unsolved = np.flatnonzero(used & ~success & ~near)
        if len(self.solved) == 0 or len(self.unsolved) == 0:
            raise DatasetError(
                f"need solved and unsolved frames to train a judge; got {len(self.solved)} and {len(self.unsolved)}. "
                "Collect successful and failed episodes: worldgym collect --help"
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
        # Every task is drawn equally often; otherwise the judge would be best on tasks with many successes.
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
        """Draw `count` pairs, half of them positive.

        Returns:
            frame indices `(count,)`, instructions, labels `(count,)` float32, kinds (see `KINDS`).
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
            options = self.texts[goal]  # all paraphrases of a goal have the same label
            rows.append(row)
            texts.append(options[rng.integers(len(options))])
            labels.append(float(kind == "success"))
            kinds.append(kind)
        return np.asarray(rows), texts, np.asarray(labels, np.float32), kinds

    @property
    def every(self) -> np.ndarray:
        """Indices of all frames of the episodes."""
        return np.flatnonzero(self._used)

    def used(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of the frames `rows (N,)` belongs to the episodes, `(N,)` bool."""
        return self._used[rows]

    def words_for(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """Draw an instruction for each of the frames `rows (N,)`, which belong to the episodes.

        Returns:
            instructions of the frame's own goal, or for a third of the solved frames of a goal that is false there,
            and labels `(N,)` float32.
        """
        texts, labels = [], np.asarray(self.arrays.success, np.float32)[rows]
        for i, row in enumerate(rows):
            goal = self.goals[self.owner[row]]
            if labels[i] and rng.random() < 1 / 3 and (found := self._wrong(goal, rng)) is not None:
                goal, labels[i] = found[0], 0.0
            options = self.texts[goal]
            texts.append(options[rng.integers(len(options))])
        return texts, labels

    def any_rows(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `count` frame indices, half of them solved."""
        others = np.concatenate([self.unsolved, self.near])
        return np.concatenate([rng.choice(self.solved, count // 2), rng.choice(others, count - count // 2)])

    def any_words(self, row: int, rng: np.random.Generator) -> str:
        """Draw an instruction for frame `row`: of its own goal, of the same task, or of any goal."""
        own = self.goals[self.owner[row]]
        if rng.random() < 0.4:
            goal = own
        else:
            pool = self.by_task[own[0]] if rng.random() < 0.7 else sorted(self.texts)
            goal = pool[rng.integers(len(pool))]
        options = self.texts[goal]
        return options[rng.integers(len(options))]

    def _wrong(self, goal: tuple, rng: np.random.Generator) -> tuple[tuple, str] | None:
        """Draw a goal of the logs that is false where `goal` is true, preferring goals similar to `goal`."""
        other_places, similar, other_objects, other_tasks = self._pools_of(goal)
        if other_places and rng.random() < 0.3:
            return other_places[rng.integers(len(other_places))], "wrong_place"
        if other_objects and (not other_tasks or rng.random() < 0.7):
            pool = similar if similar and rng.random() < 0.6 else other_objects
            return pool[rng.integers(len(pool))], "wrong_object"
        if other_tasks:
            return other_tasks[rng.integers(len(other_tasks))], "wrong_verb"
        return (other_places[rng.integers(len(other_places))], "wrong_place") if other_places else None

    def _pools_of(self, goal: tuple) -> tuple[list, list, list, list]:
        """Pools of false goals: other places, objects that share a word, all other objects, other tasks and objects."""
        if goal not in self._false:
            task, objects, places = goal
            same = self.by_task[task]
            other_places = [g for g in same if g[1] == objects and g[2] != places]
            other_objects = [g for g in same if g[1] != objects]
            similar = [g for g in other_objects if set(g[1]) & set(objects)]
            other_tasks = [g for t in self.by_task if t != task for g in self.by_task[t] if g[1] != objects]
            self._false[goal] = (other_places, similar, other_objects, other_tasks)
        return self._false[goal]
