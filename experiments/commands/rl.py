"""`worldgym rl`: fine-tunes a policy by RL in the world model, in this process or on Ray workers.

The policy is not evaluated in Real unless audits are switched on. The result depends only on the settings, including
`piece` and `threads`, and not on the number of workers or on failures of workers. The same command resumes an
interrupted run at its last round.

Example::

    worldgym rl --out runs/rl
    worldgym rl --out runs/rl2 --workers 2                      # Ray on this machine
    worldgym rl --out runs/rl8 --workers 8 --address auto --gpus 1
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiments.bundle import Bundle
from experiments.compute import placing
from experiments.pipelines.finetune import FineTuning
from experiments.pipelines.policies import policy_folder
from experiments.pipelines.run_folder import AGAIN, RunFolder, versions
from experiments.pipelines.settings import FineTuneSettings
from worldgym.errors import ConfigError, WorldgymError
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RlConfig(FineTuneSettings):
    """Fine-tune a policy by RL in a world model.

    Args:
        policy: folder of the initial policy; the bundle's SFT policy if None.
        judge: judge that gives the reward: `bundled`, `latent`, `open_clip`, or a folder written by a judge's
            `save_pretrained`.
        start_frames: frames that imagined episodes begin from, in place of the bundle's: folder of a dataset, or an
            `.npz` file with the fields of a bundle's `starts.npz`. One unseen frame is test-time training on it.
        cache: folder that caches the answers of judges behind an endpoint.
        judge_keys: `URL=VARIABLE`: environment variable with the API key for a judge's endpoint at exactly this URL;
            without it, no key is sent.
        workers: number of Ray workers that imagine rollouts; 0 imagines in this process, without Ray.
        threads: number of torch threads per worker.
        gpus: share of a GPU that each worker requests; if 0, workers imagine on the CPU. The policy is updated in this
            process on `device`.
        piece: number of starts per batch of imagined rollouts.
        address: address of a running Ray cluster, `auto` for the one on this machine; None starts one.
        bc_only: the control of this run: as many updates on the demonstrations alone, nothing is imagined.
    """

    out: Path = Path("runs/rl")
    policy: Path | None = None
    judge: str = "bundled"
    start_frames: str | None = None
    cache: Path | None = None
    judge_keys: tuple[str, ...] = ()
    workers: int = 0
    threads: int = 1
    gpus: float = 0.0
    piece: int = 8
    address: str | None = None
    bc_only: bool = False

    ELSEWHERE: ClassVar[set[str]] = FineTuneSettings.ELSEWHERE | {"gpus", "address", "cache", "judge_keys"}

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if min(self.threads, self.piece) < 1 or min(self.workers, self.gpus) < 0:
            raise ConfigError(
                f"threads is {self.threads}, piece {self.piece}, workers {self.workers}, gpus {self.gpus}; threads and "
                "piece must be at least 1, workers and gpus at least 0"
            )
        if self.address and not self.workers:
            raise ConfigError(f"--address {self.address} needs workers; add --workers 2")
        if self.bc_only and (self.workers or self.start_frames or self.judge != "bundled"):
            raise ConfigError("--bc-only imagines nothing; leave out --workers, --start-frames and --judge")

    def key(self) -> dict[str, Any]:
        """Settings that a resumed run must have in common."""
        data = super().key()
        if not self.bc_only:
            del data["bc_only"]  # as in runs of earlier versions
        return data


def run(config: RlConfig) -> int:
    """Fine-tune the policy; print its folder and the command that evaluates it."""
    bundle = Bundle.find(config.bundle, placing(config))
    begin = None if config.policy is None else policy_folder(config.policy, config.bundle)
    judge = bundle.named_judge(config.judge, cache=config.cache, keys=config.judge_keys)
    parts = bundle.fingerprint(policy=begin, judge=bundle.judge_folder(config.judge))
    key = {**config.key(), "parts": parts}
    starts = None if config.start_frames is None else given_starts(config, bundle)
    if starts is None:
        del key["start_frames"]  # runs of earlier versions, which had no others, can be continued
    else:
        key["start_frames"] = starts.content
    folder = RunFolder(config.out, key, fresh=config.fresh, restart=AGAIN)
    if folder.has("history.json", "policy"):
        logger.warning("%s contains this run and its results; --fresh deletes them and runs it again", config.out)
        return tell(config, folder.read("history"), judge.name)
    if folder.resumed:
        logger.info("resuming the interrupted run in %s", config.out)
    try:
        if config.bc_only:
            history = clone(config, bundle, begin)
            folder.write("history", history)
        else:
            tuning, history = tune(config, bundle, folder, begin, judge, starts)
            judge = tuning.judge
    except WorldgymError:
        folder.forget()
        raise
    folder.save("history.json", history)
    folder.finish()
    return tell(config, history, judge.name)


@dataclass(frozen=True)
class GivenStarts:
    """Frames that imagined episodes begin from, and a hash of them."""

    bank: Any
    content: str


def given_starts(config: RlConfig, bundle: Bundle) -> GivenStarts:
    """Read `start_frames`, those of the tasks that are trained.

    Raises:
        CheckpointError: there is no such file or folder.
        ConfigError: none of its frames is of these tasks.
    """
    from agents import StartBank
    from experiments.pipelines.finetune import training_tasks
    from experiments.pipelines.imagined_evaluation import bank_of

    assert config.start_frames is not None
    starts = bank_of(bundle, config.start_frames, training_tasks(config, bundle))
    content = hashlib.sha256(starts.images.cpu().numpy().tobytes())
    if config.hindsight:
        content.update(repr(starts.other_instructions).encode())
    return GivenStarts(StartBank(starts), content.hexdigest()[:16])


def tune(
    config: RlConfig, bundle: Bundle, folder: RunFolder, begin: Path | None, judge: Any, starts: GivenStarts | None
) -> tuple[FineTuning, list[dict[str, float]]]:
    """Fine-tune the policy; return the fine-tuning and its history."""
    import torch
    import yaml

    bank = None if starts is None else starts.bank
    tuning = FineTuning(config, bundle, folder, policy=begin, judge=judge, starts=bank)
    facts = {
        "settings": config.key(),
        "train_tasks": list(tuning.tasks),
        "bundle": bundle.card,
        "versions": versions(),
    }
    atomic_write_text(config.out / "config.yaml", yaml.safe_dump(facts, sort_keys=False))
    if not config.workers:
        torch.set_num_threads(config.threads)
    with ExitStack() as stack, folder.board() as board:
        tuning.gather = gatherer(config, tuning, stack)
        board.add_text("hparams", "\n".join(f"- {k}: {v}" for k, v in config.key().items()))
        history = tuning.run(board)
    return tuning, history


def clone(config: RlConfig, bundle: Bundle, begin: Path | None) -> list[dict[str, float]]:
    """Train the control on demonstrations alone and save it; return the scalars of its rounds."""
    import torch

    from agents import load_policy
    from experiments.pipelines.bc_only import train_bc_only
    from experiments.pipelines.finetune import save_policy
    from worldgym.utils.progress import Progress

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # of dropout
    policy, average = (
        bundle.policy() if begin is None else bundle.placing(load_policy(begin)) for _ in range(2)
    )
    history: list[dict[str, float]] = []
    with Progress(config.iterations, "BC only") as progress:

        def report(scalars: dict[str, float]) -> None:
            history.append({name: float(value) for name, value in scalars.items()})
            progress.update(1, loss=scalars["imitation_loss"])

        train_bc_only(config, policy, average, bundle.demonstrations(), report=report)
    save_policy(average, config.out / "policy")
    return history


def tell_cloned(config: RlConfig, history: list[dict[str, float]]) -> int:
    """Print the updates of the control, its folder, and the command that compares it."""
    updates = sum(row["imitation_steps"] for row in history)
    sys.stdout.write(
        f"{updates:,.0f} updates on demonstrations\npolicy: {config.out / 'policy'}\n"
        f"compare it in Real: worldgym eval --policy sft {config.out / 'policy'}{named_bundle(config)}\n"
    )
    return 0


def named_bundle(config: RlConfig) -> str:
    """The option of other commands that names the bundle, or nothing for the default one."""
    return "" if config.bundle == DEFAULT else f" --bundle {shlex.quote(config.bundle)}"


def tell(config: RlConfig, history: list[dict[str, float]], judge: str) -> int:
    """Print the result of a finished run, the folder of the policy, and the command that evaluates it.

    Raises:
        ConfigError: no imagined episode of the whole run was valid.
    """
    if config.bc_only:
        return tell_cloned(config, history)
    last = history[-1]
    if not any(row["valid"] for row in history):
        raise ConfigError(
            f"no imagined episode of the {len(history)} rounds was valid, so the policy learned nothing from them: "
            f"judge {judge} gave no verdict (NaN, valid=False or no answer), or the world model's predictions were "
            f"unusable. {config.out / 'policy'} is not improved. Check the judge with `worldgym audit`, give another "
            "--judge, or raise --max-uncertainty if it is set; then add --fresh"
        )
    sys.stdout.write(
        f"{len(history)} rounds, {last['imagined_steps']:,.0f} imagined steps; imagined success "
        f"{last['success_rate']:.2f}, judged by {judge}{audited(history)}\npolicy: {config.out / 'policy'}\n"
        f"evaluate it in Real: worldgym eval --policy sft {config.out / 'policy'}{named_bundle(config)}\n"
    )
    return 0


def audited(history: list[dict[str, float]]) -> str:
    """Summarise the audits of a run: their number, episodes in Real, and the success in the last one."""
    audits = [row for row in history if "audit_gap" in row]
    if not audits:
        return ""
    episodes, last = sum(row["audit_episodes"] for row in audits), audits[-1]
    return (
        f"; audited {len(audits)} times with {episodes:.0f} episodes in Real; last audit: imagined success "
        f"{last['audit_imagined']:.2f}, true {last['audit_true']:.2f}"
    )


def gatherer(config: RlConfig, tuning: FineTuning, stack: ExitStack) -> Callable[..., Any]:
    """Return the function that imagines a round, in this process or by a pool of workers that `stack` closes."""
    from agents.rollouts.ray_pool import RolloutPool, collect_in_pieces

    if not config.workers:
        parts = (tuning.world_model, tuning.judge)
        return lambda policy, starts, number, settings: collect_in_pieces(
            *parts, policy, starts, seed=tuning.stream(number), piece=config.piece, **settings
        )
    pool = stack.enter_context(
        RolloutPool(
            tuning.world_model, tuning.judge, config.workers, threads=config.threads, gpus=config.gpus,
            address=config.address, dtype=config.dtype,
        )
    )  # fmt: skip
    return lambda policy, starts, number, settings: pool.collect(
        policy, starts, seed=tuning.stream(number), piece=config.piece, **settings
    )
