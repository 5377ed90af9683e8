"""`ImportSettings`: the validated settings of `worldgym import`.

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
    """Settings for converting recordings to episodes.

    Args:
        image_size: size of the frames: side length in pixels, (H, W), or one of these for each camera.
        cameras: image features, the main camera first; may be omitted if the recordings have a single camera.
        state_keys: features of proprioception, concatenated; by default `observation.state`, if it exists.
        action_keys: features of actions, concatenated; by default `action`; `none` for video without actions.
        state_roles: roles of state fields, each NAME=ROLE with a role of `worldgym.specs.ROLES`.
        episodes: read only these episodes, e.g. `0-9,12`; None for all.
        skip: numbers of episodes to skip.
        skip_bad: skip episodes that cannot be read, and list them.
        limit: maximum number of episodes; the first ones are read.
        success: source of the success labels: `auto` uses `next.success` if recorded, `next.reward` requires a reward
            of at least `reward`, `all` counts every episode as successful at its end, `none` leaves success unknown.
        reward: minimum reward for success, see `success`.
        bounds: action values mapped to -1 and 1: `quantiles` uses the 1 % and 99 % quantiles, `minmax` the extreme
            values; `auto` uses quantiles, but minmax for dimensions whose values span more than ten times the range of
            the quantiles, e.g. a gripper that rarely moves.
        fps: rows per second after resampling; None keeps all rows.
        actions: how to combine the actions between two kept rows; required with `fps`. `absolute` targets: the last
            one; `delta` motions: their sum; `rate`: the mean. One rule for all dimensions, and `NAME=RULE` for single
            dimensions.
        resize: `crop` to the centre at the aspect ratio of the frames, `pad` with black, or `stretch`.
        frames: `timestamp` takes the frame nearest in time, `index` the k-th frame for the k-th row; `auto` uses
            `index` if there are as many frames as rows, else `timestamp`.
        recorded_fps: rows per second of recordings whose format does not record them; None if it does.
        action_shift: row t gets the action of row t - N; N may be negative. The rows left over are cut.
        picture_shift: row t gets the pictures of row t - N; N may be negative.
        cut: rows to cut at the start and at the end of each episode.
        mapping: YAML file with the topics and fields of MCAP recordings; None for `mapping.yaml` beside them.

    Raises:
        ConfigError: a value is invalid.
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
    recorded_fps: float | None = None
    mapping: str | None = None
    action_shift: int = 0
    picture_shift: int = 0
    cut: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _sizes(self.image_size))
        for side in (side for size in self.sizes(max(1, len(self.cameras))) for side in size):
            if side < 8 or side % 8 or side > 1024:
                raise ConfigError(f"image_size is {side}, expected a multiple of 8 up to 1024; try 64")
        for item in self.state_roles:
            name, equals, role = item.rpartition("=")
            if not equals or not name or role not in ROLES:
                raise ConfigError(f"--state-roles {item!r}: expected NAME=ROLE with a role of {', '.join(ROLES)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}, expected at least 1; omit it for all episodes")
        for name in ("episodes", "skip"):
            if getattr(self, name) is not None:
                try:
                    number_ranges(getattr(self, name))
                except ValueError as error:
                    raise ConfigError(f"--{name}: {error}") from error
        if self.fps is not None and not 0 < self.fps < 1000:
            raise ConfigError(f"fps is {self.fps}, expected rows per second between 0 and 1000")
        if self.recorded_fps is not None and not 0 < self.recorded_fps < 1000:
            raise ConfigError(
                f"recorded_fps is {self.recorded_fps}, expected rows per second between 0 and 1000"
            )
        if self.fps is not None and not self.actions:
            raise ConfigError(
                "--fps combines the actions of several rows, and the rule depends on their meaning: type --actions "
                "absolute, delta or rate, and NAME=RULE for dimensions that differ (e.g. gripper=absolute)"
            )
        if len(self.cut) != 2 or any(type(rows) is not int or rows < 0 for rows in self.cut):
            raise ConfigError(f"cut is {self.cut}, expected the rows to cut at the start and at the end, such as 1 0")
        for name in ("action_shift", "picture_shift"):
            if type(getattr(self, name)) is not int:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a whole number of rows, such as -1")
        if not np.isfinite(self.reward):
            raise ConfigError(f"reward is {self.reward}, expected a finite number")

    def sizes(self, cameras: int) -> list[tuple[int, int]]:
        """Height and width of the frames of each camera, for this number of cameras.

        Raises:
            ConfigError: the number of sizes differs from the number of cameras, or a size is invalid.
        """
        given = _sizes(self.image_size)
        if len(given) not in (1, cameras):
            raise ConfigError(
                f"--image-size has {len(given)} sizes for {cameras} cameras; give one for all, or one for each camera"
            )
        return list(given) if len(given) == cameras else list(given) * cameras

    @property
    def without_actions(self) -> bool:
        """Whether episodes are imported as video without actions."""
        return self.action_keys == ("none",)


def _sizes(given: Any) -> tuple[tuple[int, int], ...]:
    """Parse one size for all cameras, or one per camera, from a number, `HxW`, a pair, or a sequence of these."""
    pair = (
        len(given) == 2 and all(type(side) is int for side in given)
        if isinstance(given, (tuple, list))
        else True
    )
    return (size_of(given),) if pair else tuple(size_of(item) for item in given)
