"""`worldgym audit`: verdicts of judges on the same imagined episodes, compared with the outcome in Real.

Policies act in imagination for a whole horizon, and every judge scores every fifth frame. Then the actions are executed
in Real from the true start, and the judges score the frames from Real as well. The output for each judge and task: the
confusion matrix (false positives first), how well it ranks fulfilled frames (AUROC, on imagined frames and on those
from Real), accuracy on frames from Real, the share of rejected instructions of other episodes, the agreement between
judges, and imagined minus true success. Use one judge for training and another one for the audit.

Example::

    worldgym audit --policy sft runs/demo/policy --json runs/audit.json
    worldgym audit --policy runs/demo/policy --judges bundled runs/other_judge runs/gpt_judge --cache runs/answers
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.bundle import Bundle
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.policies import PolicyChoice
from experiments.pipelines.run_folder import finite, versions
from experiments.reports.audit import worst_false_positives, write_audit_report
from experiments.suites import BundleName, chosen_suite, known_split, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import Confusion, make_starts, paired_bootstrap
from worldgym.evaluation.fidelity import auroc
from worldgym.evaluation.judge_audit import JudgeAudit, balanced_accuracy, verdicts, watch
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.pretrained import DEFAULT
from worldgym.protocols import reads_of, threshold_of
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress

AUDIT_SEED0 = 19_000_000


@dataclass(frozen=True)
class AuditConfig:
    """Compare judges with the ground truth, on imagined frames and on frames from Real.

    Args:
        policies: policies that act: folders, or `sft`; `@T` sets a temperature.
        judges: `bundled`, `latent`, `open_clip`, or folders written by a judge's `save_pretrained`, separated by spaces
            or commas. The first one gives the reward that is audited.
        cache: folder that caches the answers of judges behind an endpoint.
        judge_keys: `URL=VARIABLE`: environment variable with the API key for a judge's endpoint at exactly this URL;
            without it, no key is sent.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: suite whose real domain gives the ground truth; that of the bundle if None.
        world_model: folder of another world model; the bundle's if None.
        episodes: imagined episodes per policy; all of them are executed in Real.
        start_seed: first seed of the starts.
        split: split of starts and instructions.
        horizon: steps per episode.
        seed: seed of all randomness.
        json: output file for the results; a page with the worst false positives is written beside it.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--policy",))] = ("sft",)
    judges: tuple[str, ...] = ("bundled",)
    cache: Path | None = None
    judge_keys: tuple[str, ...] = ()
    bundle: BundleName = DEFAULT
    suite: str | None = None
    world_model: Path | None = None
    episodes: int = 300
    start_seed: int = AUDIT_SEED0
    split: str = "seen"
    horizon: int = 40
    seed: int = 0
    json: Path = Path("runs/audit.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Split values at commas, and validate the settings."""
        for name in ("policies", "judges"):
            parts = (part.strip() for text in getattr(self, name) for part in text.split(","))
            object.__setattr__(self, name, tuple(part for part in parts if part))
        if not self.policies or not self.judges:
            raise ConfigError("an audit needs policies and judges; type --policies sft --judges bundled")
        if len(set(self.judges)) < len(self.judges):
            raise ConfigError(f"a judge is named twice in {' '.join(self.judges)}; name each judge once")
        if self.episodes < 2 or self.horizon < 1:
            raise ConfigError(
                f"episodes is {self.episodes}, horizon {self.horizon}; expected at least 2 episodes and a horizon of "
                "at least 1"
            )
        if self.start_seed < EVALUATION_SEED0:
            raise ConfigError(f"start_seed is {self.start_seed}, expected at least {EVALUATION_SEED0}")


def run(config: AuditConfig) -> int:
    """Run the audit, print the table, and write the JSON file and the page."""
    from worldgym.models import load_world_model

    here = placing(config)
    bundle = Bundle.find(config.bundle, here)
    suite = chosen_suite(config.suite, config.bundle)
    tasks, split = covered_tasks(config.bundle), known_split(suite, config.split)
    world_model = here(load_world_model(config.world_model)) if config.world_model else bundle.world_model()
    tokenizer = getattr(world_model, "tokenizer", None)
    keys = config.judge_keys
    judges = {name: bundle.named_judge(name, tokenizer, config.cache, keys) for name in config.judges}
    starts = make_starts(tasks, max(1, round(config.episodes / len(tasks))), config.start_seed, split)
    env = real_env(suite, horizon=config.horizon, terminate_on_success=False)
    seen: dict[str, JudgeAudit] = {}
    with Progress(len(config.policies) * len(starts), "audit") as bar:
        for text in config.policies:
            choice, before = PolicyChoice.parse(text, config.bundle, device=here.name), bar.count
            seen[text] = watch(
                choice.ref.load(), world_model, judges, env, starts, horizon=config.horizon,
                temperature=choice.temperature, seed=config.seed, real_frames=True,
                progress=lambda done, _, before=before: bar.update(before + done - bar.count),
            )  # fmt: skip
    env.close()
    facts = report(seen, judges, tasks)
    facts |= {
        "split": config.split,
        "start_seed": config.start_seed,
        "seed": config.seed,
        "versions": versions(),
    }
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    films = [
        film
        for name, row in facts["judges"].items()
        for film in worst_false_positives(seen, name, row["threshold"], config.json.with_suffix(""))
    ]
    page = write_audit_report(finite(facts), films, config.json.with_suffix(".html"))
    sys.stdout.write(table(facts) + f"\nwritten to {config.json} and {page}\n")
    return 0


def report(seen: dict[str, JudgeAudit], judges: dict[str, Any], tasks: tuple[str, ...]) -> dict[str, Any]:
    """Return all results over all policies; those of single policies are under `policies`."""
    levels = {name: threshold_of(judge) for name, judge in judges.items()}
    first = next(iter(judges))
    rows = {name: of_judge(name, judge, levels[name], seen, tasks) for name, judge in judges.items()}
    outcomes = [watched.outcomes(first, levels[first]) for watched in seen.values()]
    success, real, valid = (np.concatenate(part) for part in zip(*outcomes, strict=True))
    gaps = {policy: watched.imagined_minus_true(first, levels[first]) for policy, watched in seen.items()}
    return {
        "judges": rows,
        "rewarded": first,
        "imagined_minus_true": paired_bootstrap(success[valid], real[valid]).to_dict() if valid.any() else None,
        "agreement": {
            f"{a} | {b}": float(np.mean([w.agreement(a, b, (levels[a], levels[b])) for w in seen.values()]))
            for a, b in combinations(judges, 2)  # every policy has the same number of checks
        },
        "policies": {
            policy: {
                "imagined_minus_true": gap.to_dict() if (gap := gaps[policy]) is not None else None,
                **{name: watched.confusion(name, levels[name]).to_dict() for name in judges},
            }
            for policy, watched in seen.items()
        },
        "episodes": sum(len(watched.starts) for watched in seen.values()),
    }  # fmt: skip


def of_judge(
    name: str, judge: Any, level: float, seen: dict[str, JudgeAudit], tasks: tuple[str, ...]
) -> dict[str, Any]:
    """Results of one judge: on imagined frames by task, on frames from Real, with other instructions, and its cost."""
    counts = {task: Confusion() for task in tasks}
    invalid = 0
    for watched in seen.values():
        for task in tasks:
            counts[task] += watched.confusion(name, level, task)
        invalid += int((~watched.outcomes(name, level)[2]).sum())
    whole = sum(counts.values(), start=Confusion())
    on_real = np.concatenate([w.real_scores[name].ravel() for w in seen.values()])
    now = np.concatenate([w.now.ravel() for w in seen.values()])
    known = ~np.isnan(on_real)
    swapped = [other_words(judge, level, watched) for watched in seen.values()]
    scored = sum(count for _, count in swapped)
    episodes = sum(len(w.starts) for w in seen.values())
    return {
        "balanced_accuracy_real": balanced_accuracy(on_real[known] >= level, now[known]),
        "false_positive_rate_imagined": share(whole.fp, whole.fp + whole.tn),
        "recall_imagined": share(whole.tp, whole.tp + whole.fn),
        "swapped_instruction_rejection": share(sum(good for good, _ in swapped), scored),
        "ms_per_episode": 1000 * sum(w.seconds[name] for w in seen.values()) / episodes,
        "threshold": level,
        "invalid": invalid,
        "confusion": whole.to_dict(),
        "by_task": {task: table.to_dict() for task, table in counts.items()},
        "calibration": calibration(seen, name),
        "ranking": {**{task: ranking(name, seen, (task,)) for task in tasks}, "all": ranking(name, seen, tasks)},
    }


def ranking(name: str, seen: dict[str, JudgeAudit], tasks: tuple[str, ...]) -> dict[str, float | None]:
    """AUROC of a judge's scores at all checks of these tasks: fulfilled in Real at this step or not.

    Returns:
        `imagined` and `real`, by the frames that were scored; None where all checks have the same truth.
    """
    found: dict[str, float | None] = {}
    for kind, scores in (("imagined", "scores"), ("real", "real_scores")):
        parts = []
        for watched in seen.values():
            mine = np.array([start.task in tasks for start in watched.starts], bool)
            parts.append((getattr(watched, scores)[name][mine].ravel(), watched.now[mine].ravel()))
        values, true = (np.concatenate(each) for each in zip(*parts, strict=True))
        known = ~np.isnan(values)
        found[kind] = auroc(values[known], true[known])
    return found


def share(part: int, whole: int) -> float:
    """`part / whole`; NaN without episodes."""
    return part / whole if whole else float("nan")


def other_words(judge: Any, level: float, watched: JudgeAudit) -> tuple[int, int]:
    """Score the first successful frame from Real of each episode with the instruction of another episode.

    The other episode has the same task and another goal, so a correct judge rejects the frame.

    Returns:
        number of rejected frames, number of scored frames. Frames without a verdict are not counted.
    """
    import torch

    from rewards.training.negatives import goal_of

    assert watched.frames is not None and watched.states is not None
    rows = np.flatnonzero(watched.now.any(1))
    steps = watched.now[rows].argmax(1)
    goals = [goal_of(s.task, text) for s, text in zip(watched.starts, watched.instructions, strict=True)]
    texts, kept = [], []
    for place, row in enumerate(rows):
        # the next episodes in order with the same task and another goal
        others = [
            k % len(goals)
            for k in range(row + 1, row + len(goals))
            if goals[k % len(goals)][0] == goals[row][0] and goals[k % len(goals)] != goals[row]
        ]
        if others:
            texts.append(watched.instructions[others[0]])
            kept.append(place)
    if not kept or reads_of(judge).depth != 1:  # a single frame can only be scored by a judge that reads one
        return 0, 0
    chosen = (rows[kept], steps[kept])
    frames, states = torch.from_numpy(watched.frames[chosen]), torch.from_numpy(watched.states[chosen])
    scores = verdicts(judge, frames[:, None], texts, states)
    known = ~np.isnan(scores)
    return int((scores[known] < level).sum()), int(known.sum())


def calibration(seen: dict[str, JudgeAudit], name: str, bins: int = 10) -> list[dict[str, float]]:
    """Reliability table over the checks of all policies: predicted probability, true share of success, count."""
    merged: dict[int, list[float]] = {}
    for watched in seen.values():
        for row in watched.calibration(name, bins):
            index = min(bins - 1, int(row["stated"] * bins))
            sums = merged.setdefault(index, [0.0, 0.0, 0.0])
            for k, value in enumerate(
                (row["stated"] * row["count"], row["true"] * row["count"], row["count"])
            ):
                sums[k] += value
    return [
        {"stated": sums[0] / sums[2], "true": sums[1] / sums[2], "count": sums[2]}
        for _, sums in sorted(merged.items())
    ]


def table(facts: dict[str, Any]) -> str:
    """Return the printed table."""
    lines = []
    for name, row in facts["judges"].items():
        lines.append(
            f"{name} (threshold {row['threshold']:g}): balanced accuracy on frames from Real "
            f"{row['balanced_accuracy_real']:.3f}; instructions of other episodes rejected "
            f"{row['swapped_instruction_rejection']:.3f}; {row['ms_per_episode']:.1f} ms per episode"
        )
        lines.append(
            f"  {'imagined vs. Real':<22}{'FP':>5}{'TP':>5}{'FN':>5}{'TN':>5}{'FPR':>8}{'recall':>8}"
            f"{'AUROC':>8}{'on Real':>9}"
        )
        for task, c in [*row["by_task"].items(), ("all", row["confusion"])]:
            rates = (share(c["fp"], c["fp"] + c["tn"]), share(c["tp"], c["tp"] + c["fn"]))
            ranks = ["-" if value is None else f"{value:.3f}" for value in row["ranking"][task].values()]
            lines.append(
                f"  {task:<22}{c['fp']:>5}{c['tp']:>5}{c['fn']:>5}{c['tn']:>5}{rates[0]:>8.2f}{rates[1]:>8.2f}"
                f"{ranks[0]:>8}{ranks[1]:>9}"
            )
        if row["invalid"]:
            lines.append(f"  {row['invalid']} episodes without a verdict, not counted")
    lines += [f"{pair} agree at {share:.3f} of the checks" for pair, share in facts["agreement"].items()]
    if gap := facts["imagined_minus_true"]:
        lines.append(
            f"imagined - true success, judged by {facts['rewarded']}: {100 * gap['mean']:+.1f} "
            f"[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}] points over {gap['episodes']} episodes"
        )
    return "\n".join(lines)
