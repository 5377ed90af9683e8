"""Arms of the comparison: methods that improve the same SFT policy, each a configuration of the same code.

All arms start from the same checkpoint and take the same number of updates. Arms with rollouts take the same number of
environment steps, in whichever environment. They differ in where the rollouts come from and in what scores them:

* `sft`: no training.
* `bc_only`: behaviour cloning of the demonstrations, with as many updates as imagined RL.
* `filtered_bc`: rollouts in Real; the successful ones are cloned together with the demonstrations.
* `iter_sft`: imagined rollouts of the SFT policy; those judged successful are cloned (World-Gymnast's Iter-SFT).
* `imagined_rl`: GRPO and self-imitation in imagination, as in the demo.
* `soft_rl-G`: the same RL in the software simulator at gap G with its true reward. `-dynamics` and `-looks`: only the
  dynamics or only the appearance is misspecified. `-randomised`: domain randomisation. `-partial`: partial rewards.
* `real_rl`: the same RL in Real, the upper bound; its interactions are counted. `real_judged`: the same with the
  judge's reward. The difference between it and `real_rl` is due to the judge, that between it and `imagined_rl` to the
  world model.

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

from experiments.claims.context import WAY_SEED0, ClaimContext, rate
from experiments.claims.streams import own_streams
from experiments.pipelines.bc_only import train_bc_only
from experiments.pipelines.finetune import FineTuning, save_policy
from experiments.pipelines.run_folder import RunFolder, finite, versions
from experiments.pipelines.settings import FineTuneSettings
from worldgym.evaluation import PolicyRef

REAL_SEEDS, SOFT_SEEDS = (600_000, 1_000_000), (5_000_000, 6_000_000)
"""Ranges of start seeds for training in the simulators, from the split manifest; disjoint from evaluation seeds."""


@dataclass(frozen=True)
class Trained:
    """The result of training an arm.

    Args:
        policy: reference to the trained policy.
        budget: environment steps and episodes by environment, and updates.
        way: rows of evaluations during training.
        settings: settings of the training.
        parts: folders of other trained parts, such as a world model, by name.
    """

    policy: PolicyRef
    budget: dict[str, float]
    way: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A method that improves the SFT policy.

    Args:
        name: identifier; it also seeds the arm's random streams.
        label: name in reports.
        train: function from `(lab, seed, folder)` to `Trained`.
        splits: splits on which the policy is evaluated in Real; those of the preset if empty.
        evaluators: whether the policy is also evaluated in Soft and in imagination, for C20.
        seeded: whether another seed gives another policy.
        measure: function from `(lab, Trained)` to the evaluations, in place of those of the policy.
    """

    name: str
    label: str
    train: Callable[[ClaimContext, int, Path], Trained]
    splits: tuple[str, ...] = ()
    evaluators: bool = True
    seeded: bool = True
    measure: Callable[[ClaimContext, Trained], dict[str, Any]] | None = None


class LearningCurveProbe:
    """Evaluates true and imagined success of the averaged policy during training; takes the place of the monitor.

    The evaluations do not affect training and are not part of the budget.
    """

    def __init__(self, lab: ClaimContext, imagined: bool) -> None:
        self.lab, self.imagined = lab, imagined
        self.starts = lab.looked(WAY_SEED0)

    def due(self, rounds: int) -> bool:
        """Whether the policy is evaluated after this round."""
        return rounds % self.lab.preset.every == 0

    def audit(self, policy: Any) -> dict[str, float]:
        """Measure success from the starts of the learning curve."""
        with own_streams("audit"):
            result = self.lab.pool(domain="real").evaluate(policy, self.starts)
        row = {"audit_true": result.rate().mean, "audit_episodes": float(len(self.starts))}
        if self.imagined:
            facts = self.lab.imagine(policy, self.starts)
            row["audit_imagined"] = rate({"x": facts}, "x")
        return row

    def trips(self, row: dict[str, float]) -> bool:
        """Never stop the training."""
        return False


