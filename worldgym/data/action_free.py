"""Video without actions: recordings from which only what needs no action is learned.

Example::

    arrays = EpisodeArrays.together([logs, as_video(others, logs, "--video")])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from worldgym.data.arrays import EpisodeArrays
from worldgym.data.reader import EpisodeDataset
from worldgym.errors import ConfigError

logger = logging.getLogger(__name__)


def check_video(video: EpisodeDataset, fps: float | None, option: str) -> None:
    """Check the frame rate of video, and warn about held-out splits in it.

    Args:
        video: dataset of the video.
        fps: frame rate of the other data, frames per second; None if it does not matter.
        option: option of the command that gave it, for messages.

    Raises:
        ConfigError: another frame rate.
    """
    if fps is not None and abs(video.meta.fps - fps) > 1e-6 * fps:
        raise ConfigError(
            f"the video has {video.meta.fps:g} frames per second, and the other data have {fps:g}; both need the same, "
            f"because a chunk lasts a fixed time. Give video of this rate (worldgym import --fps {fps:g} resamples "
            f"recordings that have actions), or leave {option} out"
        )
    if held_out := sorted({record.split for record in video.records} - {"seen"}):
        logger.warning(
            "%s has episodes of the split %s: for this policy it is no longer unseen, though none of its "
            "actions are read", option, ", ".join(held_out),
        )  # fmt: skip


def as_video(arrays: EpisodeArrays, like: EpisodeArrays, option: str) -> EpisodeArrays:
    """Episodes as video without actions, in the form of other episodes.

    Args:
        arrays: episodes of any robot; their actions, if any, are ignored.
        like: episodes whose cameras and proprioception they need.
        option: option of the command that gave them, for messages.

    Raises:
        ConfigError: as `video_states`.
    """
    states = video_states(arrays, camera_sizes(like), like.states.mean(0), option)
    return replace(
        arrays,
        states=states,
        actions=np.zeros((len(states), like.actions.shape[1]), np.float32),
        has_action=np.zeros(len(arrays), bool),
        specs=like.specs,
    )


def camera_sizes(arrays: EpisodeArrays) -> dict[str, tuple[int, ...]]:
    """Shapes of the frames by camera."""
    return {"main": arrays.frames.shape[1:], **{name: seen.shape[1:] for name, seen in arrays.views.items()}}


def video_states(
    arrays: EpisodeArrays, sizes: Mapping[str, tuple[int, ...]], mean: np.ndarray, option: str
) -> np.ndarray:
    """Proprioception `(F,S)` of video: its own, or the mean of other data where it has none.

    Args:
        arrays: episodes of the video.
        sizes: shapes of the frames that are needed, by camera.
        mean: `(S,)` mean proprioception of the other data.
        option: option of the command that gave the video, for messages.

    Raises:
        ConfigError: other cameras or sizes, or another number of dimensions of proprioception than none or S.
    """
    given = camera_sizes(arrays)
    if dict(sizes) != given:
        raise ConfigError(
            f"the video has the cameras {_said(given)}, and the other data have {_said(sizes)}; both need the same. "
            f"Import the video with the same --image-size and cameras, or leave {option} out"
        )
    states = arrays.states
    if states.shape[1] not in (0, len(mean)):
        raise ConfigError(
            f"the video has {states.shape[1]} dimensions of proprioception, and the other data have {len(mean)}; "
            f"expected the same number, or none; import it without proprioception, or leave {option} out"
        )
    if states.shape[1]:
        return states.astype(np.float32)
    return np.repeat(mean[None].astype(np.float32), len(arrays.frames), 0)


def _said(cameras: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape[0]}x{shape[1]}" for name, shape in cameras.items())
