"""Decodes recorded videos and images to frames of a given size, and matches video frames to rows.

A video is decoded once, with the presentation time of every frame from the container. Rows are matched to frames by
time, as in LeRobot, or one to one if there are exactly as many frames as rows.

Example::

    video = decode_video(path, size=(48, 64), resize="crop")      # times (F,) s, frames (F, 48, 64, 3) u8
    frames, rule = match(video, row_times, fps=10.0, rule="auto", where="episode 3")
"""

from __future__ import annotations

import io
import re
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from worldgym.errors import DatasetError
from worldgym.utils.sizes import size_of

Resize = Literal["crop", "pad", "stretch"]
Matching = Literal["auto", "timestamp", "index"]
MAX_PIXELS = 64_000_000  # per image; larger images are rejected, as damaged files or decompression bombs
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_PTS = re.compile(rb"pts_time:\s*(-?[0-9.eE+]+|nan|NOPTS)")


class Video(NamedTuple):
    """Decoded video: presentation times `times (F,)` float64 in seconds, and `frames (F, H, W, 3)` uint8."""

    times: np.ndarray
    frames: np.ndarray


def video_filter(size: int | tuple[int, int], resize: Resize) -> str:
    """The ffmpeg filter that resizes frames to `size` pixels, a side length or (H, W)."""
    height, width = size_of(size)
    area = f"scale={width}:{height}:flags=area"
    if resize == "crop":
        if height == width:
            return rf"crop=min(iw\,ih):min(iw\,ih),{area}"
        return rf"crop=min(iw\,ih*{width}/{height}):min(ih\,iw*{height}/{width}),{area}"
    if resize == "stretch":
        return area
    fit = f"scale={width}:{height}:flags=area:force_original_aspect_ratio=decrease"
    return f"{fit},pad={width}:{height}:(ow-iw)/2:(oh-ih)/2"


def decode_video(
    path: Path,
    size: int | tuple[int, int],
    resize: Resize = "crop",
    window: tuple[float, float] | None = None,
) -> Video:
    """Decode a video, or the part of it between two times.

    Args:
        path: the file.
        size: size of the resulting frames: side length in pixels, or (H, W).
        resize: `crop` to the centre at the aspect ratio of `size`, `pad` with black, or `stretch`.
        window: start and end in seconds (infinity for the end of the file); None for the whole video.

    Raises:
        DatasetError: the file is missing or damaged, or has frames without a time.
    """
    import imageio_ffmpeg

    if not path.is_file():
        raise DatasetError(f"{path} is missing although the dataset lists it; download it again")
    seek = []
    if window is not None:
        seek = ["-ss", f"{max(0.0, window[0] - 0.5):.6f}"]
        seek += ["-to", f"{window[1] + 0.5:.6f}"] if np.isfinite(window[1]) else []
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "info", "-copyts", *seek,
        "-i", str(path), "-map", "0:v:0", "-vf", f"{video_filter(size, resize)},showinfo", "-fps_mode", "passthrough",
        "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
        reader.start()
        raw = process.stdout.read() if process.stdout else b""
        process.wait()
        reader.join()
    frames = np.frombuffer(raw, np.uint8)
    height, width = size_of(size)
    length = height * width * 3
    log = b"".join(line for line in lines)
    found = [m.group(1) for line in lines if b"showinfo" in line and (m := _PTS.search(line))]
    if process.returncode or len(frames) % length or len(found) != len(frames) // length or not found:
        last = log.decode(errors="replace").strip().splitlines()[-1:] or ["no frame"]
        raise DatasetError(
            f"{path} can't be decoded ({last[0].strip()}); restore that file or download it again"
        )
    try:
        times = np.array([float(text) for text in found])
    except ValueError as error:
        raise DatasetError(
            f"{path} has frames without a time; convert it with `ffmpeg -i IN -c copy OUT`"
        ) from error
    frames = frames.reshape(-1, height, width, 3)
    if window is not None:
        keep = (times >= window[0] - 1e-6) & (times < window[1] - 1e-6)
        times, frames = times[keep], frames[keep]
    return Video(times, frames)


def match(video: Video, asked: np.ndarray, fps: float, rule: Matching, where: str) -> tuple[np.ndarray, str]:
    """Select a frame for each row.

    Args:
        video: the decoded video.
        asked: `(N,)` times of the rows, in seconds of the video's clock.
        fps: rows per second.
        rule: `timestamp` takes the frame nearest in time, `index` the k-th frame for the k-th row; `auto` uses `index`
            if there are as many frames as rows, else `timestamp`.
        where: description of the episode for messages.

    Returns:
        Frames `(N, H, W, 3)` uint8, and the rule that was used.

    Raises:
        DatasetError: a row has no frame within half a row interval, or there are fewer frames than rows.
    """
    if rule == "auto":
        rule = "index" if len(video.times) == len(asked) else "timestamp"
    if rule == "index":
        if len(video.times) < len(asked):
            raise DatasetError(
                f"{where}: {len(video.times)} frames for {len(asked)} rows; the video ends early"
            )
        return video.frames[: len(asked)], rule
    if not len(video.times):
        raise DatasetError(f"{where}: the video has no frame between {asked[0]:.2f} s and {asked[-1]:.2f} s")
    order = np.argsort(video.times, kind="stable")
    times = video.times[order]
    right = np.searchsorted(times, asked).clip(0, len(times) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(times[left] - asked) <= np.abs(times[right] - asked), left, right)
    off = np.abs(times[nearest] - asked)
    tolerance = 0.5 / fps + 1e-3
    if off.max() > tolerance:
        row = int(off.argmax())
        enough = len(times) >= len(asked)
        hint = "; to take the k-th frame for the k-th row, type --frames index" if enough else ""
        raise DatasetError(
            f"{where}: row {row} was recorded at {asked[row]:.3f} s, but the nearest frame of the video is at "
            f"{times[nearest[row]]:.3f} s, more than half a row interval ({tolerance:.3f} s) away{hint}"
        )
    return video.frames[order][nearest], rule


def picture(data: bytes, size: int | tuple[int, int], resize: Resize = "crop") -> np.ndarray:
    """Decode and resize one encoded image to `(H, W, 3)` uint8; `size` is a side length or (H, W).

    Raises:
        ValueError: the data is not an image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"an image of {image.width} x {image.height} pixels is too large to be read")
            return _fit(image.convert("RGB"), size_of(size), resize)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from error


def resized(pixels: np.ndarray, size: int | tuple[int, int], resize: Resize = "crop") -> np.ndarray:
    """Resize `pixels (H, W, 3)` uint8 as `picture` does; `size` is a side length or (H, W)."""
    from PIL import Image

    return _fit(Image.fromarray(np.ascontiguousarray(pixels)), size_of(size), resize)


def _fit(image: Any, size: tuple[int, int], resize: Resize) -> np.ndarray:
    from PIL import Image

    (height, width), box = size, Image.Resampling.BOX
    if resize == "stretch":
        return np.asarray(image.resize((width, height), box))
    if resize == "crop":
        wide = min(image.width, image.height * width // height)
        high = min(image.height, image.width * height // width)
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        return np.asarray(image.resize((width, height), box, box=(left, top, left + wide, top + high)))
    scale = min(width / image.width, height / image.height)
    new = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    out = Image.new("RGB", (width, height))
    out.paste(image.resize(new, box), ((width - new[0]) // 2, (height - new[1]) // 2))
    return np.asarray(out)
