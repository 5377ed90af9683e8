"""Training of the dynamics on latents of logged episodes, partly on the model's own predictions.

Teacher forcing with a noisy context learns the physics fast, but RL needs a model that stays accurate after its own
errors. So from `rollout_from` on, most batches first predict the window from its first frame without gradients, and
then train on these predicted contexts against the true frames (self forcing). If the predicted window has already
diverged from the true one (for example, a grasp fails in one and succeeds in the other), its targets do not follow from
its contexts; such frames get a lower weight.

Example::

    data = LatentEpisodes.encode(tokenizer, arrays)
    model = train_world_model(model, data, WorldModelTraining(), "runs/world_model")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.canvas import Canvas
from worldgym.models.tokenizers.base import VideoTokenizer
from worldgym.models.video.world_model import VideoWorldModel
from worldgym.nn import FLOW, MixedTimes
from worldgym.training.loop import LoopConfig, TrainingLoop, step_generator
from worldgym.training.pictures import Pictures
from worldgym.utils import devices
from worldgym.utils.compiling import compiled
from worldgym.utils.devices import autocast

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorldModelTraining:
    """Settings of dynamics training.

    Args:
        loop: steps, learning rates, seed.
        batch: windows per step.
        window: predicted frames per window.
        rollout_from: fraction of the run after which windows are predicted first.
        rollout_share: fraction of the batches that are predicted from then on.
        context_noise: largest noise added to true contexts.
        pure_noise: fraction of frames trained at t = 1.
        divergence: latent error at which the weight of a predicted context is one half.
        robust: mean squared error of a latent cell beyond which its loss grows with the square root of the error, so
            that the prediction for two possible outcomes is one of them (a geometric median), not their mean; 0 is off.
        pixel_coef: weight of the squared error of decoded pixels. In latent distance, the colour of a carried object
            is negligible compared with the hand that hides half of it, and a model trained on latents alone lets the
            object turn grey.
        pixel_frames: frames decoded per step for this loss; decoding costs as much as predicting.
        compile: use torch.compile for the training pass (40 % faster, one minute of warm-up).
    """

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=8000, lr=1.5e-3, optimizer="muon", ema=0.995, weight_decay=0.02
        )
    )
    batch: int = 20
    window: int = 20
    rollout_from: float = 0.3
    rollout_share: float = 0.75
    context_noise: float = 0.4
    pure_noise: float = 0.8
    divergence: float = 0.25
    robust: float = 0.05
    pixel_coef: float = 8.0
    pixel_frames: int = 64
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or self.window < 1:
            raise ConfigError(
                f"batch and window must be at least 1, got {self.batch} and {self.window}; try --batch-size 20 "
                "--window 20"
            )


@dataclass(frozen=True)
class Windows:
    """B windows of T predicted frames.

    Args:
        latents: `(B,T+1,C,h,w)` float32.
        actions: `(B,T,A)` between the frames.
        states: `(B,T+1,S)` proprioception, data units.
        mask: `(B,T)` bool, True for real frames; the others repeat the last frame of the episode.
        anchor: `(B,C,h,w)` a clean frame of the episode, no later than the window's first.
        before: `(B,N,S)` proprioception of the N frames up to the window's first; frames before the anchor are replaced
            by the anchor's.
    """

    latents: Tensor
    actions: Tensor
    states: Tensor
    mask: Tensor
    anchor: Tensor
    before: Tensor

    def to(self, device: torch.device) -> Windows:
        """The same windows on `device`."""
        return Windows(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class LatentEpisodes:
    """Encoded logs on the CPU: flat over frames, `offsets (E+1,)` mark episodes; the last action of each is padding.

    `odds (F,)`, if given, are the relative odds that a window begins at each frame. They are useful because the frames
    that decide an outcome (such as those with a grasped object) are a small part of the logs.
    """

    latents: Tensor  # (F, C, h, w) float16
    actions: Tensor  # (F, A)
    states: Tensor  # (F, S), data units
    offsets: np.ndarray
    odds: np.ndarray | None = None

    @staticmethod
    def encode(tokenizer: VideoTokenizer, arrays: Any, canvas: Canvas | None = None) -> LatentEpisodes:
        """Encode arrays with `frames, actions, states, offsets`, and `views` if the canvas has more cameras.

        Args:
            tokenizer: encodes the frames.
            arrays: logged episodes, concatenated.
            canvas: layout of the cameras in the tokenizer's image (`WorldModelConfig.canvas`); None for a plain frame.

        Raises:
            ConfigError: the size of the images differs from the tokenizer's.
        """
        pictures, size = Pictures.of(arrays, canvas), tokenizer.image_size
        if pictures.size != size:
            raise ConfigError(
                f"the dataset has frames of {pictures.size} pixels, this tokenizer takes {size}; train one on this "
                f"dataset with `worldgym train tokenizer`, or make the dataset anew with --image-size {size[0]}"
            )
        parts = [tokenizer.encode(pictures[i : i + 512]).half().cpu() for i in range(0, len(pictures), 512)]
        return LatentEpisodes(
            torch.cat(parts),
            torch.from_numpy(arrays.actions),
            torch.from_numpy(arrays.states),
            np.asarray(arrays.offsets),
        )

    def draw(
        self, batch: int, length: int, generator: torch.Generator, from_start: bool = False
    ) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        """Draw random windows of `length` predicted frames.

        Half of the anchors are the window's first frame, the others any frame of the episode up to it.

        Args:
            batch: number of windows, B.
            length: predicted frames per window, T.
            generator: source of randomness.
            from_start: move each drawn window to the first frame of its episode.

        Returns:
            frames of each window `(B,T+1)`, repeating the last frame of the episode; `(B,T)` bool, True for the real
            ones among the predicted; the first frame `(B,)` and the anchor `(B,)`.
        """
        episode_of = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        last = self.offsets[1:] - 1
        starts = np.flatnonzero(np.arange(len(episode_of)) < last[episode_of])
        if self.odds is None:
            start = starts[torch.randint(len(starts), (batch,), generator=generator).numpy()]
        else:
            total = np.cumsum(self.odds[starts], dtype=np.float64)
            u = torch.rand(batch, generator=generator, dtype=torch.float64).numpy() * total[-1]
            start = starts[np.searchsorted(total, u, side="right")]
        if from_start:
            start = self.offsets[:-1][episode_of[start]]
        index = start[:, None] + np.arange(length + 1)
        end = last[episode_of[start]][:, None]
        mask = torch.from_numpy(index[:, 1:] <= end)
        begin, u = self.offsets[episode_of[start]], torch.rand(batch, generator=generator).numpy()
        anchor = np.where(u < 0.5, start, begin + ((start - begin) * (2 * u - 1)).astype(np.int64))
        return torch.from_numpy(np.minimum(index, end)), mask, start, anchor

    def windows(self, batch: int, length: int, generator: torch.Generator) -> Windows:
        """Draw random windows of `length` predicted frames; see `draw`."""
        index, mask, start, anchor = self.draw(batch, length, generator)
        back = np.maximum(start[:, None] - np.arange(np.diff(self.offsets).max())[::-1], anchor[:, None])
        return Windows(
            latents=self.latents[index].float(),
            actions=self.actions[index[:, :-1]],
            states=self.states[index],
            mask=mask,
            anchor=self.latents[torch.from_numpy(anchor)].float(),
            before=self.states[torch.from_numpy(back)],
        )


def imagine_window(
    model: VideoWorldModel,
    z: Tensor,
    actions: Tensor,
    states: Tensor,
    anchor: Tensor,
    displacement: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Latents and normalised states `(B,T,...)` before each frame, predicted from the window's first frame alone.

    Args:
        model: the world model.
        z: `(B,T+1,C,h,w)` true latents; only the first is used.
        actions: `(B,T,A)` actions.
        states: `(B,T+1,S)` normalised; only the first is used.
        anchor: `(B,C,h,w)` anchor frames.
        displacement: `(B,2)` cells by which an object was moved since the anchor, or None.
    """
    model.refresh()
    net = model.inference_network()  # bf16 weights: autocast would convert them again at each of the T steps
    dtype = next(net.parameters()).dtype
    b, length = actions.shape[:2]
    cache = net.empty_cache(anchor, states[:, 0], dtype, displacement)
    latent, state = z[:, 0], states[:, 0]
    latents, out_states = [latent], [state]
    level, zero = torch.ones(b, device=z.device), torch.zeros_like(z[:, 0], dtype=dtype)
    with torch.no_grad(), autocast(z.device, enabled=False):
        for i in range(length - 1):
            out = net.step(zero, latent.to(dtype), level, actions[:, i], state, cache)
            cache.ring.advance()
            latent, state = model.tokenizer.project(out.latents), state + out.states
            latents.append(latent)
            out_states.append(state)
    return torch.stack(latents, 1), torch.stack(out_states, 1)


