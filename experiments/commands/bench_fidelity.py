"""`worldgym bench fidelity`: accuracy of a world model by horizon and split, in verdicts, and in rankings of policies.

All episodes are held out from the training of every part; the ground truth comes from Real. Outcomes are measured first
in closed loop (policies act on imagined frames, and their actions are executed in Real), because open-loop replay gives
optimistic results.

Example::

    worldgym bench fidelity --policies sft runs/demo/policy sft@1.0 --json runs/fidelity.json
    worldgym bench fidelity --checkpoint runs/world_model/export --episodes 60 --ranking-starts 0
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import Bundle
from experiments.commands.bench_closed_loop import check_policy
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.held_out_episodes import TrueLogs, true_logs
from experiments.pipelines.policies import PolicyChoice
from experiments.pipelines.run_folder import finite, versions
from experiments.pipelines.settings import CHECK_SEED0
from experiments.suites import BundleName, chosen_suite, domain_settings, evaluation_pool, real_env
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.protocols import reads_of, settled
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress

LOG_SEED0 = 11_500_000
RANK_SEED0 = 11_800_000
UNSEEN = ("unseen_combination", "unseen_object", "unseen_instruction", "unseen_scene", "unseen_task")


@dataclass(frozen=True)
class BenchFidelityConfig:
    """Measure the accuracy of imagined frames, verdicts and rankings.

    Args:
        checkpoint: folder of a world model; the bundle's if None.
        members: further world models with the same tokenizer; the uncertainty is then the disagreement of the ensemble.
        bundle: source of judge, policies and probe: name of a bundled checkpoint, or a folder.
        suite: suite whose real domain gives the ground truth; that of the bundle if None.
        json: output file for the results; the report is written beside it as .html.
        episodes: held-out episodes of split `seen`, 40 steps each.
        unseen_episodes: episodes of each unseen split; 0 skips these splits.
        policies: policies for the closed loop: folders, or `sft`; `@T` sets a temperature.
        closed_loop_episodes: imagined episodes per policy.
        ranking_starts: starts on which policies are ranked; 0 skips the ranking.
        gaps: domain gaps at which the software simulator ranks the same policies.
        workers: processes for evaluation in simulators.
        seed: seed of all randomness.
        noises: noise levels on the weights of the bundled policy; each gives one of the ranked policies.
        temperatures: sampling temperatures of the bundled policy without noise; each gives another ranked policy.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    checkpoint: Path | None = None
    members: tuple[Path, ...] = ()
    bundle: BundleName = DEFAULT
    suite: str | None = None
    json: Path = Path("runs/fidelity.json")
    episodes: int = 120
    unseen_episodes: int = 36
    policies: tuple[str, ...] = ("sft", "sft@1.0")
    closed_loop_episodes: int = 102
    ranking_starts: int = 60
    gaps: tuple[float, ...] = (0.25, 0.5, 1.0)
    workers: int = 2
    seed: int = 0
    noises: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7)
    temperatures: tuple[float, ...] = (1.0, 2.0)
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.episodes < 2 or self.closed_loop_episodes < 1:
            raise ConfigError("episodes must be at least 2 and closed_loop_episodes at least 1")
        if self.unseen_episodes == 1 or min(self.unseen_episodes, self.ranking_starts) < 0:
            raise ConfigError("unseen_episodes must be 0 or at least 2, ranking_starts at least 0")
        if len(self.noises) + len(self.temperatures) < 3:
            raise ConfigError("a ranking needs at least three policies; give more values of --noises or --temperatures")


def run(config: BenchFidelityConfig) -> int:
    """Measure, print the table, and write the JSON file and the page."""
    from experiments.reports.fidelity import write_fidelity_report
    from worldgym.models import EnsembleWorldModel, load_world_model

    bundle = Bundle.find(config.bundle, placing(config))
    model: Any = bundle.placing(load_world_model(config.checkpoint)) if config.checkpoint else bundle.world_model()
    if config.members:
        model = EnsembleWorldModel([model, *(bundle.placing(load_world_model(folder)) for folder in config.members)])
    judge, probe, tasks = bundle.judge(), bundle.probe(), covered_tasks(config.bundle)
    facts: dict[str, Any] = {"by_split": {}}
    plans = [("seen", tasks, config.episodes)]
    suite = chosen_suite(config.suite, config.bundle)
    for split in (split for split in UNSEEN if split in suite.splits):
        split_tasks = getattr(suite, "unseen_tasks", tasks) if split == "unseen_task" else tasks
        plans.append((split, split_tasks, config.unseen_episodes))
    for i, (split, split_tasks, count) in enumerate(plans):
        if not count:
            continue
        with Progress(count, f"Real, {split}") as bar:
            logs = true_logs(
                split_tasks, count, seed=LOG_SEED0 + 10_000 * i, splits=(split,), suite=suite,
                progress=lambda done, _, bar=bar: bar.update(done - bar.count),
            )  # fmt: skip
        seen = facts["by_split"].get("seen", {})
        measured = measure_logs(model, judge, probe, logs, config.seed, seen.get("uncertainty_bound"))
        facts["by_split"][split] = measured.pop("summary")
        if split == "seen":
            facts |= measured
    facts |= closed_loop(config, model, judge, tasks)
    if config.ranking_starts:
        facts |= ranking(config, model, judge, bundle, tasks)
    facts = finite({**facts, "seed": config.seed, "versions": versions()})
    atomic_write_text(config.json, json.dumps(facts, indent=1) + "\n")
    page = write_fidelity_report(facts, config.json.with_suffix(".html"))
    sys.stdout.write(table(facts) + f"\nwritten to {config.json} and {page}\n")
    return 0


