"""C24: counterfactual failures in the training data, and the optimism of the world model.

Two arms add the same number of episodes in Real to the same logs and train world model and judge from the bundled ones
for the same number of steps. In one arm the episodes are perturbed demonstrations (`worldgym.data.counterfactual`), in
the control those of the suite's demonstrators. The demonstrations that are perturbed must be executed first, one or two
per episode, which the budget does not count: they may come from old logs. Both are measured on other perturbed
demonstrations (`worldgym bench optimism`), and in closed loop with the SFT policy.

Example::

    from experiments.claims.c24 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained
from experiments.claims.claim import Claim, Ruling, said
from experiments.claims.context import ClaimContext
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records, pack
from experiments.pipelines.build import Build
from experiments.pipelines.recipe import Recipe, Stage, arguments_of
from worldgym.evaluation.statistics import Confusion, Interval, seeds_bootstrap

NAME = "C24"
CONTROL, PERTURBED = (NAME, "control"), (NAME, "counterfactual")
LOG_SEED0, EXTRA_SEED0 = 100_000, 600_000
"""First seeds of the logs that both arms share, and of the added episodes; a seed of training adds 10,000."""


def episodes_stage(lab: ClaimContext, seed: int, folder: Path, mix: dict[str, float]) -> Stage:
    """Command that adds the preset's number of episodes of the behaviours in `mix` to the logs in `folder`."""
    options = {
        "suite": lab.suite.name, "tasks": list(lab.tasks), "out": folder / "data",
        "episodes": lab.preset.extra_episodes, "seed": EXTRA_SEED0 + 10_000 * seed, "workers": lab.workers,
        **({"mix": mix} if mix else {}),
    }  # fmt: skip
    return Stage("episodes", ("collect",), tuple(arguments_of(plain(options))))


def world_model_stage(lab: ClaimContext, seed: int, folder: Path, more: dict[str, Any] | None = None) -> Stage:
    """Command that trains the bundled world model on these logs, with the options `more`."""
    options = {
        **lab.bundle.world_model_options, "data": folder / "data", "initial": lab.bundle.folder / "world_model",
        "steps": lab.preset.world_steps, "lr": 6e-4, "seed": seed, "out": folder / "world_model", **(more or {}),
    }  # fmt: skip
    return Stage("world model", ("train", "world-model"), tuple(arguments_of(plain(options))))


def judge_stage(lab: ClaimContext, seed: int, folder: Path, more: dict[str, Any]) -> Stage:
    """Command that trains a judge on these logs and what that world model imagines of them, with the options `more`."""
    options = {
        "data": folder / "data", "world_model": folder / "world_model/export",
        "imagined_episodes": lab.preset.judge_imagined, "max_fpr": 0.03, "seed": seed, "out": folder / "judge", **more,
    }  # fmt: skip
    return Stage("judge", ("train", "judge"), tuple(arguments_of(plain(options))))


def _stages(lab: ClaimContext, seed: int, folder: Path, mix: dict[str, float]) -> tuple[Stage, ...]:
    """Commands of an arm: add episodes, train the world model, train the judge."""
    initial, steps = lab.bundle.folder / "judge", lab.preset.judge_steps
    return (
        episodes_stage(lab, seed, folder, mix),
        world_model_stage(lab, seed, folder),
        judge_stage(lab, seed, folder, {"initial": initial, "hard_share": 0.2, "steps": steps, "lr": 8e-4}),
    )


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def shared_logs(lab: ClaimContext, name: str = "shared_logs", mix: dict[str, float] | None = None) -> Path:
    """The logs of the demonstrators, or of the behaviours in `mix`, that arms share; collected once for each `name`."""
    folder = lab.folder(name, 0)
    options = {
        "out": folder / "data", "suite": lab.suite.name, "tasks": list(lab.tasks), "episodes": lab.preset.logs,
        "seed": LOG_SEED0, "workers": lab.workers, **({"mix": mix} if mix else {}),
    }  # fmt: skip
    built("logs", (Stage("logs", ("collect",), tuple(arguments_of(plain(options)))),), folder)
    return folder / "data"


def built(name: str, stages: tuple[Stage, ...], folder: Path) -> None:
    """Run commands in order, each once."""
    Build(Recipe(name, "", 1.0, stages), folder).run(lambda stage, number: None, lambda stage: None)


