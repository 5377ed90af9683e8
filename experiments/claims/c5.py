"""C5: conditioning on advantages (RECAP) and also on predicted latents (RAMP) improves learning from the same logs.

All arms clone the same mixture: the demonstrations and the policy's own episodes in Real, including failures.
`bc_mixture` has no condition, `recap` is conditioned on the indicator of a critic's advantage, and `ramp` also on
latents that the joint predictor of values and future frames outputs. `ramp_efficient` is the same policy without these
latents. `told_outcome` is conditioned on episode success, so the difference between it and `recap` is due to the
critic. As in all other arms, only the goal head is trained; the part of the policy that moves to the goal stays fixed.

Example::

    from experiments.claims.c5 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.claims.arms import REAL_SEEDS, Arm, Trained, saved, some_starts
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.figures import gains
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.text import embed

NAME = "C5"
SFT, BC, RECAP, RAMP = ("C1", "sft"), (NAME, "bc_mixture"), (NAME, "recap"), (NAME, "ramp")
EFFICIENT, OUTCOME = (NAME, "ramp_efficient"), (NAME, "told_outcome")
FUTURES = 2  # number of future chunks that are predicted
HELD = 0.2  # share of held-out episodes, on which predicted values are scored


def mixture(lab: ClaimContext, seed: int) -> dict[str, Any]:
    """Collect own episodes in Real, as chunks and as frames with value targets; done once per seed."""

    def make() -> dict[str, Any]:
        from agents import SimulatorCollector
        from agents.algorithms.advantage_conditioned import log_rows, value_targets
        settings, policy = lab.preset.practice(seed, lab.work), lab.bundle.policy()
        rng = np.random.default_rng([seed, 19])
        chosen, start_tasks = some_starts(rng, lab.preset.real_episodes, lab.tasks, REAL_SEEDS)
        with SimulatorCollector(lab.suite.name, env_kwargs={"domain": "real"}, processes=lab.workers) as real:
            rollouts = real.collect(
                policy, chosen, start_tasks, group_size=1, horizon=lab.preset.measured,
                temperature=settings.sampling(policy, 1.0),
                generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
        logs, episode, chunk = log_rows(rollouts)
        targets, chunks = value_targets(rollouts, lab.preset.measured)
        return {
            "rollouts": rollouts, "logs": logs, "episode": episode, "chunk": chunk, "targets": targets,
            "chunks": chunks, "tasks": start_tasks, "frames": frames_of(lab, rollouts, targets),
        }  # fmt: skip

    return dict(lab.once(f"mixture-{seed}", make))


def frames_of(lab: ClaimContext, rollouts: Any, targets: np.ndarray) -> Any:
    """Training data of the critic: the first frame of every chunk, and the last frame of every episode."""
    from worldgym.training.foresight import ForesightData

    images, states, texts, values, after, episode = [], [], [], [], [], []
    for i, n in enumerate(rollouts.lengths.tolist()):
        first = len(values)
        images.append(torch.cat([rollouts.images[i, :n], rollouts.final_images[i : i + 1]]))
        states.append(torch.cat([rollouts.states[i, :n], rollouts.path[i, n * 5 - 1 : n * 5]]))
        texts += [rollouts.instructions[i]] * (n + 1)
        values += targets[i, : n + 1].tolist()
        after += [[min(first + c + f, first + n) for f in range(1, FUTURES + 1)] for c in range(n + 1)]
        episode += [i] * (n + 1)
    return ForesightData(
        lab.world_model.tokenizer.encode(torch.cat(images)).cpu(),
        torch.cat(states).float(),
        torch.from_numpy(embed(texts)),
        torch.tensor(after),
        torch.tensor(values, dtype=torch.float32),
        np.asarray(episode),
    )


def critic(lab: ClaimContext, seed: int, futures: int) -> tuple[Any, dict[str, float]]:
    """Train a predictor of values and of `futures` future latents on the mixture; return it with held-out scores."""

    def make() -> tuple[Any, dict[str, float]]:
        from worldgym.models.foresight import Foresight
        from worldgym.training.foresight import train_foresight, value_scores

        data = mixture(lab, seed)["frames"]
        torch.manual_seed(seed)
        model = lab.bundle.placing(Foresight.of(lab.world_model.tokenizer, futures=futures))
        order = np.random.default_rng([seed, 29]).permutation(np.unique(data.episode))
        held_out = np.isin(data.episode, order[: max(1, round(HELD * len(order)))])
        train_foresight(model, data, np.flatnonzero(~held_out), steps=lab.preset.foresight_steps, seed=seed)
        return model, value_scores(model, data, np.flatnonzero(held_out))

    model, scores = lab.once(f"critic-{futures}-{seed}", make)
    return model, dict(scores)


def condition(lab: ClaimContext, seed: int, folder: Path, told: str) -> Trained:
    """Clone the mixture, conditioned on `told`.

    `told` is `nothing`, `advantage`, `foresight` (advantage and predicted latents), or `outcome` (episode success).
    """
    from agents import average_weights
    from agents.algorithms.advantage_conditioned import (
        AdvantageConditioned,
        AdvantageConfig,
        advantages,
        indicators,
    )
    from agents.policies.conditioned import ConditionedPolicy
    from experiments.pipelines.finetune import save_policy
    from worldgym.training.foresight import foresee

    settings, parts = lab.preset.practice(seed, folder), mixture(lab, seed)
    demos, logs = lab.bundle.demonstrations(), parts["logs"]
    good, tokens, demo_tokens, scores = np.zeros(len(logs), bool), None, None, {}
    model = None
    if told == "outcome":
        good = (parts["rollouts"].reward > 0.5).numpy()[parts["episode"]]
    elif told != "nothing":
        model, scores = critic(lab, seed, FUTURES if told == "foresight" else 0)
        predicted = foresee(model, parts["frames"])
        values = np.full(parts["targets"].shape, np.nan, np.float32)
        values[~np.isnan(parts["targets"])] = predicted.value.cpu().numpy()
        won = (parts["rollouts"].reward > 0.5).numpy()
        gained = advantages(values, won, parts["chunks"], 5, lab.preset.measured)
        marks = indicators(gained, parts["tasks"], AdvantageConfig.quantile)
        good = marks[parts["episode"], parts["chunk"]]
        scores |= {"good_of_successes": float(good[won[parts["episode"]]].mean()) if won.any() else 0.0}
    if told == "foresight" and model is not None:
        tokens = foresee_rows(model, lab, logs)
        demo_tokens = foresee_rows(model, lab, demos)
        spread = tokens.std(0).clip(1e-3)
        model.summary.weight.data /= torch.from_numpy(spread)[:, None]  # about unit scale, like instruction embeddings
        model.summary.bias.data /= torch.from_numpy(spread)
        tokens, demo_tokens = tokens / spread, demo_tokens / spread
    size = 0 if tokens is None else tokens.shape[1]
    policy, average = (ConditionedPolicy.of(lab.bundle.policy(), size) for _ in range(2))
    if told == "nothing":
        policy.standing.zero_()
    config = AdvantageConfig(
        lr=settings.imitation_lr, batch_size=settings.bc_batch, seed=seed, demo_share=settings.demo_share,
        learn=settings.learn, dropout=0.2 if told != "nothing" else 0.999999,
    )  # fmt: skip
    improver = AdvantageConditioned(demos, config)
    for done in range(1, settings.iterations + 1):
        improver.update(policy, logs, good, tokens, demo_tokens, steps=settings.imitation_steps)
        average_weights(average, policy, min(settings.average, done / (done + 2)))
    save_policy(average, folder / "policy")
    if model is not None:
        model.save_pretrained(folder / "foresight")
    rollouts = parts["rollouts"]
    budget = {
        "updates": float(settings.iterations * settings.imitation_steps), "real_episodes": float(len(rollouts)),
        "real_steps": float(rollouts.frames_used),
    }  # fmt: skip
    return Trained(saved(folder), budget, settings={**settings.key(), "told": told, "scores": scores})


def foresee_rows(model: Any, lab: ClaimContext, data: Any) -> np.ndarray:
    """Tokens `(M,Z)` that the predictor outputs for the frames of a chunk dataset."""
    latents = lab.world_model.tokenizer.encode(torch.from_numpy(data.images))
    states, words = (
        torch.from_numpy(data.states).float(),
        torch.from_numpy(embed([str(t) for t in data.instructions])),
    )
    parts = [
        model(*(column[i : i + 256].to(latents.device) for column in (latents, states, words)))
        for i in range(0, len(latents), 256)
    ]
    return torch.cat([part.tokens for part in parts]).cpu().numpy()


def _bc(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    return condition(lab, seed, folder, "nothing")


def _recap(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    return condition(lab, seed, folder, "advantage")


def _outcome(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    """Without a critic: every chunk of a successful episode counts as good."""
    return condition(lab, seed, folder, "outcome")


def _ramp(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    """Standard inference: predict future latents before every chunk."""
    trained = lab.once(
        f"ramp-{seed}", lambda: condition(lab, seed, lab.folder("ramp_shared", seed), "foresight")
    )
    whole = lab.ref(lab.work / f"ramp_shared-{seed}")
    return Trained(whole, trained.budget, settings=trained.settings)


def _efficient(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    """The same policy without predicted latents at inference."""
    trained = lab.once(
        f"ramp-{seed}", lambda: condition(lab, seed, lab.folder("ramp_shared", seed), "foresight")
    )
    return Trained(trained.policy, trained.budget, settings=trained.settings)


OWN_ARMS = (
    Arm("bc_mixture", "BC on the mixture, no conditioning", _bc),
    Arm("told_outcome", "conditioned on episode success, no critic", _outcome),
    Arm("recap", "RECAP: conditioned on the advantage", _recap),
    Arm("ramp", "RAMP: conditioned on advantage and predicted latents", _ramp),
    Arm("ramp_efficient", "RAMP, inference without predicted latents", _efficient),
)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Check the order RAMP > RECAP > BC, with the interval of each difference."""
    effect, second = difference(records, RAMP, RECAP, seeds), difference(records, RECAP, BC, seeds)
    why = f"RAMP minus RECAP: {said(effect)}; RECAP minus BC: {said(second)}"
    if min(effect.mean, second.mean) <= 0:
        return Ruling(False, effect, f"{why}; the order does not hold")
    if min(effect.low, second.low) > 0:
        return Ruling(True, effect, f"{why}; both intervals are above 0")
    return Ruling(None, effect, f"{why}; the means are ordered RAMP > RECAP > BC, but not both intervals are above 0")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of the gains of RAMP over the other arms."""
    return gains(records, RAMP, [SFT, BC, RECAP, EFFICIENT, OUTCOME, ("C1", "filtered_bc")])


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Accuracy of predicted values on held-out episodes: joint predictor against predictor of values alone."""
    lines = ["| critic | value MAE, by seed | Kendall tau, by seed |", "|---|---|---|"]
    for arm, label in ((RECAP, "value alone (RECAP)"), (RAMP, "value and future latents (RAMP)")):
        rows = [records.read(*arm, seed)["settings"]["scores"] for seed in seeds]
        cells = [
            " / ".join("-" if row[key] is None else f"{row[key]:.4f}" for row in rows)
            for key in ("mae", "tau")
        ]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


CLAIM = Claim(
    NAME,
    "a policy learns more from the same logs if it is conditioned on its advantage and on predicted latents",
    "GigaBrain-0.5M* (arXiv 2602.12099): RAMP about 30 points above RECAP; value MAE 0.062 for the joint predictor, "
    "0.084 for values alone",
    "the means do not have the order RAMP > RECAP > BC",
    arms=lambda preset: [SFT, ("C1", "filtered_bc"), BC, OUTCOME, RECAP, RAMP, EFFICIENT],
    needs=lambda preset: [BC, RECAP, RAMP],
    rule=rule,
    figures=figures,
    tables=tables,
    own_arms=OWN_ARMS,
)
