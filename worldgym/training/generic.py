"""Training of world models and judges that other packages register, and the interface that their classes need.

A class that `worldgym train world-model --type NAME` or `worldgym train judge --type NAME` can train has

- `for_data(specs, preset, arrays)`, a classmethod: a new part for a dataset with `worldgym.specs.Specs`;
- and either `fit(arrays, settings, folder) -> dict[str, float]`, which runs its own training and stores what it
  needs to resume in `folder`, or, as an `nn.Module`, `loss(batch, generator) -> dict[str, Tensor]` for a
  `worldgym.data.batch.Batch`: differentiable scalars by name. `TrainingLoop` minimises their sum (resumable, logged,
  with averaged weights);
- `save_pretrained(folder)`, which writes its `type` into `config.json`, and `from_pretrained(folder)`.

Example::

    class Mean(nn.Module):
        @classmethod
        def for_data(cls, specs, preset, arrays): return cls(specs.observation.state_dim, specs.action.dim)
        def loss(self, batch, generator): return {"state": (self(batch["state"]) - batch["state"]).square().mean()}

    model, scalars = train_part(Mean.for_data(specs, "small", arrays), arrays, PartTraining(), "runs/mean")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldgym.data.batch import sample_windows, to_device
from worldgym.errors import ConfigError
from worldgym.registry import accepted
from worldgym.specs import Specs
from worldgym.training.loop import LoopConfig, TrainingLoop


@dataclass(frozen=True)
class PartTraining:
    """Training settings that do not depend on the part.

    Args:
        loop: steps, learning rates, seed.
        batch: windows per step.
        window: actions per window; a window has one frame more.
        shard: distribute the weights over the processes of the group; only for a `fit` whose class has
            `shards = True`.
        compile: train through torch.compile; only for a `fit` whose class has `compiles = True`.
        optimizer: optimizer of the dynamics, see `LoopConfig`; None for the part's own choice. Only for a `fit` whose
            class has `optimizers = True`.

    Raises:
        ConfigError: a batch or window below 1.
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    batch: int = 20
    window: int = 20
    shard: bool = False
    compile: bool = False
    optimizer: str | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.window < 1:
            raise ConfigError(f"batch and window must be at least 1, got {self.batch} and {self.window}")


def fresh_part(
    kind: Any, name: str, specs: Specs, preset: str, arrays: Any, offered: Mapping[str, Any] | None = None
) -> Any:
    """Create a part with the `for_data` of `kind`, its class or trainer, which is registered as `name`.

    `offered` are further arguments, such as `initial`, which `for_data` must name if they are given.

    Raises:
        ConfigError: the class has no training interface, or does not take an argument that was given.
    """
    missing = [] if hasattr(kind, "for_data") else ["for_data(specs, preset, arrays)"]
    if not (hasattr(kind, "fit") or hasattr(kind, "loss")):
        missing.append("loss(batch, generator) or fit(arrays, settings, folder)")
    if missing:
        raise ConfigError(
            f"the type {name!r} ({getattr(kind, '__qualname__', kind)}) cannot be trained by this command: it has no "
            f"{' and no '.join(missing)}; see worldgym.training.generic, or train it with its own package"
        )
    more = accepted(kind.for_data, offered or {})
    if unused := [key for key, value in (offered or {}).items() if value is not None and key not in more]:
        raise ConfigError(
            f"the type {name!r} takes no {', '.join(unused)}; leave out --{' and --'.join(unused).replace('_', '-')}"
        )
    return kind.for_data(specs, preset, arrays, **more)


def train_part(
    part: Any,
    arrays: Any,
    settings: PartTraining,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
    tag: str = "train",
    trainer: Any | None = None,
    head: Any | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train a part by its `fit`, or by its `loss` and `TrainingLoop`; the same call resumes.

    Args:
        part: see the module docstring.
        arrays: `worldgym.data.reader.EpisodeArrays`.
        settings: settings of the run.
        run_dir: folder of checkpoints and TensorBoard events.
        identity: values besides `settings` that identify the run; a checkpoint with other values is refused.
        tag: prefix of the logged scalars.
        trainer: trains the part by `fit(part, arrays, settings, folder)`, in place of the part itself.
        head: a further network that `fit` trains in the same steps, as its argument of this name.

    Returns:
        the trained part (with averaged weights, in evaluation mode), and the last scalars.

    Raises:
        ConfigError: `loss` did not return differentiable scalars by name, or the part is not an `nn.Module`.
        CheckpointError: the checkpoint in `run_dir` is damaged or of another part.
    """
    if trainer is not None and hasattr(trainer, "fit") and trainer is not type(part):
        more = {} if head is None else {"head": head}
        scalars = trainer.fit(part, arrays, settings, Path(run_dir), **more)
        return part, {name: float(value) for name, value in (scalars or {}).items()}
    if hasattr(part, "fit"):
        scalars = part.fit(arrays, settings, Path(run_dir))
        return part, {name: float(value) for name, value in (scalars or {}).items()}
    if not isinstance(part, nn.Module):
        raise ConfigError(
            f"{type(part).__name__} has a loss but is not a torch.nn.Module; derive it from one, or give it fit"
        )

    def loss(model: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        batch = sample_windows([arrays], settings.batch, settings.window, rng)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        terms = model.loss(to_device(batch, device), generator)
        if (
            not isinstance(terms, Mapping)
            or not terms
            or any(not isinstance(t, Tensor) or t.ndim for t in terms.values())
        ):
            raise ConfigError(
                f"{type(model).__name__}.loss returned {type(terms).__name__}, expected scalar tensors by name"
            )
        return torch.stack(list(terms.values())).sum(), {name: float(t.detach()) for name, t in terms.items()}

    run_facts = {"batch": settings.batch, "window": settings.window, **(identity or {})}
    loop = TrainingLoop(part, settings.loop, run_dir, loss, tag=tag, identity=run_facts)
    scalars = loop.run()
    part.load_state_dict(loop.ema_model.state_dict())
    return part.eval(), scalars