def measure_logs(
    model: Any, judge: Any, probe: Any, logs: TrueLogs, seed: int, bound: float | None = None
) -> dict[str, Any]:
    """Measure in open loop: replay the actions of logs from Real in imagination.

    `bound` is a bound on the uncertainty, for `uncertainty_bound` of the environments and `--max-uncertainty`. If None,
    the value that 5 % of these episodes exceed is used.

    Returns:
        the results; `summary` holds those by which splits are compared.
    """
    import torch

    from worldgym.evaluation import Confusion, fidelity

    n, horizon = logs.actions.shape[:2]
    true = logs.frames[:, 1:]
    generator = torch.Generator().manual_seed(seed)
    # A derangement: each episode gets the actions of another one.
    other = np.roll(np.arange(n), 1 + seed % (n - 1))
    with Progress(2 * n, "imagination") as bar:
        imagine = lambda actions, before: fidelity.imagine_logs(  # noqa: E731
            model, logs.frames, actions, logs.states, generator,
            progress=lambda done, _: bar.update(before + done - bar.count),
        )  # fmt: skip
        predicted, uncertainty = imagine(logs.actions, 0)
        shuffled, _ = imagine(logs.actions[other], n)
    still = np.repeat(logs.frames[:, :1], horizon, 1)
    sources = {"model": predicted, "first_frame": still, "shuffled_actions": shuffled}
    pictures = {
        name: {
            "psnr": fidelity.psnr(true, frames),
            "ssim": fidelity.ssim(true, frames),
            "features": fidelity.feature_distances(true, frames),
        }
        for name, frames in sources.items()
    }
    errors = {
        name: fidelity.position_errors(probe, frames, logs.positions) for name, frames in sources.items()
    }
    by_horizon = {
        name: {
            **{key: column_means(value) for key, value in pictures[name].items()},
            "position": [errors[name].median(h + 1) for h in range(horizon)],
        }
        for name in sources
    }
    imagined, happened = outcomes(judge, predicted, logs)
    confusion = Confusion.of(imagined, happened)
    parts = by_part(model, judge, probe, logs, {"world model": (imagined, errors["model"])})
    drift = fidelity.drift_horizon(pictures["model"]["psnr"], pictures["first_frame"]["psnr"])
    squared = np.square(true.astype(np.float32) - predicted).mean((2, 3, 4))
    worst = uncertainty.max(1)
    bound = float(np.quantile(worst, 0.95)) if bound is None else bound
    within = worst <= bound
    ends = np.arange(4, horizon, 5)
    early = (ends >= 4) & (ends < 20)
    summary = {
        "episodes": n,
        "psnr_40": by_horizon["model"]["psnr"][-1],
        "first_frame_psnr_40": by_horizon["first_frame"]["psnr"][-1],
        "position_error_px": errors["model"].median(horizon),
        **{k: parts["world model"][k] for k in ("outcome_agreement", "false_positive_rate")},
        "by_part": parts,
        "confusion": confusion.to_dict(),
        "drift_horizon": drift,
        "action_sensitivity": fidelity.action_sensitivity(true, predicted, shuffled),
        "uncertainty_spearman": fidelity.spearman_or_none(uncertainty[:, early], squared[:, ends[early]]),
        "failure_auroc": fidelity.auroc(worst, imagined != happened),
        "uncertainty_bound": bound,
        "beyond_bound": float(1 - within.mean()),
        "agreement_within_bound": float((imagined == happened)[within].mean()) if within.any() else None,
    }
    return {
        "summary": summary,
        "position_error_px": summary["position_error_px"]["all"],
        "moved_objects_px": summary["position_error_px"]["moved_objects"],
        **{k: summary[k] for k in ("outcome_agreement", "false_positive_rate", "drift_horizon")},
        **{
            k: summary[k]
            for k in ("action_sensitivity", "uncertainty_spearman", "failure_auroc", "uncertainty_bound")
        },
        "by_horizon": by_horizon,
    }


