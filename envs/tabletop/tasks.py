"""Start states (scenes), their random generation, and the success conditions of the tasks.

A `Scene` is plain data that can be converted to and from JSON. It is fully determined by (seed, task, split), so two
policies can be compared from the same start states in any process. A split determines the colours, combinations,
instructions and appearance that occur.

Example::

    from envs.tabletop.tasks import draw_scene
    scene = draw_scene(seed=7, task="pick_place", split="seen")
    scene.instruction  # "put the yellow cube in the tray"
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from envs.tabletop.grammar import TASKS, paraphrases, parse, phrase
from envs.tabletop.scene import (
    BUTTON_TRAVEL,
    COLOURS,
    DRAWER_TRAVEL,
    DRAWER_X,
    HALF_HEIGHT,
    SLOT_SHAPES,
    TRAY_HALF,
    ZONE_X,
)

SPLITS = ("seen", "unseen_combination", "unseen_object", "unseen_instruction", "unseen_scene", "unseen_task")
UNSEEN_COLOUR = "cyan"  # colour of the target in `unseen_object`; it does not occur in seen scenes
HELD_OUT_TARGETS = frozenset(  # targets of `unseen_combination`; in seen scenes they occur as distractors only
    {("red", "ball"), ("green", "cylinder"), ("blue", "cube"), ("yellow", "ball"), ("purple", "cylinder")}
)
UNSEEN_TASK = "stack"
NEEDS_OBJECT = frozenset({"reach", "push", "pick_place", "stack"})

REACH_RADIUS = 0.045  # 5.5 px; the position error of an imagined hand is one or two pixels
REACH_HEIGHT = 0.085
RELEASED = 0.085  # finger opening above which no object can be grasped


@dataclass(frozen=True)
class Scene:
    """A start state. Positions are in metres; `colours` and `positions` have one entry per slot, None if empty."""

    seed: int
    task: str
    split: str
    instruction: str
    paraphrase: int
    colours: tuple[str | None, ...]
    positions: tuple[tuple[float, float, float] | None, ...]  # x, y, yaw
    tray: tuple[float, float]
    hand: tuple[float, float, float]
    drawer: float
    target: int
    base: int
    side: str
    dark_table: bool

    def to_json(self) -> dict[str, Any]:
        """Convert to plain lists, strings and numbers."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Scene:
        """Inverse of `to_json`."""
        data = dict(data)
        data["colours"] = tuple(data["colours"])
        data["positions"] = tuple(None if p is None else tuple(p) for p in data["positions"])
        data["tray"], data["hand"] = tuple(data["tray"]), tuple(data["hand"])
        return Scene(**data)

    def name(self, slot: int) -> str:
        """Name of the object in `slot` in instructions: colour and shape."""
        return f"{self.colours[slot]} {SLOT_SHAPES[slot]}"


def _movable(task: str) -> int:
    """Number of slots, from the first one, whose object may be the target.

    A ball is never part of a stack and never pushed: it rolls away from the hand. Policies move it to the zone one time
    in five, and at 64 px the successful pushes look the same as the failed ones.
    """
    return 2 if task in ("push", "stack") else 3


def _asked(rng: np.random.Generator, split: str, task: str) -> tuple[list[str | None], int, str]:
    """Draw the colours of the slots, the target's slot, as the split requires, and the side of a push."""
    seen = [c for c in COLOURS if c != UNSEEN_COLOUR]
    slots = 4 if split == "unseen_scene" else 3
    for _ in range(1000):
        palette = list(rng.permutation(seen)[:slots])
        target = int(rng.integers(_movable(task)))
        if split == "unseen_object":
            palette[target] = UNSEEN_COLOUR
        held_out = (palette[target], SLOT_SHAPES[target]) in HELD_OUT_TARGETS
        if held_out == (split == "unseen_combination"):
            side = "left" if rng.random() < 0.5 else "right"
            return [str(c) for c in palette] + [None] * (4 - slots), target, side
    raise RuntimeError(f"no colours found for split {split!r} and task {task!r}")


@lru_cache
def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.triu_indices(count, 1)
    return i, j


