"""Reads folders of plain videos, e.g. internet video: frames, and optionally one instruction per video.

`NAME.mp4` (also .webm, .mov, .mkv, .avi) becomes an episode without actions, state or success. Its instruction is the
text of `NAME.txt` in the same folder, or the entry `NAME` of `captions.json`; without either no instruction is
recorded. Long videos are divided into episodes of at most `CLIP_STEPS` steps.

Example::

    for episode in video_episodes("data/clips", ImportSettings(image_size="48x80", fps=5.0)):
        episode.actions, episode.success     # None, None
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.episode import Episode
from worldgym.data.formats.fields import is_text
from worldgym.data.formats.frames import decode_video, match
from worldgym.data.formats.recording import NO_INSTRUCTION
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import ConfigError, DatasetError
from worldgym.specs import Camera, ObservationSpec, Specs
from worldgym.utils.files import read_json

ENDINGS = (".mp4", ".webm", ".mov", ".mkv", ".avi")
CLIP_STEPS = 200


def video_files(folder: Path) -> list[Path]:
    """The video files of a folder, sorted by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def is_video_folder(folder: Path) -> bool:
    """Whether a folder holds videos and no files of actions."""
    return folder.is_dir() and bool(video_files(folder)) and not any(folder.glob("*.npz"))


def video_specs(settings: ImportSettings) -> Specs:
    """Specs of one moving camera, without state and actions."""
    (size,) = settings.sizes(1)
    return Specs(ObservationSpec((Camera("front", *size, static=False),)))


def video_episodes(folder: str | Path, settings: ImportSettings) -> Iterator[Episode]:
    """Read the videos as episodes, resampled to `settings.fps` frames per second.

    Args:
        folder: folder of videos, see the module docstring.
        settings: only `image_size`, `fps` (required), `resize`, `limit` (number of videos) and `skip_bad` are used.

    Raises:
        ConfigError: `settings.fps` is None.
        DatasetError: there is no video, or a video cannot be decoded or is shorter than two frames.
    """
    root = Path(folder).expanduser()
    if settings.fps is None:
        raise ConfigError(
            "plain videos may have different frame rates, but a dataset has a single one; type --fps 5 --actions "
            "absolute"
        )
    files = video_files(root)[: settings.limit]
    if not files:
        raise DatasetError(f"{root} holds no video ({', '.join(ENDINGS)})")
    captions = _captions(root)
    for file in files:
        try:
            yield from _clips(file, captions, settings)
        except DatasetError as error:
            if not settings.skip_bad:
                raise DatasetError(f"{error}. To skip bad videos, type --skip-bad") from error


def _captions(root: Path) -> dict[str, Any]:
    file = root / "captions.json"
    if not file.is_file():
        return {}
    found = read_json(file, "Expected an object NAME -> sentence")
    if not isinstance(found, dict) or not all(is_text(text) for text in found.values()):
        raise DatasetError(f"{file}: expected an object that maps the name of each video to a sentence")
    return found


def _clips(file: Path, captions: dict[str, Any], settings: ImportSettings) -> Iterator[Episode]:
    assert settings.fps is not None
    video = decode_video(file, settings.sizes(1)[0], settings.resize)
    span = float(video.times[-1] - video.times[0])
    times = video.times[0] + np.arange(int(span * settings.fps + 1e-6) + 1) / settings.fps
    if len(times) < 2:
        raise DatasetError(f"{file} is shorter than two frames at {settings.fps:g} frames per second")
    frames, _ = match(video, times, settings.fps, "timestamp", str(file))
    note = file.with_suffix(".txt")
    text = note.read_text(encoding="utf-8").strip() if note.is_file() else captions.get(file.stem, "")
    for part, first in enumerate(range(0, len(frames) - 1, CLIP_STEPS)):
        clip = np.ascontiguousarray(frames[first : first + CLIP_STEPS + 1])
        yield Episode(
            frames=clip,
            actions=None,
            state=np.zeros((len(clip), 0), np.float32),
            instruction=text or NO_INSTRUCTION,
            success=None,
            progress=None,
            domain="real",
            split="seen",
            task="video",
            provenance={"behaviour": "human_video", "source": file.name, "part": part},
        )
