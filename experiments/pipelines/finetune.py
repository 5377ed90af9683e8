"""Resumable fine-tuning inside a world model, used by the demo and by `worldgym rl` around `ImaginedRLTrainer`.

It takes the parts from a bundle, saves every round in the run's folder, audits the averaged policy against the suite's
true outcomes every few rounds, and writes TensorBoard scalars.

Example::

    tuning = FineTuning(FineTuneSettings(out="runs/rl"), bundle, folder)
    history = tuning.run(board)             # the improved policy is in runs/rl/policy
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import Bundle
from experiments.pipelines.reward_hacking_monitor import RewardHackingMonitor
from experiments.pipelines.run_folder import RunFolder
from experiments.pipelines.settings import FineTuneSettings
from worldgym.errors import CheckpointError, DivergedError
from worldgym.pretrained import remedy
from worldgym.registry import POLICIES
from worldgym.utils.folders import save_folder, verify_listed
from worldgym.utils.progress import Progress

STAGES = ("imagine", "judge", "policy")


class FineTuning:
    """Fine-tunes one policy in rounds.

    Args:
        settings: settings of the fine-tuning.
        bundle: provides world model, judge, initial policy, starts and demonstrations.
        folder: run folder in which each round is saved.
        gather: `gather(policy, starts, round, settings)` collects the `Rollouts` of a round; None collects in this
            process.
        policy: folder of the initial policy, in place of the bundle's.
        tasks: tasks to train on; the bundle's when empty.
        judge: judge in place of the bundle's.
        demos: demonstrations in place of the bundle's.
        starts: a `StartBank` in place of the bundle's.
        draw: `draw(policy, rng)` draws the starts of a round; see `ImaginedRLTrainer`.
        monitor: audits the averaged policy; None creates a `RewardHackingMonitor` from the settings.
        stop_at: imagined success in an audit at which training stops; None runs all rounds.
    """

    def __init__(
        self,
        settings: FineTuneSettings,
        bundle: Bundle,
        folder: RunFolder,
        gather: Callable[..., Any] | None = None,
        policy: Path | None = None,
        tasks: tuple[str, ...] = (),
        judge: Any | None = None,
        *,
        demos: Any | None = None,
        starts: Any | None = None,
        draw: Callable[..., Any] | None = None,
        monitor: Any | None = None,
        stop_at: float | None = None,
    ) -> None:
        self.settings, self.bundle, self.folder = settings, bundle, folder
        self.begin_with, self.gather, self.draw, self.stop_at = policy, gather, draw, stop_at
        self.tasks = training_tasks(settings, bundle, tasks)
        from worldgym.models.futures import with_futures

        with folder.clock("load"):
            self.world_model = with_futures(bundle.world_model(), settings.futures)
            self.judge = judge if judge is not None else bundle.judge()
            self.starts = starts if starts is not None else bundle.start_bank(self.tasks)
            self.demos = demos if demos is not None else bundle.demonstrations()
        self._check_parts()
        self.monitor = monitor or RewardHackingMonitor(settings, self.world_model, self.judge, self.tasks)

    def policy(self) -> Any:
        """Load a new copy of the initial policy."""
        if self.begin_with is None:
            return self.bundle.policy()
        from agents import load_policy

        return self.bundle.placing(load_policy(self.begin_with))

    def _trainer(self) -> Any:
        from agents import ImaginedRLTrainer

        try:
            return ImaginedRLTrainer(
                self.settings.trainer_config(), self.world_model, self.judge, self.policy, self.starts, self.demos,
                gather=self.gather, draw=self.draw,
            )  # fmt: skip
        except CheckpointError as error:
            if self.begin_with is not None:  # the given policy differs; the bundle itself is whole
                raise
            raise CheckpointError(f"{self.bundle.folder}: {error}; {remedy(self.bundle.folder)}") from error

    def _check_parts(self) -> None:
        from agents.algorithms.imagined_rl import check_frames

        try:
            check_frames(self.world_model, self.starts.starts, self.demos)
        except CheckpointError as error:
            raise CheckpointError(f"{self.bundle.folder}: {error}; {remedy(self.bundle.folder)}") from error

    def run(
        self, board: Any, report: Callable[[dict[str, float]], None] | None = None
    ) -> list[dict[str, float]]:
        """Run all remaining rounds. Each is saved, so Ctrl-C loses at most one.

        Args:
            board: a TensorBoard writer.
            report: called with the scalars of each round, after the round and the averaged policy (`out/policy`) were
                saved.

        Returns:
            one row of scalars per round. The improved policy, averaged over the rounds, is in `out/policy`.
        """
        from agents import load_policy

        settings, monitor = self.settings, self.monitor
        final = self.folder.read("history")
        if final is not None and (settings.out / "policy").is_dir():
            for row in final:
                self._scalars(board, row)
            restore_stream(self.folder.read("stream"))
            self._forget_rounds()
            return list(final)
        trainer = self._trainer()
        stream = stream_now()
        if rounds := self._rounds():
            verify_listed(rounds[-1], self.folder.restart)
            stream = trainer.load(rounds[-1], lambda path: self.bundle.placing(load_policy(path)))["stream"]
            for row in trainer.history:
                self._scalars(board, row)
        history = trainer.history
        with Progress(settings.iterations, "  imagined RL", initial=len(history)) as progress:
            while len(history) < settings.iterations and not (history and self._over(history[-1])):
                row = self._round(trainer)
                if monitor.due(len(history)):
                    row |= monitor.audit(self._result(trainer))
                stream = stream_now()
                with self._saved(len(history)) as partial:
                    trainer.save(partial, save_policy, stream=stream)
                self._scalars(board, row)
                if report is not None:
                    save_policy(self._result(trainer), settings.out / "policy")  # `report` may end this process
                    report(row)
                rates = [r["success_rate"] for r in history[-5:]]
                recent = float("nan") if np.isnan(rates).all() else float(np.nanmean(rates))
                shown = {k: row[k] for k in ("goal_entropy", "entropy") if k in row}
                entropy = next(iter(shown.values()), float("nan"))
                progress.update(1, imagined_success=round(recent, 3), entropy=entropy)
        save_policy(self._result(trainer), settings.out / "policy")
        for stage in (*STAGES, "update"):
            self.folder.seconds[stage] = 0.0
            self.folder.add_seconds(stage, sum(row[f"seconds_{stage}"] for row in history))
        self.folder.write("stream", stream)
        self.folder.write("history", history)
        self._forget_rounds()
        restore_stream(stream)
        return list(history)

    def _result(self, trainer: Any) -> Any:
        """The improved policy: averaged over the rounds, and mixed with the initial one."""
        from agents import average_weights

        if not self.settings.initial_share:
            return trainer.average
        mixed = copy.deepcopy(trainer.average)
        average_weights(mixed, self.policy(), 1 - self.settings.initial_share)
        return mixed

    def _round(self, trainer: Any) -> dict[str, float]:
        """Run one round; an error about diverged training says which policy is the last good one."""
        try:
            row: dict[str, float] = trainer.round()
            return row
        except DivergedError as error:
            rounds = self._rounds()
            last = (
                f"The averaged policy after round {len(trainer.history)} is in {rounds[-1] / 'average'}: begin with it "
                "by --policy, with a lower --lr, and with another --out"
                if rounds
                else "No round was saved"
            )
            raise DivergedError(f"round {len(trainer.history) + 1}: {error}. {last}") from error

    def _over(self, row: dict[str, float]) -> bool:
        """Whether training stops after a round with these scalars."""
        enough = self.stop_at is not None and row.get("audit_imagined", 0.0) > self.stop_at
        return enough or self.monitor.trips(row)

    def stream(self, number: int) -> int:
        """Return the seed of round `number`."""
        from agents.algorithms.imagined_rl import ROUNDS_A_SEED

        return self.settings.seed * ROUNDS_A_SEED + number

    def remembered(self) -> list[dict[str, float]]:
        """Scalars of the rounds that an interrupted run has finished."""
        from worldgym.utils.train_state import TrainState

        final = self.folder.read("history")
        if final is None and (rounds := self._rounds()):
            verify_listed(rounds[-1], self.folder.restart)
            final = TrainState(rounds[-1] / "grpo").meta()["user"]["history"]
        return list(final or [])

    def _rounds(self) -> list[Path]:
        """Folders of the completely saved rounds, in order."""
        return sorted(self.folder.state.glob("round-[0-9]*"))

    def _forget_rounds(self) -> None:
        """Remove files that only an interrupted run needs."""
        names = {f"state/{path.name}" for path in self._rounds()}
        names |= {
            name for name in self.folder.made if name.startswith("state/round-")
        }  # killed before the round was complete
        if names:
            self.folder.disown(*sorted(names))

    @contextmanager
    def _saved(self, number: int) -> Iterator[Path]:
        """Folder for the state of round `number`; if killed while saving, the previous round is kept."""
        before, name = self._rounds(), f"round-{number:05d}"
        self.folder.own(f"state/{name}")
        with save_folder(self.folder.state / name) as partial:
            yield partial
        self.folder.disown(*(f"state/{path.name}" for path in before))

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


def training_tasks(settings: FineTuneSettings, bundle: Bundle, tasks: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Tasks to train on: those of the settings, else those of the bundle, except tasks with little data."""
    tasks = tasks or bundle.tasks
    thin = bundle.card.get("tasks_thin", ())
    return settings.train_tasks or tuple(t for t in tasks if t not in thin) or tasks


def stream_now() -> str:
    """State of torch's random generator, from which dropout draws, as hex."""
    import torch

    return torch.get_rng_state().numpy().tobytes().hex()


def restore_stream(state: str) -> None:
    """Inverse of `stream_now`, so that a resumed run draws the same numbers as an uninterrupted one."""
    import torch

    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    if torch.cuda.is_available():  # CUDA's generator is not saved with a round; it gets a seed derived from the state
        torch.cuda.manual_seed_all(zlib.crc32(bytes.fromhex(state)))


def save_policy(policy: Any, folder: Path) -> None:
    """Write a policy atomically: the folder has the old or the new policy, never a mixture."""
    POLICIES.save(policy, folder)
