"""The demo: a policy gets better at the real-robot stand-in by practising only inside a world model.

Order: measure the SFT policy in Real, improve a copy by GRPO and self-imitation inside the bundled world model, train
the BC-only control for as many updates, measure every arm from the same starts, replay imagined episodes in Real,
write everything down. Each piece is remembered in `state/`, so that the same settings go on after Ctrl-C.

Example::

    from experiments.demo import DemoSettings, run_demo
    results = run_demo(DemoSettings(out="runs/demo", seed=0))
    results["differences"][0]     # imagined_rl - sft, greedy, with its 95 % interval
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import POLICY_CLASS, Bundle
from experiments.demo_settings import BATCHES_A_SEED, CHECK_SEED0, DEFAULT_TASKS, REAL, DemoSettings
from experiments.run_folder import RunFolder, versions
from worldgym.evaluation import EvalResult, EvaluationPool, PolicyRef, make_starts, shuffle_instructions
from worldgym.text import embed
from worldgym.utils.progress import Progress

logger = logging.getLogger(__name__)


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run, or go on after an interruption; returns what `results.json` holds.

    Raises:
        CheckpointError: the bundle is missing or incomplete.
        ConfigError: the folder holds an interrupted run with other settings.
    """
    return _Demo(settings).run()


class _Demo:
    def __init__(self, settings: DemoSettings) -> None:
        self.settings = settings
        self.bundle = Bundle.find(settings.bundle)
        self.tasks = settings.tasks or tuple(self.bundle.card.get("tasks", ())) or DEFAULT_TASKS
        thin = self.bundle.card.get("tasks_thin", ())
        self.practised = settings.practise or tuple(t for t in self.tasks if t not in thin) or self.tasks
        self.folder = RunFolder(settings.out, settings.key(), fresh=settings.fresh)
        if self.folder.resumed:
            logger.info("going on with the interrupted run in %s", settings.out)
        self.starts = make_starts(self.tasks, max(1, round(settings.episodes / len(self.tasks))))
        with self.folder.clock("load"):
            self.world_model, self.judge = self.bundle.world_model(), self.bundle.judge()
            self.bank = self.bundle.start_bank(self.practised)
            self.demos = self.bundle.demonstrations()
            # The workers load the text encoder too; done here first, its modules are compiled only once.
            embed(self.bank.starts.instructions[:1])
        self._write_config()

    def run(self) -> dict[str, Any]:
        import torch
        from torch.utils.tensorboard import SummaryWriter

        from experiments.demo_results import assemble
        from experiments.report import write_report

        settings, folder = self.settings, self.folder
        torch.manual_seed(settings.seed)
        chunk = self.bundle.policy().chunk
        pool = EvaluationPool(REAL, workers=settings.workers, env_kwargs=self._env_kwargs(chunk))
        with pool, SummaryWriter(str(settings.out)) as board:
            board.add_text("hparams", "\n".join(f"- {k}: {v}" for k, v in settings.key().items()))
            logger.info("1/5 measuring the SFT policy in Real from %d starts", len(self.starts))
            sft = PolicyRef(POLICY_CLASS, str(self.bundle.policy_folder))
            evaluations = {"sft": self._measure(pool, "sft", sft)}
            board.add_scalar("eval/success_once", evaluations["sft"]["greedy"].rate().mean, 0)
            verbs = ", ".join(self.practised)
            logger.info(
                "2/5 practising inside the world model: %s, %d iterations", verbs, settings.iterations
            )
            history = self._practise(board)
            logger.info("3/5 training the BC-only control for as many updates")
            updates = round(sum(row["updates"] for row in history))
            self._clone(updates)
            logger.info("4/5 measuring every policy in Real from the same starts")
            improved = PolicyRef(POLICY_CLASS, str(settings.out / "policy"))
            cloned = PolicyRef(POLICY_CLASS, str(settings.out / "policy_bc_only"))
            evaluations["imagined_rl"] = self._measure(pool, "imagined_rl", improved)
            evaluations["bc_only"] = self._measure(pool, "bc_only", cloned)
            sharp = self._evaluate(pool, "sft-sharpened", sft, settings.sharpen_temperature)
            evaluations["sft_sharpened"] = {"greedy": evaluations["sft"]["greedy"], "sampled": sharp}
            blind = shuffle_instructions(evaluations["imagined_rl"]["greedy"], seed=settings.seed)
            evaluations["language_blind"] = self._measure(pool, "language_blind", improved, blind)
            steps = int(history[-1]["imagined_steps"])
            board.add_scalar("eval/success_once", evaluations["imagined_rl"]["greedy"].rate().mean, steps)
            logger.info("5/5 replaying %d imagined episodes in Real", settings.check_episodes)
            check = folder.once("check", lambda: self._check(improved))
            clips = [
                *check["clips"],
                *folder.once("clips", lambda: self._before_after(evaluations, sft, improved)),
            ]
        folder.save("history.json", history)
        folder.save("clips.json", clips)
        results = assemble(
            settings,
            self.tasks,
            evaluations,
            history,
            check,
            folder.seconds,
            self.bundle.card,
            self.judge.name,
        )
        results["practised"] = list(self.practised)
        folder.save("results.json", results)
        data = {arm: {mode: r.to_dict() for mode, r in modes.items()} for arm, modes in evaluations.items()}
        folder.save("evaluations.json", data)
        write_report(settings.out)
        folder.finish()
        return results

    # -- pieces -----------------------------------------------------------------------------------

    def _env_kwargs(self, chunk: int | None = None) -> dict[str, Any]:
        # With a chunk, Real draws only the frames that the policy looks at.
        return {"domain": "real", "horizon": self.settings.horizon, "chunk": chunk}

    def _measure(
        self, pool: EvaluationPool, name: str, policy: PolicyRef, starts: Any = None
    ) -> dict[str, Any]:
        return {
            "greedy": self._evaluate(pool, f"{name}-greedy", policy, 0.0, starts),
            "sampled": self._evaluate(pool, f"{name}-sampled", policy, 1.0, starts),
        }

    def _evaluate(
        self, pool: EvaluationPool, name: str, policy: PolicyRef, temperature: float, starts: Any = None
    ) -> EvalResult:
        starts = starts or self.starts

        def make() -> dict[str, Any]:
            with self.folder.clock("evaluate"), Progress(len(starts), f"  {name}") as progress:
                done = 0

                def report(now: int, _: int) -> None:
                    nonlocal done
                    progress.update(now - done)
                    done = now

                seed = self.settings.seed
                return pool.evaluate(
                    policy, starts, temperature=temperature, seed=seed, progress=report
                ).to_dict()

        result = EvalResult.from_dict(self.folder.once(f"eval-{name}", make))
        logger.info("  %s: %s", name, result.rate())
        return result

    def _practise(self, board: Any) -> list[dict[str, float]]:
        """GRPO and self-imitation in imagination; saved after every iteration, so Ctrl-C costs at most one."""
        from agents import GRPO, GRPOConfig, SelfImitation, SelfImitationConfig, VLAPolicy, average_weights

        settings = self.settings
        final = self.folder.read("history")
        if final is not None and (settings.out / "policy").is_dir():
            return list(final)
        policy, average = self.bundle.policy(), self.bundle.policy()
        improver = GRPO(GRPOConfig(lr=settings.lr, seed=settings.seed, learn=settings.learn))
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
        checkpoint, memory, mean = (self.folder.state / name for name in ("grpo", "imitation", "average"))
        history: list[dict[str, float]] = []
        if (checkpoint / "state.json").is_file():
            imitation.load(policy, memory)
            history = improver.load(policy, checkpoint)["history"]
            average = VLAPolicy.from_pretrained(mean)
        with Progress(settings.iterations, "  imagined practice", initial=len(history)) as progress:
            while len(history) < settings.iterations:
                row = self._iteration(policy, improver, imitation, len(history), history)
                history.append(row)
                done = len(history)
                average_weights(average, policy, min(settings.average, done / (done + 2)))
                _save_policy(average, mean)
                imitation.save(policy, memory)
                improver.save(policy, checkpoint, {"history": history})
                self._scalars(board, row)
                recent = float(np.nanmean([r["success_rate"] for r in history[-5:]]))
                progress.update(1, imagined_success=round(recent, 3), entropy=row["place_entropy"])
        _save_policy(average, settings.out / "policy")
        for stage in ("imagine", "judge", "policy", "update"):
            self.folder.seconds[stage] = 0.0
            self.folder.add_seconds(stage, sum(row[f"seconds_{stage}"] for row in history))
        self.folder.write("history", history)
        for folder in (checkpoint, memory, mean):
            shutil.rmtree(folder, ignore_errors=True)
        return history

    def _iteration(
        self, policy: Any, improver: Any, imitation: Any, number: int, history: list[dict[str, float]]
    ) -> dict[str, float]:
        """One round: imagine, judge, update. Seeded by (seed, number), so that resuming changes nothing."""
        import torch

        from agents import collect

        settings = self.settings
        stream = settings.seed * BATCHES_A_SEED + number
        rng, generator = np.random.default_rng([settings.seed, number]), torch.Generator().manual_seed(stream)
        torch.manual_seed(stream)
        rollouts = collect(
            self.world_model,
            self.judge,
            policy,
            self._starts(policy, rng),
            group_size=settings.group,
            horizon=settings.practise_horizon,
            temperature=settings.temperature,
            generator=generator,
            threshold=settings.threshold,
            max_uncertainty=settings.max_uncertainty,
            confirm=settings.confirm,
            token_temperature=settings.token_temperature,
        )
        began = time.perf_counter()
        scalars = {**improver.update(policy, rollouts), **imitation.update(policy, rollouts)}
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
            **{f"seconds_{k}": float(rollouts.seconds.get(k, 0.0)) for k in ("imagine", "judge", "policy")},
        }

    def _starts(self, policy: Any, rng: np.random.Generator) -> Any:
        """Logged frames at which the pointer hesitates: the half (or less) with least belief in its first choice."""
        import torch

        settings = self.settings
        drawn = self.bank.sample(
            settings.starts * settings.hesitation, rng, middle_fraction=settings.middle_fraction
        )
        if settings.hesitation == 1:
            return drawn
        look = {"image": drawn.images, "state": drawn.states, "instruction": drawn.instructions}
        with torch.no_grad():
            pointing = policy.point(look)
            belief = policy.pointer.log_prob(pointing, policy.pointer.likeliest(pointing))
        return drawn.select(belief.argsort()[: settings.starts].cpu().numpy())

    def _scalars(self, board: Any, row: dict[str, float]) -> None:
        step = int(row["imagined_steps"])
        spent = sum(row[f"seconds_{k}"] for k in ("imagine", "judge", "policy", "update"))
        frames = self.settings.starts * self.settings.group * row["ep_len_mean"]
        board.add_scalar("rollout/success_rate", row["success_rate"], step)
        board.add_scalar("rollout/ep_rew_mean", row["success_rate"], step)
        board.add_scalar("rollout/ep_len_mean", row["ep_len_mean"], step)
        board.add_scalar(f"reward/{self.judge.name}", row["success_rate"], step)
        board.add_scalar("imagination/horizon", row["ep_len_mean"], step)
        board.add_scalar("imagination/valid", row["valid"], step)
        board.add_scalar("time/fps", frames / max(spent, 1e-9), step)
        for key in (
            "loss",
            "entropy",
            "clip_fraction",
            "approx_kl",
            "place_entropy",
            "place_clip_fraction",
            "place_kl",
            "grad_norm",
            "groups_kept",
            "imitation_loss",
        ):
            if key in row:
                board.add_scalar(f"train/{key}", row[key], step)

    def _clone(self, updates: int) -> None:
        """The BC-only control: the same number of updates, on the demonstrations, averaged over as many."""
        from agents import SFT, SFTConfig, average_weights

        target = self.settings.out / "policy_bc_only"
        if self.folder.read("bc") is not None and target.is_dir():
            return
        with self.folder.clock("bc_only"), Progress(updates, "  BC only") as progress:
            policy, average = self.bundle.policy(), self.bundle.policy()
            decay = self.settings.average ** (self.settings.iterations / max(1, updates))
            config = SFTConfig(
                lr=self.settings.imitation_lr,
                batch_size=self.settings.bc_batch,
                seed=self.settings.seed,
                weight_decay=0.0,
                learn=self.settings.learn,
            )
            trainer = SFT(config)
            for done in range(1, updates + 1):
                scalars = trainer.update(policy, self.demos)
                average_weights(average, policy, min(decay, done / (done + 10)))
                progress.update(1, loss=scalars["loss"])
            _save_policy(average, target)
        self.folder.write("bc", {"updates": updates})

    def _check(self, improved: PolicyRef) -> dict[str, Any]:
        from experiments.clips import dream_clips
        from worldgym.evaluation import run_closed_loop
        from worldgym.evaluation.rollouts import make_env

        settings = self.settings
        per_task = max(1, round(settings.check_episodes / len(self.tasks)))
        starts = make_starts(self.tasks, per_task, seed0=CHECK_SEED0)
        env = make_env(REAL, self._env_kwargs())
        with self.folder.clock("check"), Progress(len(starts), "  imagined, then real") as progress:
            done = 0

            def report(now: int, _: int) -> None:
                nonlocal done
                progress.update(now - done)
                done = now

            result = run_closed_loop(
                improved.load(),
                self.world_model,
                self.judge,
                env,
                starts,
                temperature=settings.check_temperature,
                seed=settings.seed,
                horizon=settings.horizon,
                threshold=settings.threshold,
                confirm=settings.confirm,
                clips=min(settings.clips * 4, len(starts)),
                progress=report,
            )
        with self.folder.clock("videos"):
            videos = dream_clips(result.clips, settings.out, settings.clips)
        return {**result.to_dict(), "clips": videos}

    def _before_after(
        self, evaluations: dict[str, dict[str, EvalResult]], sft: PolicyRef, improved: PolicyRef
    ) -> list[dict[str, Any]]:
        from experiments.clips import before_after_clips
        from worldgym.evaluation.rollouts import make_env

        before, after = evaluations["sft"]["greedy"], evaluations["imagined_rl"]["greedy"]
        with self.folder.clock("videos"):
            env = make_env(REAL, self._env_kwargs())
            return before_after_clips(env, before, after, sft.load(), improved.load(), self.settings.out)

    def _write_config(self) -> None:
        import yaml

        from worldgym.utils.files import atomic_write_text

        data = {
            "settings": self.settings.key(),
            "tasks": list(self.tasks),
            "practised": list(self.practised),
            "bundle": self.bundle.card,
            "versions": versions(),
        }
        atomic_write_text(self.settings.out / "config.yaml", yaml.safe_dump(data, sort_keys=False))


def _save_policy(policy: Any, folder: Path) -> None:
    from worldgym.utils.files import atomic_save

    with atomic_save(folder) as temporary:
        policy.save_pretrained(str(temporary))
