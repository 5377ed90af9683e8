"""Training of a world model on diffusers' video transformers: of all weights, or of low-rank adapters (LoRA).

Flow matching with clean context. With full attention, the last latent frame of a window is the target. With causal
attention every frame of a window is: the clean frames come first and the noisy ones behind them, and a mask lets a
noisy frame see the clean ones before it and itself (teacher forcing, as Self Forcing describes it, arXiv 2506.08009). A
share of the targets gets only the first 1 to 3 of its actions, because steps may end within a latent frame.

Example::

    worldgym train world-model --type diffusers --preset tiny-wan --data data/real --out runs/wan --steps 1500
    worldgym train world-model --type diffusers --initial models/wan --settings lora=16 --lr 1e-4 --out runs/lora
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.backbones.config import BackboneConfig
from worldgym.models.backbones.loading import read_pipeline
from worldgym.models.backbones.world_model import DiffusersWorldModel
from worldgym.nn.noise import shifted
from worldgym.specs import Specs, check_observations
from worldgym.training.backbone_data import Clips
from worldgym.training.generic import PartTraining
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.pictures import Pictures
from worldgym.training.sharding import shard, whole
from worldgym.training.tiny_decoder import train_tiny_decoder
from worldgym.utils.devices import autocast, rand, randn
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
"""Linear layers of a block that get adapters: all of attention and of the feed-forward network."""
CHANGEABLE = ("attention", "window", "steps", "sampler", "shift", "causal_frames", "decoded", "tiny_decoder")
"""Settings that a trained model can continue with."""


VAE_BATCH, VAE_FRAMES, VAE_LR, VAE_SHARE = 8, 9, 5e-3, 0.6
"""Training of a VAE with random weights. It must see as many frames as are decoded together."""
DECODER_LR, DECODER_SHARE = 2e-3, 0.3
"""Training of a tiny decoder, with a share of the steps that the VAE left."""


@dataclass(frozen=True)
class BackboneTraining:
    """Settings of the training of the transformer.

    Args:
        batch: windows per step.
        frames: latent frames of a window after the first one.
        cut_share: share of the targets that get only the first 1 to 3 of their actions.
        context_noise: largest noise added to the clean context, against errors that grow over an episode.
        state_steps: actions over which proprioception is rolled out.
        checkpointing: compute activations again in the backward pass, for models that do not fit into memory.
    """

    batch: int = 16
    frames: int = 5
    cut_share: float = 0.4
    context_noise: float = 0.2
    state_steps: int = 12
    checkpointing: bool = False


class Trainable(nn.Module):
    """The parameters of a model that require a gradient, shared with it, for a `TrainingLoop`.

    Checkpoints and averaged weights then hold these alone: with adapters, a few per cent of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        found = {name.replace(".", "/"): p for name, p in model.named_parameters() if p.requires_grad}
        self.values = nn.ParameterDict(found)

    @torch.no_grad()
    def take(self, other: nn.Module) -> None:
        """Copy the values of another `Trainable`."""
        for mine, value in zip(self.parameters(), other.parameters(), strict=True):
            mine.copy_(value)


