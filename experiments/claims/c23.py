"""C23: Dyna and test-time training, the two ways in which World-Gymnast goes on after imagined RL.

Dyna: after RL in imagination the policy collects about 100 episodes in Real, world model and judge are trained on them,
and RL goes on (`worldgym coevolve --recipe dyna`, two rounds). The control is RL in the frozen world model for as many
rounds in total. Test-time training: RL on a single unseen start frame, without any episode in Real. Each of six
frames gets a policy of its own; its success is measured on that start with sampled actions, before and after, and on
other starts, which shows what it forgets.

Example::

    from experiments.claims.c23 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained, fine_tune
from experiments.claims.c3 import evolved, round_tables, trained
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.figures import gains
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records, pack
from worldgym.evaluation import PolicyRef, Start, make_starts
from worldgym.evaluation.statistics import Interval, seeds_bootstrap

NAME = "C23"
ROUNDS = 2
DYNA, LONG, ONE = ((NAME, arm) for arm in ("dyna", "dyna_frozen", "one_start"))
ONE_SEED0, SPLIT = 15_800_000, "unseen_combination"
FRAMES, ATTEMPTS, ONE_ROUNDS, ONE_STARTS = 6, 25, 10, 16


def _dyna(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    return trained(evolved(lab, seed, folder, "dyna", ROUNDS), lab)


def _long(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    settings = lab.preset.practice(seed, folder, iterations=ROUNDS * lab.preset.rounds)
    return fine_tune(lab, settings, None, "imagined_steps", imagined=True)


def unseen(lab: ClaimContext) -> list[Start]:
    """The start states of test-time training: the tasks in turn, none chosen by what a policy does there."""
    return make_starts(lab.tasks, -(-FRAMES // len(lab.tasks)), ONE_SEED0, SPLIT)[:FRAMES]


def _one_start(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    """Practise on each start alone; the policies are parts of the result."""
    import torch

    from agents import StartBank, Starts
    from experiments.pipelines.finetune import FineTuning
    from experiments.pipelines.run_folder import RunFolder

    parts, updates, steps = {}, 0.0, 0.0
    places = unseen(lab)
    seen = lab.first_frames(places)
    for i, place in enumerate(places):
        row = slice(i, i + 1)
        bank = StartBank(
            Starts(
                torch.as_tensor(seen["image"][row]), torch.as_tensor(seen["state"][row]), [str(seen["instruction"][i])],
                [place.task], torch.zeros(1, dtype=torch.int64),
            )
        )  # fmt: skip
        settings = lab.preset.practice(
            seed, folder / f"start-{i}", iterations=min(ONE_ROUNDS, lab.preset.rounds * ONE_ROUNDS), starts=ONE_STARTS,
            start_oversampling=1, middle_fraction=0.0,
        )  # fmt: skip
        run = RunFolder(settings.out, settings.key())
        tuning = FineTuning(settings, lab.bundle, run, tasks=(place.task,), starts=bank)
        with run.board() as board:
            history = tuning.run(board)
        run.finish()
        parts[f"start-{i}"] = str(settings.out / "policy")
        updates += sum(item["updates"] for item in history)
        steps += history[-1]["imagined_steps"]
    budget = {"updates": updates, "imagined_steps": steps}
    return Trained(lab.sft, budget, settings={"starts": FRAMES, "rounds": ONE_ROUNDS}, parts=parts)


def measure(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Sampled success on the start of each policy, before and after, and greedy success on seen starts."""
    real, others, facts = lab.pool(domain="real"), lab.looked(), {}
    own: dict[str, list[np.ndarray]] = {"before": [], "after": []}
    rest = []
    for i, place in enumerate(unseen(lab)):
        policies = {"before": lab.sft, "after": PolicyRef(made.parts[f"start-{i}"], device=lab.sft.device)}
        for when, policy in policies.items():
            own[when].append(real.evaluate(policy, [place] * ATTEMPTS, temperature=1.0).success)
        rest.append(real.evaluate(policies["after"], others).success)
    for when, rows in own.items():
        facts[f"start/{when}"] = {"success": pack(np.concatenate(rows))}
    facts["others/after"] = {"success": pack(np.concatenate(rest))}
    before = real.evaluate(lab.sft, others).success
    facts["others/before"] = {"success": pack(np.tile(before, len(rest)))}
    return facts


OWN_ARMS = (
    Arm(DYNA[1], "Dyna, two rounds of 99 episodes in Real", _dyna, splits=("seen",), evaluators=False),
    Arm(LONG[1], "imagined RL, frozen, as many rounds", _long, splits=("seen",), evaluators=False),
    Arm(ONE[1], "imagined RL on one unseen start", _one_start, measure=measure),
)


def change(records: Records, what: str, seeds: list[int], columns: int) -> Interval:
    """Success after minus before practice on one start, as means over `columns` starts."""
    tables = [
        records.outcomes(*ONE, f"{what}/{when}", seeds).reshape(len(seeds), columns, -1).mean(2)
        for when in ("after", "before")
    ]
    return seeds_bootstrap(*tables)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare Dyna with its control, and success on the practised start after with before."""
    effect, start = difference(records, DYNA, LONG, seeds), change(records, "start", seeds, FRAMES)
    others = change(records, "others", seeds, FRAMES)
    why = (
        f"Dyna minus imagined RL with the frozen world model: {said(effect)}; practice on one unseen start, sampled "
        f"success there: {said(start)}, greedy success on other starts: {said(others)}"
    )
    if min(effect.mean, start.mean) <= 0:
        return Ruling(False, effect, why)
    if min(effect.low, start.low) > 0:
        return Ruling(True, effect, f"{why}; both gains are above 0")
    return Ruling(None, effect, f"{why}; both means are above 0, but not both intervals")


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Rounds of Dyna; success by start of test-time training, mean over seeds."""
    text = round_tables([records.read(*DYNA, seed)["settings"]["history"] for seed in seeds])
    lines = ["", "| start | before, sampled | after, sampled |", "|---|---|---|"]
    rates = [
        records.outcomes(*ONE, f"start/{when}", seeds).reshape(len(seeds), FRAMES, -1).mean((0, 2))
        for when in ("before", "after")
    ]
    lines += [f"| {i} | {before:.2f} | {after:.2f} |" for i, (before, after) in enumerate(zip(*rates, strict=True))]
    return text + "\n".join(lines) + "\n"


CLAIM = Claim(
    NAME,
    "imagined RL gains more after its world model was trained on the policy's own episodes, and from one unseen frame",
    "World-Gymnast (arXiv 2602.02454): Dyna with about 100 new trajectories; test-time training raises one task from "
    "62 to 100 %",
    "the mean success of Dyna is not above that of imagined RL in the frozen world model, or sampled success on the "
    "practised start does not rise",
    arms=lambda preset: [DYNA, LONG, ONE],
    needs=lambda preset: [DYNA, LONG, ONE],
    rule=rule,
    figures=lambda records, preset, seeds: gains(records, DYNA, [LONG]),
    tables=tables,
    own_arms=OWN_ARMS,
)
