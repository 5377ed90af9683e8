"""Several cameras in one image: stacked from top to bottom, each padded with its own edge pixels.

One tokenizer and one latent grid then serve any number of views, and the tokens of all views attend to one another like
those of a single frame. DreamZero concatenates its views in the same way (arXiv 2602.15922). A camera whose size is not
a multiple of what the model needs is padded here and cropped again on output, so that users see the original sizes.

Example::

    canvas = Canvas((Camera("front", 48, 80), Camera("wrist", 40, 56)), multiple=16)
    canvas.size                                                       # (96, 80)
    picture = canvas.pack(front, {"wrist": wrist})                    # (..., 96, 80, 3) uint8
    front, views = canvas.unpack(picture)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.models.tokenizers.base import check_frames
from worldgym.specs import Camera


def round_up(value: int, multiple: int) -> int:
    """Round up to the next multiple."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Canvas:
    """Layout of the cameras in the image.

    Args:
        cameras: the main camera first; at least one.
        multiple: the image's height and width are multiples of it; each camera's part is a multiple of 8.

    Raises:
        ConfigError: no camera, or `multiple` is not divisible by 8.
    """

    cameras: tuple[Camera, ...]
    multiple: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if not self.cameras or self.multiple < 8 or self.multiple % 8:
            raise ConfigError(
                f"a canvas needs at least one camera and a multiple of 8; got {len(self.cameras)} cameras, multiple "
                f"{self.multiple}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height = sum(round_up(camera.height, 8) for camera in self.cameras)
        width = max(camera.width for camera in self.cameras)
        return round_up(height, self.multiple), round_up(width, self.multiple)

    @property
    def plain(self) -> bool:
        """Whether the image equals the frame of the only camera."""
        return len(self.cameras) == 1 and self.cameras[0].size == self.size

    def _parts(self) -> list[tuple[Camera, int, int]]:
        """Camera, first row and padded height of each part; the last part extends to the bottom."""
        parts, top = [], 0
        for camera in self.cameras:
            height = round_up(camera.height, 8)
            if camera is self.cameras[-1]:
                height = self.size[0] - top
            parts.append((camera, top, height))
            top += height
        return parts

    def pack(self, frames: Tensor, views: Mapping[str, Tensor] | None = None) -> Tensor:
        """The image `(..., H', W', 3)` uint8; for a single camera of that size, `frames` itself.

        Args:
            frames: `(..., H, W, 3)` uint8, frames of the main camera.
            views: frames of the other cameras, by name, with the same leading axes.

        Raises:
            ConfigError: a camera is missing or unknown, or frames have another size or dtype.
        """
        views = views or {}
        names = [camera.name for camera in self.cameras[1:]]
        if set(views) != set(names):
            raise ConfigError(
                f"got the views {sorted(views) or 'none'} besides the main camera's frames, expected "
                f"{sorted(names) or 'none'}; pass views={{name: frames}} for each of the other cameras"
            )
        check_frames(frames, self.cameras[0].size)
        if self.plain:
            return frames
        padded = []
        for camera, _, height in self._parts():
            picture = frames if camera is self.cameras[0] else views[camera.name]
            check_frames(picture, camera.size, f"frames of {camera.name}")
            if picture.shape[:-3] != frames.shape[:-3]:
                raise ConfigError(
                    f"frames of {camera.name} have leading axes {tuple(picture.shape[:-3])}, those of the main camera "
                    f"{tuple(frames.shape[:-3])}; give frames with equal leading axes"
                )
            down = torch.arange(height, device=picture.device).clamp(max=camera.height - 1)
            right = torch.arange(self.size[1], device=picture.device).clamp(max=camera.width - 1)
            padded.append(picture.index_select(-3, down).index_select(-2, right))
        return torch.cat(padded, -3)

    def unpack(self, picture: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Frames of the main camera, and those of the others by name, cropped from `picture (..., H', W', 3)`."""
        if self.plain:
            return picture, {}
        parts = {
            camera.name: picture[..., top : top + camera.height, : camera.width, :].contiguous()
            for camera, top, _ in self._parts()
        }
        return parts.pop(self.cameras[0].name), parts
