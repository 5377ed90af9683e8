"""Several futures of the same episodes, so that a judge's verdicts on them can be compared.

A wrong verdict is rarely predicted by the world model's own estimate of its error: most errors do not change the
outcome. What predicts it is whether the *verdict* changes when the same actions are imagined again by another member
of an ensemble. Members are other world models, or the same one from start frames that are shifted by a pixel or two.
They share the actions and nothing else; the first one, the leader, is what policies and people see.

`worldgym.imagination` judges all futures and takes the standard deviation of their highest probabilities of success so
far as the episode's uncertainty, in [0, 0.5] (epistemic uncertainty as the disagreement of an ensemble, RWM-U, arXiv
2504.16680, section 3, but of verdicts instead of states). With M futures beside the leader, imagination costs M + 1
times as much.

Example::

    model = FutureEnsemble(load_world_model("tabletop-small"), shifts=((1, 0), (-1, 0)))
    envs = gym.make_vec("worldgym/ImaginedTabletop-v0", num_envs=8, world_model=model, uncertainty_bound=0.1)
    envs.step(actions)[-1]["uncertainty"]       # (8,), of kind "verdicts"
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Decode, Imagined
from worldgym.registry import TYPE, WORLD_MODELS
from worldgym.specs import Specs, check_fit, specs_of
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder

SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))
"""Shifts of the start frame (down, right) in pixels, in the order in which `first_shifts` takes them."""
LARGEST_SHIFT = 16


@dataclass(frozen=True)
class FutureState:
    """States of the leader and of all futures."""

    members: tuple[Any, ...]

    @property
    def latent(self) -> Tensor | None:
        """The leader's current clean latent, if its state has one."""
        return getattr(self.members[0], "latent", None)

    @property
    def states(self) -> Tensor | None:
        """The leader's current proprioception `(B,S)`, if its state has it."""
        return getattr(self.members[0], "states", None)

    @property
    def keys(self) -> Tensor | None:
        """The leader's noise keys `(B,)` int64, if its state has them."""
        return getattr(self.members[0], "keys", None)

    def with_keys(self, keys: Tensor) -> FutureState:
        """The same state with new noise keys of the leader; futures whose states have keys get the next ones."""
        return FutureState(tuple(_rekeyed(state, keys + i) for i, state in enumerate(self.members)))