def column_means(values: np.ndarray) -> list[float]:
    """Means of `(E,H)` over episodes; nan for steps without a value (features are not measured at every step)."""
    measured = np.isfinite(values).sum(0)
    sums = np.nansum(values, 0)
    return [float(s / n) if n else float("nan") for s, n in zip(sums, measured, strict=True)]


def by_part(
    model: Any, judge: Any, probe: Any, logs: TrueLogs, imagined: dict[str, tuple[np.ndarray, Any]]
) -> dict[str, dict[str, Any]]:
    """Attribute errors to parts: judge and probe, tokenizer, dynamics.

    Verdicts and positions are read from frames of Real (errors of judge and probe alone), from the same frames encoded
    and decoded by the tokenizer, and from `imagined` frames.
    """
    import torch

    from worldgym.evaluation import Confusion, fidelity

    true = logs.frames[:, 1:]
    n, horizon = true.shape[:2]
    decoded = model.tokenizer.decode(
        model.tokenizer.encode(torch.from_numpy(np.ascontiguousarray(true)).flatten(0, 1))
    )
    shown = {"judge": true, "tokenizer": decoded.unflatten(0, (n, horizon)).numpy()}
    happened = logs.success[:, 5::5].any(1)
    rows = {
        name: (outcomes(judge, frames, logs)[0], fidelity.position_errors(probe, frames, logs.positions))
        for name, frames in shown.items()
    }
    table = {}
    for name, (judged, errors) in {**rows, **imagined}.items():
        confusion = Confusion.of(judged, happened)
        negatives, positives = confusion.fp + confusion.tn, confusion.tp + confusion.fn
        table[name] = {
            "outcome_agreement": (confusion.tp + confusion.tn) / n,
            "false_positive_rate": confusion.fp / negatives if negatives else None,
            "false_negative_rate": confusion.fn / positives if positives else None,
            "position_error_px": errors.median(horizon)["all"],
            "moved_objects_px": errors.median(horizon)["moved_objects"],
        }
    return table


def outcomes(judge: Any, frames: np.ndarray, logs: TrueLogs) -> tuple[np.ndarray, np.ndarray]:
    """Success at any end of a chunk (every fifth step), `(N,)` each: as judged on `frames (N,T,H,W,3)`, and true."""
    import torch

    # Proprioception is taken from Real, because only frames are compared.
    states = torch.from_numpy(np.ascontiguousarray(logs.states[:, 5::5]))
    n, checks = states.shape[:2]
    if reads_of(judge).depth == 1:
        shown = torch.from_numpy(np.ascontiguousarray(frames[:, 4::5])).flatten(0, 1)[:, None]
        texts = [text for text in logs.instructions for _ in range(checks)]
        verdicts = [settled(judge, shown, texts, states.flatten(0, 1))]
    else:
        film = torch.from_numpy(np.concatenate([logs.frames[:, :1], frames], 1))
        verdicts = [settled(judge, film[:, : 5 * c + 6], logs.instructions, states[:, c]) for c in range(checks)]
    won = [((v.p_success >= judge.threshold) & v.valid).cpu().numpy() for v in verdicts]
    judged = won[0].reshape(n, checks).any(1) if len(won[0]) > n else np.stack(won).any(0)
    return judged, logs.success[:, 5::5].any(1)


def closed_loop(config: BenchFidelityConfig, model: Any, judge: Any, tasks: Any) -> dict[str, Any]:
    """Measure precision and recall of imagined success, over all policies and for each policy."""
    from worldgym.evaluation import Confusion, make_starts

    starts = make_starts(tasks, max(1, round(config.closed_loop_episodes / len(tasks))), CHECK_SEED0)
    env = real_env(chosen_suite(config.suite, config.bundle), horizon=40)
    total, rows = Confusion(), {}
    for text in config.policies:
        choice = PolicyChoice.parse(text, config.bundle, device=placing(config).name)
        result = check_policy(choice, model, judge, env, starts, seed=config.seed, horizon=40)
        total += result.confusion
        rows[text] = {k: v for k, v in result.to_dict().items() if k != "outcomes"}
    env.close()
    rates = {"precision": total.precision, "recall": total.recall}
    return {
        "closed_loop": {
            **{name: rate.to_dict() if rate else None for name, rate in rates.items()},
            "episodes": total.n,
            "confusion": total.to_dict(),
            "policies": rows,
        }
    }


