"""Arms of the comparison: ways to improve the same SFT policy, each a configuration of the same code.

All of them start from the same checkpoint and take the same number of updates; those that roll out take the same
number of environment steps, wherever these are taken. What differs is where the attempts come from and who says which
of them succeeded:

* `sft`: nothing is learned.
* `bc_only`: the demonstrations again, as many updates as imagined RL.
* `filtered_bc`: own attempts in Real, the successful ones cloned beside the demonstrations.
* `iter_sft`: attempts of the SFT policy in imagination, those judged successful cloned (World-Gymnast's Iter-SFT).
* `imagined_rl`: GRPO and self-imitation in imagination, as in the demo.
* `soft_rl-G`: the same in the software simulator at gap G with its true reward; `-dynamics`, `-looks`: only these are
  wrong; `-randomised`: domain randomisation; `-partial`: summed partial rewards.
* `real_rl`: the same in Real, the upper bound; its interactions are counted. `real_judged`: with the judge's reward, so
  that what lies between it and `real_rl` is the judge's, and between it and `imagined_rl` the world model's.

Example::

    record = run_arm(lab, find_arm("imagined_rl"), seed=0)
    record["evaluations"]["seen/greedy"]["success"], record["budget"]["imagined_steps"]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.context import WAY_SEED0, ClaimContext, frozen_gap, rate
from experiments.claims.presets import SPLITS
from experiments.claims.streams import own_streams
from experiments.pipelines.finetune import FineTuning, save_policy
from experiments.pipelines.run_folder import RunFolder, finite, versions
from experiments.pipelines.settings import FineTuneSettings
from worldgym.evaluation import PolicyRef

REAL_SEEDS, SOFT_SEEDS = (600_000, 1_000_000), (5_000_000, 6_000_000)
"""Start seeds of practice in the simulators: the split manifest's, apart from those of any measurement."""


@dataclass(frozen=True)
class Trained:
    """What an arm left.

    Args:
        policy: where.
        budget: environment steps and episodes by world, updates.
        way: rows of measurements during training.
        settings: what was run.
    """

    policy: PolicyRef
    budget: dict[str, float]
    way: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A way to improve the SFT policy.

    Args:
        name: of the arm.
        label: of it in reports.
        train: `(lab, seed, folder)` to `Trained`.
        splits: on which it is measured in Real.
        evaluators: whether Soft and imagination measure it too, for C20.
        seeded: whether another seed gives another policy.
    """

    name: str
    label: str
    train: Callable[[ClaimContext, int, Path], Trained]
    splits: tuple[str, ...] = SPLITS
    evaluators: bool = True
    seeded: bool = True


class LearningCurveProbe:
    """Measurements during learning, in place of the monitor: true and imagined success of the averaged policy.

    Nothing is learned from them; they are counted apart from the budget.
    """

    def __init__(self, lab: ClaimContext, imagined: bool) -> None:
        self.lab, self.imagined = lab, imagined
        self.starts = lab.looked(WAY_SEED0)

    def due(self, rounds: int) -> bool:
        """Every few rounds."""
        return rounds % self.lab.preset.every == 0

    def audit(self, policy: Any) -> dict[str, float]:
        """Success from the starts of the learning curve."""
        with own_streams("audit"):
            result = self.lab.pool(domain="real").evaluate(policy, self.starts)
        row = {"audit_true": result.rate().mean, "audit_episodes": float(len(self.starts))}
        if self.imagined:
            facts = self.lab.imagine(policy, self.starts)
            row["audit_imagined"] = rate({"x": facts}, "x")
        return row

    def trips(self, row: dict[str, float]) -> bool:
        """Never."""
        return False


def run_arm(lab: ClaimContext, arm: Arm, seed: int, code: str = "") -> dict[str, Any]:
    """Train, measure; what a record holds. The arm's name and the seed alone decide its random streams.

    Args:
        lab: shared parts.
        arm: which.
        seed: of training.
        code: hash of the sources; what an interrupted run of other sources left is not gone on with.
    """
    import torch

    from worldgym.text import embed

    folder = lab.folder(arm.name, seed, code)
    embed(list(lab.tasks))  # loaded once a process, which draws from the streams
    began, busy = time.perf_counter(), _core_seconds()
    with own_streams(arm.name, seed):
        trained = arm.train(lab, seed, folder)
    cost = {"wall_seconds": time.perf_counter() - began, "core_seconds": _core_seconds() - busy}
    facts = {
        "label": arm.label,
        "settings": trained.settings,
        "hashes": lab.hashes,
        "versions": versions(),
        "tasks": list(lab.tasks),
        "budget": {k: round(v, 1) for k, v in {**trained.budget, **cost}.items()},
        "way": trained.way,
        "threads": torch.get_num_threads(),
        "evaluations": lab.evaluate(trained.policy, arm.splits, arm.evaluators),
    }
    return dict(finite(facts))


def _core_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# -- arms without rollouts ------------------------------------------------------------------------
def _sft(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    return Trained(lab.sft, {"updates": 0.0})


def _bc_only(lab: ClaimContext, seed: int, folder: Path) -> Trained:
    return clone(lab, lab.preset.practice(seed, folder), lab.bundle.demonstrations(), {})


def clone(
    lab: ClaimContext, settings: FineTuneSettings, demos: Any, budget: dict[str, float], begin: Path | None = None
) -> Trained:
    """As many supervised updates on demonstrations as imagined RL takes in all, averaged likewise.

    Args:
        lab: shared parts.
        settings: of the practice that it is compared with.
        demos: what is cloned.
        budget: what they cost.
        begin: policy folder; the bundle's SFT policy by default.
    """
    from agents import SFT, SFTConfig, average_weights

    updates = settings.iterations * (settings.imitation_steps + settings.updates)
    policy, average = (lab.policy(begin) for _ in range(2))
    config = SFTConfig(
        lr=settings.imitation_lr, batch_size=settings.bc_batch, seed=settings.seed, weight_decay=0.0,
        learn=settings.learn,
    )  # fmt: skip
    trainer, decay = SFT(config), settings.average ** (settings.iterations / updates)
    for done in range(1, updates + 1):
        trainer.update(policy, demos)
        average_weights(average, policy, min(decay, done / (done + 10)))
    save_policy(average, settings.out / "policy")
    return Trained(saved(settings.out), {"updates": float(updates), **budget}, settings=settings.key())


def filtered_bc(episodes: int | None = None) -> Callable[[ClaimContext, int, Path], Trained]:
    """Own episodes in Real, once, as many as the preset says or as are said; rounds of cloning the successes."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from agents import SimulatorCollector

        settings, policy = lab.preset.practice(seed, folder), lab.bundle.policy()
        starts = some_starts(
            np.random.default_rng([seed, 17]), episodes or lab.preset.real_episodes, lab.tasks, REAL_SEEDS
        )
        with SimulatorCollector(lab.suite.name, env_kwargs={"domain": "real"}, processes=lab.workers) as real:
            rollouts = real.collect(
                policy, *starts, group_size=1, horizon=lab.preset.measured,
                temperature=settings.sampling(policy, 1.0), generator=_generator(seed),
            )  # fmt: skip
        budget = {"real_episodes": float(len(rollouts)), "real_steps": float(rollouts.frames_used)}
        return imitate(lab, settings, lab.bundle.demonstrations(), rollouts, budget)

    return train