class FutureEnsemble:
    """A leader and further futures, as one `worldgym.protocols.WorldModel`; `step` returns `Imagined.futures`.

    Args:
        leader: the world model whose frames are shown.
        others: further world models, one future each.
        shifts: pixels (down, right) by which the leader's start frames are shifted, one future each; at most 16. The
            pixels at the border are repeated.

    Raises:
        ConfigError: no future, a shift that is zero or too large, or a world model with other cameras or actions.
    """

    def __init__(self, leader: Any, others: Sequence[Any] = (), shifts: Sequence[Sequence[int]] = ()) -> None:
        self.leader, self.others = leader, tuple(others)
        self.shifts = tuple((int(down), int(right)) for down, right in shifts)
        if not self.others and not self.shifts:
            raise ConfigError("no future beside the leader; give others=[world_model], or shifts=((1, 0), (-1, 0))")
        for down, right in self.shifts:
            if not 0 < max(abs(down), abs(right)) <= LARGEST_SHIFT:
                raise ConfigError(f"shift ({down}, {right}), expected 1 to {LARGEST_SHIFT} pixels in a direction")
        for i, other in enumerate(self.others):
            check_fit(leader, other, "the leader", f"world model {i} of others")
        self.members = (leader, *self.others, *([leader] * len(self.shifts)))
        self.moved = ((0, 0),) * (1 + len(self.others)) + self.shifts
        self.action_dim, self.state_dim = leader.action_dim, getattr(leader, "state_dim", 0)

    @property
    def futures(self) -> int:
        """Number of futures beside the leader."""
        return len(self.members) - 1

    @property
    def uncertainty_kind(self) -> str:
        """What `info["uncertainty"]` is: disagreement of verdicts."""
        return "verdicts"

    @property
    def specs(self) -> Specs:
        """Specs of the leader."""
        return specs_of(self.leader)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the leader, or None."""
        return getattr(self.leader, "tokenizer", None)

    @property
    def image_size(self) -> Any:
        """Size of the leader's frames."""
        return self.leader.image_size

    @property
    def device(self) -> torch.device:
        """Device of the leader."""
        return torch.device(getattr(self.leader, "device", "cpu"))

    def to(self, device: torch.device | str) -> FutureEnsemble:
        """Move every member to `device`; returns self."""
        for member in (self.leader, *self.others):
            member.to(device)
        return self

    def with_sampler(self, **changes: object) -> FutureEnsemble:
        """Change every member's sampler; returns self."""
        for member in (self.leader, *self.others):
            member.with_sampler(**changes)
        return self

    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> FutureState:
        """Begin every future; draws as many random numbers as the leader alone."""
        members = []
        for number, (member, move) in enumerate(zip(self.members, self.moved, strict=True)):
            more: dict[str, Any] = {"views": {n: shifted(v, move) for n, v in views.items()}} if views else {}
            own = generator if number == 0 else torch.Generator().manual_seed(number)
            members.append(member.begin(shifted(frames, move), actions, own, states=states, **more))
        return _keyed(FutureState(tuple(members)))

    def step(self, state: FutureState, actions: Tensor, *, decode: Decode = "all") -> tuple[FutureState, Imagined]:
        """Imagine K steps in every future; `futures` of the result has their last frames, shifted back.

        `uncertainty (B,)` is 0, or NaN where the leader's is: verdicts are compared by who judges them.
        """
        first, shown = self.leader.step(state.members[0], actions, decode=decode)
        members, futures = [first], []
        rest = zip(self.members[1:], state.members[1:], self.moved[1:], strict=True)
        for member, own, (down, right) in rest:
            after, imagined = member.step(own, actions, decode="none" if decode == "none" else "last")
            members.append(after)
            back = (-down, -right)
            views = {name: shifted(view, back) for name, view in imagined.views.items()}
            futures.append(replace(imagined, frames=shifted(imagined.frames, back), views=views))
        return FutureState(tuple(members)), replace(
            shown, uncertainty=shown.uncertainty * 0.0, futures=tuple(futures)
        )

    def fork(self, state: FutureState, index: Tensor, generator: torch.Generator | None = None) -> FutureState:
        """Rows `index (B',)` of every future."""
        more = {} if generator is None else {"generator": generator}
        pairs = list(zip(self.members, state.members, strict=True))
        first = pairs[0][0].fork(pairs[0][1], index, **more)
        forked = FutureState((first, *(member.fork(own, index) for member, own in pairs[1:])))
        return forked if generator is None else _keyed(forked)

    def merge(self, state: FutureState, rows: Tensor, other: FutureState) -> FutureState:
        """Replace `rows` of every future by those of `other`."""
        parts = zip(self.members, state.members, other.members, strict=True)
        return FutureState(tuple(member.merge(own, rows, new) for member, own, new in parts))

    def observe(
        self, state: FutureState, frames: Tensor, states: Tensor | None = None, *,
        views: Mapping[str, Tensor] | None = None,
    ) -> FutureState:  # fmt: skip
        """Replace the current frame of every future by real frames `(B,H,W,3)`."""
        members = []
        for member, own, move in zip(self.members, state.members, self.moved, strict=True):
            more: dict[str, Any] = {"views": {n: shifted(v, move) for n, v in views.items()}} if views else {}
            members.append(member.observe(own, shifted(frames, move), states, **more))
        return FutureState(tuple(members))

    def render(self, state: FutureState) -> Tensor:
        """The leader's current frame, `(B,H,W,3)` uint8."""
        shown: Tensor = self.leader.render(state.members[0])
        return shown

    def render_views(self, state: FutureState) -> dict[str, Tensor]:
        """The leader's current frames of the other cameras."""
        shown: dict[str, Tensor] = self.leader.render_views(state.members[0])
        return shown

    # -- disk -------------------------------------------------------------------------------------
    def save_pretrained(self, path: Path | str) -> Path:
        """Write the members to numbered folders, the leader to `0`, and the shifts to config.json."""
        with save_folder(path) as folder:
            for i, member in enumerate((self.leader, *self.others)):
                WORLD_MODELS.save(member, folder / str(i))
            facts = {TYPE: "futures", "members": 1 + len(self.others), "shifts": [list(move) for move in self.shifts]}
            (folder / "config.json").write_text(json.dumps(facts))
        return Path(path)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> FutureEnsemble:
        """Load what `save_pretrained` wrote.

        Raises:
            CheckpointError: missing or damaged files.
        """
        remedy = "give a folder written by FutureEnsemble.save_pretrained"
        folder = verify_folder(path, ("config.json",), remedy)
        config = read_json(folder / "config.json", remedy)
        count, shifts = (config.get(name) if isinstance(config, dict) else None for name in ("members", "shifts"))
        whole = isinstance(shifts, list) and all(
            isinstance(move, list) and len(move) == 2 and all(type(x) is int for x in move) for move in shifts
        )
        if type(count) is not int or not 1 <= count <= 64 or not whole:
            raise CheckpointError(
                f"{folder}/config.json has members={count!r} and shifts={shifts!r}, expected 1 to 64 and a list of "
                f"pairs of whole numbers; {remedy}"
            )
        leader, *others = (WORLD_MODELS.load(folder / str(i)) for i in range(count))
        return cls(leader, others, shifts)  # type: ignore[arg-type]


def _rekeyed(state: Any, keys: Tensor) -> Any:
    """`state` with other noise keys; itself if it has none."""
    if getattr(state, "keys", None) is None:
        return state
    if hasattr(state, "with_keys"):
        return state.with_keys(keys)
    return state._replace(keys=keys) if hasattr(state, "_replace") else replace(state, keys=keys)


def _keyed(state: FutureState) -> FutureState:
    """Draw the noise of every future from the leader's keys, so that a row does not depend on its number."""
    return state if state.keys is None else state.with_keys(state.keys)


def first_shifts(count: int) -> tuple[tuple[int, int], ...]:
    """The first `count` shifts by 1, then 2, ... pixels in the four directions."""
    each = len(SHIFTS)
    return tuple((d * (1 + i // each), r * (1 + i // each)) for i in range(count) for d, r in (SHIFTS[i % each],))


def with_futures(world_model: Any, count: int) -> Any:
    """The world model with `count` futures from shifted start frames; itself for 0.

    Raises:
        ConfigError: a negative count, or more than 64.
    """
    if not 0 <= count <= 4 * LARGEST_SHIFT:
        raise ConfigError(f"futures is {count}, expected 0 to {4 * LARGEST_SHIFT}")
    return FutureEnsemble(world_model, shifts=first_shifts(count)) if count else world_model


def shifted(frames: Tensor, move: tuple[int, int]) -> Tensor:
    """Shift frames `(...,H,W,3)` by `move` pixels (down, right), repeating the border."""
    if move == (0, 0) or not frames.numel():
        return frames
    height, width = frames.shape[-3:-1]
    rows = (torch.arange(height, device=frames.device) - move[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) - move[1]).clamp(0, width - 1)
    return frames.index_select(-3, rows).index_select(-2, columns)