def world_model_loss(
    model: VideoWorldModel,
    windows: Windows,
    settings: WorldModelTraining,
    background: Tensor | None,
    rollout: bool,
    generator: torch.Generator,
    forward: Callable[..., Any],
) -> tuple[Tensor, dict[str, float]]:
    """Flow-matching loss with the clean frame as target, plus losses of proprioception and the error estimate.

    Args:
        model: the trained model.
        windows: output of `LatentEpisodes.windows`.
        settings: loss weights and noise.
        background: `(C,h,w)` latent of the empty scene; cells that differ from it get more weight. None without one.
        rollout: predict the contexts first.
        generator: source of all randomness.
        forward: `model.dynamics` or its compiled form.
    """
    z, actions, mask, anchor = windows.latents, windows.actions, windows.mask, windows.anchor
    states, before = model.normalise_state(windows.states), model.normalise_state(windows.before)
    objects = model.dynamics.objects
    if objects is not None and not objects.config.warp_anchor:
        objects = None
    displacement = None if objects is None else objects.displacement(before)[:, -1]
    target, current = z[:, 1:], z[:, :-1]
    shape = mask.shape
    rand = lambda *s: devices.rand(s, generator, z.device)  # noqa: E731
    randn = lambda like: devices.randn(like.shape, generator, z.device)  # noqa: E731
    weight = mask.float()
    with autocast(z.device):
        if rollout:
            previous, state_in = imagine_window(model, z, actions, states, anchor, displacement)
            drift = (previous - current).square().mean((2, 3, 4))
            weight = weight / (1 + (drift / settings.divergence) ** 2)
        else:
            level = settings.context_noise * rand(*shape, 1, 1, 1).square()
            previous = model.tokenizer.project(current + level * randn(current), 2)
            state_in = states[:, :-1] + 0.05 * rand(*shape, 1) * randn(states[:, :-1])
        t = MixedTimes(pure=settings.pure_noise)(shape, generator).to(z.device)
        noisy = FLOW.add(target, randn(target), t)
        out = forward(noisy, previous, t, actions, state_in, anchor, displacement)
        noisy_clean = z[:, 0] + 0.2 * randn(z[:, 0])
        probed = model.state_probe(noisy_clean).float()
    per_frame, plain = frame_loss(out.latents, target, current, background, settings.robust)
    total = weight.sum() + 1e-6
    latent_loss = (weight * per_frame).sum() / total
    state_loss = probe = latent_loss.new_zeros(())
    if states.shape[-1]:
        state_error = F.smooth_l1_loss(state_in + out.states, states[:, 1:], reduction="none", beta=0.1).mean(
            -1
        )
        state_loss = (weight * state_error).sum() / total
        probe = F.smooth_l1_loss(probed, states[:, 0], beta=0.1)
    estimate = (weight * (out.log_error - (plain + 1e-4).log()).square()).sum() / total
    loss = latent_loss + 0.3 * state_loss + 0.002 * estimate + 0.1 * probe
    extra: dict[str, float] = {}
    if objects is not None:
        hand = (mask * objects.loss(actions, states)).sum() / (mask.sum() + 1e-6)
        loss, extra["hand"] = loss + hand, float(hand.detach())
    if settings.pixel_coef:
        count = min(settings.pixel_frames, int(mask.sum()))
        chosen = devices.multinomial(weight.flatten(), count, generator)
        pixels = pixel_loss(
            model.tokenizer,
            out.latents.flatten(0, 1)[chosen],
            target.flatten(0, 1)[chosen],
            weight.flatten()[chosen],
        )
        loss = loss + settings.pixel_coef * pixels
        extra[f"pixel_{'rollout' if rollout else 'forced'}"] = float(pixels.detach())
    pure = (t == 1).float() * mask
    kind = "rollout" if rollout else "forced"
    return loss, {
        f"latent_{kind}": float(latent_loss.detach()),
        f"latent_pure_{kind}": float(((plain * pure).sum() / (pure.sum() + 1e-6)).detach()),
        f"state_{kind}": float(state_loss.detach()),
        f"weight_{kind}": float((weight.sum() / mask.sum()).detach()),
        "probe": float(probe.detach()),
        **extra,
    }


