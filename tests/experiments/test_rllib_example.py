"""The RLlib example runs from end to end, and the curves of several runs go into one picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from experiments.examples import curves


@pytest.mark.slow
def test_it_learns_measures_and_writes(tmp_path):
    pytest.importorskip("ray.rllib", reason="needs the extra `rllib`")
    from experiments.examples.rllib import Args, main

    args = Args(minutes=0.01, out=tmp_path, num_envs=4, horizon=10, eval_episodes=4, threads=1)
    assert main(args) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"before", "after", "difference", "curve", "seconds"} <= set(results)
    assert (tmp_path / "checkpoint").is_dir() and (tmp_path / "policy").is_dir() and list(tmp_path.glob("events.out.*"))


def test_curves_of_several_runs_are_drawn_side_by_side(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rate = {"mean": 0.4, "low": 0.3, "high": 0.5, "episodes": 200}
        curve = [{"frames": 1000 * i, "success": i / 20 if i else float("nan"), "seconds": i} for i in range(12)]
        facts = {"before": rate, "after": rate, "seconds": 480.0, "curve": curve}
        (tmp_path / name / "results.json").write_text(json.dumps(facts))
    picture = tmp_path / "learning.png"
    assert curves.main(curves.Args((tmp_path / "one", tmp_path / "two"), picture)) == 0
    image = np.asarray(Image.open(picture).convert("RGB"))
    assert image.shape[1] > 1.8 * image.shape[0] and image.std() > 5