def run_arm(lab: ClaimContext, arm: Arm, seed: int, code: str = "") -> dict[str, Any]:
    """Train and evaluate an arm, and return the content of its record.

    The arm's name and the seed alone determine the random streams.

    Args:
        lab: shared parts.
        arm: the arm to run.
        seed: training seed.
        code: hash of the sources; leftovers of an interrupted run with other sources are discarded.
    """
    import torch

    from worldgym.text import embed

    folder = lab.folder(arm.name, seed, code)
    embed(list(lab.tasks))  # load the text encoder now: loading it draws from the random streams
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
        "evaluations": _measured(lab, arm, trained),
    }
    return dict(finite(facts))


def _measured(lab: ClaimContext, arm: Arm, trained: Trained) -> dict[str, Any]:
    if arm.measure is None:
        return lab.evaluate(trained.policy, arm.splits, arm.evaluators)
    with own_streams("evaluate"):
        return arm.measure(lab, trained)


def _core_seconds() -> float:
    """CPU time of this process and of its finished child processes, in seconds."""
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
    """Clone demonstrations with as many updates as imagined RL takes in total, and the same weight averaging.

    Args:
        lab: shared parts.
        settings: settings of the fine-tuning with which this arm is compared.
        demos: dataset of chunks to clone.
        budget: cost of collecting the demonstrations.
        begin: folder of the initial policy; the bundle's SFT policy by default.
    """
    policy, average = (lab.policy(begin) for _ in range(2))
    updates = train_bc_only(settings, policy, average, demos)
    save_policy(average, settings.out / "policy")
    return Trained(saved(settings.out), {"updates": updates, **budget}, settings=settings.key())


