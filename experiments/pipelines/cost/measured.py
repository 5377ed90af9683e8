"""Memory of a training step as the operating system sees it, in a process of its own, beside the estimate.

The largest resident size of the process, less that before the model was built, is compared with the largest number of
live bytes of tensors. Freed memory is given back at once (`MALLOC_MMAP_THRESHOLD_`), so that the two can agree.

Example::

    check({"type": "video", "preset": "small", "batch": 8, "step": "world"})
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from worldgym.errors import ConfigError

CHECKS: tuple[dict[str, Any], ...] = (
    {"type": "video", "preset": "tiny", "batch": 20, "step": "world"},
    {"type": "video", "preset": "small", "batch": 20, "step": "world"},
    {"type": "chunk", "preset": "small", "batch": 96, "step": "world"},
    {"type": "chunk", "preset": "base", "batch": 8, "step": "world"},
    {"type": "vla", "preset": "small", "batch": 256, "step": "sft"},
    {"type": "vla", "preset": "small", "batch": 256, "step": "grpo"},
    {"type": "hf_vla", "preset": "tiny", "batch": 128, "step": "sft", "tuning": "full"},
    {"type": "hf_vla", "preset": "tiny", "batch": 128, "step": "grpo", "tuning": "lora"},
    {
        "type": "hf_vla",
        "preset": "tiny",
        "batch": 128,
        "step": "sft",
        "tuning": "full",
        "checkpointing": True,
    },
    {"type": "hf_vla", "preset": "smolvlm-256m", "batch": 1, "step": "sft", "tuning": "lora"},
)
"""Steps that fit into the memory of a small machine: at most 4 GB."""


def training_of(what: dict[str, Any], device: Any = "cpu") -> Any:
    """The `Training` that an entry of `CHECKS` names, on a device."""
    own = ("type", "preset", "batch", "step")
    given = {"device": device} | {key: value for key, value in what.items() if key not in own}
    if what["step"] == "world":
        from experiments.pipelines.cost.worlds import world_training

        return world_training(what["type"], what["preset"], what["batch"], **given)
    from experiments.pipelines.cost.policies import policy_training

    return policy_training(what["type"], what["preset"], what["batch"], step=what["step"], **given)


def estimate(what: dict[str, Any]) -> int:
    """Largest number of live bytes in the step, copies of weights not included."""
    from experiments.pipelines.cost.counting import on_meta
    from experiments.pipelines.cost.training import step_cost

    with on_meta():
        found = step_cost(training_of(what))
    return found["training_bytes"] - found["copy_bytes"]


def measure(what: dict[str, Any], timeout: float = 220.0) -> int:
    """Growth of the resident size of a new process that takes the step once, at its fullest, in bytes (Linux).

    Raises:
        ConfigError: the process failed, or this system has no /proc.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ConfigError(
            "memory is measured through /proc of Linux, which this system does not have; leave --check out"
        )
    quiet = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    path = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.pipelines.cost.measured", json.dumps(what)], capture_output=True, text=True,
        timeout=timeout, check=False, env={**os.environ, **quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        raise ConfigError(f"measuring {what} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["bytes"])


def check(what: dict[str, Any]) -> dict[str, Any]:
    """An entry of `CHECKS` with `estimated_bytes`, `measured_bytes` and `difference` (estimate / measurement - 1)."""
    estimated, measured = estimate(what), measure(what)
    return {
        **what, "estimated_bytes": estimated, "measured_bytes": measured, "difference": estimated / measured - 1
    }  # fmt: skip


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise ConfigError(f"/proc/self/status has no {name}")


def _main() -> None:
    import torch

    what = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    warm = {**what, "preset": "tiny", "batch": 1}
    _step(training_of(warm))  # loads libraries, which are no memory of the step
    before = _resident("VmRSS")
    training = training_of(what)
    optimizer = training.optimizer()
    Path("/proc/self/clear_refs").write_text("5")  # sets the largest size so far to the present one
    training.step(optimizer)
    sys.stdout.write(json.dumps({"bytes": _resident("VmHWM") - before}) + "\n")


def _step(training: Any) -> None:
    training.step(training.optimizer())


if __name__ == "__main__":
    _main()