def ranking(
    config: BenchFidelityConfig, model: Any, judge: Any, bundle: Bundle, tasks: Any
) -> dict[str, Any]:
    """Measure success of graded policies in imagination, Real and Soft, and the agreement of the rankings with Real."""
    import torch

    from experiments.pipelines.perturbed_policies import graded_policies
    from worldgym.evaluation import make_starts
    from worldgym.evaluation.ranking import agreement
    from worldgym.evaluation.rollouts import first_observations
    from worldgym.imagination.rollout import run_policy

    policies = graded_policies(bundle.policy(), config.noises, config.temperatures, config.seed)
    starts = make_starts(tasks, max(1, round(config.ranking_starts / len(tasks))), RANK_SEED0)
    tables: dict[str, list[np.ndarray]] = {"imagined": []}
    suite = chosen_suite(config.suite, config.bundle)
    env = real_env(suite, horizon=40)
    observation = first_observations(env, starts)
    env.close()
    worlds = [("real", domain_settings(suite))]
    for gap in config.gaps if len(suite.domains) > 1 else ():
        worlds.append((f"{suite.domains[1]} {gap:g}", domain_settings(suite, suite.domains[1], gap)))
    with Progress(len(policies) * (1 + len(worlds)), "ranking") as bar:
        for graded in policies:
            generator = torch.Generator().manual_seed(config.seed)
            imagined = run_policy(
                graded.policy, model, judge, observation, horizon=40, temperature=graded.temperature,
                generator=generator,
            )  # fmt: skip
            tables["imagined"].append(imagined.success)
            bar.update(1)
        for name, kwargs in worlds:
            settings = {**kwargs, "horizon": 40, "chunk": policies[0].policy.chunk}
            with evaluation_pool(suite, workers=config.workers, **settings) as pool:
                rows = []
                for graded in policies:
                    result = pool.evaluate(
                        graded.policy, starts, temperature=graded.temperature, seed=config.seed
                    )
                    rows.append(result.success)
                    bar.update(1)
            tables[name] = rows
    real = np.stack(tables.pop("real"))
    agreements = {name: agreement(np.stack(rows), real, seed=config.seed) for name, rows in tables.items()}
    rates = {
        name: [float(row.mean()) for row in rows] for name, rows in {**tables, "real": list(real)}.items()
    }
    return {
        **{name: agreements["imagined"][name]["mean"] for name in ("pearson", "spearman", "mmrv")},
        "ranking": {
            "policies": [graded.name for graded in policies],
            "starts": len(starts),
            "success": rates,
            "agreement": agreements,
        },
    }


def table(facts: dict[str, Any]) -> str:
    """Return the printed table."""
    loop = facts["closed_loop"]
    number = lambda v: "-" if v is None else f"{v:.2f}"  # noqa: E731

    def rate(row: dict[str, Any] | None) -> str:
        if not row:
            return "undefined"
        return f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]"

    lines = [
        f"closed loop, {loop['episodes']} episodes: precision {rate(loop['precision'])}, recall {rate(loop['recall'])}",
        f"  {'split':<20}{'PSNR':>7}{'still':>7}{'px':>7}{'moved':>7}{'lost':>7}{'agree':>7}{'FPR':>7}{'drift':>7}",
    ]
    for split, row in facts["by_split"].items():
        px = row["position_error_px"]
        fpr = row["false_positive_rate"]
        lines.append(
            f"  {split:<20}{row['psnr_40']:>7.1f}{row['first_frame_psnr_40']:>7.1f}"
            + "".join(
                f"{value:>7.2f}" if value is not None else f"{'-':>7}"
                for value in (px["all"], px["moved_objects"], px["lost_share"], row["outcome_agreement"], fpr)
            )
            + f"{row['drift_horizon']:>7}"
        )
    lines.append(
        "  (at step 40: PSNR in dB of the model and of the repeated first frame, median position error in px; agree: "
        f"agreement of outcomes over the episode)\n  action sensitivity {facts['action_sensitivity']:.2f}"
    )
    for part, row in facts["by_split"]["seen"]["by_part"].items():
        px = f"{number(row['position_error_px'])} px, moved {number(row['moved_objects_px'])} px"
        wrong = f"FPR {number(row['false_positive_rate'])}, FNR {number(row['false_negative_rate'])}"
        lines.append(f"  up to the {part:<12} agreement {number(row['outcome_agreement'])}, {wrong}, {px}")
    beyond = ", ".join(f"{split} {row['beyond_bound']:.2f}" for split, row in facts["by_split"].items())
    lines.append(
        f"  uncertainty_bound {facts['uncertainty_bound']:.4g} truncates 5 % of the seen episodes; by split: {beyond}"
    )
    for name, row in facts.get("ranking", {}).get("agreement", {}).items():
        lines.append(
            f"  ranking by {name:<10} Pearson {rate(row['pearson'])}, Spearman {number(row['spearman']['mean'])}, "
            f"MMRV {rate(row['mmrv'])}"
        )
    return "\n".join(lines)
