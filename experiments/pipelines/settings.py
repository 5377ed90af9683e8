"""Settings of the demo and of fine-tuning inside a world model, their defaults, and the reductions by `quick`.

Example::

    settings = DemoSettings(seed=1, out="runs/demo-1")
    settings.key()      # settings that a resumed run must have in common
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from experiments.compute import DType
from experiments.suites import BundleName
from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from agents import ImaginedRLConfig
from worldgym.pretrained import DEFAULT

ROLLOUT_HORIZON = 25
PRACTICE: dict[str, Any] = {"confirm": 1, "threshold": None, "fastest": True, "train_tasks": (),
    "initial_share": 0.0}  # fmt: skip
"""Settings that the card of a bundle may state under `practice`, and their values if it does not."""
CHECK_SEED0 = 11_000_000
"""First seed of the starts of the imagination check: held out, and different from those of the evaluation."""


@dataclass(frozen=True)
class FineTuneSettings:
    """Settings of fine-tuning a policy inside a world model.

    Args:
        seed: seed of all randomness.
        out: folder of results and of the improved policy.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        train_tasks: tasks to train on in imagination; if empty, those that the bundle's card says, else the bundle's
            tasks, except those with little data. Where the policy already succeeds in imagination, only errors of the
            world model are left to learn.
            Errors of the world model are learned by the policy: choose tasks that come close to passing the closed-loop
            gate.
        iterations: rounds of rollouts and updates.
        starts: logged start frames per round, each tried `group` times.
        start_oversampling: draw this many times more frames, and keep those at which the policy is least certain of its
            goal. Where it is certain, all rollouts of a group are alike and give no learning signal.
        group: rollouts per start.
        rollout_horizon: steps of a rollout; longer rollouts drift. None takes that of the bundle's card, else 25.
        temperature: sampling temperature of the policy's goals; above 1 it explores more than the policy itself would.
        action_temperature: sampling temperature of the actions of a policy with goals; 0 is greedy.
        distinct_goals: the attempts from a start try different goals, drawn without replacement, and keep them until
            they are reached.
        hindsight: other instructions per failed attempt that the judge is asked about, of those that can be followed
            from its start if the starts say so; attempts that fulfil one are imitated under it. 0 disables it.
        hindsight_threshold: lowest probability of the judge that counts there.
        learn: `goal` trains where the policy moves and keeps the action head as it was cloned; `all` trains both.
        average: decay per iteration of the averaged weights, which are the improved policy; the BC-only control is
            averaged in the same way.
        initial_share: share of the initial policy's weights in the result, from 0 to below 1 (WiSE-FT, Wortsman et al.
            2022, equation 1); None takes that of the bundle's card, else 0. It gives up some of what was learned for
            what would be forgotten. The BC-only control is mixed in the same way.
        improver: registered algorithm that updates the policy from rollouts (`worldgym list --kinds improvers`).
        lr: learning rate of the improver; 0 disables it.
        updates: optimizer steps of GRPO per round; more steps move the policy further from the one that acted.
        actor: policy that generates the rollouts: `current`, or always `initial` (iterated SFT).
        imitation_steps: supervised steps per round on judged imagined successes and demonstrations; 0 disables them.
        imitation_lr: learning rate of these steps.
        action_head_steps: further supervised steps per round, on the output layer of the action head alone; not taken
            with learn `all`, which trains it anyway.
        demo_share: fraction of demonstrations in their batches.
        min_rate: fraction of the attempts from a start that must be judged successful; otherwise none is imitated.
        fastest: of the successful attempts from a start, imitate only those that took the fewest chunks; None takes
            what the bundle's card says, else yes. `--fastest` and `--no-fastest` on the command line.
        reached_goals: imitate only goals at which the hand arrived next.
        middle_fraction: fraction of start frames that are not the first frame of their episode.
        threshold: success probability that counts as success; None takes that of the bundle's card, else the judge's
            own threshold.
        confirm: number of successive judgements that must be successful; None takes that of the bundle's card, else 1.
        max_uncertainty: drop imagined episodes whose uncertainty exceeds this; None drops none.
        futures: judge this many further futures of each episode, from shifted start frames; the uncertainty is then the
            disagreement of their verdicts (`worldgym.models.FutureEnsemble`), and imagination costs 1 + futures times
            as much. 0 takes the world model's own uncertainty.
        penalty: weight of the uncertainty, which is subtracted from the reward (RWM-U, arXiv 2504.16680).
        bc_batch: chunks per supervised step, in self-imitation and in the BC-only control.
        audit_every: rounds between two audits of the averaged policy, in which its imagined episodes are executed in
            Real (and counted); 0 disables audits.
        audit_episodes: imagined and executed episodes per audit.
        audit_bound: training stops when imagined success exceeds true success by more than this.
        quick: reduce everything to a few seconds, to test whether the run works; the results are meaningless.
        fresh: discard an earlier run in the same folder.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of the world model; `auto` keeps the precision in which it was saved.
    """

    seed: int = 0
    out: Path = Path("runs/practice")
    bundle: BundleName = DEFAULT
    train_tasks: tuple[str, ...] = ()
    iterations: int = 20
    starts: int = 96
    start_oversampling: int = 2
    group: int = 6
    rollout_horizon: int | None = None
    temperature: float = 2.0
    action_temperature: float = 0.0
    distinct_goals: bool = False
    hindsight: int = 0
    hindsight_threshold: float = 0.9
    learn: Literal["goal", "all"] = "goal"
    average: float = 0.8
    initial_share: float | None = None
    improver: str = "grpo"
    lr: float = 2e-5
    updates: int = 2
    actor: Literal["current", "initial"] = "current"
    imitation_steps: int = 48
    imitation_lr: float = 3e-4
    action_head_steps: int = 0
    demo_share: float = 0.4
    min_rate: float = 0.3
    fastest: bool | None = None
    reached_goals: bool = True
    middle_fraction: float = 0.3
    threshold: float | None = None
    confirm: int | None = None
    max_uncertainty: float | None = None
    futures: int = 0
    penalty: float = 0.0
    bc_batch: int = 128
    audit_every: int = 0
    audit_episodes: int = 60
    audit_bound: float = 0.2
    quick: bool = False
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    SMALL: ClassVar[dict[str, int]] = {
        "iterations": 2, "starts": 2, "group": 4, "rollout_horizon": 10, "bc_batch": 8, "imitation_steps": 2,
    }  # fmt: skip
    MAY_BE_ZERO: ClassVar[set[str]] = {"lr"}
    ELSEWHERE: ClassVar[set[str]] = {"out", "fresh", "workers", "device", "dtype"}
    """Settings in which a resumed run may differ: where and how it runs."""

    def __post_init__(self) -> None:
        """Validate, and reduce everything for `quick`."""
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "train_tasks", tuple(self.train_tasks))
        object.__setattr__(self, "learn", "goal" if self.learn == "pointer" else self.learn)  # name in earlier versions
        if self.rollout_horizon is None:
            object.__setattr__(self, "rollout_horizon", rollout_horizon(self.bundle))
        practice = practice_of(self.bundle)
        for name, usual in PRACTICE.items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, practice.get(name, usual))
        object.__setattr__(self, "train_tasks", tuple(self.train_tasks))
        if self.quick:
            for name, value in self.SMALL.items():
                object.__setattr__(self, name, min(getattr(self, name), value))
        at_least_one(
            self, "iterations", "starts", "updates", "start_oversampling", "rollout_horizon", "bc_batch", "confirm",
            "audit_episodes",
        )  # fmt: skip
        if self.group < 2:
            raise ConfigError(
                f"group is {self.group}, expected at least 2 (attempts are compared with each other); try --group 8"
            )
        if min(self.seed, self.imitation_steps, self.action_head_steps, self.audit_every) < 0:
            raise ConfigError("seed, imitation_steps, action_head_steps and audit_every must not be negative")
        if self.action_temperature < 0 or not 0 <= self.average < 1:
            raise ConfigError(
                "action_temperature must not be negative and average must lie in [0, 1); got "
                f"{self.action_temperature}, {self.average}"
            )
        if not 0 <= (self.initial_share or 0.0) < 1:
            raise ConfigError(f"initial_share is {self.initial_share}, expected 0 to below 1; try --initial-share 0.5")
        if not 0 <= self.futures <= 64 or not 0 <= self.penalty < float("inf"):
            raise ConfigError(
                f"futures is {self.futures}, expected 0 to 64; penalty is {self.penalty}, expected at least 0"
            )
        if self.lr < 0 or self.actor not in ("current", "initial"):
            raise ConfigError(
                f"lr must not be negative, actor 'current' or 'initial'; got {self.lr}, {self.actor!r}"
            )
        if self.actor == "initial" and self.lr > 0:
            raise ConfigError("GRPO needs rollouts of the current policy; set lr=0 for actor='initial'")
        for name in ("temperature", "imitation_lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")

    @staticmethod
    def rewrite_arguments(arguments: list[str]) -> list[str]:
        """Read `--fastest` and `--no-fastest` as values, since None is one too."""
        values = {"--fastest": ["--fastest", "True"], "--no-fastest": ["--fastest", "False"]}
        given = [*arguments, ""]
        return [
            word
            for name, after in zip(given, given[1:], strict=False)
            for word in ([name] if after in ("True", "False", "None") else values.get(name, [name]))
        ]

    @property
    def head_steps(self) -> int:
        """Supervised steps per round on the output layer of the action head alone."""
        return self.action_head_steps if self.learn == "goal" else 0

    def sampling(self, policy: Any, temperature: float | None = None) -> Any:
        """Sampling temperatures by component: for a policy with goals, its actions use `action_temperature`."""
        rollout = self.trainer_config().rollout
        return dataclasses.replace(rollout, temperature=temperature or rollout.temperature).temperatures(policy)

    def trainer_config(self) -> ImaginedRLConfig:
        """Convert to the settings of `agents.ImaginedRLTrainer` and its parts."""
        from agents import GRPOConfig, ImaginedRLConfig, RolloutConfig, SelfImitationConfig

        rollout = RolloutConfig(
            starts=self.starts, start_oversampling=self.start_oversampling, group_size=self.group,
            horizon=self.rollout_horizon or ROLLOUT_HORIZON, temperature=self.temperature,
            action_temperature=self.action_temperature,
            middle_fraction=self.middle_fraction, threshold=self.threshold, confirm=self.confirm or 1,
            max_uncertainty=self.max_uncertainty, penalty=self.penalty, distinct_goals=self.distinct_goals,
            hindsight=self.hindsight, hindsight_threshold=self.hindsight_threshold,
        )  # fmt: skip
        imitation = SelfImitationConfig(
            steps=self.imitation_steps, lr=self.imitation_lr, batch_size=self.bc_batch, seed=self.seed,
            learn=self.learn, demo_share=self.demo_share, min_rate=self.min_rate, discount=1.0,
            fastest=bool(self.fastest), reached_goals=self.reached_goals, action_head_steps=self.head_steps,
        )  # fmt: skip
        grpo = GRPOConfig(lr=self.lr, updates=self.updates, seed=self.seed, learn=self.learn) if self.lr else None
        return ImaginedRLConfig(rollout, grpo, imitation, self.average, self.actor, self.seed, self.improver)

    def key(self) -> dict[str, Any]:
        """Settings that a resumed run must have in common."""
        data = {k: v for k, v in dataclasses.asdict(self).items() if k not in self.ELSEWHERE}
        for name in ("futures", "penalty"):
            if not data[name]:
                del data[name]  # as in runs of earlier versions
        if self.improver == "grpo":
            del data["improver"]  # runs of earlier versions, which had no other, can be continued
        if not self.initial_share:
            del data["initial_share"]
        return json.loads(json.dumps(data, default=str))


@dataclass(frozen=True)
class DemoSettings(FineTuneSettings):
    """Improve a policy inside the bundled world model and measure it in Real.

    Args:
        tasks: tasks to measure; the bundle's if empty.
        horizon: steps of 0.2 s in a measured episode.
        episodes: episodes in Real per policy and mode; at least 200 for reliable intervals.
        sharpen_temperature: sampling temperature of the sharpened SFT control.
        check_episodes: imagined episodes that are executed in Real.
        check_temperature: sampling temperature of these episodes.
        clips: number of these episodes to save as videos.
        workers: evaluation processes; 0 uses this process.
    """

    out: Path = Path("runs/demo")
    tasks: tuple[str, ...] = ()
    horizon: int = 40
    episodes: int = 300
    sharpen_temperature: float = 0.5
    check_episodes: int = 99
    check_temperature: float = 1.0
    clips: int = 6
    workers: int = 2

    SMALL: ClassVar[dict[str, int]] = {
        **FineTuneSettings.SMALL, "horizon": 10, "episodes": 6, "workers": 0, "check_episodes": 4, "clips": 2,
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(self.tasks))
        at_least_one(self, "horizon", "episodes", "check_episodes")
        if min(self.workers, self.clips) < 0:
            raise ConfigError("workers and clips must not be negative")
        if self.sharpen_temperature <= 0:
            raise ConfigError(f"sharpen_temperature is {self.sharpen_temperature}, expected more than 0")


def _card(bundle: str | Path) -> dict[str, Any]:
    folder = Path(bundle).expanduser()
    try:
        return pretrained.read_card(folder if folder.is_dir() else pretrained.path(str(bundle)))
    except CheckpointError:
        return {}  # the error is raised again where the bundle is needed


def rollout_horizon(bundle: str | Path) -> int:
    """Steps of a rollout that the card of a bundle states; 25 if it states none."""
    return int(_card(bundle).get("rollout_horizon", ROLLOUT_HORIZON))


def practice_of(bundle: str | Path) -> dict[str, Any]:
    """Settings of fine-tuning that the card of a bundle states, by name.

    Raises:
        ConfigError: a name that is not in `PRACTICE`.
    """
    practice = _card(bundle).get("practice", {})
    if unknown := sorted(set(practice) - set(PRACTICE)):
        raise ConfigError(
            f"the card of {bundle} has the practice setting {unknown[0]!r}; expected {', '.join(PRACTICE)}"
        )
    return dict(practice)


def at_least_one(settings: Any, *names: str) -> None:
    """Raise a ConfigError for the first of these settings that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}, expected at least 1")
