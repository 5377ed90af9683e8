"""E2: the ratio of imagined RL to SFT in success, starting from a weaker SFT policy than in C1.

C1 starts from an SFT policy with a success rate of about 2/3, so the ratio is at most 1.5. Here the same recipe gets 10
demonstrations per task instead of 25, and its success is close to that of a policy that ignores its instruction. The
world model, the judge, the fine-tuning and the number of updates are those of C1.

Example::

    from experiments.claims.e2 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained, clone, fine_tune, saved
from experiments.claims.claim import Claim, Ruling, difference, ratio, said, times
from experiments.claims.context import ClaimContext
from experiments.claims.figures import gains, way
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.suite import extra

NAME = "E2"
DEMOS = 10  # per task
LEVEL = 2.4  # World-Gymnast's mean over four tasks
SFT, BC, RL = ((NAME, f"{arm}-{DEMOS}") for arm in ("few", "few_bc", "few_rl"))


def few_demonstrations(lab: ClaimContext) -> Any:
    """Return the first `DEMOS` of the bundle's demonstrations of each task."""
    task_of = extra(lab.suite, "task_of", "function that returns the task of an instruction")
    demos = lab.bundle.demonstrations()
    episodes, first = np.unique(demos.episode, return_index=True)
    demo_tasks = [task_of(demos.instructions[i]) for i in first]
    kept = [e for i, e in enumerate(episodes) if demo_tasks[:i].count(demo_tasks[i]) < DEMOS]
    return demos.select(np.flatnonzero(np.isin(demos.episode, kept)))


def few_sft(lab: ClaimContext, seed: int) -> tuple[Path, Any]:
    """Train the goal head on few demonstrations; return the policy's folder and the demonstrations. Done once per seed.

    As with `worldgym train policy --initial`, the part that moves to the goal is taken from the bundle's policy.
    """

    def make() -> tuple[Path, Any]:
        import torch

        from agents import SFT, SFTConfig
        from agents.policies.goal_head import GoalHead

        policy, demos = lab.bundle.policy(), few_demonstrations(lab)
        torch.manual_seed(seed)
        policy.pointer = GoalHead(policy.config)
        epochs = lab.preset.epochs
        config = SFTConfig(epochs=epochs, patience=0, seed=seed, learn="pointer", finish_steps=4 * epochs)
        SFT(config).fit(policy, demos)
        folder = lab.folder("few_shared", seed) / "policy"
        policy.save_pretrained(folder)
        return folder, demos

    folder, demos = lab.once(f"few-{seed}", make)
    return folder, demos


def _few(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    begin, demos = few_sft(lab, seed)
    return Trained(saved(begin.parent), {"updates": 0.0}, settings={"demos": len(np.unique(demos.episode))})


def _few_bc(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    begin, demos = few_sft(lab, seed)
    return clone(lab, lab.preset.practice(seed, folder), demos, {}, begin)


def _few_rl(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    begin, demos = few_sft(lab, seed)
    settings = lab.preset.practice(seed, folder)
    return fine_tune(lab, settings, None, "imagined_steps", imagined=True, begin=begin, demos=demos)


OWN_ARMS = (
    Arm(SFT[1], f"SFT, {DEMOS} demonstrations per task", _few),
    Arm(BC[1], f"SFT, {DEMOS} demonstrations per task, then BC", _few_bc),
    Arm(RL[1], f"SFT, {DEMOS} demonstrations per task, then imagined RL", _few_rl),
)


def arms(preset: ClaimPreset) -> list[tuple[str, str]]:
    """The arms of this claim, and those of C1 for comparison."""
    return [SFT, BC, RL, ("C1", "sft"), ("C1", "imagined_rl")]


def needs(preset: ClaimPreset) -> list[tuple[str, str]]:
    """The arms of this claim."""
    return [SFT, BC, RL]


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Check the ratio to SFT, and the gain over SFT and over behaviour cloning with as many updates."""
    effect, gain = ratio(records, RL, SFT, seeds), difference(records, RL, SFT, seeds)
    updates = difference(records, RL, BC, seeds)
    why = (
        f"imagined RL / SFT: {times(effect)}; imagined RL minus SFT: {said(gain)}; imagined RL minus BC with as many "
        f"updates: {said(updates)}"
    )
    if records.seeds("C1", "sft") and set(seeds) <= set(records.seeds("C1", "imagined_rl")):
        why += (
            "; from the SFT policy of C1 the ratio is "
            f"{times(ratio(records, ('C1', 'imagined_rl'), ('C1', 'sft'), seeds))}"
        )
    if effect is None:
        return Ruling(None, gain, f"{why}; SFT never succeeds")
    if min(gain.low, updates.low) <= 0 or effect.high < LEVEL:
        return Ruling(False, effect, why, effect)
    if effect.mean >= LEVEL:
        return Ruling(True, effect, why, effect)
    return Ruling(None, effect, f"{why}; the interval contains {LEVEL}, but the mean is below it", effect)


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Charts of the gains, and of imagined and true success during training."""
    return {**gains(records, RL, [SFT, BC]), **way(records, RL)}


CLAIM = Claim(
    NAME,
    "starting from few demonstrations, imagined RL multiplies the success of SFT by World-Gymnast's factor of 2.4",
    "World-Gymnast (arXiv 2602.02454): 2.4 times the success of SFT over four tasks",
    f"the interval of imagined RL / SFT is below {LEVEL}, or the interval of the gain over SFT or over BC with as many "
    "updates is not above 0",
    arms=arms,
    needs=needs,
    rule=rule,
    figures=figures,
    own_arms=OWN_ARMS,
)
