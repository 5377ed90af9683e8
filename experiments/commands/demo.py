"""`worldgym demo`: fine-tunes a policy in the bundled world model, evaluates it in Real, and writes a report.

Example::

    worldgym demo
    worldgym demo --seed 1 --out runs/demo-1
    worldgym demo --quick          # half a minute, to check that everything runs
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from experiments.pipelines.settings import DemoSettings


@dataclass(frozen=True)
class DemoConfig(DemoSettings):
    __doc__ = DemoSettings.__doc__


def run(config: DemoConfig) -> int:
    """Run the demo; print its table and the path of the report."""
    from experiments.pipelines.demo import run_demo
    from experiments.pipelines.demo_results import table

    results = run_demo(config)
    sys.stdout.write(f"\n{table(results)}\nReport: {config.out / 'report.html'}\n")
    return 0
