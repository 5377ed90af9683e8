"""Base of world models that imagine in the latents of a frame tokenizer: what does not depend on their dynamics.

A subclass has `config`, `tokenizer` and `canvas`, and implements `inference_network` and `_imagine`.

Example::

    class Mine(LatentWorldModel):
        def inference_network(self): return self.dynamics
        def _imagine(self, net, state, actions, decode): return after, imagined
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from worldgym.errors import UNBUILDABLE, CheckpointError, ConfigError
from worldgym.protocols import Decode, Imagined
from worldgym.specs import Specs
from worldgym.utils.devices import randint
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.row_threads import ROWS_PER_THREAD, in_threads
from worldgym.utils.sizes import ImageSize, short
from worldgym.utils.tensors import load_tensors, save_tensors


class LatentWorldModel(nn.Module):
    """Proprioception in the data's units, decoding, and prediction of a batch in several threads."""

    config: Any
    tokenizer: Any
    canvas: Any

    # -- properties --------------------------------------------------------------------------------------------------
    @property
    def specs(self) -> Specs:
        """Specs of its inputs and outputs: cameras, proprioception, actions."""
        described: Specs = self.config.described
        return described

    @property
    def image_size(self) -> ImageSize:
        """Height and width of the main camera's frames in pixels; one number for a square."""
        return short(self.canvas.cameras[0].size)

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.config.action_dim)

    @property
    def state_dim(self) -> int:
        """S."""
        return int(self.config.state_dim)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def normalise_state(self, states: Tensor) -> Tensor:
        """Convert data units to zero mean and unit variance."""
        mean, std = (
            torch.tensor(v, device=states.device) for v in (self.config.state_mean, self.config.state_std)
        )
        return (states - mean) / std

    def denormalise_state(self, states: Tensor) -> Tensor:
        """Inverse of `normalise_state`."""
        mean, std = (
            torch.tensor(v, device=states.device) for v in (self.config.state_mean, self.config.state_std)
        )
        return states * std + mean

    def known_states(self, states: Tensor | None, batch: int, length: int, kind: str) -> Tensor:
        """Proprioception `(B,Tc,S)` of a start, for models that do not estimate it; empty without proprioception.

        Raises:
            ConfigError: it is missing, or of another shape.
        """
        if self.state_dim and states is None:
            raise ConfigError(
                f"a {kind} model needs the proprioception of its starts; give states (B, Tc, S), or starts with states"
            )
        found = torch.zeros(batch, length, 0) if states is None else states
        if tuple(found.shape) != (batch, length, self.state_dim):
            raise ConfigError(
                f"states have shape {tuple(found.shape)}, expected {(batch, length, self.state_dim)}"
            )
        return found

    # -- prediction --------------------------------------------------------------------------------------------------
    def inference_network(self) -> Any:
        """The network that `_imagine` gets, in the precision of inference."""
        raise TypeError(f"{type(self).__name__} has no inference_network; define it")

    def _imagine(self, net: Any, state: Any, actions: Tensor, decode: Decode) -> tuple[Any, Imagined]:
        """The part of `step` that runs in one thread."""
        raise TypeError(f"{type(self).__name__} has no _imagine; define it")

    @torch.no_grad()
    def step(self, state: Any, actions: Tensor, *, decode: Decode = "all") -> tuple[Any, Imagined]:
        """Imagine K frames.

        Args:
            state: state to continue from; it is not changed.
            actions: `(B,K,A)` in [-1, 1].
            decode: which frames to decode to pixels; a frame that is not decoded costs less.

        Raises:
            ConfigError: wrong shape of `actions`, or another value of `decode`.
        """
        if actions.ndim != 3 or len(actions) != state.batch_size or actions.shape[-1] != self.action_dim:
            raise ConfigError(
                f"actions have shape {tuple(actions.shape)}, expected ({state.batch_size}, K, {self.action_dim})"
            )
        if decode not in ("all", "last", "none"):
            raise ConfigError(f"decode must be 'all', 'last' or 'none', got {decode!r}")
        actions = actions.to(self.device)
        net = self.inference_network()  # created here, so that the threads below do not each create it
        pieces = min(torch.get_num_threads(), state.batch_size // ROWS_PER_THREAD)
        if self.device.type != "cpu" or pieces < 2:
            return self._imagine(net, state, actions, decode)
        parts = list(zip(state.split(pieces), actions.chunk(pieces), strict=True))
        results = in_threads(lambda part: self._imagine(net, *part, decode), parts)
        outputs = [imagined for _, imagined in results]
        return state.cat([after for after, _ in results]), Imagined(
            frames=torch.cat([imagined.frames for imagined in outputs]),
            latents=torch.cat([imagined.latents for imagined in outputs]),
            states=torch.cat([imagined.states for imagined in outputs]),
            uncertainty=torch.cat([imagined.uncertainty for imagined in outputs]),
            views={
                name: torch.cat([imagined.views[name] for imagined in outputs]) for name in outputs[0].views
            },
        )

    def fork(self, state: Any, index: Tensor, generator: torch.Generator | None = None) -> Any:
        """Rows `index (B',)` as a new state. With `generator` copies get new noise keys, else those of their source."""
        keys = None if generator is None else randint(2**62, (len(index),), generator, self.device)
        forked = state.index(index)
        return forked if keys is None else forked.replace(keys=keys)

    def merge(self, state: Any, rows: Tensor, other: Any) -> Any:
        """`state` with the rows `rows` replaced by all rows of `other`, in order."""
        return state.scatter(rows, other)

    # -- pixels ------------------------------------------------------------------------------------------------------
    def decode_pixels(self, z: Tensor) -> Tensor:
        """Decode latents `(N,C,h,w)` to `(N,H,W,3)` uint8."""
        pixels: Tensor = self.tokenizer.decode(z)
        return pixels

    def decode(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Decode `latents (B,K,C,h,w)` to frames `(B,K,H,W,3)` uint8 of the main camera, and of the others by name."""
        shape = latents.shape[:2]
        if latents.numel():
            picture = self.decode_pixels(latents.flatten(0, 1)).unflatten(0, shape)
        else:
            picture = torch.empty(*shape, *self.canvas.size, 3, dtype=torch.uint8, device=latents.device)
        frames, views = self.canvas.unpack(picture)
        return frames, views

    def render(self, state: Any) -> Tensor:
        """The main camera's current frame, `(B,H,W,3)` uint8."""
        return self.decode(state.latent[:, None])[0][:, 0]

    def render_views(self, state: Any) -> dict[str, Tensor]:
        """The other cameras' current frames by name, `(B,H',W',3)` uint8."""
        return {name: frames[:, 0] for name, frames in self.decode(state.latent[:, None])[1].items()}


Model = TypeVar("Model", bound=nn.Module)


def check_clips(frames: Tensor) -> None:
    """Raise a ConfigError unless `frames` has the axes `(B,Tc,H,W,3)`."""
    if frames.ndim != 5:
        raise ConfigError(
            f"frames have shape {tuple(frames.shape)}, expected (B, Tc, H, W, 3); frames[:, None] adds Tc"
        )


def write_model(path: Path | str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write `config.json` and `model.safetensors` into a folder; returns it."""
    with save_folder(path) as folder:
        save_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    return Path(path)


def read_model(
    path: Path | str, kind: str, remedy: str, make: Callable[[dict[str, Any], dict[str, Tensor]], Model]
) -> Model:
    """Load a world model from `config.json` and `model.safetensors`, in evaluation mode and without gradients.

    Args:
        path: folder.
        kind: the type that `config.json` must have.
        remedy: what to do if a file is missing.
        make: builds the model of the config, without its type, and of the tensors by name.

    Raises:
        CheckpointError: missing or damaged files; the message names them.
    """
    folder = verify_folder(path, ("config.json", "model.safetensors"), remedy)
    config = read_json(folder / "config.json", remedy)
    tensors = load_tensors(folder / "model.safetensors")
    try:
        if (found := config.pop("type", kind)) != kind:
            raise ValueError(f"config.json is of the type {found!r}, not {kind!r}")
        model = make(config, tensors)
    except UNBUILDABLE as error:
        raise CheckpointError(
            f"the {kind} world model at {folder} is damaged or of another version: {error}"
        ) from error
    return model.eval().requires_grad_(False)
