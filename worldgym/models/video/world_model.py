"""The world model: tokenizer and dynamics behind the `WorldModel` protocol.

Users work with frames and actions; latents, noise, ring buffers, normalised proprioception and the canvas of several
cameras are internal. Every row of a batch has its own noise key, so a row's predictions do not depend on the other
rows.

Example::

    model = VideoWorldModel.from_pretrained("worldgym/pretrained/tabletop-small/world_model")
    state = model.begin(frames[:, None], torch.zeros(len(frames), 0, 4), torch.Generator().manual_seed(0))
    state, imagined = model.step(state, actions)         # (B, K, 4) in [-1, 1]
    imagined.frames, imagined.states, imagined.uncertainty, imagined.views     # views: the other cameras, by name
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import UNBUILDABLE, CheckpointError, ConfigError
from worldgym.models.latent_model import LatentWorldModel, check_clips, write_model
from worldgym.models.tokenizers import build_tokenizer
from worldgym.models.video.config import WorldModelConfig
from worldgym.models.video.dynamics import Dynamics, DynamicsOutput
from worldgym.models.video.state import ImaginedState
from worldgym.nn import renoise
from worldgym.protocols import Decode, Imagined
from worldgym.utils.devices import autocast, faster_dtype, randint
from worldgym.utils.files import read_json
from worldgym.utils.folders import verify_folder
from worldgym.utils.tensors import load_tensors

TYPE = "video"
EXACT = ("background", "latent_mean", "latent_std")  # buffers that are saved in their own precision


class _NoState(nn.Module):
    """Placeholder for the proprioception estimate if no proprioception was recorded."""

    def forward(self, latents: Tensor) -> Tensor:
        """Map `(N,C,h,w)` to `(N,0)`."""
        return latents.new_zeros(len(latents), 0)


class VideoWorldModel(LatentWorldModel):
    """Predicts video of one or more cameras under actions. Implements `worldgym.protocols.WorldModel`.

    Args:
        config: config of the model; None for that of the bundled model.
    """

    def __init__(self, config: WorldModelConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or WorldModelConfig.preset("small")
        self.tokenizer = build_tokenizer(c.tokenizer)
        self.dynamics = Dynamics(c.dynamics)
        self.canvas = c.canvas
        channels, (rows, columns) = c.dynamics.latent_channels, c.dynamics.cells
        self.state_probe: nn.Module = _NoState()
        if c.dynamics.state_dim:
            self.state_probe = nn.Sequential(
                nn.Conv2d(channels, 32, 3, padding=1), nn.SiLU(), nn.Flatten(),
                nn.Linear(32 * rows * columns, 128), nn.SiLU(), nn.Linear(128, c.dynamics.state_dim),
            )  # fmt: skip
        self._fast: list[Dynamics] = []  # in a list, so that torch does not register it as a submodule
        self.sampler = c.sampler
        self._asked: str | None = None  # precision, by `with_sampler`

    # -- properties -------------------------------------------------------------------------------
    @property
    def action_dim(self) -> int:
        """A."""
        return self.config.dynamics.action_dim

    @property
    def state_dim(self) -> int:
        """S."""
        return self.config.dynamics.state_dim

    # -- the protocol -----------------------------------------------------------------------------
    def inference_network(self) -> Dynamics:
        """The dynamics in the sampler's precision; call `refresh` after training steps."""
        # A bf16 copy of the weights: casting 6 M parameters at every frame costs as much as the frame.
        if (self._asked or faster_dtype(self.sampler.dtype, self.device)) == "float32":
            return self.dynamics
        if not self._fast:
            self._fast = [copy.deepcopy(self.dynamics).to(torch.bfloat16).eval().requires_grad_(False)]
        return self._fast[0]

    def refresh(self) -> None:
        """Copy the current weights to the inference copy; `load_state_dict` does this itself."""
        for copied in self._fast:
            with torch.no_grad():
                torch._foreach_copy_(list(copied.parameters()), list(self.dynamics.parameters()))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Like torch's; also updates the inference copy."""
        result = super().load_state_dict(*args, **kwargs)
        self.refresh()
        return result

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Like torch's, which moves modules with it; the inference copy is then made anew on the new device."""
        self._fast = []
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> ImaginedState:
        """Create the state of episodes that start from real frames.

        Args:
            frames: `(B,Tc,H,W,3)` uint8 of the main camera, Tc >= 1.
            actions: `(B,Tc-1,A)` in [-1, 1] between the frames.
            generator: draws the rows' noise keys; None draws from torch's global generator.
            states: `(B,Tc,S)` proprioception; None estimates it from the images.
            views: `(B,Tc,H',W',3)` uint8 of the other cameras, by name.

        Raises:
            ConfigError: wrong shapes, sizes or dtypes.
        """
        check_clips(frames)
        device = self.device
        frames, actions = frames.to(device), actions.to(device)
        views = None if views is None else {name: view.to(device) for name, view in views.items()}
        picture = self.canvas.pack(frames, views)
        b, context = frames.shape[:2]
        if tuple(actions.shape) != (b, context - 1, self.action_dim):
            raise ConfigError(
                f"actions have shape {tuple(actions.shape)}, expected {(b, context - 1, self.action_dim)}"
            )
        latents = self.tokenizer.encode(picture.flatten(0, 1)).unflatten(0, (b, context))
        if states is None:
            with autocast(self.device):
                normal = self.state_probe(latents.flatten(0, 1)).float().unflatten(0, (b, context))
        elif tuple(states.shape) != (b, context, self.state_dim):
            raise ConfigError(
                f"states have shape {tuple(states.shape)}, expected {(b, context, self.state_dim)}"
            )
        else:
            normal = self.normalise_state(states.to(device).float())
        net = self.inference_network()
        dtype = next(net.parameters()).dtype
        cache = net.empty_cache(latents[:, 0], normal[:, 0], dtype)
        first = max(
            0, context - 1 - self.config.dynamics.window
        )  # older frames would be overwritten in the ring buffer anyway
        for i in range(first, context - 1):
            clean = latents[:, i + 1].to(dtype)
            time = torch.zeros(b, device=self.device)
            net.step(clean, latents[:, i].to(dtype), time, actions[:, i].float(), normal[:, i], cache)
            cache.ring.advance()
        keys = randint(2**62, (b,), generator, device)
        return ImaginedState(latents[:, -1], self.denormalise_state(normal[:, -1]), cache, keys)

    def _noise(self, keys: Tensor, count: Tensor, shape: torch.Size, passes: int) -> Tensor:
        """Noise `(passes, B, C, h, w)`; row i is a function of (keys[i], count[i]) alone."""
        out = torch.empty(len(keys), passes, *shape, device="cpu")  # drawn on the CPU: identical on every device
        if passes == 0:
            return out.transpose(0, 1).to(self.device)
        generator = torch.Generator()
        for row, (key, frame_count) in enumerate(zip(keys.tolist(), count.tolist(), strict=True)):
            generator.manual_seed((key * 1_000_003 + frame_count) % (2**63))
            torch.randn(passes, *shape, generator=generator, out=out[row])
        return out.transpose(0, 1).to(self.device)

    @torch.no_grad()
    def _imagine(
        self, net: Dynamics, state: ImaginedState, actions: Tensor, decode: Decode
    ) -> tuple[ImaginedState, Imagined]:
        """The part of `step` that runs in one thread."""
        dtype = next(net.parameters()).dtype
        cache = state.cache.clone()
        latent, proprio = state.latent, self.normalise_state(state.states)
        latents, states, errors = [], [], []
        times = self.sampler.times()
        for i in range(actions.shape[1]):
            # Noise is needed for the later passes only: the first starts from zeros (see `dynamics`).
            noise = self._noise(state.keys, cache.count, latent.shape[1:], len(times) - 1)
            before, action, state_in = latent.to(dtype), actions[:, i].float(), proprio

            def denoise(
                x: Tensor, t: float, before: Tensor = before, action: Tensor = action, state_in: Tensor = state_in
            ) -> DynamicsOutput:
                level = torch.full((len(x),), t, device=self.device)
                return net.step(x.to(dtype), before, level, action, state_in, cache)

            out = renoise(
                denoise, lambda outputs: outputs.latents, torch.zeros_like(latent), times, noise.__getitem__,
                self.sampler.runs,
            )  # fmt: skip
            cache.ring.advance()
            latent, proprio = self.tokenizer.project(out.latents), proprio + out.states
            latents.append(latent)
            states.append(self.denormalise_state(proprio))
            errors.append(out.log_error.exp())
        after = ImaginedState(latent, states[-1], cache, state.keys)
        all_latents = torch.stack(latents, 1)
        shown = {"all": all_latents, "last": all_latents[:, -1:], "none": all_latents[:, :0]}[decode]
        frames, views = self.decode(shown)
        return after, Imagined(
            frames=frames,
            latents=all_latents,
            states=torch.stack(states, 1),
            uncertainty=torch.stack(errors, 1).amax(1),
            views=views,
        )

    @torch.no_grad()
    def observe(
        self,
        state: ImaginedState,
        frames: Tensor,
        states: Tensor | None = None,
        *,
        views: Mapping[str, Tensor] | None = None,
    ) -> ImaginedState:
        """Replace the current imagined frame by a real observation.

        Args:
            state: current state.
            frames: `(B,H,W,3)` uint8 of the main camera.
            states: `(B,S)` proprioception, or None to estimate it.
            views: `(B,H',W',3)` uint8 of the other cameras, by name.
        """
        device = self.device
        views = None if views is None else {name: view.to(device) for name, view in views.items()}
        latent = self.tokenizer.encode(self.canvas.pack(frames.to(device), views))
        if states is None:
            with autocast(self.device):
                states = self.denormalise_state(self.state_probe(latent).float())
        return state.replace(latent=latent, states=states.to(device).float())

    def with_sampler(self, **changes: Any) -> VideoWorldModel:
        """Change the sampler in place, e.g. `with_sampler(steps=1)`; returns self.

        A `dtype` given here is used on every device; one from the config only where it is faster than float32.
        """
        self.sampler = replace(self.sampler, **changes)
        self._asked = changes.get("dtype", self._asked)
        self._fast = []
        return self

    # -- disk -------------------------------------------------------------------------------------
    def save_pretrained(self, path: Path | str) -> Path:
        """Write `config.json` and `model.safetensors` (in bf16, half the size)."""
        tensors = {
            k: v.detach().to("cpu", v.dtype if k.endswith(EXACT) else torch.bfloat16)
            for k, v in self.state_dict().items()
        }
        config = {"type": TYPE, **replace(self.config, sampler=self.sampler, specs=self.specs).to_dict()}
        return write_model(path, config, tensors)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> VideoWorldModel:
        """Load a model written by `save_pretrained`.

        Raises:
            CheckpointError: missing or damaged files; the message names them.
        """
        remedy = (
            "train a world model with `worldgym train world-model`, or use the bundled name 'tabletop-small'"
        )
        path = verify_folder(path, ("config.json", "model.safetensors"), remedy)
        config = read_json(path / "config.json", remedy)
        tensors = load_tensors(path / "model.safetensors")
        try:
            kind = config.pop("type", TYPE if config.get("class") == "VideoWorldModel" else None)
            config.pop("class", None)
            if kind != TYPE:
                raise ValueError(f"config.json is of the type {kind!r}, not {TYPE!r}")
            model = cls(WorldModelConfig.from_dict(config))
            model.load_state_dict({k: v.float() for k, v in tensors.items()})
        except UNBUILDABLE as error:
            raise CheckpointError(
                f"the world model at {path} is damaged or of another version: {error}"
            ) from error
        model.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.eval().requires_grad_(False)
