"""Device and precision of commands: `--device` and `--dtype`, read once and applied to every loaded part.

Example::

    here = placing(config)                      # ConfigError if the device does not exist
    model = here(load_world_model(folder))      # moved
    bundle = Bundle.find(config.bundle, here)   # its parts are moved when loaded
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

DType = Literal["auto", "float32", "bfloat16"]
SETTINGS = ("device", "dtype")
"""Config fields for device and precision; they do not count when runs are compared."""


@dataclass(frozen=True)
class Placing:
    """A device and a precision, by name.

    Args:
        name: name of the device: `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world models; `auto` keeps the precision in which they were saved.
    """

    name: str = "cpu"
    dtype: DType = "auto"

    @property
    def device(self) -> torch.device:
        """The device."""
        import torch

        return torch.device(self.name)

    def __call__(self, part: Any) -> Any:
        """Move a world model, policy, judge or probe to the device; returns it. Parts without weights do not change."""
        from worldgym.utils.devices import place

        return place(part, self.device, self.dtype)


ON_CPU = Placing()


def placing(config: Any) -> Placing:
    """Read the fields `device` and `dtype` of a command's config.

    Raises:
        ConfigError: the device does not exist here, or does not support the precision.
    """
    from worldgym.utils.devices import choose_device, choose_dtype

    device = choose_device(config.device)
    if config.dtype != "auto":
        choose_dtype(config.dtype, device)
    return Placing(str(device), config.dtype)