def imitate(
    lab: ClaimContext, settings: FineTuneSettings, demos: Any, rollouts: Any, budget: dict[str, float]
) -> Trained:
    """Clone `demos`, and the successes among `rollouts` beside them, for as many updates as practice takes."""
    from agents import SelfImitation, SelfImitationConfig, average_weights

    policy, average = lab.bundle.policy(), lab.bundle.policy()
    config = SelfImitationConfig(
        steps=settings.imitation_steps, lr=settings.imitation_lr, batch_size=settings.bc_batch, seed=settings.seed,
        learn=settings.learn, demo_share=settings.demo_share, min_rate=0.0, discount=1.0,
    )  # fmt: skip
    imitation, updates = SelfImitation(demos, config), 0.0
    for done in range(1, settings.iterations + 1):
        updates += imitation.update(policy, rollouts if done == 1 else None)["imitation_steps"]
        average_weights(average, policy, min(settings.average, done / (done + 2)))
    save_policy(average, settings.out / "policy")
    return Trained(saved(settings.out), {"updates": updates, **budget}, settings=settings.key())


# -- arms with rollouts ---------------------------------------------------------------------------
def _imagined(changes: dict[str, Any]) -> Callable[[ClaimContext, int, Path], Trained]:
    """Practice in imagination."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        settings = lab.preset.practice(seed, folder, **changes)
        return fine_tune(lab, settings, None, "imagined_steps", imagined=True)

    return train


def _simulate(
    domain: Callable[[], dict[str, Any]], partial: bool = False, judge: bool = False
) -> Callable[[ClaimContext, int, Path], Trained]:
    """Practice in a simulator, with its true reward, or with what the judge says of its frames."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from agents import SimulatorCollector

        where = domain()
        real = where["domain"] == "real"
        settings = lab.preset.practice(seed, folder)
        with SimulatorCollector(lab.suite.name, env_kwargs=where, processes=lab.workers) as simulator:
            seeds = REAL_SEEDS if real else SOFT_SEEDS
            gather = simulated(simulator, lab.tasks, seeds, partial, lab.judge if judge else None)
            trained = fine_tune(lab, settings, gather, "real_steps" if real else "soft_steps", imagined=False)
        return replace(trained, settings={**trained.settings, **where, "partial": partial, "judged": judge})

    return train


