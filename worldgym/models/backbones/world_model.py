"""A world model on a video transformer of diffusers: Wan 2.2 or Cosmos-Predict 2 or 2.5, with its temporal VAE.

The VAE turns the first frame into one latent frame, and every further 4 frames into another one. A step predicts latent
frames one after another, each from the first one, the last ones and 4 actions, by a few steps of a diffusers scheduler.
Chunks may have any length: see `BackboneState`. How an episode is cut into chunks does not change its frames.

Example::

    model = DiffusersWorldModel(BackboneConfig.preset("tiny-wan").for_data(states, specs))
    state = model.begin(frames, actions, generator, states=states)
    state, imagined = model.step(state, chunk)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.models.backbones.config import BackboneConfig
from worldgym.models.backbones.networks import CosmosNetwork, VideoNetwork, WanNetwork
from worldgym.models.backbones.proprioception import Integrator, StateProbe
from worldgym.models.backbones.sampling import predicted
from worldgym.models.backbones.shapes import build
from worldgym.models.backbones.state import BackboneState, pushed
from worldgym.models.backbones.tiny_decoder import TinyDecoder
from worldgym.models.backbones.vae import TemporalVAE
from worldgym.models.latent_model import LatentWorldModel, check_clips, read_model, write_model
from worldgym.nn.noise import residual_velocity
from worldgym.protocols import Decode, Imagined
from worldgym.utils.devices import randint

TYPE = "diffusers"


class DiffusersWorldModel(LatentWorldModel):
    """World model on a diffusers transformer; see the module docstring.

    Args:
        config: shape of the model, with specs.
        parts: transformer and VAE with weights; None creates them with random weights.
    """

    def __init__(self, config: BackboneConfig, parts: tuple[Any, Any] | None = None) -> None:
        super().__init__()
        c = self.config = config
        transformer, autoencoder = build(c.transformer, c.vae) if parts is None else parts
        self.canvas = c.canvas
        self.vae = TemporalVAE(autoencoder)
        self.network: VideoNetwork
        if c.family == "wan":
            self.network = WanNetwork(transformer, c.action_dim, c.per_frame, c.action_width)
        else:
            self.network = CosmosNetwork(transformer, c.action_dim, c.per_frame, c.action_width, c.fps)
        if parts is None and c.residual:
            torch.nn.init.zeros_(transformer.proj_out.weight)
        self.integrator = Integrator(c.state_dim, c.action_dim, c.state_width)
        self.probe = StateProbe(c.channels, c.state_dim, c.state_width)
        self.tiny: TinyDecoder | None
        self.with_tiny_decoder(c.tiny_decoder)

    @property
    def window(self) -> int:
        """Clean latent frames that a prediction sees, with the first one, W."""
        return self.config.window + 1

    @property
    def decoder(self) -> TinyDecoder | TemporalVAE:
        """The decoder of imagined latent frames."""
        return self.vae if self.tiny is None else self.tiny

    @property
    def decoded(self) -> int:
        """Latent frames before the current one that the decoder gets."""
        return self.config.decoded if self.tiny is None else 1

    def with_tiny_decoder(self, width: int) -> DiffusersWorldModel:
        """Decode with a new decoder of this width, or with the VAE's if it is 0, in place."""
        self.config = c = replace(self.config, tiny_decoder=width)
        self.tiny = TinyDecoder(c.channels, c.reduction, width, c.per_frame) if width else None
        return self

    def inference_network(self) -> VideoNetwork:
        """The network that predicts velocities."""
        return self.network

    def with_dtype(self, dtype: str) -> DiffusersWorldModel:
        """Infer in another precision, `"bfloat16"` or `"float32"`, in place."""
        self.config = replace(self.config, dtype=dtype)
        chosen = getattr(torch, dtype)
        self.network.cast(chosen)
        for part in (*self.vae.autoencoder.parameters(), *self.vae.autoencoder.buffers()):
            part.data = part.data.to(chosen)
        return self

    # -- the protocol --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> BackboneState:
        """Create the state of episodes that start from real frames.

        Frames that do not fill a latent frame are left out at the front: of 1 + 4n + q frames, the first q.

        Args:
            frames: `(B,Tc,H,W,3)` uint8 of the main camera, Tc >= 1.
            actions: `(B,Tc-1,A)` in [-1, 1] between the frames.
            generator: draws the rows' noise keys; None draws from torch's global generator.
            states: `(B,Tc,S)` proprioception; None estimates it from the first frame and the actions.
            views: `(B,Tc,H',W',3)` uint8 of the other cameras, by name.

        Raises:
            ConfigError: wrong shapes, sizes or dtypes.
        """
        check_clips(frames)
        device, (b, context) = self.device, frames.shape[:2]
        actions = self._checked(actions, (b, context - 1, self.action_dim), "actions")
        views = None if views is None else {name: view.to(device) for name, view in views.items()}
        left = (context - 1) % self.config.per_frame
        picture = self.canvas.pack(frames.to(device), views)[:, left:]
        latents, actions = self.vae.encode(picture), actions[:, left:]
        if states is None:
            first = self.probe(latents[:, 0])
            still = torch.zeros_like(first), torch.zeros(b, self.action_dim, device=device)
            path = first[:, None]
            if actions.shape[1]:
                path = torch.cat([path, self.integrator(first, *still, actions)[0]], 1)
        else:
            path = self.normalise_state(self._checked(states, (b, context, self.state_dim), "states"))[
                :, left:
            ]
        moves = (
            actions.unflatten(1, (-1, self.config.per_frame)) if actions.shape[1] else actions[:, :0, None]
        )
        state = self._blank(latents[:, 0], randint(2**62, (b,), generator, device))
        state = self._committed(self.network, state, latents[:, 0], 0)
        for i in range(moves.shape[1]):
            state = self._committed(
                self.network, state.replace(pending=moves[:, i]), latents[:, i + 1], min(i + 1, self.window)
            )
        return state.replace(
            latent=latents[:, -1],
            states=self.denormalise_state(path[:, -1]),
            last=path[:, -1] - path[:, max(0, path.shape[1] - 2)],
            acted=actions[:, -1] if actions.shape[1] else state.acted,
        )

    def _checked(self, values: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
        if tuple(values.shape) != shape:
            raise ConfigError(f"{name} have shape {tuple(values.shape)}, expected {shape}")
        return values.to(self.device).float()

    def _blank(self, latent: Tensor, keys: Tensor) -> BackboneState:
        """A state without latent frames."""
        c, b = self.config, len(latent)
        none = latent.new_zeros(b, c.state_dim)
        pending = latent.new_zeros(b, c.per_frame, c.action_dim)
        number = torch.zeros(b, dtype=torch.int64, device=latent.device)
        return BackboneState(
            latent, none, none, pending[:, 0], latent.new_zeros(b, self.window, *latent.shape[1:]),
            pending[:, None].repeat(1, self.window, 1, 1), number, pending, number, keys,
        )  # fmt: skip

    def _committed(
        self, net: VideoNetwork, state: BackboneState, latent: Tensor, known: int
    ) -> BackboneState:
        """`state`, whose rows have `known` latent frames in the window, with a whole one that `pending` led to."""
        cache = state.cache
        if self.config.attention == "causal":
            given = known > 0  # the first frame has no actions
            _, new = self.velocity(
                net, latent[:, None], torch.zeros_like(latent[:, :1, 0, 0]), state.pending[:, None],
                torch.full((len(latent), 1, self.config.per_frame), given, device=latent.device), [known],
                cached=[layer[:, :known] for layer in cache] if known else (), keep=True,
            )  # fmt: skip
            if not cache:
                cache = tuple(layer.new_zeros(len(latent), self.window, *layer.shape[2:]) for layer in new)
            cache = tuple(pushed(old, layer[:, 0], known) for old, layer in zip(cache, new, strict=True))
        return state.replace(
            latent=latent, context=pushed(state.context, latent, known),
            moves=pushed(state.moves, state.pending, known),
            count=state.count + 1, pending=torch.zeros_like(state.pending), filled=torch.zeros_like(state.filled),
            cache=cache,
        )  # fmt: skip

    @torch.no_grad()
    def _imagine(
        self, net: VideoNetwork, state: BackboneState, actions: Tensor, decode: Decode
    ) -> tuple[BackboneState, Imagined]:
        """The part of `step` that runs in one thread."""
        parts = []
        for rows in state.groups():
            rows = rows.to(actions.device)
            alike = state.index(rows)
            known, filled = int(alike.known[0]), int(alike.filled[0])
            parts.append((rows, *self.imagine_alike(net, alike, actions[rows].float(), decode, known, filled)))
        order = torch.cat([rows for rows, *_ in parts]).argsort()
        after = type(state).cat([part for _, part, _, _ in parts]).index(order)
        pictures, latents, uncertainty = (
            torch.cat(values)[order] for values in zip(*(p[3] for p in parts), strict=True)
        )
        states = torch.cat([part for _, _, part, _ in parts])[order]
        frames, views = self.canvas.unpack(pictures)
        return after, Imagined(frames, latents, states, uncertainty, views=views)

    def imagine_alike(
        self, net: VideoNetwork, state: BackboneState, actions: Tensor, decode: Decode, known: int, filled: int
    ) -> tuple[BackboneState, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """`step` for rows with `known` latent frames in the window and `filled` pending actions.

        Returns the state, proprioception `(B,K,S)`, and pictures `(B,n,H',W',3)`, latents and uncertainty `(B,)`.
        """
        r, steps = self.config.per_frame, actions.shape[1]
        path, last = self.integrator(self.normalise_state(state.states), state.last, state.acted, actions)
        shown, latents, errors, done = [], [], [], 0
        while done < steps:
            taken = min(r - filled, steps - done)
            end = filled + taken
            pending = state.pending.clone()
            pending[:, filled:end] = actions[:, done : done + taken]
            every = decode == "all" and self.config.causal_frames
            ends = [*range(filled + 1, end)] if every else []
            z, error = predicted(self, net, state.replace(pending=pending), known, [*ends, end])
            errors.append(error)
            done, final = done + taken, z[:, -1]
            if decode == "all":
                pick = [*ends, end] if every else [end]
                frames = self._decoded(state.context, z, known, pick if every else range(filled + 1, end + 1))
                shown.append(frames)
                latents.append(z if every else final[:, None].expand(-1, taken, -1, -1, -1))
            elif done == steps:
                latents.append(final[:, None])
                if decode == "last":
                    shown.append(self._decoded(state.context, z, known, [end]))
            state = state.replace(latent=final, pending=pending, filled=torch.full_like(state.filled, end))
            filled = end
            if end == r:
                state = self._committed(net, state, final, known)
                known, filled = min(known + 1, self.window), 0
        states = self.denormalise_state(path)
        state = state.replace(states=states[:, -1], last=last, acted=actions[:, -1])
        blank = torch.empty(len(actions), 0, *self.canvas.size, 3, dtype=torch.uint8, device=actions.device)
        pictures = torch.cat(shown, 1) if shown else blank
        return state, states, (pictures, torch.cat(latents, 1), torch.stack(errors, 1).amax(1))

    # -- latent frames -------------------------------------------------------------------------------------------------
    def velocity(
        self,
        net: VideoNetwork,
        latents: Tensor,
        levels: Tensor,
        moves: Tensor,
        given: Tensor,
        at: list[int],
        **more: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        return net(latents, levels, self.rebased(moves), given, at, **more)

    def rebased(self, moves: Tensor) -> Tensor:
        """Actions `(...,r,A)` as the network gets them: changes per step as their sum since the frame before."""
        out = moves.clone()
        for i in self.config.summed:
            out[..., i] = moves[..., i].cumsum(-1)
        return out

    def with_residual(self, out: Tensor, x: Tensor, before: Tensor, level: Tensor) -> Tensor:
        """The velocity of a network output `out (...,C,h,w)`; see `BackboneConfig.residual`."""
        s = self.config.residual
        return residual_velocity(out, x, before, level, s) if s else out

    def _decoded(self, context: Tensor, z: Tensor, known: int, wanted: Any) -> Tensor:
        """Pictures `(B,n,H,W,3)` uint8 of the actions `wanted` (1 to r) of latent frames `z (B,P,C,h,w)`.

        With P > 1, picture i is that of `z[:, i]`; else all are of the only one.
        """
        b, count = z.shape[:2]
        before = context[:, max(0, known - self.decoded) : known]
        before = before.repeat_interleave(count, 0)
        pictures = self.decoder.decode(torch.cat([before, z.flatten(0, 1)[:, None]], 1))[
            :, -self.config.per_frame :
        ]
        pictures = pictures.unflatten(0, (b, count))
        if count == 1 or len(wanted) == 1:
            return torch.stack([pictures[:, -1, i - 1] for i in wanted], 1)
        return torch.stack([pictures[:, p, i - 1] for p, i in enumerate(wanted)], 1)

    def _pictures(self, state: BackboneState) -> Tensor:
        """The current picture of each row, `(B,H,W,3)` uint8."""
        out = torch.empty(state.batch_size, *self.canvas.size, 3, dtype=torch.uint8, device=self.device)
        for rows in state.groups():
            part, known, filled = state.index(rows), int(state.known[rows[0]]), int(state.filled[rows[0]])
            if filled:
                out[rows] = self._decoded(part.context, part.latent[:, None], known, [filled])[:, 0]
            else:
                first = max(0, known - 1 - self.decoded)
                out[rows] = self.decoder.decode(part.context[:, first:known])[:, -1]
        return out

    def render(self, state: BackboneState) -> Tensor:
        """The main camera's current frame, `(B,H,W,3)` uint8."""
        return self.canvas.unpack(self._pictures(state))[0]

    def render_views(self, state: BackboneState) -> dict[str, Tensor]:
        """The other cameras' current frames by name, `(B,H',W',3)` uint8."""
        return self.canvas.unpack(self._pictures(state))[1]

    # -- copying and correcting ----------------------------------------------------------------------------------------
    def observe(
        self,
        state: BackboneState,
        frames: Tensor,
        states: Tensor | None = None,
        *,
        views: Mapping[str, Tensor] | None = None,
    ) -> BackboneState:
        """Start again from a real observation: the VAE encodes a single frame only as the first one of a clip.

        Earlier frames are forgotten. Noise keys are kept and continued.

        Args:
            state: current state.
            frames: `(B,H,W,3)` uint8 of the main camera.
            states: `(B,S)` proprioception; None estimates it from the frame.
            views: `(B,H',W',3)` uint8 of the other cameras, by name.
        """
        none = torch.zeros(len(frames), 0, self.action_dim)
        fresh = self.begin(
            frames[:, None], none, torch.Generator().manual_seed(0),
            states=None if states is None else states[:, None],
            views=None if views is None else {name: view[:, None] for name, view in views.items()},
        )  # fmt: skip
        return fresh.replace(keys=state.keys + 1_000 * state.count)  # not the noise of the start again

    # -- disk ----------------------------------------------------------------------------------------------------------
    def save_pretrained(self, path: Path | str) -> Path:
        """Write `config.json` and `model.safetensors`, in the precision of the weights."""
        return write_model(path, {"type": TYPE, **self.config.to_dict()}, dict(self.state_dict()))

    @classmethod
    def from_pretrained(cls, path: Path | str) -> DiffusersWorldModel:
        """Load a model written by `save_pretrained`.

        Raises:
            CheckpointError: missing or damaged files; the message names them.
        """

        def make(config: dict[str, Any], tensors: dict[str, Tensor]) -> DiffusersWorldModel:
            model = cls(BackboneConfig.from_dict(config))
            model.with_dtype(model.config.dtype)
            model.load_state_dict(tensors)
            return model

        return read_model(path, TYPE, "train one with `worldgym train world-model --type diffusers`", make)
