"""One training loop for every model: schedule, EMA, TensorBoard, checkpoints that resume exactly.

Step k draws its batch and noise from a generator seeded with (seed, k) alone, so a run that was stopped and resumed
computes the same numbers as an uninterrupted one. Checkpoints are safetensors and JSON and are replaced as a whole;
nothing is pickled. A checkpoint with settings or data that differ from the requested ones is refused.

In a `torch.distributed` process group the ranks draw different batches and average their gradients: n ranks train like
one rank with n times the batch. Only the first rank writes files. Parameters may be distributed over the ranks
(`worldgym.training.sharding`); checkpoints hold them whole, so a run can continue with another number of ranks.

Example::

    loop = TrainingLoop(model, LoopConfig(steps=1000), run_dir, loss=lambda model, step, gen: (loss, {"psnr": 30.0}))
    loop.run()          # Ctrl-C saves and raises; the same call continues
    loop.ema_model      # the averaged weights
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldgym.errors import CheckpointError, ConfigError, DivergedError
from worldgym.nn.ema import EMA
from worldgym.training.sharding import is_sharded, placed_like, whole
from worldgym.utils.files import read_json
from worldgym.utils.folders import MANIFEST, save_folder, settle, verify_folder
from worldgym.utils.tensors import load_tensors, save_tensors
from worldgym.utils.train_state import plain_facts, refuse_other_run

logger = logging.getLogger(__name__)
LossFunction = Callable[[nn.Module, int, torch.Generator], tuple[Tensor, dict[str, float]]]
OPTIMIZERS = ("adamw", "muon", "muon_conv")


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run.

    Args:
        steps: total number of optimizer updates.
        lr: peak learning rate; linear warm-up, then cosine decay to `final_lr`.
        final_lr: learning rate at the end, as a fraction of `lr`.
        warmup: number of warm-up steps.
        weight_decay: weight decay of AdamW, applied to matrices only.
        optimizer: `"adamw"`; `"muon"`: Muon (Jordan et al. 2024) on the matrices of Linear layers and AdamW on the
            rest; or `"muon_conv"`: Muon also on the kernels of convolutions.
        ema: decay of the averaged weights.
        grad_clip: maximum norm of the gradient.
        seed: seed of all randomness in the run.
        save_seconds: seconds between checkpoints.
        log_every: steps between log lines and TensorBoard points.
        max_minutes: stop (with a checkpoint) after this time; the learning rate then follows the time, not the steps.
    """

    steps: int = 1000
    lr: float = 1e-3
    final_lr: float = 0.03
    warmup: int = 100
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    ema: float = 0.998
    grad_clip: float = 1.0
    seed: int = 0
    save_seconds: float = 180.0
    log_every: int = 50
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}; try --steps 1000")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise ConfigError(f"lr must be a positive number, got {self.lr}; try --lr 1e-3")
        if self.max_minutes is not None and not (0 < self.max_minutes < math.inf):
            raise ConfigError(f"minutes must be a positive number, got {self.max_minutes}; try --minutes 10")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"unknown optimizer {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}")


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Random generator of one training step of one process; without `rank`, for values that all processes share."""
    return torch.Generator().manual_seed(((seed + 7919 * rank) * 1_000_003 + step) % (2**63))


class KernelMuon(torch.optim.Muon):
    """Muon on convolution kernels, each as a matrix of output channels times the rest (Jordan et al. 2024).

    torch's Muon takes matrices only, so it gets copies of that shape.
    """

    def __init__(self, kernels: Sequence[nn.Parameter], **settings: Any) -> None:
        self.kernels = tuple(kernels)
        self.flat = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
        super().__init__(self.flat, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the kernels from their gradients."""
        for flat, kernel in zip(self.flat, self.kernels, strict=True):
            flat.copy_(kernel.flatten(1))
            flat.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        result = super().step(closure)
        for flat, kernel in zip(self.flat, self.kernels, strict=True):
            kernel.copy_(flat.view_as(kernel))
        return result