def simulated(
    simulator: Any, tasks: tuple[str, ...], seeds: tuple[int, int], partial: bool, judge: Any = None
) -> Callable[..., Any]:
    """A round's attempts in a simulator: as many starts as in imagination, the policy as uncertain of its goal."""

    def gather(policy: Any, starts: Any, number: int, how: dict[str, Any]) -> Any:

        rng = np.random.default_rng([int(starts.seed), 23, number])
        chosen, verbs = some_starts(rng, len(starts) * starts.start_oversampling, tasks, seeds)
        if starts.start_oversampling > 1:
            image, state, texts = simulator.first_frames(chosen, verbs)
            belief = policy.confidence({"image": image, "state": state, "instruction": texts})
            rows = belief.argsort()[: len(starts)].tolist()
            chosen, verbs = [chosen[i] for i in rows], [verbs[i] for i in rows]
        known = ("group_size", "horizon", "temperature")
        return simulator.collect(
            policy, chosen, verbs, partial=partial, judge=judge,
            generator=_generator(int(starts.seed) * 10_000 + number), **{k: how[k] for k in known},
        )  # fmt: skip

    return gather


@dataclass(frozen=True)
class SimulatorStarts:
    """How many starts a simulator is asked for, in place of logged frames."""

    count: int
    start_oversampling: int
    seed: int

    def __len__(self) -> int:
        """So many."""
        return self.count


def fine_tune(
    lab: ClaimContext, settings: FineTuneSettings, gather: Callable[..., Any] | None, spent: str, imagined: bool,
    begin: Path | None = None, demos: Any | None = None,
) -> Trained:  # fmt: skip
    """Rounds of practice.

    Args:
        lab: shared parts.
        settings: of the practice.
        gather: where attempts come from; imagination by default.
        spent: name of the budget that their steps are on.
        imagined: whether imagined success is measured on the way.
        begin: policy folder; the bundle's SFT policy by default.
        demos: in place of the bundle's demonstrations.
    """
    run = RunFolder(settings.out, settings.key())
    draw = None
    if gather is not None:
        draw = lambda policy, rng: SimulatorStarts(settings.starts, settings.start_oversampling, settings.seed)  # noqa: E731
    tuning = FineTuning(
        settings, lab.bundle, run, gather=gather, policy=begin, tasks=lab.tasks, demos=demos, draw=draw,
        monitor=LearningCurveProbe(lab, imagined),
    )  # fmt: skip
    with run.board() as board:
        history = tuning.run(board)
    run.finish()
    seconds = np.cumsum([sum(v for k, v in row.items() if k.startswith("seconds_")) for row in history])
    way = [
        {
            "round": row["iteration"], "steps": row["imagined_steps"], "seconds": round(float(at), 1),
            "practised": round(row["success_rate"], 4),
            **{k.removeprefix("audit_"): round(v, 4) for k, v in row.items() if k in ("audit_true", "audit_imagined")},
        }
        for row, at in zip(history, seconds, strict=True)
    ]  # fmt: skip
    episodes = float(settings.iterations * settings.starts * settings.group)
    budget = {"updates": sum(row["updates"] for row in history), spent: history[-1]["imagined_steps"]}
    if spent == "real_steps":
        budget["real_episodes"] = episodes
    return Trained(saved(settings.out), budget, way, settings.key())


def some_starts(
    rng: np.random.Generator, count: int, tasks: tuple[str, ...], seeds: tuple[int, int]
) -> tuple[list[int], list[str]]:
    offset = int(rng.integers(len(tasks)))
    verbs = [tasks[(i + offset) % len(tasks)] for i in range(count)]
    return [int(s) for s in rng.integers(*seeds, count)], verbs


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def saved(folder: Path) -> PolicyRef:
    """The policy of a working folder."""
    return PolicyRef(str(folder / "policy"))


def _soft(gap: float, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"domain": "soft", "gap": gap, **more}


SHARED_ARMS: tuple[Arm, ...] = (
    Arm("sft", "SFT", _sft, seeded=False),
    Arm("bc_only", "BC only, as many updates", _bc_only),
    Arm("filtered_bc", "filtered BC, own episodes in Real", filtered_bc()),
    Arm("iter_sft", "Iter-SFT, judged imagined successes of SFT", _imagined({"lr": 0.0, "actor": "initial"})),
    Arm("imagined_rl", "imagined RL", _imagined({})),
    Arm("real_rl", "RL in Real", _simulate(lambda: {"domain": "real"})),
    Arm("real_judged", "RL in Real, the judge's reward", _simulate(lambda: {"domain": "real"}, judge=True)),
    *(Arm(f"soft_rl-{g:g}", f"RL in Soft, gap {g:g}", _simulate(_soft(g))) for g in (0.25, 0.5, 0.75, 1.0)),
    Arm("soft_rl-dynamics", "RL in Soft, only dynamics wrong (gap 1)", _simulate(_soft(1.0, looks=0.0))),
    Arm("soft_rl-looks", "RL in Soft, only looks wrong (gap 1)", _simulate(_soft(0.0, looks=1.0))),
    Arm(
        "soft_rl-randomised", "RL in Soft, randomised around the frozen gap",
        _simulate(lambda: {"domain": "soft", "gap": frozen_gap(), "randomise": 1.0}),
    ),
    Arm(
        "soft_rl-partial", "RL in Soft at the frozen gap, partial rewards",
        _simulate(lambda: {"domain": "soft", "gap": frozen_gap()}, partial=True),
    ),
)  # fmt: skip
"""Arms that no claim has for itself; a claim's own are in its `own_arms`. `experiments.claims.ARMS` has all of them."""