def _layout_ok(xy: np.ndarray, tray: np.ndarray, task: str, target: int, side: str) -> bool:
    d = np.abs(xy[:, None] - xy[None])
    i, j = _pairs(len(xy))
    # An open hand over one object must not touch its neighbour. With four objects, a tray and a free lane there is not
    # enough space for this, so the hand may touch a neighbour. Distances in metres: between objects in x, between
    # objects in y, to the tray, to the lane of a push.
    apart_x, apart_y, tray_gap, lane = (0.12, 0.08, 0.11, 0.085) if len(xy) < 4 else (0.10, 0.07, 0.10, 0.075)
    if np.any((d[i, j, 0] < apart_x) & (d[i, j, 1] < apart_y)):
        return False
    if np.any((np.abs(xy - tray) < tray_gap).all(1)):
        return False
    if task in ("open_drawer", "close_drawer"):  # the drawer and the hand need room in front of the cabinet
        if np.any((np.abs(xy[:, 0] - DRAWER_X) < 0.12) & (xy[:, 1] > 0.0)) or (
            tray[0] < 0.02 and tray[1] > -0.04
        ):
            return False
    if task == "push":
        sign = 1.0 if side == "right" else -1.0
        x, y = xy[target]
        if sign * x > 0.03:  # at least 10 cm to go
            return False
        others = np.delete(xy, target, 0)
        if np.any((sign * (others[:, 0] - x) > 0) & (np.abs(others[:, 1] - y) < lane)):
            return False
        if sign * (tray[0] - x) > 0 and abs(tray[1] - y) < tray_gap:
            return False
    return True


