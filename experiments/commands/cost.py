"""`worldgym cost`: parameters, memory and operations of world models and policies, from their shapes alone.

No weights are made and nothing is computed, so models of any size can be asked about on any machine. Times are given
only for a throughput that you name. `--check` measures some training steps of a small machine's size and prints by how
much the estimate differs. `--report` writes docs/cost.md from a file of results.

Example::

    worldgym cost --preset base --batch-size 64
    worldgym cost --preset smolvlm-256m --tuning lora --tflops 400 --utilisation 0.3
    worldgym cost --preset all --json docs/results/data/cost.json
    worldgym cost --check --json docs/results/data/cost.json
    worldgym cost --report docs/cost.md --json docs/results/data/cost.json
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.pipelines.cost import table
from experiments.pipelines.run_folder import versions
from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text, read_json

TUNINGS = ("full", "lora", "frozen_vision")


@dataclass(frozen=True)
class CostConfig:
    """Compute what training and imagining cost.

    Args:
        preset: names of presets: tiny, small, base of the world models; tiny, small of `vla`; tiny, smolvlm-256m,
            smolvlm-500m, openvla-7b of `hf_vla`; or all.
        batch_size: rows of a training step (windows, chunks), and environments that are imagined at once.
        tuning: what is trained of vision-language-action policies: full, lora, frozen_vision.
        tflops: peak throughput of a device in 10^12 operations per second, for times.
        utilisation: share of the peak that this code reaches on that device, between 0 and 1.
        steps: optimizer steps of a run, for its hours.
        check: measure the memory of some training steps on this machine's CPU instead, beside the estimate (Linux, 4
            GB, six minutes).
        json: file of results; rows of earlier runs in it stay, except those computed again.
        report: write this page from the file `json` and compute nothing.
        gpu: file of `worldgym bench gpu` for the page; left out if it does not exist.
    """

    preset: tuple[str, ...] = ("base",)
    batch_size: int = 64
    tuning: tuple[str, ...] = TUNINGS
    tflops: float | None = None
    utilisation: float | None = None
    steps: int = 10_000
    check: bool = False
    json: Path | None = None
    report: Path | None = None
    gpu: Path = Path("docs/results/data/gpu.json")

    def __post_init__(self) -> None:
        """Validate the settings."""
        if (self.tflops is None) != (self.utilisation is None):
            raise ConfigError(
                "times need both --tflops and --utilisation, such as --tflops 100 --utilisation 0.3: the peak of your "
                "device, and the share of it that was measured there"
            )
        if self.tflops is not None and not (0 < self.tflops < math.inf):
            raise ConfigError(f"--tflops is {self.tflops}, expected a positive number such as 100")
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise ConfigError(
                f"--utilisation is {self.utilisation}, expected more than 0 and at most 1, such as 0.3"
            )
        if unknown := [name for name in self.tuning if name not in TUNINGS]:
            raise ConfigError(f"unknown --tuning {unknown[0]!r}; there are {', '.join(TUNINGS)}")
        if self.report is not None and self.json is None:
            raise ConfigError(
                "--report is written from a file of results; type --json docs/results/data/cost.json"
            )


def run(config: CostConfig) -> int:
    """Compute, print the table, and write the results; or measure, or write the page."""
    if config.report is not None:
        return _report(config, config.report)
    facts = _earlier(config.json)
    if config.check:
        from experiments.pipelines.cost.measured import CHECKS, check

        checks = []
        for what in CHECKS:
            found = check(what)
            checks.append(found)
            sys.stdout.write(f"{_said(found)}\n")
            sys.stdout.flush()
        facts["checks"] = table.merged(facts["checks"], checks)
    else:
        rows = table.cost_rows(config.preset, config.batch_size, config.tuning)
        rate = None
        if config.tflops is not None and config.utilisation is not None:
            rate = config.tflops * 1e12 * config.utilisation
        sys.stdout.write(table.text(rows, rate, config.steps))
        facts["rows"] = table.merged(facts["rows"], rows)
    if config.json is not None:
        facts["versions"] = versions()
        atomic_write_text(config.json, json.dumps(facts, indent=1) + "\n")
        sys.stdout.write(f"written to {config.json}\n")
    return 0


def _earlier(path: Path | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"rows": [], "checks": []}
    if path is not None and path.exists():
        facts |= read_json(path, "give another --json")
    return facts


def _said(found: dict[str, Any]) -> str:
    what = f"{found['type']} {found['preset']}, {found['step']}, batch {found['batch']}"
    sizes = (
        f"estimated {table.size(found['estimated_bytes'])}, measured {table.size(found['measured_bytes'])}"
    )
    return f"{what}: {sizes}, {100 * found['difference']:+.1f} %"


def _report(config: CostConfig, page: Path) -> int:
    from experiments.pipelines.cost.page import markdown

    assert config.json is not None
    if not config.json.exists():
        raise ConfigError(
            f"{config.json} does not exist; type: worldgym cost --preset all --json {config.json}"
        )
    gpu = read_json(config.gpu, "measure again with `make gpu-check`") if config.gpu.exists() else None
    atomic_write_text(page, markdown(read_json(config.json, "compute it again without --report"), gpu))
    sys.stdout.write(f"written to {page}\n")
    return 0