def _optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    def weights(kinds: Any) -> list[nn.Parameter]:
        return [m.weight for m in model.modules() if isinstance(m, kinds) and m.weight.requires_grad]

    matrices = weights(nn.Linear) if config.optimizer != "adamw" else []
    kernels = weights((nn.Conv1d, nn.Conv2d, nn.Conv3d)) if config.optimizer == "muon_conv" else []
    chosen = {id(p) for p in (*matrices, *kernels)}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))]
    # match_rms_adamw scales the update so that AdamW's learning rate and weight decay can be reused.
    settings = {"lr": config.lr, "weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, **settings))
    if kernels:
        optimizers.append(KernelMuon(kernels, **settings))
    return optimizers


class _NullWriter:
    """A SummaryWriter that discards everything, for ranks that write no logs."""

    def add_text(self, *args: Any) -> None: ...
    def add_scalar(self, *args: Any) -> None: ...
    def close(self) -> None: ...


# Settings that may change when a run is resumed: its length and its logging.
_EXTENDABLE = ("steps", "max_minutes", "save_seconds", "log_every")
CHECKPOINT, STATE, TENSORS = "checkpoint", "state.json", "tensors.safetensors"


class TrainingLoop:
    """Runs `loss(model, step, generator)` to the end of `config`, with checkpoints in `run_dir`.

    Args:
        model: trained in place.
        config: settings of the run.
        run_dir: folder of checkpoints and TensorBoard events; a checkpoint in it is resumed.
        loss: returns the loss to minimise, a scalar tensor, and numbers to log.
        tag: prefix of the logged scalars.
        evaluate: `evaluate(averaged model, step)` returns numbers to log.
        evaluate_every: steps between two evaluations.
        identity: JSON-able values besides `config` that identify the run: shape of the model, hash of the data,
            batch size. A checkpoint with other values is refused.
        compiled: the first step of a process compiles, so that its time does not count as training.

    Raises:
        CheckpointError: the checkpoint in `run_dir` is damaged or of another model.
        ConfigError: the checkpoint is of a run with other settings or data; the message names them.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        run_dir: Path | str,
        loss: LossFunction,
        tag: str = "train",
        evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
        evaluate_every: int = 800,
        identity: Mapping[str, Any] | None = None,
        compiled: bool = False,
    ) -> None:
        self.compiled = compiled
        self.model, self.config, self.loss, self.tag = model, config, loss, tag
        self.run_dir = Path(run_dir)
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise ConfigError(f"{self.run_dir} is a file, and a run needs a folder. Give another --out.")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        fixed = {key: value for key, value in asdict(config).items() if key not in _EXTENDABLE}
        by_clock = {"schedule": "minutes" if config.max_minutes is not None else "steps"}
        self.identity = plain_facts({**fixed, **by_clock, **(identity or {})})
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.optimizers = _optimizers(model, config)
        self.ema = EMA(model, config.ema)
        self.step = 0
        self.elapsed = 0.0
        grouped = dist.is_available() and dist.is_initialized()
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        self.sharded = any(is_sharded(p) for p in model.parameters())
        self.resume()
        if self.ranks > 1:
            for value in self.model.state_dict().values():
                if not is_sharded(value):
                    dist.broadcast(value, 0)

    @property
    def ema_model(self) -> nn.Module:
        """The model with averaged weights."""
        return self.ema.model

    # -- checkpoints ------------------------------------------------------------------------------
    @property
    def checkpoint(self) -> Path:
        """Folder of the latest checkpoint."""
        return self.run_dir / CHECKPOINT

    def save(self) -> None:
        """Write the checkpoint to a new folder, then replace the old one, so that an interruption loses nothing."""
        if self.rank and not self.sharded:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema_model.state_dict().items()}
        for n, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{n}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        if self.sharded:  # tensor by tensor, so that at most one is whole in the memory of the other ranks
            for name, value in tensors.items():
                gathered = whole(value)
                if not self.rank:
                    tensors[name] = gathered.cpu()
            if self.rank:
                return
        facts = {"step": self.step, "elapsed": self.elapsed, "identity": self.identity}
        with save_folder(self.checkpoint) as folder:
            save_tensors(folder / TENSORS, tensors)
            (folder / STATE).write_text(json.dumps(facts, indent=1))

    def resume(self) -> bool:
        """Continue from `run_dir` if it holds a checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged or of another model.
            ConfigError: the checkpoint is of a run with other settings or data.
        """
        if self.checkpoint.is_dir():
            settle(self.checkpoint)
        if not any((self.checkpoint / name).is_file() for name in (STATE, MANIFEST)):
            return False
        remedy = f"remove {self.checkpoint} to start from scratch, or give another --out"
        verify_folder(self.checkpoint, (STATE, TENSORS), remedy)
        facts = read_json(self.checkpoint / STATE, remedy)
        try:
            refuse_other_run(facts["identity"], self.identity, self.run_dir)
            tensors = load_tensors(self.checkpoint / TENSORS)
            part = lambda name: {k[len(name) :]: v for k, v in tensors.items() if k.startswith(name)}  # noqa: E731
            for name, module in (("model.", self.model), ("ema.", self.ema_model)):
                there = module.state_dict()
                module.load_state_dict({k: placed_like(v, there.get(k, v)) for k, v in part(name).items()})
            for n, optimizer in enumerate(self.optimizers):
                state: dict[int, dict[str, Tensor]] = {}
                trained = [p for group in optimizer.param_groups for p in group["params"]]
                for key, value in part(f"optimizer.{n}.").items():
                    index, name = key.split(".")
                    state.setdefault(int(index), {})[name] = placed_like(value, trained[int(index)])
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            self.step, self.elapsed = int(facts["step"]), float(facts["elapsed"])
        except (CheckpointError, ConfigError):
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"cannot resume from {self.checkpoint}: {error}. It is damaged, or of another model or "
                f"version; {remedy}"
            ) from error
        logger.info("resumed %s at step %d", self.run_dir, self.step)
        return True

    # -- running ----------------------------------------------------------------------------------
    def _progress(self) -> float:
        if self.config.max_minutes is not None:
            return min(1.0, self.elapsed / (60 * self.config.max_minutes))
        return self.step / self.config.steps

    def _lr(self) -> float:
        c = self.config
        warm = min(1.0, (self.step + 1) / max(1, c.warmup))
        return (
            c.lr * warm * (c.final_lr + (1 - c.final_lr) * 0.5 * (1 + math.cos(math.pi * self._progress())))
        )

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last averaged metrics. Ctrl-C saves a checkpoint and re-raises.

        Raises:
            DivergedError: a loss or gradient is not finite; the steps before it are saved.
        """
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        c = self.config
        # purge_step: after an interruption, points logged after the checkpoint would otherwise appear twice.
        writer = (
            _NullWriter()
            if self.rank
            else SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self.step + 1)
        )
        writer.add_text("hparams", "\n".join(f"| {k} | {v} |" for k, v in asdict(c).items()))
        hidden = self.rank > 0 or not sys.stderr.isatty()
        bar = tqdm(total=c.steps, initial=self.step, disable=hidden, desc=self.tag)
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        averages: dict[str, float] = {}
        saved = tick = time.monotonic()
        first, complete = self.step, False
        try:
            while self.step < c.steps and self._progress() < 1.0:
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = self._lr()
                self.model.train()
                generator = step_generator(c.seed, self.step, self.rank)
                loss, metrics = self.loss(self.model, self.step, generator)
                self.model.zero_grad(set_to_none=True)
                loss.backward()
                now = time.monotonic()
                self.elapsed += 0.0 if self.compiled and self.step == first else now - tick
                tick = now
                due = self._average_ranks(now - saved > c.save_seconds)
                norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip))
                if not (torch.isfinite(norm) and torch.isfinite(loss)):
                    raise self._diverged(float(loss.detach()), float(norm))
                for optimizer in self.optimizers:
                    optimizer.step()
                self.step += 1
                self.ema.update(self.step)
                for key, value in {"loss": float(loss.detach()), "grad_norm": float(norm), **metrics}.items():
                    sums[key] = sums.get(key, 0.0) + value
                    counts[key] = counts.get(key, 0) + 1
                bar.update()
                if self.step % c.log_every == 0 or self.step == c.steps:
                    averages = {k: sums[k] / counts[k] for k in sums}
                    sums.clear()
                    counts.clear()
                    for key, value in averages.items():
                        writer.add_scalar(f"{self.tag}/{key}", value, self.step)
                    writer.add_scalar(f"{self.tag}/lr", self._lr(), self.step)
                    writer.add_scalar(
                        "time/steps_per_second", (self.step - first) / max(self.elapsed, 1e-9), self.step
                    )
                    text = " ".join(f"{k} {v:.4g}" for k, v in averages.items())
                    bar.set_postfix_str(text)
                    if not self.rank:
                        logger.info("%s step %d %.0f s %s", self.tag, self.step, self.elapsed, text)
                if not self.rank and self.evaluate and self.step % self.evaluate_every == 0:
                    for key, value in (scores := self.evaluate(self.ema_model, self.step)).items():
                        writer.add_scalar(key, value, self.step)
                    logger.info("%s step %d evaluation %s", self.tag, self.step, scores)
                    tick = time.monotonic()
                if due:
                    self.save()
                    saved = time.monotonic()
            complete = True
        finally:  # also on Ctrl-C: the next call continues from here
            if complete or not self.sharded:  # an interrupted rank cannot gather what the others hold
                self.save()
            bar.close()
            writer.close()
        return averages

    def _diverged(self, loss: float, norm: float) -> DivergedError:
        """The error of a step whose gradient is not finite; the weights are those before the step."""
        remedy = f"Its learning rate is {self.config.lr:g}; try a lower --lr or another --seed, with another --out"
        if self.compiled:
            remedy = "Leave --compile out, compiled gradients can be wrong here; the same --out goes on from there"
        kept = f"the {self.step} steps before it are kept"
        if self.sharded:  # no rank alone can save
            kept = "the steps up to the last checkpoint, if there was one, are kept"
        return DivergedError(
            f"{self.tag}: step {self.step + 1} has a loss of {loss:g} and a gradient of norm {norm:g}, expected finite "
            f"ones; {kept} in {self.run_dir}. {remedy}"
        )

    @torch.no_grad()
    def _average_ranks(self, due: bool) -> bool:
        """Average gradients over the ranks, and the elapsed time, so that all take the same decisions from it.

        Returns whether a checkpoint is `due` on any rank.
        """
        if self.ranks == 1:
            return due
        trained = [p for p in self.model.parameters() if p.requires_grad]
        device = trained[0].device
        trained = [p for p in trained if not is_sharded(p)]  # the others were averaged in the backward pass
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        shared = torch.tensor([self.elapsed, float(due)], device=device)
        flat = torch.cat([*(g.flatten() for g in grads), shared])
        dist.all_reduce(flat)
        flat /= self.ranks
        self.elapsed, waiting = flat[-2:].tolist()
        for p, part in zip(trained, flat[:-2].split([g.numel() for g in grads]), strict=True):
            p.grad = part.view_as(p)
        return waiting > 0