def video_loss(
    model: DiffusersWorldModel, clips: Clips, settings: BackboneTraining, generator: torch.Generator
) -> Tensor:
    """Squared error of the flow velocity of noisy latent frames."""
    config, device = model.config, model.device
    causal = config.attention == "causal"
    frames = settings.frames
    if not causal:
        frames = int(torch.randint(1, frames + 1, (), generator=generator))
    drawn = clips.draw(settings.batch, frames, generator)
    z, moves = drawn.latents.to(device), drawn.moves.to(device)
    b, k, r = len(z), z.shape[1] - 1, config.per_frame
    spread = settings.context_noise * rand((b, k, 1, 1, 1), generator, device).square()
    seen = z[:, :k] + spread * randn(z[:, :k].shape, generator, device)
    given = torch.ones(b, k + 1, r, dtype=torch.bool, device=device)
    given[:, 0] = False
    wanted = slice(1, k + 1) if causal else slice(k, k + 1)
    target, before = z[:, wanted], seen[:, -1:] if not causal else seen
    count = target.shape[1]
    levels = shifted(torch.rand(b, count, generator=generator), config.shift).to(device)
    noise = randn(target.shape, generator, device)
    t = levels[..., None, None, None]
    noisy = (1 - t) * target + t * noise
    known = torch.randint(1, r, (b, count), generator=generator)
    known[torch.rand(b, count, generator=generator) >= settings.cut_share] = r
    cut = torch.arange(r, device=device) < known.to(device)[..., None]
    with autocast(device, config.dtype != "float32", always=True):
        out, _ = model.network(
            torch.cat([seen, noisy], 1),
            torch.cat([levels.new_zeros(b, k), levels], 1),
            model.rebased(torch.cat([moves[:, :k], moves[:, wanted]], 1)),
            torch.cat([given[:, :k], cut], 1),
            [*range(k), *range(k + 1)[wanted]],
            mask=teacher_mask(k).to(device) if causal else None,
        )
    velocity = model.with_residual(out[:, k:], noisy, before, levels)
    return (velocity - (noise - target)).square().mean()


def teacher_mask(k: int) -> Tensor:
    """`(2k,2k)` bool: clean frames see earlier ones and themselves, noisy ones the clean ones before and themselves."""
    early = torch.ones(k, k, dtype=torch.bool).tril()
    nothing, itself = torch.zeros(k, k, dtype=torch.bool), torch.eye(k, dtype=torch.bool)
    return torch.cat([torch.cat([early, nothing], 1), torch.cat([early, itself], 1)])


def state_loss(
    model: DiffusersWorldModel, clips: Clips, settings: BackboneTraining, generator: torch.Generator
) -> Tensor:
    """Squared error of proprioception, rolled out from actions and estimated from first frames."""
    device, count = model.device, 4 * settings.batch
    states, earlier, acted, actions = (
        x.to(device) for x in clips.draw_path(count, settings.state_steps, generator)
    )
    states, earlier = model.normalise_state(states), model.normalise_state(earlier)
    path, _ = model.integrator(states[:, 0], states[:, 0] - earlier, acted, actions)
    chosen = torch.randint(len(clips.first), (count,), generator=generator)
    first = clips.latents[torch.from_numpy(clips.first)[chosen]].float().to(device)
    shown = model.normalise_state(clips.states[torch.from_numpy(clips.rows)[chosen]].to(device))
    return (path - states[:, 1:]).square().mean() + (model.probe(first) - shown).square().mean()


def add_adapters(model: DiffusersWorldModel, rank: int) -> None:
    """Add LoRA adapters of a rank to the transformer; only they, the action MLP and the state networks train.

    Raises:
        DependencyError: peft is not installed.
        ConfigError: a rank below 1.
    """
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"lora is {rank!r}, expected a rank of at least 1; try --settings lora=16")
    peft = require("peft", extra="backbones")
    transformer = model.network.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ADAPTED)))
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:  # adapters in bfloat16 hardly learn
            parameter.data = parameter.data.float()


def merge_adapters(model: DiffusersWorldModel) -> None:
    """Add the adapters to the weights and remove them, so that the model is saved and loaded without peft."""
    model.network.transformer.fuse_lora()
    model.network.transformer.unload_lora()


def sharded_parts(model: DiffusersWorldModel) -> dict[str, nn.Module]:
    """Replace the trained parts of a model by copies whose weights are distributed over the processes.

    Returns:
        the parts before, by name; on the CPU in the first process, and without values in the others.
    """
    plain, device = {}, model.device
    for name in ("network", "integrator", "probe"):
        part = plain[name] = getattr(model, name)
        own = copy.deepcopy(part)
        part.to("meta" if dist.get_rank() else "cpu")
        shard([*(own.blocks if name == "network" else ()), own], device)
        setattr(model, name, own)
    return plain


@torch.no_grad()
def restore_parts(model: DiffusersWorldModel, plain: Mapping[str, nn.Module]) -> None:
    """Put the parts of `sharded_parts` back, in the first process with the present weights."""
    for name, part in plain.items():
        for mine, value in zip(part.parameters(), getattr(model, name).parameters(), strict=True):
            gathered = whole(value)
            if not dist.get_rank():
                mine.copy_(gathered)
        setattr(model, name, part)


