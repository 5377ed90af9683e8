"""The demo: fine-tune a policy by RL inside a world model only, and measure it in the stand-in for the real robot.

Steps: measure the SFT policy in Real; improve a copy by GRPO and self-imitation inside the bundled world model; train
the BC-only control with the same number of updates; measure every variant from the same starts; execute imagined
episodes in Real; write the report. Each result is stored in `state/`, so that the same command continues after Ctrl-C.

Example::

    from experiments.pipelines.demo import DemoSettings, run_demo
    results = run_demo(DemoSettings(out="runs/demo", seed=0))
    results["differences"][0]     # imagined_rl - sft, greedy, with its 95 % interval
"""

from __future__ import annotations

import logging
from typing import Any

from experiments.bundle import Bundle
from experiments.compute import placing
from experiments.pipelines.bc_only import train_bc_only
from experiments.pipelines.finetune import FineTuning, save_policy
from experiments.pipelines.run_folder import AGAIN, RunFolder, versions
from experiments.pipelines.settings import CHECK_SEED0, DemoSettings
from experiments.suites import chosen_suite, domain_settings
from worldgym.evaluation import EvalResult, EvaluationPool, PolicyRef, make_starts, shuffle_instructions
from worldgym.suite import SINGLE
from worldgym.text import embed
from worldgym.utils.progress import Progress

logger = logging.getLogger(__name__)

