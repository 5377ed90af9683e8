"""Imagined practice: rounds of GRPO and self-imitation inside a world model, remembered after every round.

The part of the demo that improves a policy, and what `worldgym rl` runs. Each round is seeded by (seed, round), so an
interrupted run ends as an uninterrupted one would.

Example::

    practice = Practice(PracticeSettings(out="runs/practice"), bundle, folder)
    history = practice.run(board)           # the improved policy is in runs/practice/policy
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import Bundle
from experiments.demo_settings import BATCHES_A_SEED, DEFAULT_TASKS, PracticeSettings
from experiments.guard import Guard
from experiments.run_folder import RunFolder
from worldgym.errors import CheckpointError
from worldgym.pretrained import remedy
from worldgym.registry import POLICIES
from worldgym.specs import specs_of
from worldgym.utils.folders import save_folder, verify_listed
from worldgym.utils.progress import Progress

STAGES = ("imagine", "judge", "policy")


class Practice:
    """One policy's rounds.

    Args:
        settings: how.
        bundle: world model, judge, policy to begin with, starts and demonstrations.
        folder: where each round is remembered.
        gather: `gather(policy, starts, number, settings)` imagines one round's `Rollouts`; this process when None.
        policy: begins in place of the bundle's, a folder.
        tasks: verbs among which to practise; the bundle's when empty.
        judge: rewards in place of the bundle's.
    """

    def __init__(
        self,
        settings: PracticeSettings,
        bundle: Bundle,
        folder: RunFolder,
        gather: Callable[..., Any] | None = None,
        policy: Path | None = None,
        tasks: tuple[str, ...] = (),
        judge: Any | None = None,
    ) -> None:
        self.settings, self.bundle, self.folder = settings, bundle, folder
        self.begin_with = policy
        tasks = tasks or tuple(bundle.card.get("tasks", ())) or DEFAULT_TASKS
        thin = bundle.card.get("tasks_thin", ())
        self.verbs = settings.practise or tuple(t for t in tasks if t not in thin) or tasks
        with folder.clock("load"):
            self.world_model = bundle.world_model()
            self.judge = judge if judge is not None else bundle.judge()
            self.bank = bundle.start_bank(self.verbs)
            self.demos = bundle.demonstrations()
        self._check_parts()
        self.gather = gather or self._gather
        self.starts_of = self._starts
        self.guard = Guard(settings, self.world_model, self.judge, self.verbs)
        self.stop_at: float | None = None  # imagined success, in an audit, at which practice ends

    def policy(self) -> Any:
        """A fresh copy of the policy that practice begins with."""
        if self.begin_with is None:
            return self.bundle.policy()
        from agents import load_policy

        return self.bundle.placing(load_policy(self.begin_with))

    def run(
        self, board: Any, report: Callable[[dict[str, float]], None] | None = None
    ) -> list[dict[str, float]]:
        """All rounds that are still to do; saved after each, so Ctrl-C costs at most one.

        Args:
            board: a TensorBoard writer.
            report: called with each round's scalars, after it and the averaged policy in `out/policy` were saved.

        Returns:
            one row of scalars a round. The improved policy, averaged over the rounds, is in `out/policy`.
        """
        from agents import GRPO, GRPOConfig, SelfImitation, SelfImitationConfig, average_weights, load_policy

        settings = self.settings
        final = self.folder.read("history")
        if final is not None and (settings.out / "policy").is_dir():
            for row in final:
                self._scalars(board, row)
            restore_stream(self.folder.read("stream"))
            self._forget_rounds()
            return list(final)
        policy, average = self.policy(), self.policy()
        self._check_demos(policy)
        improver = GRPO(
            GRPOConfig(
                lr=settings.lr or GRPOConfig.lr, updates=settings.updates, seed=settings.seed, learn=settings.learn
            )
        )  # fmt: skip
        cloning = SelfImitationConfig(
            steps=settings.imitation_steps,
            lr=settings.imitation_lr,
            batch_size=settings.bc_batch,
            seed=settings.seed,
            learn=settings.learn,
            demo_share=settings.demo_share,
            min_rate=settings.min_rate,
            discount=1.0,
        )
        imitation = SelfImitation(self.demos, cloning)
        history: list[dict[str, float]] = []
        stream = stream_now()
        guard = self.guard
        if rounds := self._rounds():
            verify_listed(rounds[-1], self.folder.restart)
            imitation.load(policy, rounds[-1] / "imitation")
            remembered = improver.load(policy, rounds[-1] / "grpo")
            history, stream = remembered["history"], remembered["stream"]
            average = self.bundle.placing(load_policy(rounds[-1] / "average"))
            for row in history:
                self._scalars(board, row)
        with Progress(settings.iterations, "  imagined practice", initial=len(history)) as progress:
            while len(history) < settings.iterations and not (history and self._over(guard, history[-1])):
                row = self.iteration(policy, improver, imitation, len(history), history)
                history.append(row)
                done = len(history)
                average_weights(average, policy, min(settings.average, done / (done + 2)))
                if guard.due(done):
                    row |= guard.audit(average)
                stream = stream_now()
                with self._saved(done) as partial:
                    save_policy(average, partial / "average")
                    imitation.save(policy, partial / "imitation")
                    improver.save(policy, partial / "grpo", {"history": history, "stream": stream})
                self._scalars(board, row)
                if report is not None:
                    save_policy(average, settings.out / "policy")  # the receiver may end this process
                    report(row)
                recent = float(np.nanmean([r["success_rate"] for r in history[-5:]]))
                progress.update(
                    1, imagined_success=round(recent, 3), entropy=row.get("goal_entropy", row["entropy"])
                )
        save_policy(average, settings.out / "policy")
        for stage in (*STAGES, "update"):
            self.folder.seconds[stage] = 0.0
            self.folder.add_seconds(stage, sum(row[f"seconds_{stage}"] for row in history))
        self.folder.write("stream", stream)
        self.folder.write("history", history)
        self._forget_rounds()
        restore_stream(stream)
        return history

    def _over(self, guard: Guard, row: dict[str, float]) -> bool:
        """Whether no further round is wanted after one with these scalars."""
        enough = self.stop_at is not None and row.get("audit_imagined", 0.0) > self.stop_at
        return enough or guard.trips(row)

    def remembered(self) -> list[dict[str, float]]:
        """Scalars of the rounds that an interrupted run has finished."""
        from worldgym.utils.train_state import TrainState

        final = self.folder.read("history")
        if final is None and (rounds := self._rounds()):
            verify_listed(rounds[-1], self.folder.restart)
            final = TrainState(rounds[-1] / "grpo").meta()["user"]["history"]
        return list(final or [])

    def _rounds(self) -> list[Path]:
        """Rounds that are wholly on disk, the last one last."""
        return sorted(self.folder.state.glob("round-[0-9]*"))

    def _forget_rounds(self) -> None:
        """Remove what only an interrupted practice would need."""
        names = {f"state/{path.name}" for path in self._rounds()}
        names |= {
            name for name in self.folder.made if name.startswith("state/round-")
        }  # a kill came before the marker
        if names:
            self.folder.disown(*sorted(names))

    @contextmanager
    def _saved(self, number: int) -> Iterator[Path]:
        """A folder for what round `number` leaves: all of it stays or, killed half-way, the round before."""
        before, name = self._rounds(), f"round-{number:05d}"
        self.folder.own(f"state/{name}")
        with save_folder(self.folder.state / name) as partial:
            yield partial
        self.folder.disown(*(f"state/{path.name}" for path in before))

    def _check_parts(self) -> None:
        """Raise a CheckpointError when starts or demonstrations do not fit the world model."""
        spec = specs_of(self.world_model).observation
        wanted, states = (*spec.main.size, 3), spec.state_dim
        found = {"starts": self.bank.starts, "demonstrations": self.demos}
        for name, data in found.items():
            shape = tuple(data.images.shape[1:]), int(data.states.shape[1])
            if shape != (wanted, states):
                raise CheckpointError(
                    f"the {name} of {self.bundle.folder} have images {shape[0]} and states ({shape[1]},), its world "
                    f"model reads images {wanted} and states ({states},); {remedy(self.bundle.folder)}"
                )

    def _check_demos(self, policy: Any) -> None:
        """Raise a CheckpointError when the demonstrated chunks are not such as the policy makes."""
        got, wanted = tuple(self.demos.actions.shape[1:]), (policy.chunk, self.world_model.action_dim)
        if got != wanted:
            raise CheckpointError(
                f"the demonstrations of {self.bundle.folder} have action chunks {got}, policy and world model take "
                f"{wanted}; {remedy(self.bundle.folder)}"
            )

    def iteration(
        self, policy: Any, improver: Any, imitation: Any, number: int, history: list[dict[str, float]]
    ) -> dict[str, float]:
        """One round: imagine, judge, update. Seeded by (seed, number), so that resuming changes nothing."""
        import torch

        settings = self.settings
        rng = np.random.default_rng([settings.seed, number])
        torch.manual_seed(self.stream(number))
        actor = policy if settings.acting == "now" else self.policy()
        rollouts = self.gather(actor, self.starts_of(actor, rng), number, self.imagining(actor))
        began = time.perf_counter()
        compared = rollouts if settings.lr else rollouts.select(torch.zeros(len(rollouts), dtype=torch.bool))
        scalars = {**improver.update(policy, compared), **imitation.update(policy, rollouts)}
        update_seconds = time.perf_counter() - began
        config = improver.config
        learned = min(scalars.get("trajectories_kept", 0.0), config.updates) * config.epochs
        before = history[-1]["imagined_steps"] if history else 0.0
        return {
            **{k: float(v) for k, v in scalars.items()},
            "iteration": float(number + 1),
            "success_rate": rollouts.success_rate(),
            "ep_len_mean": float(rollouts.lengths.float().mean()) * policy.chunk,
            "valid": float(rollouts.valid.float().mean()),
            "groups_share": scalars["groups_kept"] / max(1.0, scalars["groups"]),
            "updates": learned + scalars["imitation_steps"],
            "imagined_steps": before + rollouts.frames_used,
            "seconds_update": update_seconds,
            **{f"seconds_{k}": float(rollouts.seconds.get(k, 0.0)) for k in STAGES},
        }

    def stream(self, number: int) -> int:
        """Seed of round `number`."""
        return self.settings.seed * BATCHES_A_SEED + number

    def imagining(self, policy: Any) -> dict[str, Any]:
        """Settings of `agents.collect`."""
        settings = self.settings
        return {
            "group_size": settings.group,
            "horizon": settings.practise_horizon,
            "temperature": sampling(policy, settings.temperature, settings.token_temperature),
            "threshold": settings.threshold,
            "max_uncertainty": settings.max_uncertainty,
            "confirm": settings.confirm,
        }

    def _gather(self, policy: Any, starts: Any, number: int, settings: dict[str, Any]) -> Any:
        import torch

        from agents import collect

        generator = torch.Generator().manual_seed(self.stream(number))
        return collect(self.world_model, self.judge, policy, starts, generator=generator, **settings)

    def _starts(self, policy: Any, rng: np.random.Generator) -> Any:
        """Logged frames at which the policy is least certain of its goal: the half (or less) of those drawn."""
        settings = self.settings
        drawn = self.bank.sample(
            settings.starts * settings.hesitation, rng, middle_fraction=settings.middle_fraction
        )
        if settings.hesitation == 1:
            return drawn
        if not hasattr(policy, "confidence"):  # one that does not know where it hesitates
            return drawn.select(np.arange(settings.starts))
        look = {"image": drawn.images, "state": drawn.states, "instruction": drawn.instructions}
        return drawn.select(policy.confidence(look).argsort()[: settings.starts].cpu().numpy())

    def _scalars(self, board: Any, row: dict[str, float]) -> None:
        step = int(row["imagined_steps"])
        spent = sum(row[f"seconds_{k}"] for k in (*STAGES, "update"))
        frames = self.settings.starts * self.settings.group * row["ep_len_mean"]
        board.add_scalar("rollout/success_rate", row["success_rate"], step)
        board.add_scalar("rollout/ep_rew_mean", row["success_rate"], step)
        board.add_scalar("rollout/ep_len_mean", row["ep_len_mean"], step)
        board.add_scalar(f"reward/{self.judge.name}", row["success_rate"], step)
        board.add_scalar("imagination/horizon", row["ep_len_mean"], step)
        board.add_scalar("imagination/valid", row["valid"], step)
        board.add_scalar("time/fps", frames / max(spent, 1e-9), step)
        for key in ("imagined", "true", "gap"):
            if f"audit_{key}" in row:
                board.add_scalar(f"audit/{key}", row[f"audit_{key}"], step)
        for key in (
            "loss",
            "entropy",
            "clip_fraction",
            "approx_kl",
            "goal_entropy",
            "goal_clip_fraction",
            "goal_approx_kl",
            "grad_norm",
            "groups_kept",
            "imitation_loss",
        ):
            if key in row:
                board.add_scalar(f"train/{key}", row[key], step)


def sampling(policy: Any, temperature: float, token_temperature: float) -> Any:
    """Temperatures of a policy's goal and actions; of one without goals, `temperature` is that of its actions."""
    if "goal" in getattr(policy, "components", ()):
        return {"goal": temperature, "action": token_temperature}
    return temperature


def stream_now() -> str:
    """The state of torch's random stream, which dropout draws from."""
    import torch

    return torch.get_rng_state().numpy().tobytes().hex()


def restore_stream(state: str) -> None:
    """Inverse of `stream_now`: what comes after practice draws the same numbers whether practice was resumed or not."""
    import torch

    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    if torch.cuda.is_available():  # its stream is not kept with a round: what follows draws by a seed of its own
        torch.cuda.manual_seed_all(zlib.crc32(bytes.fromhex(state)))


def save_policy(policy: Any, folder: Path) -> None:
    """Write a policy so that the folder holds the old one or the new one, nothing between."""
    POLICIES.save(policy, folder)
