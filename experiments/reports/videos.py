"""Side-by-side clips, imagined | real, as mp4 files and as gif in the report.

Video players support mp4; a gif can be embedded in an HTML file. Frames of 64 px are enlarged by whole factors without
smoothing, so that they show exactly the policy's input.

Example::

    frames = side_by_side(clip.imagined, clip.real, "imagined: success", "real: failure", good=False)
    save_gif(frames, "clip.gif"); save_mp4(frames, "clip.mp4")
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldgym.utils.files import atomic_path

HEADER, GAP, FPS = 24, 6, 5
GREEN, RED, GREY = (31, 138, 91), (200, 48, 48), (107, 114, 128)


def side_by_side(
    left: np.ndarray,
    right: np.ndarray,
    left_title: str,
    right_title: str,
    *,
    left_good: bool | None = None,
    right_good: bool | None = None,
    scale: int = 3,
    hold: int = 4,
) -> np.ndarray:
    """Combine two clips side by side under coloured titles; the shorter one repeats its last frame.

    Args:
        left: `(T, H, W, 3)` uint8.
        right: `(T', H, W, 3)` uint8.
        left_title: text above the left clip.
        right_title: text above the right clip.
        left_good: green title when True, red when False, grey when None.
        right_good: same for the right clip.
        scale: whole enlargement factor.
        hold: extra copies of the last frame, so that a looping clip can be read.

    Returns:
        `(max(T, T') + hold, H', W', 3)` uint8 with even H' and W', as mp4 requires.
    """
    length = max(len(left), len(right))
    height, width = left.shape[1] * scale, left.shape[2] * scale
    total_w = 2 * width + GAP
    canvas = Image.new("RGB", (total_w + total_w % 2, height + HEADER + height % 2), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    for x, title, good in ((0, left_title, left_good), (width + GAP, right_title, right_good)):
        colour = GREY if good is None else GREEN if good else RED
        draw.rectangle((x, 0, x + width - 1, HEADER - 1), fill=colour)
        draw.text((x + 6, 4), title, fill=(255, 255, 255), font=font)
    base = np.asarray(canvas)
    out = np.repeat(base[None], length + hold, axis=0)
    for t in range(length + hold):
        for x, clip in ((0, left), (width + GAP, right)):
            big = clip[min(t, len(clip) - 1)].repeat(scale, axis=0).repeat(scale, axis=1)
            out[t, HEADER : HEADER + height, x : x + width] = big
    return out


def save_gif(frames: np.ndarray, path: str | Path, fps: int = FPS) -> Path:
    """Write `(T,H,W,3)` uint8 as a looping gif with one palette for all frames (no flicker)."""
    images = [Image.fromarray(frame) for frame in frames]
    # The palette is taken from a mosaic of the first, middle and last frame.
    sample = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])
    palette = Image.fromarray(sample).quantize(128, method=Image.Quantize.MEDIANCUT)
    reduced = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    path = Path(path)
    with atomic_path(path) as temporary:
        reduced[0].save(
            temporary, save_all=True, append_images=reduced[1:], duration=1000 // fps, loop=0, optimize=False
        )
    return path


def save_mp4(frames: np.ndarray, path: str | Path, fps: int = FPS) -> Path:
    """Write `(T,H,W,3)` uint8 (even sides) as H.264."""
    import imageio.v2 as imageio

    path = Path(path)
    # 4:4:4 would be sharper, but browsers do not support it; the frames are enlarged, so 4:2:0 looks the same.
    how = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2}
    with atomic_path(path) as temporary, imageio.get_writer(temporary, **how) as writer:
        for frame in frames:
            writer.append_data(frame)
    return path
