"""mp4 encoder and decoder for frames of at least 128 px, with the ffmpeg of the package imageio-ffmpeg.

Smaller frames are stored as PNG: H.264 stores colour at half resolution and blurs objects of six pixels, whose
positions decide success. For frames of 128 px and more, mp4 needs about a tenth of the space.

Example::

    from worldgym.data.codecs.video import decode_mp4, encode_mp4
    encode_mp4(path, frames, fps=5.0)                              # (F, H, W, 3) uint8
    decode_mp4(path, start=2.0, count=10, size=(128, 160), fps=5.0)  # (10, 128, 160, 3), from second 2 on
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from worldgym.errors import DatasetError
from worldgym.utils.sizes import size_of


def encode_mp4(path: Path, frames: Iterable[np.ndarray], size: int | tuple[int, int], fps: float) -> None:
    """Write `(H, W, 3)` uint8 frames; every second frame is a key frame, for fast seeking.

    Raises:
        OSError: ffmpeg failed or the disk is full.
    """
    import imageio_ffmpeg

    height, width = size_of(size)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", "18", "-g", "2", "-bf", "0", "-threads", "1"],
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
    if not path.is_file() or path.stat().st_size == 0:
        raise OSError(f"ffmpeg wrote nothing to {path}")


def decode_mp4(path: Path, start: float, count: int, size: int | tuple[int, int], fps: float) -> np.ndarray:
    """Read frames from time `start` on, `(count, H, W, 3)` uint8.

    Args:
        path: path of the video.
        start: start time, seconds.
        count: number of frames.
        size: size of the video: side length in pixels, or (H, W).
        fps: frame rate of the video, frames per second.

    Raises:
        DatasetError: the video is damaged or too short.
    """
    import imageio_ffmpeg

    # Seek half a frame early, so that the frame at `start` is the first one after the seek point despite rounding.
    seek = max(0.0, start - 0.5 / fps)
    height, width = size_of(size)
    out = np.empty((count, height, width, 3), np.uint8)
    got = 0
    try:
        reader = imageio_ffmpeg.read_frames(
            str(path), input_params=["-ss", f"{seek:.6f}"], output_params=["-frames:v", str(count)]
        )
        next(reader)
        for raw in reader:
            out[got] = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
            got += 1
            if got == count:
                break
        reader.close()
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        raise DatasetError(
            f"{path} can't be decoded ({error}); restore that file, or collect again"
        ) from error
    if got != count:
        raise DatasetError(
            f"{path} ends after {got} of {count} frames from {start:.2f} s on; restore it from a copy"
        )
    return out
