"""Measures one checkout of the project: runs with that checkout's code, so it uses only what every version has.

It reads one job per line on stdin and answers with one line of JSON, so that two checkouts can be measured in turns.

Example::

    PYTHONPATH=/path/of/checkout python speed_worker.py tabletop-small 2
    {"what": "last_frame", "batch": 64, "seconds": 2}
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch


class Worker:
    """One checkout's parts.

    Args:
        bundle: name or folder of the bundle that this checkout loads.
        threads: torch threads.
    """

    def __init__(self, bundle: str, threads: int) -> None:
        from experiments.bundle import Bundle

        torch.set_num_threads(threads)
        self.bundle = Bundle.find(bundle)
        self.model, self.judge, self.policy = (
            self.bundle.world_model(),
            self.bundle.judge(),
            self.bundle.policy(),
        )
        self.starts = self.bundle.start_bank(("reach", "push", "pick_place"))
        self.states: dict[int, Any] = {}

    def begin(self, batch: int) -> Any:
        """State of `batch` imagined episodes that start from the bundle's real frames."""
        if batch not in self.states:
            drawn = self.starts.sample(batch, np.random.default_rng(0))
            none = torch.zeros(batch, 0, self.model.action_dim)
            self.states[batch] = self.model.begin(
                drawn.images[:, None], none, torch.Generator().manual_seed(0), states=drawn.states[:, None]
            )
        return self.states[batch]

    def steps(self, batch: int, decode: str) -> int:
        """Imagine one chunk of five actions."""
        actions = torch.rand(batch, 5, self.model.action_dim) * 2 - 1
        self.states[batch], _ = self.model.step(self.begin(batch), actions, decode=decode)
        return batch * 5

    def rl(self, batch: int) -> int:
        """Imagine, judge and act, as a round of RL does."""
        from agents import collect

        drawn = self.starts.sample(48, np.random.default_rng(0))
        generator = torch.Generator().manual_seed(0)
        rollouts = collect(
            self.model, self.judge, self.policy, drawn, group_size=6, horizon=25, generator=generator
        )
        return int(rollouts.frames_used)

    def run(self, what: str, batch: int, seconds: float) -> float:
        """Environment steps per second of `what`, measured for at least `seconds`."""
        works = {
            "last_frame": lambda: self.steps(batch, "last"), "all_frames": lambda: self.steps(batch, "all"),
            "no_frame": lambda: self.steps(batch, "none"), "rl": lambda: self.rl(batch),
        }  # fmt: skip
        work, done, began = works[what], 0, time.perf_counter()
        with torch.no_grad():
            while (passed := time.perf_counter() - began) < seconds:
                done += work()
        return done / passed


def main() -> None:
    """Answer jobs until stdin ends."""
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        job = json.loads(line)
        rate = worker.run(job["what"], job["batch"], job["seconds"])
        sys.stdout.write(json.dumps({"rate": rate}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
