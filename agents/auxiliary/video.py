"""Video without actions as training rows: only auxiliary losses learn from them.

Example::

    video = video_rows(EpisodeDataset("data/video").load_arrays(), demos)
    SFT(auxiliaries=losses, video=video).fit(policy, demos)
"""

from __future__ import annotations

import numpy as np

from agents.data.demonstrations import ChunkDataset
from agents.data.future import future_frames
from worldgym.data.action_free import video_states
from worldgym.data.arrays import EpisodeArrays
from worldgym.errors import ConfigError


def video_rows(arrays: EpisodeArrays, demos: ChunkDataset) -> ChunkDataset:
    """Rows for every frame that has a later one, with the cameras and sizes of the demonstrations.

    Args:
        arrays: episodes; their actions are ignored.
        demos: the demonstrations. If the video has no proprioception, its rows get the mean of theirs.

    Returns:
        rows with the keys of `demos`, all actions and goals NaN, and later frames.

    Raises:
        ConfigError: another image size, other cameras, other proprioception, or no episode of two frames.
    """
    sizes = {"main": demos.images.shape[1:], **{name: seen.shape[1:] for name, seen in demos.views.items()}}
    states = video_states(arrays, sizes, demos.states.mean(0), "--aux-video")
    episodes, rows, texts, owner = [], [], [], []
    for number in range(len(arrays)):
        where = arrays.rows(number)
        steps = where.stop - where.start - 1
        if steps < 1:
            continue
        episodes.append((_Frames(arrays, where), steps))
        rows.append(np.arange(where.start, where.start + steps))
        texts += [arrays.instructions[number]] * steps
        owner.append(np.full(steps, number))
    if not rows:
        raise ConfigError(
            "the video has no episode of two frames or more, so there is no later frame to learn from; leave "
            "--aux-video out"
        )
    index = np.concatenate(rows)
    return ChunkDataset(
        images=arrays.frames[index],
        states=states[index],
        instructions=texts,
        actions=np.full((len(index), *demos.actions.shape[1:]), np.nan, np.float32),
        episode=np.concatenate(owner).astype(np.int64),
        goals=np.full((len(index), demos.goals.shape[1]), np.nan, np.float32),
        views={name: frames[index] for name, frames in arrays.views.items()},
        future=future_frames(episodes),
    )


class _Frames:
    """The frames of one episode, all cameras."""

    def __init__(self, arrays: EpisodeArrays, where: slice) -> None:
        self.frames = arrays.frames[where]
        self.views = {name: frames[where] for name, frames in arrays.views.items()}

