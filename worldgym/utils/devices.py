"""Device, precision and random numbers of computations.

Random numbers are drawn on the device of their generator, which is always the CPU in worldgym, and then moved. A seed
therefore gives the same numbers on every device. Results on different devices agree up to rounding; on one device they
are bit-identical after `deterministic()`.

Example::

    device = choose_device("auto")                  # cuda if available, else cpu
    noise = randn((8, 4), torch.Generator().manual_seed(0), device)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from worldgym.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16"]


CPU = torch.device("cpu")
"""Device of recorded data, rollouts and verdicts, also on machines with a GPU."""


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Get a device by name.

    Args:
        name: `auto` (`cuda` if torch finds a CUDA device, else `cpu`), `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda, or cuda:N such as cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r}: worldgym runs on cpu and cuda; type --device auto")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: torch {torch.__version__} finds {count} CUDA devices here; type --device cpu, or "
            "install a build of torch with CUDA on a machine that has such a device"
        )
    return device


@lru_cache
def bfloat16_pays(kind: str) -> bool:
    """Whether networks run faster in bfloat16 than in float32 on devices of this kind, `cpu` or `cuda`.

    On a CPU this needs AMX. With AVX-512 or AVX2, also where the processor has other instructions for bfloat16, the
    bundled networks take 1.3 to 6 times as long in bfloat16 (docs/guides/fast_world_models.md).
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    if kind != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())  # earlier versions of torch


def autocast(device: torch.device, enabled: bool = True, *, always: bool = False) -> torch.autocast:
    """Run matrix products and convolutions in bfloat16 where that is faster than float32 (`bfloat16_pays`).

    Args:
        device: where the operations run.
        enabled: False leaves everything in float32.
        always: in bfloat16 on every device: the user asked for it, or the weights are in bfloat16.
    """
    used = enabled and (always or bfloat16_pays(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=used)


def faster_dtype(name: str, device: torch.device) -> str:
    """Precision in which a network that prefers `name` runs: `bfloat16` only where it is faster than `float32`."""
    return name if bfloat16_pays(device.type) else "float32"


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Get the precision of networks by name; `auto` is bfloat16 if it is faster on the device, else float32.

    Raises:
        ConfigError: the name is unknown, or the CUDA device does not support bfloat16.
    """
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if name == "auto":
        return torch.bfloat16 if bfloat16_pays(device.type) else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype {name!r}: expected auto, float32 or bfloat16")
    if name == "bfloat16" and not supported:
        raise ConfigError(
            f"--dtype bfloat16: {torch.cuda.get_device_name(device)} does not support it; type --dtype float32"
        )
    return torch.float32 if name == "float32" else torch.bfloat16


def place(part: Any, device: torch.device, dtype: str = "auto") -> Any:
    """Move a world model, policy or judge to `device`; components without weights, e.g. endpoints, are unchanged.

    Args:
        part: any object; it is moved if it has a method `to(device)`.
        device: target device.
        dtype: precision of the inference of a world model; `auto` leaves it unchanged.

    Returns:
        The moved component.
    """
    moved = part.to(device) if isinstance(part, torch.nn.Module) or hasattr(part, "to") else part
    if dtype != "auto":
        chosen = str(choose_dtype(dtype, device)).removeprefix("torch.")
        if hasattr(moved, "with_dtype"):
            moved = moved.with_dtype(chosen)
        elif hasattr(moved, "with_sampler"):
            moved = moved.with_sampler(dtype=chosen)
    return moved


def deterministic() -> None:
    """Make CUDA results bit-identical between runs, at some cost in speed.

    CPU results are always bit-identical for the same number of threads. Call this before the first CUDA operation,
    because cuBLAS reads its setting then.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Tensor]:
    """State of torch's global generators, which dropout uses: `torch` and, if CUDA is in use, `cuda:N`."""
    found = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def restore_random(state: Mapping[str, Tensor]) -> None:
    """Restore the result of `random_state`; states of devices that this machine lacks are ignored."""
    torch.set_rng_state(state["torch"])
    for name, value in state.items():
        if name != "torch" and int(name.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, name)


def _source(generator: torch.Generator | None, device: torch.device) -> torch.device:
    return device if generator is None else generator.device


def randn(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal numbers on `device`, float32; without `generator`, from the device's global generator."""
    drawn = torch.randn(tuple(shape), generator=generator, device=_source(generator, device))
    return drawn.to(device)


def rand(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) on `device`; without `generator`, from the device's global generator."""
    return torch.rand(tuple(shape), generator=generator, device=_source(generator, device)).to(device)


def randint(high: int, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform integers in [0, high) on `device`; without `generator`, from torch's global CPU generator."""
    return torch.randint(high, tuple(shape), generator=generator, device=_source(generator, CPU)).to(device)


def multinomial(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`torch.multinomial` without replacement; the generator and the weights may be on different devices."""
    source = _source(generator, weights.device)
    return torch.multinomial(weights.to(source), count, generator=generator).to(weights.device)
