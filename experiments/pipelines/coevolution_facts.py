"""What a round of co-evolution is judged by: success, the gate, and what the world model learned.

Example::

    row = measured(Path("round-01/eval.json"), Path("round-01/gate.json"))
    row["true"]["mean"], row["imagined"], row["gap"]
    decide(before, row, gap_bound=0.1, fall_bound=0.05)         # None, or why the run stops
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.evaluation import paired_bootstrap
from worldgym.utils.files import read_json

AGAIN = "type the same command again"


def measured(eval_file: Path, gate_file: Path) -> dict[str, Any]:
    """Results of the two measurements of a round.

    Returns:
        `true` (success in Real with its interval, by task, and the outcomes), `imagined` (rate judged successful in
        closed loop), `executed` (true success of the same actions), `gap` (imagined minus executed), `precision`,
        `recall` (None where undefined) and `confusion`, over all tasks and `by_task`: counts of fp, tp, fn, tn.
    """
    (_, true), *_ = read_json(eval_file, AGAIN)["policies"].items()
    (_, gate), *_ = read_json(gate_file, AGAIN)["policies"].items()
    counts = ("fp", "tp", "fn", "tn")
    imagined, executed = gate["imagined_success"], gate["real_success"]
    found = {
        "true": {**true["success"], "outcomes": true["outcomes"]["success"]},
        "true_by_task": {task: rate["mean"] for task, rate in true["by_task"].items()},
        "imagined": None if imagined is None else imagined["mean"],
        "executed": None if executed is None else executed["mean"],
        "gap": None,
        "confusion": {name: gate["confusion"][name] for name in counts},
        "by_task": {task: {name: table[name] for name in counts} for task, table in gate["by_task"].items()},
    }
    if imagined is not None and executed is not None:
        found["gap"] = imagined["mean"] - executed["mean"]
    for name in ("precision", "recall"):
        rate = gate["confusion"][name]
        found[name] = None if rate is None else rate["mean"]
    return found


def decide(
    before: Mapping[str, Any], row: Mapping[str, Any], gap_bound: float, fall_bound: float
) -> str | None:
    """Why the run stops after a round: true success fell, or the gap grew; None if it goes on."""
    change = paired_bootstrap(row["true"]["outcomes"], before["true"]["outcomes"])
    if change.mean < -fall_bound or change.high < 0:
        return (
            f"true success fell by {-100 * change.mean:.1f} points "
            f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}] in round {row['round']}"
        )
    if row["gap"] is not None and before["gap"] is not None and row["gap"] - before["gap"] > gap_bound:
        return (
            f"the gap between imagined and true success grew by {100 * (row['gap'] - before['gap']):.1f} points in "
            f"round {row['round']}"
        )
    return None


def fidelity_facts(
    before: Mapping[str, str], after: Mapping[str, str], logs: Path, new: int, seed: int
) -> dict[str, Any]:
    """Imagine the policy's newest episodes with the world model and judge before and after the round.

    The actions of each episode are imagined from its first frame, and the verdicts compared with its true outcome.

    Args:
        before: folders of the parts before the round.
        after: folders of the parts after it.
        logs: dataset whose last episodes are the new ones.
        new: number of new episodes.
        seed: seed of the world model's noise.

    Returns:
        for `before` and `after`: `psnr` (dB over all frames after the first), and counts `fp`, `tp`, `fn`, `tn` of
        judged against true success.
    """
    import torch

    from rewards import load_judge
    from rewards.training.imagined_logs import episode_verdicts, imagine_training_logs, stopped
    from worldgym.data import EpisodeDataset
    from worldgym.models import load_world_model

    dataset = EpisodeDataset(logs)
    arrays = dataset.select(range(len(dataset.records) - new, len(dataset.records))).load_arrays()
    inside = np.ones(len(arrays.frames), bool)
    inside[arrays.offsets[:-1]] = False
    found: dict[str, Any] = {"episodes": int(new)}
    for name, parts in (("before", before), ("after", after)):
        model = load_world_model(parts["world_model"])
        judge = load_judge(parts["judge"], tokenizer=getattr(model, "tokenizer", None))
        generator = torch.Generator().manual_seed(seed)
        imagined = imagine_training_logs(model, arrays, generator=generator)
        error = (imagined.frames[inside].astype(np.float32) - arrays.frames[inside]) / 255
        said, truth = episode_verdicts(judge, imagined, np.arange(new))
        judged, true = stopped(said, truth, judge.threshold)
        counts = {"fp": judged & ~true, "tp": judged & true, "fn": ~judged & true, "tn": ~judged & ~true}
        mean = float(np.square(error).mean()) if inside.any() else float("nan")
        found[name] = {
            "psnr": -10 * float(np.log10(max(mean, 1e-10))),
            **{k: int(v.sum()) for k, v in counts.items()},
        }
    return found


def compared(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The final measurement: success of the first policy and of the best one, and their paired difference."""
    names = list(evaluation["policies"])
    rates = [evaluation["policies"][name]["success"] for name in names]
    found = {"first": rates[0], "best": rates[-1], "difference": None}
    if len(names) > 1:
        outcomes = [evaluation["policies"][name]["outcomes"]["success"] for name in names]
        found["difference"] = paired_bootstrap(outcomes[1], outcomes[0]).to_dict()
    return found
