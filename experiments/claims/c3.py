"""C3: co-evolution of policy, world model and judge (VLAW), against the same episodes in Real used for cloning alone.

The arm runs `worldgym coevolve --recipe vlaw` for two rounds and takes the policy of the last round, whatever it
measured. The controls are filtered BC on as many episodes of the policy in Real, and imagined RL with the frozen world
model and judge of the bundle.

Example::

    from experiments.claims.c3 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.claims.arms import Arm, Trained, filtered_bc, imagined_rl
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.figures import gains
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from experiments.pipelines.coevolve import Coevolution, CoevolveSettings
from worldgym.evaluation import PolicyRef

NAME = "C3"
ROUNDS = 2
VLAW, CLONED, FROZEN = ((NAME, arm) for arm in ("vlaw", "vlaw_cloned", "vlaw_frozen"))
COUNTS = ("tp", "fn", "tn", "fp")


def evolved(lab: ClaimContext, seed: int, folder: Path, recipe: str, rounds: int) -> Coevolution:
    """Run a recipe of co-evolution for all rounds; a run that was stopped goes on.

    Measurements of a round decide nothing here: no bound stops the run.
    """
    from experiments.claims.c24 import shared_logs

    settings = CoevolveSettings(
        recipe, str(lab.bundle.folder), lab.once("logs", lambda: shared_logs(lab)), folder / "rounds", rounds,
        preset="tiny" if lab.preset.name == "tiny" else "small", seed=seed, episodes=lab.preset.episodes,
        final_episodes=lab.preset.episodes, gap_bound=1.0, fall_bound=1.0, workers=lab.workers,
    )  # fmt: skip
    run = Coevolution(settings)
    while len(run.rows) <= rounds:
        run.do_round(lambda stage: None, lambda stage: None)
    return run


def trained(run: Coevolution, lab: ClaimContext) -> Trained:
    """Result of a run: the policy of its last round, its cost, and what every round measured."""
    last = run.rows[-1]
    kept = ("round", "real_episodes", "imagined", "executed", "gap", "precision", "recall", "confusion", "by_task")
    way = [
        {**{name: row[name] for name in kept}, "true": row["true"]["mean"], "world_model": row["world_model"]}
        for row in run.rows
    ]  # fmt: skip
    budget = {"real_episodes": float(last["real_episodes"])}
    settings = {"recipe": run.settings.recipe, "rounds": len(run.rows) - 1, "history": way}
    return Trained(PolicyRef(last["parts"]["policy"], device=lab.bundle.placing.name), budget, settings=settings)


def _vlaw(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    return trained(evolved(lab, seed, folder, "vlaw", ROUNDS), lab)


OWN_ARMS = (
    Arm(VLAW[1], "VLAW, two rounds", _vlaw, splits=("seen",), evaluators=False),
    Arm(CLONED[1], "filtered BC on as many episodes in Real", filtered_bc(), splits=("seen",), evaluators=False),
    Arm(FROZEN[1], "imagined RL, frozen world model and judge", imagined_rl({}), splits=("seen",), evaluators=False),
)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare with both controls."""
    effect, second = difference(records, VLAW, CLONED, seeds), difference(records, VLAW, FROZEN, seeds)
    why = f"VLAW minus filtered BC: {said(effect)}; VLAW minus imagined RL, frozen: {said(second)}"
    if min(effect.mean, second.mean) <= 0:
        return Ruling(False, effect, f"{why}; co-evolution is not above both controls")
    if min(effect.low, second.low) > 0:
        return Ruling(True, effect, f"{why}; both intervals are above 0")
    return Ruling(None, effect, f"{why}; the means are above both controls, but not both intervals are")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of the gains over the controls."""
    return gains(records, VLAW, [CLONED, FROZEN])


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Closed loop of every round, summed over seeds: counts by task, and the world model on the new episodes."""
    histories = [records.read(*VLAW, seed)["settings"]["history"] for seed in seeds]
    return round_tables(histories)


def round_tables(histories: list[list[dict[str, Any]]]) -> str:
    """Tables of the rounds of several seeds."""
    lines = ["| round | task | TP | FN | TN | FP | true success, by seed |", "|---|---|---|---|---|---|---|"]
    for rows in zip(*histories, strict=True):
        tasks = {"all": [row["confusion"] for row in rows]}
        tasks |= {task: [row["by_task"][task] for row in rows] for task in rows[0]["by_task"]}
        for task, counts in tasks.items():
            cells = [str(sum(count[name] for count in counts)) for name in COUNTS]
            true = " / ".join(f"{row['true']:.3f}" for row in rows) if task == "all" else ""
            lines.append(f"| {rows[0]['round']} | {task} | {' | '.join(cells)} | {true} |")
    lines += ["", "| round | PSNR on the new episodes, before and after | FP before | FP after |", "|---|---|---|---|"]
    for rows in zip(*histories, strict=True):
        learned = [row["world_model"] for row in rows if row["world_model"]]
        if learned:
            psnr = [sum(row[when]["psnr"] for row in learned) / len(learned) for when in ("before", "after")]
            wrong = [sum(row[when]["fp"] for row in learned) for when in ("before", "after")]
            lines.append(f"| {rows[0]['round']} | {psnr[0]:.2f}, {psnr[1]:.2f} dB | {wrong[0]} | {wrong[1]} |")
    return "\n".join(lines) + "\n"


CLAIM = Claim(
    NAME,
    "co-evolution beats cloning alone of the same episodes in Real, and imagined RL with a frozen world model",
    "VLAW (arXiv 2602.12063): two rounds of 50 rollouts per task; false positives fall from 11 to 1 of 50 when "
    "failures of the policy enter the data",
    "the mean success of VLAW is not above that of filtered BC, or not above that of imagined RL",
    arms=lambda preset: [VLAW, CLONED, FROZEN],
    needs=lambda preset: [VLAW, CLONED, FROZEN],
    rule=rule,
    figures=figures,
    tables=tables,
    own_arms=OWN_ARMS,
)
