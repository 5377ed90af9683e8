"""Where tensors are computed, in which precision, and how random numbers are drawn for it.

Random numbers are drawn on the device of their generator, which is the CPU throughout this project, and then moved: a
seed draws the same numbers whatever the device. What is computed from them agrees between devices to rounding, and is
repeated bit for bit on one device with `deterministic()`.

Example::

    device = choose_device("auto")                  # cuda where there is one, else cpu
    noise = randn((8, 4), torch.Generator().manual_seed(0), device)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from worldgym.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16"]


CPU = torch.device("cpu")
"""Where logged data, rollouts and verdicts are kept, on every machine."""


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """A device by name.

    Args:
        name: `auto` is `cuda` where torch has one and else `cpu`; `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        ConfigError: no such kind of device, or none on this machine.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda, or cuda:0 and so on") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r}: this project runs on cpu and cuda; type --device auto")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: torch {torch.__version__} finds {count} CUDA devices here; type --device cpu, or "
            "install a build of torch with CUDA on a machine that has such a device"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Precision of networks by name; `auto` is bfloat16 where the device computes it, else float32.

    Raises:
        ConfigError: another name, or bfloat16 on a CUDA device that lacks it.
    """
    able = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if name == "auto":
        return torch.bfloat16 if able else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype {name!r}: expected auto, float32 or bfloat16")
    if name == "bfloat16" and not able:
        raise ConfigError(
            f"--dtype bfloat16: {torch.cuda.get_device_name(device)} lacks it; type --dtype float32"
        )
    return torch.float32 if name == "float32" else torch.bfloat16


def place(part: Any, device: torch.device, dtype: str = "auto") -> Any:
    """Move a world model, policy or judge to `device`; parts without weights, such as endpoints, stay as they are.

    Args:
        part: anything; what has `to(device)` is moved.
        device: where to.
        dtype: of a world model's inference, unless `auto`.

    Returns:
        the part.
    """
    moved = part.to(device) if isinstance(part, torch.nn.Module) or hasattr(part, "to") else part
    if dtype != "auto" and hasattr(moved, "with_sampler"):
        moved = moved.with_sampler(dtype=str(choose_dtype(dtype, device)).removeprefix("torch."))
    return moved


def deterministic() -> None:
    """Make CUDA repeat results bit for bit, at some cost in speed; the CPU does so anyway for one number of threads.

    Call it before the first CUDA operation: cuBLAS reads its setting then.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Tensor]:
    """State of torch's global generators, from which dropout draws: `torch` and, where CUDA is in use, `cuda:N`."""
    found = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def restore_random(state: Mapping[str, Tensor]) -> None:
    """Inverse of `random_state`; states of devices that are not here are left aside."""
    torch.set_rng_state(state["torch"])
    for name, value in state.items():
        if name != "torch" and int(name.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, name)


def _source(generator: torch.Generator | None, device: torch.device) -> torch.device:
    return device if generator is None else generator.device


def randn(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Normal numbers of `shape` on `device`, float32, drawn by `generator`; by the device's own when None."""
    drawn = torch.randn(tuple(shape), generator=generator, device=_source(generator, device))
    return drawn.to(device)


def rand(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), likewise."""
    return torch.rand(tuple(shape), generator=generator, device=_source(generator, device)).to(device)


def randint(high: int, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Integers in [0, high), likewise; without a generator they are drawn by torch's own for the CPU."""
    return torch.randint(high, tuple(shape), generator=generator, device=_source(generator, CPU)).to(device)


def multinomial(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`torch.multinomial` without replacement where generator and weights may be on different devices."""
    source = _source(generator, weights.device)
    return torch.multinomial(weights.to(source), count, generator=generator).to(weights.device)
