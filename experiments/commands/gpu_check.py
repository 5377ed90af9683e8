"""`worldgym bench gpu`: speed and memory on one GPU, in at most eight minutes; `make gpu-check` runs it.

It measures imagined frames per second of the world models, a training step of `base`, a GRPO step of vision-language-
action policies with random weights, and large backbones where their type is registered. Each part has a limit of time;
what fails or does not fit is recorded with its reason, and the others go on. The file of results is what `worldgym cost
--report` writes the GPU section of docs/cost.md from. `--toy --device cpu` tests the script without a GPU, at sizes
whose figures mean nothing.

Example::

    worldgym bench gpu --json docs/results/data/gpu.json
    worldgym bench gpu --parts "training base" "grpo smolvlm-256m"
    worldgym bench gpu --toy --device cpu --json runs/toy.json
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compute import DType, placing
from experiments.pipelines import gpu_parts
from experiments.pipelines.run_folder import finite, versions
from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text


@dataclass(frozen=True)
class GpuCheckConfig:
    """Measure speed and memory on one GPU.

    Args:
        json: output file for the results.
        parts: names of the parts that are measured; all if empty.
        minutes: time of all parts together; shorter limits shorten every part.
        toy: measure tiny presets, to test the command; the page of costs never shows such figures.
        device: `auto` (CUDA if available), `cuda` or `cuda:N`; `cpu` only with `--toy`.
        dtype: precision in which world models imagine; `auto` is bfloat16.
    """

    json: Path = Path("runs/gpu.json")
    parts: tuple[str, ...] = ()
    minutes: float = 8.0
    toy: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if unknown := [name for name in self.parts if name not in gpu_parts.PARTS]:
            raise ConfigError(f"there is no part {unknown[0]!r}; there are {', '.join(gpu_parts.PARTS)}")


def run(config: GpuCheckConfig) -> int:
    """Measure the parts one after the other, print a line for each figure, and write the JSON file."""
    import torch

    device = placing(config).device
    if device.type != "cuda" and not config.toy:
        raise ConfigError(
            f"this measures a GPU, and torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices here; "
            "type --toy --device cpu to test the command"
        )
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    names = config.parts or tuple(gpu_parts.PARTS)
    limits = [gpu_parts.PARTS[name][0] for name in names]
    shorter = min(1.0, 60 * config.minutes / sum(limits))
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "toy": config.toy,
        "dtype": dtype, "versions": versions(), "cuda": torch.version.cuda, "entries": [],
    }  # fmt: skip
    if device.type == "cuda":
        facts["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    began = time.monotonic()
    for i, name in enumerate(names):
        left = shorter * sum(limits) - (time.monotonic() - began)
        limit = max(1.0, left - shorter * sum(limits[i + 1 :]))  # what earlier parts left over is this part's
        facts["entries"] += gpu_parts.run_part(name, str(device), dtype, config.toy, limit)
        for entry in facts["entries"]:
            if entry["part"] == name:
                sys.stdout.write(said(entry) + "\n")
        sys.stdout.flush()
        facts["seconds"] = round(time.monotonic() - began, 1)
        atomic_write_text(
            config.json, json.dumps(finite(facts), indent=1) + "\n"
        )  # also if a later part is cut off
    sys.stdout.write(f"written to {config.json}\n")
    return 0


def said(entry: dict[str, Any]) -> str:
    """One line about a figure."""
    from experiments.pipelines.cost.table import size

    names = ("what", "type", "preset", "tuning", "mode")
    what = " ".join(str(entry[name]) for name in names if name in entry)
    what += f", batch {entry['batch']}" if "batch" in entry else ""
    if "failed" in entry or "skipped" in entry:
        return f"{what}: " + entry.get("failed", entry.get("skipped", ""))
    found = []
    if "frames_per_second" in entry:
        found.append(f"{entry['frames_per_second']:,.1f} decoded frames/s")
    if "seconds_per_step" in entry:
        found.append(f"{entry['seconds_per_step']:.3g} s a step")
    if entry.get("peak_bytes") is not None:
        found.append(f"peak {size(entry['peak_bytes'])}")
    if "difference" in entry:
        found.append(f"estimated {100 * entry['difference']:+.1f} %")
    return f"{what}: " + ", ".join(found)