def trained(mix: dict[str, float]) -> Any:
    """Train function: world model and judge, with added episodes of the behaviours in `mix`."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from worldgym.utils.staging import copy_folder

        logs = lab.once("logs", lambda: shared_logs(lab))
        copy_folder(logs, folder / "data")
        built(NAME, _stages(lab, seed, folder, mix), folder)
        preset = lab.preset
        budget = {
            "real_episodes": float(preset.extra_episodes), "updates": float(preset.world_steps + preset.judge_steps),
        }  # fmt: skip
        parts = {"world_model": str(folder / "world_model/export"), "judge": str(folder / "judge")}
        return Trained(lab.sft, budget, settings={"mix": mix, "logs": preset.logs}, parts=parts)

    return train


def measure(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Verdicts on perturbed demonstrations, and a closed loop of the SFT policy."""
    from experiments.pipelines.optimism import OPTIMISM_SEED0, executed_and_judged
    from experiments.suites import real_env
    from rewards import load_judge
    from worldgym.evaluation import make_starts, run_closed_loop
    from worldgym.models import load_world_model

    preset = lab.preset
    model = load_world_model(made.parts["world_model"])
    judge = load_judge(made.parts["judge"], tokenizer=getattr(model, "tokenizer", None))
    starts = make_starts(lab.tasks, max(1, preset.optimism_starts // len(lab.tasks)), OPTIMISM_SEED0)
    parts = executed_and_judged(
        model, judge, lab.suite, starts, chunk=lab.bundle.policy().chunk, horizon=preset.measured
    ).parts
    found = parts["world model"]
    verdicts = found.scores >= found.threshold
    facts = {
        "optimism/failures": {"success": pack(verdicts[~found.true]), "starts": found.starts[~found.true].tolist()},
        "optimism/successes": {"success": pack(verdicts[found.true]), "starts": found.starts[found.true].tolist()},
        "optimism/scores": {"success": pack(verdicts), **_figures(found)},
    }
    env = real_env(lab.suite, horizon=preset.measured)
    loop = run_closed_loop(lab.sft.load(), model, judge, env, lab.starts(), horizon=preset.measured)
    env.close()
    return facts | {"loop/imagined": {"success": pack(loop.imagined)}, "loop/real": {"success": pack(loop.real)}}


def _figures(found: Any) -> dict[str, float | None]:
    values = {"auroc": found.auroc(), "gap": found.gap()}
    return {name: None if value is None else round(value.mean, 4) for name, value in values.items()}


OWN_ARMS = (
    Arm("control", "as many further episodes of the demonstrators", trained({}), measure=measure),
    Arm("counterfactual", "perturbed demonstrations", trained({"counterfactual": 1.0}), measure=measure),
)


def by_start(records: Records, arm: tuple[str, str], what: str, seeds: list[int]) -> np.ndarray:
    """Share of sequences judged successful, by start: `(seeds, starts)`. All arms have the same sequences."""
    rows = []
    for seed, said_so in zip(seeds, records.outcomes(*arm, what, seeds), strict=True):
        starts = np.array(records.read(*arm, seed)["evaluations"][what]["starts"])
        rows.append([said_so[starts == start].mean() for start in np.unique(starts)])
    return np.array(rows)


def compared(records: Records, what: str, seeds: list[int]) -> Interval:
    """Perturbed minus control, in shares of sequences judged successful."""
    return seeds_bootstrap(*(by_start(records, arm, what, seeds) for arm in (PERTURBED, CONTROL)))


def false_successes(records: Records, arm: tuple[str, str], seeds: list[int]) -> np.ndarray:
    """Whether an imagined success of the closed loop failed in Real, `(seeds, starts)`."""
    imagined, real = (records.outcomes(*arm, f"loop/{what}", seeds) for what in ("imagined", "real"))
    return imagined & ~real


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Check whether optimism falls; the recognised successes and the closed loop are reported."""
    effect = compared(records, "optimism/failures", seeds)
    kept = compared(records, "optimism/successes", seeds)
    loop = seeds_bootstrap(*(false_successes(records, arm, seeds) for arm in (PERTURBED, CONTROL)))
    why = (
        f"failures judged successful, perturbed minus control: {said(effect)}; successes judged successful: "
        f"{said(kept)}; false successes in closed loop: {said(loop)}"
    )
    if effect.mean >= 0:
        return Ruling(False, effect, f"{why}; optimism does not fall")
    if effect.high < 0:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the mean falls, but the interval contains 0")


def loop_cells(records: Records, arm: tuple[str, str], seeds: list[int]) -> list[str]:
    """Precision and recall of the closed loop, by seed."""
    loops = [
        Confusion.of(*(records.outcomes(*arm, f"loop/{what}", [seed])[0] for what in ("imagined", "real")))
        for seed in seeds
    ]
    cells = []
    for name in ("precision", "recall"):
        rates = [getattr(loop, name) for loop in loops]
        cells.append(" / ".join("-" if rate is None else f"{rate.mean:.3f}" for rate in rates))
    return cells


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Optimism with its companions, and precision and recall in closed loop, by arm and seed."""
    lines = [
        "| arm | failures judged successful | successes judged successful | AUROC | gap | precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in (CONTROL, PERTURBED):
        rows = [records.read(*arm, seed)["evaluations"] for seed in seeds]
        cells = [
            " / ".join(f"{100 * by_start(records, arm, f'optimism/{what}', [seed]).mean():.1f}" for seed in seeds)
            for what in ("failures", "successes")
        ]
        for name in ("auroc", "gap"):
            values = [row["optimism/scores"][name] for row in rows]
            cells.append(" / ".join("-" if value is None else f"{value:.3f}" for value in values))
        cells += loop_cells(records, arm, seeds)
        label = records.read(*arm, seeds[0])["label"]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    note = "By seed; shares in percent, mean over starts. Precision and recall: SFT policy in closed loop."
    return "\n".join([*lines, "", note]) + "\n"


CLAIM = Claim(
    NAME,
    "counterfactual failures in the training data lower the optimism of the world model",
    "CureWM (arXiv 2610.09134): failures called good fall from 79 to 30 %, with an equal-steps control at 80 %; the "
    "closed loop does not improve",
    "the mean share of failing sequences judged successful is not below that of the equal-steps control",
    arms=lambda preset: [CONTROL, PERTURBED],
    needs=lambda preset: [CONTROL, PERTURBED],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=tables,
    own_arms=OWN_ARMS,
)