def filtered_bc(episodes: int | None = None) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: collect `episodes` in Real once (the preset's number by default), then clone the successes."""

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
    """Clone `demos` together with the successful `rollouts`, for as many supervised updates as fine-tuning takes."""
    from agents import SelfImitation, SelfImitationConfig, average_weights

    policy, average = lab.bundle.policy(), lab.bundle.policy()
    config = SelfImitationConfig(
        steps=settings.imitation_steps, lr=settings.imitation_lr, batch_size=settings.bc_batch, seed=settings.seed,
        learn=settings.learn, demo_share=settings.demo_share, min_rate=0.0, discount=1.0,
        fastest=bool(settings.fastest), reached_goals=settings.reached_goals,
        action_head_steps=settings.head_steps,
    )  # fmt: skip
    imitation, updates = SelfImitation(demos, config), 0.0
    for done in range(1, settings.iterations + 1):
        updates += imitation.update(policy, rollouts if done == 1 else None)["imitation_steps"]
        average_weights(average, policy, min(settings.average, done / (done + 2)))
    save_policy(average, settings.out / "policy")
    return Trained(saved(settings.out), {"updates": updates, **budget}, settings=settings.key())


# -- arms with rollouts ---------------------------------------------------------------------------
def imagined_rl(changes: dict[str, Any]) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: fine-tuning in imagination, with changed settings."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        settings = lab.preset.practice(seed, folder, **changes)
        return fine_tune(lab, settings, None, "imagined_steps", imagined=True)

    return train


def _simulate(
    domain: Callable[[ClaimContext], dict[str, Any]], partial: bool = False, judge: bool = False
) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: fine-tuning in a simulator, with its true reward or with the judge's reward on its frames."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from agents import SimulatorCollector

        where = domain(lab)
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
    """Return a function that collects a round's rollouts in a simulator.

    It uses as many starts as imagination does, and also prefers those where the policy is least confident of its goal.
    """

    def gather(policy: Any, starts: Any, number: int, how: dict[str, Any]) -> Any:

        rng = np.random.default_rng([int(starts.seed), 23, number])
        chosen, start_tasks = some_starts(rng, len(starts) * starts.start_oversampling, tasks, seeds)
        if starts.start_oversampling > 1:
            image, state, texts = simulator.first_frames(chosen, start_tasks)
            confidence = policy.confidence({"image": image, "state": state, "instruction": texts})
            rows = confidence.argsort()[: len(starts)].tolist()
            chosen, start_tasks = [chosen[i] for i in rows], [start_tasks[i] for i in rows]
        known = ("group_size", "horizon", "temperature", "distinct_goals")
        return simulator.collect(
            policy, chosen, start_tasks, partial=partial, judge=judge,
            generator=_generator(int(starts.seed) * 10_000 + number), **{k: how[k] for k in known if k in how},
        )  # fmt: skip

    return gather


@dataclass(frozen=True)
class SimulatorStarts:
    """Number of starts to request from a simulator; takes the place of logged start frames."""

    count: int
    start_oversampling: int
    seed: int

    def __len__(self) -> int:
        """Number of starts in a round."""
        return self.count


def fine_tune(
    lab: ClaimContext, settings: FineTuneSettings, gather: Callable[..., Any] | None, spent: str, imagined: bool,
    begin: Path | None = None, demos: Any | None = None,
) -> Trained:  # fmt: skip
    """Fine-tune the policy by RL, with evaluations during training.

    Args:
        lab: shared parts.
        settings: settings of the fine-tuning.
        gather: function that collects rollouts; imagination by default.
        spent: key of `budget` under which the environment steps are counted.
        imagined: whether imagined success is evaluated during training.
        begin: folder of the initial policy; the bundle's SFT policy by default.
        demos: demonstrations; the bundle's by default.
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
    """Draw `count` start seeds from the range `seeds`, with tasks in turn; returns seeds and tasks."""
    offset = int(rng.integers(len(tasks)))
    start_tasks = [tasks[(i + offset) % len(tasks)] for i in range(count)]
    return [int(s) for s in rng.integers(*seeds, count)], start_tasks


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def saved(folder: Path) -> PolicyRef:
    """Reference to the policy in a working folder."""
    return PolicyRef(str(folder / "policy"))


def _soft(gap: float | None = None, **more: Any) -> Callable[[ClaimContext], dict[str, Any]]:
    """Settings of Soft at a gap; at the frozen gap of the suite if None."""
    return lambda lab: {"domain": "soft", "gap": lab.preset.frozen_gap if gap is None else gap, **more}


SHARED_ARMS: tuple[Arm, ...] = (
    Arm("sft", "SFT", _sft, seeded=False),
    Arm("bc_only", "BC only, same number of updates", _bc_only),
    Arm("filtered_bc", "filtered BC, own episodes in Real", filtered_bc()),
    Arm("iter_sft", "Iter-SFT, imagined successes of the SFT policy", imagined_rl({"lr": 0.0, "actor": "initial"})),
    Arm("imagined_rl", "imagined RL", imagined_rl({})),
    Arm("real_rl", "RL in Real", _simulate(lambda lab: {"domain": "real"})),
    Arm("real_judged", "RL in Real, reward from the judge", _simulate(lambda lab: {"domain": "real"}, judge=True)),
    *(Arm(f"soft_rl-{g:g}", f"RL in Soft, gap {g:g}", _simulate(_soft(g))) for g in (0.25, 0.5, 0.75, 1.0)),
    Arm("soft_rl-dynamics", "RL in Soft, only dynamics misspecified (gap 1)", _simulate(_soft(1.0, looks=0.0))),
    Arm("soft_rl-looks", "RL in Soft, only appearance misspecified (gap 1)", _simulate(_soft(0.0, looks=1.0))),
    Arm(
        "soft_rl-randomised", "RL in Soft, domain randomisation around the frozen gap",
        _simulate(_soft(randomise=1.0)),
    ),
    Arm(
        "soft_rl-partial", "RL in Soft at the frozen gap, partial rewards",
        _simulate(_soft(), partial=True),
    ),
)  # fmt: skip
"""Arms that claims share. Each claim's own arms are in its `own_arms`; `experiments.claims.ARMS` has all arms."""
