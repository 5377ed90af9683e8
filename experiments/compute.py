"""Where the commands compute: `--device` and `--dtype`, read once and applied to every part that is loaded.

Example::

    here = placing(config)                      # ConfigError where there is no such device
    model = here(load_world_model(folder))      # moved
    bundle = Bundle.find(config.bundle, here)   # what it loads is moved
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

DType = Literal["auto", "float32", "bfloat16"]
SETTINGS = ("device", "dtype")
"""Fields of a command's config that say where it computes; they are no part of what makes a run the same one."""


@dataclass(frozen=True)
class Placing:
    """A device and a precision, by name.

    Args:
        name: of the device: `cpu`, `cuda` or `cuda:N`.
        dtype: in which world models imagine; `auto` leaves it as they were saved.
    """

    name: str = "cpu"
    dtype: DType = "auto"

    @property
    def device(self) -> torch.device:
        """The device."""
        import torch

        return torch.device(self.name)

    def __call__(self, part: Any) -> Any:
        """Move a world model, policy, judge or probe there; returns it. What has no weights stays as it is."""
        from worldgym.utils.devices import place

        return place(part, self.device, self.dtype)


ON_CPU = Placing()


def placing(config: Any) -> Placing:
    """What the fields `device` and `dtype` of a command's config say.

    Raises:
        ConfigError: no such device here, or it lacks that precision.
    """
    from worldgym.utils.devices import choose_device, choose_dtype

    device = choose_device(config.device)
    if config.dtype != "auto":
        choose_dtype(config.dtype, device)
    return Placing(str(device), config.dtype)
