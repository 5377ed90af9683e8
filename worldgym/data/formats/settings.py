"""How recordings become episodes: the settings of `worldgym import`, validated.

Example::

    ImportSettings(cameras=("observation.images.top", "observation.images.wrist"), success="all")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worldgym.data.formats.fields import number_ranges
from worldgym.data.formats.frames import Matching, Resize
from worldgym.data.formats.recording import Success
from worldgym.errors import ConfigError
from worldgym.specs import ROLES
from worldgym.utils.sizes import size_of

Bounds = Literal["auto", "quantiles", "minmax"]


@dataclass(frozen=True)
class ImportSettings:
    """How recordings become episodes.

    Args:
        image_size: pixels of a side of the frames, (H, W), or one of these for each camera.
        cameras: features that hold pictures, the main one first; may be left out where there is but one.
        state_keys: features of proprioception, joined; `observation.state` by default, where there is one.
        action_keys: features of actions, joined; `action` by default, `none` for video without actions.
        state_roles: what state fields are, NAME=ROLE, with a role of `worldgym.specs.ROLES`.
        episodes: numbers such as `0-9,12`, and only these are read; None for all.
        skip: numbers of episodes that are left out.
        skip_bad: leave out episodes that can't be read, and list them.
        limit: at most so many episodes, the first ones.
        success: where success comes from; `auto` is `next.success` where recorded, `next.reward` needs a reward of at
            least `reward`, `all` counts every episode as solved at its end, `none` leaves it unknown.
        reward: see `success`.
        bounds: of actions at -1 and 1: `quantiles` are 1 % and 99 %, `minmax` all values; `auto` is quantiles, but
            minmax for dimensions whose values span more than ten times the quantiles' range, such as a rare gripper.
        fps: rows a second after resampling; None keeps the rows as they are.
        actions: what an action means, needed with `fps`: `absolute` targets keep the last one, `delta` motions are
            added up, a `rate` is averaged; one for all, and `NAME=RULE` for single dimensions.
        resize: `crop` the middle in the frames' proportions, `pad` with black, or `stretch`.
        frames: `timestamp` takes the frame nearest in time, `index` the k-th frame for the k-th row; `auto` is index
            where there are as many frames as rows, else timestamp.

    Raises:
        ConfigError: an impossible value.
    """

    image_size: int | str | tuple[int | str | tuple[int, int], ...] = 64
    cameras: tuple[str, ...] = ()
    state_keys: tuple[str, ...] = ()
    action_keys: tuple[str, ...] = ()
    state_roles: tuple[str, ...] = ()
    episodes: str | None = None
    skip: str | None = None
    skip_bad: bool = False
    limit: int | None = None
    success: Success = "auto"
    reward: float = 1.0
    bounds: Bounds = "auto"
    fps: float | None = None
    actions: tuple[str, ...] = ()
    resize: Resize = "crop"
    frames: Matching = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _sizes(self.image_size))
        for side in (side for size in self.sizes(max(1, len(self.cameras))) for side in size):
            if side < 8 or side % 8 or side > 1024:
                raise ConfigError(f"image_size is {side}, expected a multiple of 8 up to 1024; try 64")
        for item in self.state_roles:
            name, equals, role = item.rpartition("=")
            if not equals or not name or role not in ROLES:
                raise ConfigError(f"--state-roles {item!r}: expected NAME=ROLE, a role of {', '.join(ROLES)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}, expected at least 1, or nothing for all")
        for name in ("episodes", "skip"):
            if getattr(self, name) is not None:
                try:
                    number_ranges(getattr(self, name))
                except ValueError as error:
                    raise ConfigError(f"--{name}: {error}") from error
        if self.fps is not None and not 0 < self.fps < 1000:
            raise ConfigError(f"fps is {self.fps}, expected rows a second between 0 and 1000")
        if self.fps is not None and not self.actions:
            raise ConfigError(
                "--fps joins rows, and how to join actions depends on what they mean: type --actions absolute, delta "
                "or rate, and NAME=RULE for dimensions that differ (such as gripper=absolute)"
            )
        if not np.isfinite(self.reward):
            raise ConfigError(f"reward is {self.reward}, expected a finite number")

    def sizes(self, cameras: int) -> list[tuple[int, int]]:
        """Height and width of the frames of each of so many cameras.

        Raises:
            ConfigError: another number of sizes, or one that is none.
        """
        given = _sizes(self.image_size)
        if len(given) not in (1, cameras):
            raise ConfigError(
                f"--image-size names {len(given)} sizes for {cameras} cameras; give one for all, or one for each camera"
            )
        return list(given) if len(given) == cameras else list(given) * cameras

    @property
    def without_actions(self) -> bool:
        """Whether episodes are imported as video alone."""
        return self.action_keys == ("none",)


def _sizes(given: Any) -> tuple[tuple[int, int], ...]:
    """One size for all cameras, or one for each, from a number, `HxW`, a pair, or a sequence of these."""
    pair = (
        len(given) == 2 and all(type(side) is int for side in given)
        if isinstance(given, (tuple, list))
        else True
    )
    return (size_of(given),) if pair else tuple(size_of(item) for item in given)