def frame_loss(
    predicted: Tensor, target: Tensor, current: Tensor, background: Tensor | None, robust: float
) -> tuple[Tensor, Tensor]:
    """Loss of each frame's latents, and their plain mean squared error without gradient, each `(...)`.

    Cells that change or that differ from the background weigh more.

    Args:
        predicted: `(...,C,h,w)` predicted latents.
        target: `(...,C,h,w)` true latents.
        current: `(...,C,h,w)` true latents before the frame.
        background: `(C,h,w)` latent of the empty scene, or None.
        robust: see `WorldModelTraining`.
    """
    error = (predicted - target).square().mean(-3)
    change = (target - current).square().mean(-3).clamp(max=1.0)
    focus = 1.0 + 6.0 * change
    if background is not None:
        focus = focus + 2.0 * ((target - background).square().mean(-3) > 0.25).float()
    cost = 2 * robust * ((1 + error / robust).sqrt() - 1) if robust else error
    return (focus * cost).sum((-2, -1)) / focus.sum((-2, -1)), error.detach().mean((-2, -1))


def pixel_loss(tokenizer: VideoTokenizer, latents: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of decoded frames; with a known background, foreground pixels weigh more, colourful ones most.

    Instructions name objects by colour, and an object covers a hundredth of a frame. The colours of both images count,
    so that missing objects and false objects are both penalised.

    Args:
        tokenizer: decodes the latents; its weights are not trained.
        latents: `(N,C,h,w)` predicted latents.
        target: `(N,C,h,w)` true latents.
        weight: `(N,)` weight of each frame.
    """
    with autocast(latents.device):
        predicted = tokenizer.decode_pixels(
            tokenizer.project(latents).contiguous(memory_format=torch.channels_last)
        )
        with torch.no_grad():
            true = tokenizer.decode_pixels(target.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        focus = torch.ones_like(true[:, :1])
        for picture in (true, predicted) if tokenizer.static_picture is not None else ():
            far = ((picture - tokenizer.static_picture).abs().amax(1, keepdim=True) > 0.1).float()
            chroma = picture.amax(1, keepdim=True) - picture.amin(1, keepdim=True)
            focus = torch.maximum(focus, 1 + far * (4 + 12 * chroma))
    per_frame = (focus * (predicted - true).square()).mean((1, 2, 3))
    return (weight * per_frame).sum() / (weight.sum() + 1e-6)


def train_world_model(
    model: VideoWorldModel,
    data: LatentEpisodes,
    settings: WorldModelTraining,
    run_dir: Path | str,
    evaluate: Callable[[VideoWorldModel], dict[str, float]] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> VideoWorldModel:
    """Train `model.dynamics` (its tokenizer is not changed) and return the averaged model; resumes from `run_dir`.

    `identity` are further values that identify the run, such as the hash of the dataset.
    """
    torch.manual_seed(settings.loop.seed)
    model.tokenizer.requires_grad_(False)
    if model.dynamics.objects is not None:
        model.dynamics.objects.shift.requires_grad_(False)  # already trained by `train_shift`
    background = model.tokenizer.encode_background()

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(module, VideoWorldModel)
        late = training._progress() >= settings.rollout_from
        # The same choice in all processes: a predicted batch takes longer, and the others would have to wait.
        coin = float(torch.rand((), generator=step_generator(settings.loop.seed, step)))
        rollout = late and coin < settings.rollout_share
        windows = data.windows(settings.batch, settings.window, generator).to(module.device)
        return world_model_loss(module, windows, settings, background, rollout, generator, forward)

    def evaluate_refreshed(module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, VideoWorldModel)
        module.refresh()
        return evaluate(module) if evaluate else {}

    plain_settings = {
        name: value for name, value in asdict(settings).items() if name not in ("loop", "compile")
    }
    run_facts = {**plain_settings, "model": replace(model.config, tasks=()).to_dict(), **(identity or {})}
    training = TrainingLoop(
        model,
        settings.loop,
        run_dir,
        loss,
        tag="train_world_model",
        evaluate=evaluate_refreshed,
        identity=run_facts,
        compiled=settings.compile,
    )
    forward: Callable[..., Any] = model.dynamics
    if settings.compile:
        forward = _compiled(model.dynamics)
    training.run()
    result = training.ema_model
    assert isinstance(result, VideoWorldModel)
    result.refresh()
    return result


def _compiled(module: nn.Module) -> Callable[..., Any]:
    """`torch.compile(module)`, or `module` itself once compiling has failed (for example without a C++ compiler)."""
    chosen: list[Callable[..., Any]] = [compiled(module)]

    def forward(*args: Any) -> Any:
        if chosen[0] is module:
            return module(*args)
        try:
            return chosen[0](*args)
        except (RuntimeError, OSError) as error:
            logger.warning("torch.compile failed (%s); training continues without it", error)
            chosen[0] = module
            return module(*args)

    return forward
