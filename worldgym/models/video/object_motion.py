"""Object motion: objects that the hand grasps or pushes move in the image like the hand. An option of the dynamics.

It applies to one static camera and to proprioception whose spec names the position (x, y, z) and the gripper opening of
one hand (`ObservationSpec.has_hand`), and only if the config enables it. Other data use the plain dynamics.

The dynamics gets the previous frame *warped* by the expected image motion of the hand (one learned shift per frame,
from action and proprioception), and may take any cell from it instead of from the previous frame. Moving a grasped
object is then copying. `worldgym.models.video.latent_shift` describes how latents are shifted.

Each copy loses some detail, colour first, and a grasped object is copied a dozen times. So the dynamics also gets the
*anchor*, a clean frame from before the window, warped by the image motion of the hand while it grasped something. This
shows the grasped object at its current place after a single copy. A hand that sweeps low over the table pushes what it
touches, so sideways motion there counts as well. Copying from the first frame across time is the skip connection of
Ebert et al. 2017 (section 4); computing the displacement from proprioception is new in this project.

Example::

    hand = HandColumns.of(spec)                                       # None if the spec has no hand
    motion = ObjectMotionConfig(hand, projection=((0.95, 0, 0, 0), (0, -0.73, -0.61, 0)))
    config = replace(config, dynamics=replace(config.dynamics, motion=motion))
    odds = window_odds(states, offsets, window=20, contact=2.5, hand=hand)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.video.latent_shift import LatentShift
from worldgym.nn import RowBatch
from worldgym.specs import ObservationSpec


@dataclass(frozen=True)
class HandColumns:
    """Columns of proprioception that describe the hand.

    Args:
        position: columns of x, y and z.
        gripper: column of the gripper opening; larger values are wider open.

    Raises:
        ConfigError: not three position columns, or a column given twice.
    """

    position: tuple[int, ...]
    gripper: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "position", tuple(self.position))
        columns = (*self.position, self.gripper)
        if len(self.position) != 3 or len(set(columns)) < 4 or min(columns) < 0:
            raise ConfigError(
                f"a hand has three columns of position and another one of its gripper, from 0; got {columns}"
            )

    @classmethod
    def of(cls, spec: ObservationSpec) -> HandColumns | None:
        """Columns of the roles `ee_position` and `gripper`; None unless the spec names exactly one hand."""
        if not spec.has_hand:
            return None
        return cls(spec.columns("ee_position"), spec.columns("gripper")[0])

    @property
    def height(self) -> int:
        """Column of z."""
        return self.position[2]


@dataclass(frozen=True)
class ObjectMotionConfig:
    """Settings of object motion.

    Args:
        hand: columns of proprioception that describe the hand.
        projection: initial value for the image motion of the hand, in latent cells (right, down) per unit of each
            action dimension; training refines it.
        warp_anchor: whether the anchor, warped by the displacement of moved objects since, is an input too.
        grasp_range: normalised gripper openings between which the hand is assumed to grasp something.
        contact_height: normalised height below which sideways motion of the hand pushes objects; None for no pushing.
        width: width of the network that shifts latents.
    """

    hand: HandColumns
    projection: tuple[tuple[float, ...], tuple[float, ...]]
    warp_anchor: bool = True
    grasp_range: tuple[float, float] = (-2.0, 0.0)
    contact_height: float | None = None
    width: int = 96

    def __post_init__(self) -> None:
        right, down = self.projection  # json gives lists
        object.__setattr__(self, "projection", (tuple(right), tuple(down)))
        low, high = self.grasp_range
        object.__setattr__(self, "grasp_range", (low, high))
        if len(right) != len(down):
            raise ConfigError(
                f"projection has {len(right)} numbers for right and {len(down)} for down; got {self}"
            )

    def check(self, action_dim: int, state_dim: int) -> None:
        """Raise a ConfigError unless the settings fit the sizes of action and proprioception."""
        if len(self.projection[0]) != action_dim:
            raise ConfigError(
                f"projection needs {action_dim} numbers for right and down each; got {self.projection}"
            )
        if max(*self.hand.position, self.hand.gripper) >= state_dim:
            raise ConfigError(
                f"object motion reads columns {self.hand} of proprioception, which has {state_dim}; leave it out with "
                "motion=None"
            )


@dataclass(frozen=True)
class MotionMemory(RowBatch):
    """Memory for warping the anchor, stored next to the key-value cache.

    Args:
        displacement: `(B,2)` cells (right, down) by which an object was moved since the anchor.
        last: `(B,S)` normalised proprioception up to which the displacement is counted.
        features: `(B,f,4h,4w)` features of the anchor on the finer grid.
    """

    displacement: Tensor
    last: Tensor
    features: Tensor


class ObjectMotion(nn.Module):
    """Warps frames by the expected object motion and lets the dynamics take cells from them.

    Args:
        config: settings of object motion.
        channels: channels of the latents.
        action_dim: A.
        state_dim: S.
        hidden: channels of the features that predict the weight of each warped frame.
    """

    def __init__(
        self, config: ObjectMotionConfig, channels: int, action_dim: int, state_dim: int, hidden: int = 64
    ) -> None:
        super().__init__()
        c = self.config = config
        self.residual = nn.Sequential(nn.Linear(action_dim + state_dim, 64), nn.SiLU(), nn.Linear(64, 2))
        self.projection = nn.Linear(action_dim, 2, bias=False)
        self.shift = LatentShift(channels, c.width)
        self.take = nn.Conv2d(hidden, self.count, 3, padding=1)
        nn.init.zeros_(self.residual[2].weight)
        nn.init.zeros_(self.residual[2].bias)
        nn.init.zeros_(self.take.weight)
        nn.init.constant_(self.take.bias, -3.0)
        with torch.no_grad():
            self.projection.weight.copy_(torch.tensor(c.projection))
        if c.warp_anchor:
            self.place = nn.Sequential(nn.Linear(state_dim, 64), nn.SiLU(), nn.Linear(64, 2))

    @property
    def count(self) -> int:
        """Number of warped frames that the dynamics gets."""
        return 1 + self.config.warp_anchor

    # -- the hand ----------------------------------------------------------------------------------------------------
    def image_motion(self, actions: Tensor, states: Tensor) -> Tensor:
        """Image motion `(N,2)` of the hand, latent cells right and down, under `actions (N,A)` from `states`."""
        dtype = self.projection.weight.dtype
        actions, states = actions.to(dtype), states.to(dtype)
        cells: Tensor = self.projection(actions) + self.residual(torch.cat([actions, states], -1))
        return cells

    def grasps(self, states: Tensor) -> Tensor:
        """Whether the hand grasps something, from the gripper opening in normalised `states (...,S)`."""
        low, high = self.config.grasp_range
        opening = states[..., self.config.hand.gripper]
        return (opening > low) & (opening < high)

    def pushes(self, states: Tensor) -> Tensor:
        """Whether the hand is low enough to push objects, from normalised `states (...,S)`."""
        if self.config.contact_height is None:
            return torch.zeros_like(states[..., 0], dtype=torch.bool)
        return states[..., self.config.hand.height] < self.config.contact_height

    def carries(self, states: Tensor) -> Tensor:
        """Whether the hand moves objects by grasping or pushing, from normalised `states (...,S)`."""
        return self.grasps(states) | self.pushes(states)

    def displacement(self, states: Tensor) -> Tensor:
        """Cells `(B,T,2)` by which an object was moved from the first to each of normalised `states (B,T,S)`."""
        counts = self.carries(states)
        if self.config.contact_height is not None:  # pushed objects stay on the table, whatever the hand's height
            height = torch.arange(states.shape[-1], device=states.device) == self.config.hand.height
            states = torch.where(height, states.clamp(min=self.config.contact_height), states)
        place = self.place(states.to(self.projection.weight.dtype)).float()
        carried = (counts[:, 1:] & counts[:, :-1])[..., None] * (place[:, 1:] - place[:, :-1])
        return F.pad(carried.cumsum(1), (0, 0, 1, 0))

    def loss(self, actions: Tensor, states: Tensor) -> Tensor:
        """Squared difference between the motion of `place`, the hand's image position, and `image_motion`, `(B,T)`.

        Args:
            actions: `(B,T,A)` in [-1, 1].
            states: `(B,T+1,S)` normalised proprioception around them.
        """
        place = self.place(states)
        with torch.no_grad():
            cells = self.image_motion(actions, states[:, :-1])
        return (place[:, 1:] - place[:, :-1] - cells).float().square().mean(-1)

    # -- warped frames -------------------------------------------------------------------------------------------------
    def warp(self, picture: Tensor, cells: Tensor) -> Tensor:
        """`picture (N,C,h,w)` with everything but the background shifted by `cells (N,2)`."""
        moved: Tensor = self.shift(picture, cells)
        return moved.to(picture.dtype)

    def warps(
        self, previous: Tensor, actions: Tensor, states: Tensor, displacement: Tensor, features: Tensor
    ) -> list[Tensor]:
        """The warped previous frame and, if configured, the warped anchor, each like `previous (N,C,h,w)`.

        Args:
            previous: frames before the predicted ones.
            actions: `(N,A)` actions.
            states: `(N,S)` normalised proprioception at `previous`.
            displacement: `(N,2)` cells by which an object was moved up to `previous`.
            features: `(N,f,4h,4w)` features of the anchor on the finer grid.
        """
        cells = self.image_motion(actions, states)
        shown = [self.warp(previous, cells)]
        if self.config.warp_anchor:
            moved = displacement.to(cells.dtype) + self.carries(states)[:, None] * cells
            shown.append(self.shift.fold(features, moved).to(previous.dtype))
        return shown

    def window(
        self,
        previous: Tensor,
        actions: Tensor,
        states: Tensor,
        anchor: Tensor,
        displacement: Tensor | None,
    ) -> list[Tensor]:
        """Warped frames as in `warps` for all frames of a window, flattened over B T.

        Args:
            previous: `(B,T,C,h,w)` frames before the predicted ones.
            actions: `(B,T,A)` actions.
            states: `(B,T,S)` normalised proprioception.
            anchor: `(B,C,h,w)` anchor frames.
            displacement: `(B,2)` displacement between the anchor and the window; 0 when None.
        """
        frames = states.shape[1]
        features, moves = anchor, states.new_zeros(*states.shape[:2], 2)
        if self.config.warp_anchor:
            features, moves = self.shift.unfold(anchor.to(previous.dtype)), self.displacement(states)
        if displacement is not None:
            moves = moves + displacement[:, None]
        each = features[:, None].expand(-1, frames, -1, -1, -1)
        flat = [x.flatten(0, 1) for x in (previous, actions, states, moves, each)]
        return self.warps(*flat)

    def take_from(self, latents: Tensor, hidden: Tensor, shown: list[Tensor], previous: Tensor) -> Tensor:
        """Blend cells of the warped frames into `latents (N,C,h,w)`, gated by features `hidden (N,64,h,w)`."""
        taken = self.take(hidden).float().sigmoid()
        for i, picture in enumerate(shown):
            latents = latents + taken[:, i : i + 1] * (picture.float() - previous.float())
        return latents

    # -- memory ------------------------------------------------------------------------------------------------------
    def memory(self, anchor: Tensor, states: Tensor, displacement: Tensor | None) -> MotionMemory | None:
        """Memory that starts at `anchor (B,C,h,w)` and `displacement (B,2)`; None if the anchor is not warped."""
        if not self.config.warp_anchor:
            return None
        moved = torch.zeros(len(anchor), 2, device=anchor.device) if displacement is None else displacement
        return MotionMemory(moved.float().clone(), states.float().clone(), self.shift.unfold(anchor))

    def track(self, memory: MotionMemory, states: Tensor) -> None:
        """Add the displacement up to `states (B,S)`, in place; a second call with the same states adds nothing."""
        both = torch.stack([memory.last, states.float()], 1)
        memory.displacement.add_(self.displacement(both)[:, 1])
        memory.last.copy_(states)


# -- statistics of the logs -------------------------------------------------------------------------------------
def bounds_of(states: np.ndarray, hand: HandColumns) -> tuple[tuple[float, float], float | None]:
    """Grasp range and contact height, normalised, derived from the logs' proprioception `(F,S)`.

    The hand is assumed to grasp something between a fifth and nine tenths of the way from closed to open, and to push
    in the lowest fifth of its heights, unless all heights are equal.
    """
    mean, std = states.mean(0), states.std(0) + 1e-6
    z, grip = hand.height, hand.gripper
    shut, wide = np.percentile(states[:, grip], (1, 99))
    floor, ceiling = np.percentile(states[:, z], (1, 99))
    low = float((floor + 0.2 * (ceiling - floor) - mean[z]) / std[z]) if ceiling > floor else None
    closed, opened = (float((shut + share * (wide - shut) - mean[grip]) / std[grip]) for share in (0.2, 0.9))
    return (closed, opened), low


def window_odds(
    states: np.ndarray, offsets: np.ndarray, window: int, contact: float, hand: HandColumns
) -> np.ndarray:
    """Relative odds `(F,)` that a training window begins at each frame.

    The odds are `contact` squared if the window contains a step at which the hand carries something, `contact` if it
    contains one at which the hand moves an object otherwise, and 1 elsewhere. These steps are derived from
    proprioception alone: the gripper is partly closed (and the hand is high), or the hand moves sideways close to the
    table.

    Args:
        states: `(F,S)` proprioception in data units.
        offsets: `(E+1,)` first frame of each episode.
        window: frames per window.
        contact: odds of windows with contact.
        hand: columns of the hand.
    """
    opening, height = states[:, hand.gripper], states[:, hand.height]
    low, high = np.percentile(opening, (1, 99))
    holding = (opening > low + 0.2 * (high - low)) & (opening < low + 0.8 * (high - low))
    speed = np.zeros(len(states))
    speed[1:] = np.linalg.norm(np.diff(states[:, list(hand.position[:2])], axis=0), axis=1)
    speed[offsets[:-1]] = 0.0
    floor, ceiling = np.percentile(height, (1, 99))
    pushing = (height < floor + 0.25 * (ceiling - floor)) & (speed > 0.25 * np.percentile(speed, 99))
    carrying = holding & (height > floor + 0.3 * (ceiling - floor))
    episode = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    begin = np.arange(len(opening))
    end = np.minimum(begin + window, offsets[episode + 1])
    odds = np.ones(len(states))
    for happens in (holding | pushing, carrying):
        so_far = np.concatenate([[0], np.cumsum(happens)])
        odds *= np.where(so_far[end] > so_far[begin], contact, 1.0)
    return odds