RESULTS = ("results.json", "evaluations.json", "history.json", "report.html", "policy", "policy_bc_only")
"""Results in the folder of a finished run."""


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run the demo, or continue an interrupted run; returns the content of `results.json`. Finished runs are kept.

    Raises:
        CheckpointError: the bundle is missing or incomplete.
        ConfigError: the folder holds a run with other settings, or files that no run of the demo wrote.
    """
    bundle = Bundle.find(settings.bundle, placing(settings))
    facts = {**settings.key(), "parts": bundle.fingerprint()}
    folder = RunFolder(settings.out, facts, fresh=settings.fresh, restart=AGAIN)
    if folder.has("state/results.json", *RESULTS):
        logger.warning(
            "%s already has a finished run with its results; --fresh removes it and runs again", settings.out
        )
        return dict(folder.read("results"))
    return _Demo(settings, bundle, folder).run()


class _Demo:
    def __init__(self, settings: DemoSettings, bundle: Bundle, folder: RunFolder) -> None:
        self.settings, self.bundle, self.folder = settings, bundle, folder
        self.tasks = settings.tasks or self.bundle.tasks
        if folder.resumed:
            logger.info("continuing the interrupted run in %s", settings.out)
        self.starts = make_starts(self.tasks, max(1, round(settings.episodes / len(self.tasks))))
        self.tuning = FineTuning(settings, self.bundle, self.folder, tasks=self.tasks)
        # The workers load the text encoder too; loading it here first compiles its modules only once.
        embed(self.tuning.starts.starts.instructions[:1])
        self._write_config()

    def run(self) -> dict[str, Any]:
        import torch

        from experiments.pipelines.demo_results import assemble
        from experiments.reports.html import write_report

        settings, folder = self.settings, self.folder
        torch.manual_seed(settings.seed)
        chunk = self.bundle.policy().chunk
        pool = EvaluationPool(SINGLE, workers=settings.workers, env_kwargs=self._env_kwargs(chunk))
        with pool, folder.board() as board:
            board.add_text("hparams", "\n".join(f"- {k}: {v}" for k, v in settings.key().items()))
            logger.info("1/5 measuring the SFT policy in Real from %d starts", len(self.starts))
            ref = lambda folder: PolicyRef(str(folder), device=self.bundle.placing.name)  # noqa: E731
            sft = ref(self.bundle.policy_folder)
            evaluations = {"sft": self._measure(pool, "sft", sft)}
            board.add_scalar("eval/success_once", evaluations["sft"]["greedy"].rate().mean, 0)
            trained = ", ".join(self.tuning.tasks)
            logger.info(
                "2/5 RL inside the world model: %s, %d iterations", trained, settings.iterations
            )
            history = self.tuning.run(board)
            logger.info("3/5 training the BC-only control with the same number of updates")
            self._clone(len(history))
            logger.info("4/5 measuring every policy in Real from the same starts")
            improved, cloned = ref(settings.out / "policy"), ref(settings.out / "policy_bc_only")
            evaluations["imagined_rl"] = self._measure(pool, "imagined_rl", improved)
            evaluations["bc_only"] = self._measure(pool, "bc_only", cloned)
            sharp = self._evaluate(pool, "sft-sharpened", sft, settings.sharpen_temperature)
            evaluations["sft_sharpened"] = {"greedy": evaluations["sft"]["greedy"], "sampled": sharp}
            blind = shuffle_instructions(evaluations["imagined_rl"]["greedy"], seed=settings.seed)
            evaluations["language_blind"] = self._measure(pool, "language_blind", improved, blind)
            steps = int(history[-1]["imagined_steps"])
            board.add_scalar("eval/success_once", evaluations["imagined_rl"]["greedy"].rate().mean, steps)
            logger.info("5/5 executing %d imagined episodes in Real", settings.check_episodes)
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
            self.tuning.judge.name,
        )
        results["train_tasks"] = list(self.tuning.tasks)
        folder.save("results.json", results)
        data = {arm: {mode: r.to_dict() for mode, r in modes.items()} for arm, modes in evaluations.items()}
        folder.save("evaluations.json", data)
        write_report(settings.out)
        folder.write("results", results)
        folder.finish()
        return results

    # -- steps ------------------------------------------------------------------------------------

    def _env_kwargs(self, chunk: int | None = None) -> dict[str, Any]:
        # With a chunk, Real renders only the frames that the policy reads.
        suite = chosen_suite(None, self.settings.bundle)
        return {"suite": suite.name, **domain_settings(suite), "horizon": self.settings.horizon, "chunk": chunk}

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

    def _clone(self, rounds: int) -> None:
        """Train the BC-only control."""
        target = self.settings.out / "policy_bc_only"
        if self.folder.read("bc") is not None and target.is_dir():
            return
        with self.folder.clock("bc_only"), Progress(rounds, "  BC only") as progress:
            average = self.bundle.policy()
            updates = train_bc_only(
                self.settings, self.bundle.policy(), average, self.tuning.demos, rounds,
                lambda scalars: progress.update(1, loss=scalars["imitation_loss"]),
            )  # fmt: skip
            save_policy(average, target)
        self.folder.write("bc", {"updates": updates})

    def _check(self, improved: PolicyRef) -> dict[str, Any]:
        from experiments.reports.clips import imagined_clips
        from worldgym.evaluation import run_closed_loop
        from worldgym.evaluation.rollouts import make_env

        settings = self.settings
        per_task = max(1, round(settings.check_episodes / len(self.tasks)))
        starts = make_starts(self.tasks, per_task, seed0=CHECK_SEED0)
        env = make_env(SINGLE, self._env_kwargs())
        with self.folder.clock("check"), Progress(len(starts), "  imagined, then real") as progress:
            done = 0

            def report(now: int, _: int) -> None:
                nonlocal done
                progress.update(now - done)
                done = now

            result = run_closed_loop(
                improved.load(),
                self.tuning.world_model,
                self.tuning.judge,
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
            videos = imagined_clips(result.clips, settings.out, settings.clips, self.folder.own)
        return {**result.to_dict(), "clips": videos}

    def _before_after(
        self, evaluations: dict[str, dict[str, EvalResult]], sft: PolicyRef, improved: PolicyRef
    ) -> list[dict[str, Any]]:
        from experiments.reports.clips import before_after_clips
        from worldgym.evaluation.rollouts import make_env

        before, after = evaluations["sft"]["greedy"], evaluations["imagined_rl"]["greedy"]
        with self.folder.clock("videos"):
            env = make_env(SINGLE, self._env_kwargs())
            return before_after_clips(
                env, before, after, sft.load(), improved.load(), self.settings.out, own=self.folder.own
            )

    def _write_config(self) -> None:
        import yaml

        from worldgym.utils.files import atomic_write_text

        data = {
            "settings": self.settings.key(),
            "tasks": list(self.tasks),
            "train_tasks": list(self.tuning.tasks),
            "bundle": self.bundle.card,
            "versions": versions(),
        }
        atomic_write_text(self.settings.out / "config.yaml", yaml.safe_dump(data, sort_keys=False))