# Cached because the rollouts of a group share a start state, policies are evaluated on the same start states, and
# drawing one takes 10 ms.
@lru_cache(maxsize=8192)
def draw_scene(seed: int, task: str, split: str = "seen") -> Scene:
    """Draw the start state of (seed, task, split).

    Raises:
        ValueError: unknown task or split; the message lists the known ones.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    rng = np.random.default_rng([int(seed), TASKS.index(task), SPLITS.index(split)])
    colours, target, side = _asked(rng, split, task)
    base = 1 - target if task == "stack" else -1
    n = sum(c is not None for c in colours)
    wide = (
        0.14 if task in ("reach", "push", "pick_place") else 0.15
    )  # range of |x| in which objects are placed
    for _ in range(20000):
        xy = rng.uniform((-wide, -0.15), (wide, 0.11), (n, 2))
        tray = rng.uniform((-0.08, -0.135), (0.08, 0.08))
        if _layout_ok(xy, tray, task, target, side):
            break
    else:
        raise RuntimeError(f"no free layout for seed {seed}, task {task!r}, split {split!r}")
    yaw = rng.uniform(-0.15, 0.15, n)
    positions = [(float(x), float(y), float(a)) for (x, y), a in zip(xy, yaw, strict=True)]
    hand = rng.uniform((-0.14, 0.09, 0.15), (0.14, 0.15, 0.175))
    choices = paraphrases(task, split)
    paraphrase = int(choices[int(rng.integers(len(choices)))])
    names = [f"{c} {s}" for c, s in zip(colours, SLOT_SHAPES, strict=True)]
    return Scene(
        seed=int(seed),
        task=task,
        split=split,
        instruction=phrase(task, paraphrase, target=names[target], side=side, base=names[base]),
        paraphrase=paraphrase,
        colours=tuple(colours),
        positions=tuple(positions + [None] * (4 - n)),
        tray=(float(tray[0]), float(tray[1])),
        hand=(float(hand[0]), float(hand[1]), float(hand[2])),
        drawer=DRAWER_TRAVEL if task == "close_drawer" else 0.0,
        target=target,
        base=base,
        side=side,
        dark_table=split == "unseen_scene",
    )


def other_instructions(task: str, seed: int, split: str) -> tuple[str, ...]:
    """Other instructions that a policy could follow from the start state of (seed, task, split).

    Each asks for the same task with another object, or to the other side. Objects that the split never names as a
    target are left out, so that no split leaks into another. Each is one of the split's paraphrases, drawn from the
    seed.

    Args:
        task: name of the task; tasks that name no object have no other instructions.
        seed: seed of the start state.
        split: split of the start state.
    """
    if task not in NEEDS_OBJECT:
        return ()
    start = [int(seed), TASKS.index(task), SPLITS.index(split)]
    colours, own, own_side = _asked(np.random.default_rng(start), split, task)  # without the layout, which takes long
    names = [f"{c} {s}" for c, s in zip(colours, SLOT_SHAPES, strict=True)]
    rng = np.random.default_rng([*start, 1])
    texts = []
    for slot in range(_movable(task)):
        held_out = (colours[slot], SLOT_SHAPES[slot]) in HELD_OUT_TARGETS
        if held_out != (split == "unseen_combination") or (
            split == "unseen_object" and colours[slot] != UNSEEN_COLOUR
        ):
            continue
        for side in ("left", "right") if task == "push" else (own_side,):
            if (slot, side) != (own, own_side):
                base = names[1 - slot] if task == "stack" else ""
                index = int(rng.choice(paraphrases(task, split)))
                texts.append(phrase(task, index, target=names[slot], side=side, base=base))
    return tuple(texts)


@dataclass(frozen=True)
class Truth:
    """True state of the simulator: `hand` (3,), `opening`, `objects` (4,3), `drawer`, `button` (m), `lamp`."""

    hand: np.ndarray
    opening: float
    objects: np.ndarray
    drawer: float
    button: float
    lamp: bool


def judge_truth(scene: Scene, s: Truth) -> tuple[bool, float]:
    """Current success, and progress in [0, 1], of the scene's task; progress adds up weighted milestones."""
    tray = np.array(scene.tray)
    obj = s.objects[scene.target]
    height = HALF_HEIGHT[SLOT_SHAPES[scene.target]]
    near = float(np.linalg.norm(s.hand[:2] - obj[:2]))
    approach = float(np.clip(1.0 - near / 0.25, 0, 1))
    if scene.task == "reach":
        done = near < REACH_RADIUS and s.hand[2] < REACH_HEIGHT
        return done, 1.0 if done else 0.8 * approach
    if scene.task == "push":
        sign = 1.0 if scene.side == "right" else -1.0
        start = scene.positions[scene.target]
        assert start is not None
        done = sign * obj[0] > ZONE_X and obj[2] < height + 0.02 and abs(obj[1]) < 0.2
        moved = np.clip((sign * obj[0] - sign * start[0]) / (ZONE_X - sign * start[0]), 0, 1)
        return bool(done), 1.0 if done else float(0.3 * approach + 0.6 * moved)
    if scene.task == "pick_place":
        inside = bool(np.all(np.abs(obj[:2] - tray) < TRAY_HALF - 0.012)) and obj[2] < height + 0.03
        done = inside and s.opening > RELEASED
        lifted = obj[2] > height + 0.02
        return done, 1.0 if done else 0.3 * approach + 0.3 * lifted + 0.3 * inside
    if scene.task == "stack":
        under = s.objects[scene.base]
        on_top = float(np.linalg.norm(obj[:2] - under[:2])) < 0.03 and 0.048 < obj[2] - under[2] < 0.072
        done = on_top and s.opening > RELEASED
        return done, 1.0 if done else 0.3 * approach + 0.3 * (obj[2] > height + 0.02) + 0.3 * on_top
    if scene.task == "open_drawer":
        done = s.drawer > 0.75 * DRAWER_TRAVEL
        return bool(done), float(np.clip(s.drawer / (0.75 * DRAWER_TRAVEL), 0, 1))
    if scene.task == "close_drawer":
        done = s.drawer < 0.2 * DRAWER_TRAVEL
        return bool(done), float(np.clip((DRAWER_TRAVEL - s.drawer) / (0.8 * DRAWER_TRAVEL), 0, 1))
    return s.lamp, 1.0 if s.lamp else float(0.9 * np.clip(s.button / BUTTON_TRAVEL, 0, 1))


def scene_for(scene: Scene, instruction: str) -> Scene | None:
    """The scene with another instruction, or None if the scene lacks an object that it names.

    Raises:
        ValueError: the instruction is of no known task.
    """
    task, words = parse(instruction)
    named = {f"{colour} {shape}": i for i, (colour, shape) in enumerate(zip(scene.colours, SLOT_SHAPES, strict=True))}
    changes: dict[str, Any] = {"side": words["side"]} if "side" in words else {}
    for role in ("target", "base"):
        if role in words:
            if words[role] not in named or scene.positions[named[words[role]]] is None:
                return None
            changes[role] = named[words[role]]
    return replace(scene, task=task, instruction=instruction, **changes)
