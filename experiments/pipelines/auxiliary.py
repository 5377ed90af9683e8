"""Auxiliary losses of `worldgym train policy`: from options to settings, tokens and video.

Example::

    settings = losses_for(("flare",), ("weight=0.2",))
    tokens_for(settings)                     # {"future_tokens": 8}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.pipelines.checks import values_of
from worldgym.errors import ConfigError

if TYPE_CHECKING:
    from agents import ChunkDataset
    from worldgym.data import EpisodeDataset


def check_auxiliary(
    names: Sequence[str], settings: Sequence[str], video: Path | None, initial: Path | None
) -> None:
    """Refuse options that need another one, before anything is loaded.

    Raises:
        ConfigError: settings or video without a loss, or a loss for a policy of which only the goal head is trained.
    """
    for option, value in (("--aux-settings", settings), ("--aux-video", video)):
        if value and not names:
            said = " ".join(settings) if option == "--aux-settings" else str(video)
            raise ConfigError(
                f"{option} {said} is for an auxiliary loss, and --aux is missing; add --aux flare"
            )
    if names and initial is not None:
        raise ConfigError(
            f"--aux trains the whole policy, and --initial {initial} its goal head alone; leave one of them out"
        )


def losses_for(names: Sequence[str], given: Sequence[str], video: Path | None = None) -> dict[str, Any]:
    """Settings by name of the loss, from `--aux` and `--aux-settings`.

    Raises:
        ConfigError: an unknown loss, an unknown or invalid setting, or video while no loss has a weight.
    """
    if not names:
        return {}
    from agents.auxiliary.make import settings_of

    found = settings_of(names, values_of(given, "--aux-settings", "weight=0.2"))
    if video is not None and not any(getattr(each, "weight", 1.0) for each in found.values()):
        raise ConfigError(
            f"--aux-video {video} is for an auxiliary loss, and all have weight 0; leave out --aux-video or weight=0"
        )
    return found


def tokens_for(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the policy's config that these losses need; none without a loss."""
    from agents.auxiliary.make import future_view, token_count

    found = {"future_tokens": token_count(settings), "future_view": future_view(settings)}
    return {name: value for name, value in found.items() if value}


def video_for(video: EpisodeDataset, demos: ChunkDataset, limit: int | None = None) -> ChunkDataset:
    """Rows of the first `limit` episodes of the video; warns about held-out splits.

    Raises:
        ConfigError: its cameras or proprioception differ from those of the demonstrations.
    """
    from agents.auxiliary.video import video_rows
    from worldgym.data.action_free import check_video

    check_video(video, None, "--aux-video")
    return video_rows(video.load_arrays(limit=limit, progress=True, cameras=video.cameras), demos)