def train_vae(
    model: DiffusersWorldModel,
    arrays: Any,
    loop: LoopConfig,
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, float]:
    """Train a VAE with random weights; those of published pipelines are never trained.

    Muon on its convolutions: on the tabletop at 16 px the error fell faster than with AdamW.
    """
    pictures, offsets = Pictures.of(arrays, model.canvas), torch.as_tensor(arrays.offsets)
    lengths = offsets.diff()
    span = min(VAE_FRAMES, 1 + 4 * ((int(lengths.max()) - 1) // 4))
    usual = pictures[torch.linspace(0, len(pictures) - 1, 64).long().numpy()].float().mean(0) / 127.5 - 1
    usual = usual.permute(2, 0, 1)[:, None].to(model.device)

    outside: list[Tensor] = []  # decode() clamps to [-1, 1]; pixels outside would get no gradient
    watch = model.vae.autoencoder.decoder.register_forward_hook(
        lambda _, __, out: outside.append((out.abs() - 1).clamp(min=0).square().mean()) if out.requires_grad else None
    )

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        outside.clear()
        room = (lengths - span + 1).clamp(min=0).double()
        episode = torch.multinomial(room, VAE_BATCH, replacement=True, generator=generator)
        late = (torch.rand(VAE_BATCH, generator=generator) * room[episode]).long()
        index = (offsets[episode] + late)[:, None] + torch.arange(span)
        frames = pictures[index.flatten().numpy()].unflatten(0, index.shape).to(model.device)
        x = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        z = model.vae.encode_pixels(x)
        error = (module.decode(z + 0.02 * randn(z.shape, generator, z.device)).sample - x).square()
        weight = 1 + 20 * (x - usual).abs().amax(1, keepdim=True).clamp(
            max=0.5
        )  # what differs from the usual picture
        facts = {"vae_mse": float(error.detach().mean()) / 4}
        beyond = torch.stack(outside).mean()
        return (weight * error).mean() + beyond + 1e-4 * z.square().mean(), facts

    loop = replace(loop, lr=VAE_LR, optimizer="muon_conv", ema=0.98, warmup=20)
    training = TrainingLoop(model.vae.autoencoder, loop, folder, loss, tag="train_vae", identity=identity)
    try:
        facts = training.run()
    finally:
        watch.remove()
    model.vae.autoencoder.load_state_dict(training.ema_model.state_dict())
    return facts


class DiffusersTrainer:
    """Trains a model of the type `diffusers` for `worldgym train world-model` (`worldgym.training.generic`)."""

    own = ("vae", "latents", "decoder")
    """Names that `fit` writes into the run folder, besides those of every run."""
    shards = True
    """Whether `PartTraining.shard` applies."""

    @staticmethod
    def for_data(
        specs: Specs,
        preset: str,
        arrays: Any,
        *,
        initial: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> DiffusersWorldModel:  # fmt: skip
        """A model for a dataset.

        Args:
            specs: specs of the dataset.
            preset: a named shape with random weights, if there is no `initial`.
            arrays: episodes of the dataset.
            initial: pipeline folder of diffusers, or a world model of this type to continue from.
            settings: fields of `BackboneConfig`, and `lora`, the rank of adapters; without it all weights of the
                transformer are trained. With a world model as `initial`, only the fields in `CHANGEABLE`.

        Raises:
            ConfigError: an unknown preset or setting, or an initial model that does not fit the data.
            CheckpointError: a damaged folder.
        """
        more = dict(settings or {})
        lora = more.pop("lora", None)
        if initial is None:
            config = changed(BackboneConfig.preset(preset), more).for_data(arrays.states, specs)
            model = DiffusersWorldModel(config).with_dtype(config.dtype)
        elif (Path(initial) / "transformer").is_dir():
            config, parts = read_pipeline(initial, more.pop("dtype", "bfloat16"))
            model = DiffusersWorldModel(changed(config, more).for_data(arrays.states, specs), parts)
        else:
            model = DiffusersWorldModel.from_pretrained(initial)
            check_observations(
                specs.observation, model.specs.observation, "the dataset", f"the world model {initial}"
            )
            if specs.action is None or specs.action.dim != model.action_dim:
                raise ConfigError(
                    f"the dataset has {0 if specs.action is None else specs.action.dim} action dimensions, the world "
                    f"model {initial} {model.action_dim}; give the pipeline folder that it began with as --initial"
                )
            if fixed := sorted(set(more) - set(CHANGEABLE)):
                raise ConfigError(
                    f"{', '.join(fixed)} of the world model {initial} can't be changed; leave it out of --settings. "
                    f"Settings that can are lora, {', '.join(CHANGEABLE)}"
                )
            before, model.config = model.config.tiny_decoder, changed(model.config, more)
            if model.config.tiny_decoder != before:
                model.with_tiny_decoder(model.config.tiny_decoder)
        model.requires_grad_(True).vae.requires_grad_(initial is None)
        if lora is not None:
            add_adapters(model, lora)
        model.lora = lora
        return model

    @staticmethod
    def fit(
        model: DiffusersWorldModel, arrays: Any, settings: PartTraining, folder: Path
    ) -> dict[str, float]:
        """Train the VAE for most of the steps if it has random weights, encode the logs, train the rest; resumes."""
        config, facts, loop = model.config, {}, settings.loop
        adapted = getattr(model, "lora", None)
        chosen = BackboneTraining(
            batch=settings.batch, frames=max(1, min(model.window, settings.window // config.per_frame)),
            state_steps=min(settings.window, int(arrays.lengths.max())), checkpointing=config.dtype == "bfloat16",
        )  # fmt: skip
        shape = {name: value for name, value in config.to_dict().items() if name not in ("specs", "dtype")}
        if not shape["tiny_decoder"]:  # runs of earlier versions do not name it
            del shape["tiny_decoder"]
        identity = {**asdict(chosen), "model": shape, "lora": adapted}
        fresh = any(p.requires_grad for p in model.vae.parameters())
        if fresh:
            first, loop = _share(loop, VAE_SHARE), _share(loop, 1 - VAE_SHARE)
            facts |= train_vae(model, arrays, first, folder / "vae", identity)
        model.vae.requires_grad_(False)
        clips = Clips.encode(model, arrays, folder / "latents")
        if fresh:
            clips = clips.standardised(model)
        if model.tiny is not None:
            first, loop = _share(loop, DECODER_SHARE), _share(loop, 1 - DECODER_SHARE)
            facts |= train_tiny_decoder(
                model, clips, arrays, replace(first, lr=DECODER_LR), folder / "decoder", identity
            )
        if config.dtype == "bfloat16" and not adapted:
            model.network.cast(torch.float32)  # small updates would be lost; the forward pass is in bfloat16
        model.network.checkpointing = chosen.checkpointing
        plain = sharded_parts(model) if settings.shard else {}
        trained = Trainable(model)

        def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            video = video_loss(model, clips, chosen, generator)
            state = (
                state_loss(model, clips, chosen, generator) if model.state_dim else torch.zeros_like(video)
            )
            return video + state, {"video": float(video.detach()), "state": float(state.detach())}

        training = TrainingLoop(trained, loop, folder, loss, tag="train_backbone", identity=identity)
        facts |= training.run()
        trained.take(training.ema_model)
        restore_parts(model, plain)
        if adapted:
            merge_adapters(model)
            model.lora = None
        model.network.checkpointing = False
        model.with_dtype(config.dtype).eval().requires_grad_(False)
        return facts


def changed(config: BackboneConfig, settings: Mapping[str, Any]) -> BackboneConfig:
    """The config with other settings.

    Raises:
        ConfigError: an unknown name, or a value of another type or range.
    """
    return BackboneConfig.from_dict({**config.to_dict(), **settings}) if settings else config


def _share(loop: LoopConfig, share: float) -> LoopConfig:
    """The loop with a share of its time and steps."""
    minutes = None if loop.max_minutes is None else share * loop.max_minutes
    return replace(loop, steps=max(1, round(share * loop.steps)), max_minutes=minutes)
