"""Joint world-action models behind the `WorldModel` protocol; `agents.policies.joint` adds the policy.

A step imagines the frame after each chunk of actions. Frames within a chunk are imagined on request, each from the
frame before the chunk and the first actions of the chunk, so that they change nothing about later ones.

Example::

    model = JointModel(JointConfig.preset("small", "dreamzero").for_data(states, specs))
    state = model.begin(frames[:, None], torch.zeros(len(frames), 0, 4), generator, states=states[:, None])
    state, imagined = model.step(state, actions, decode="last")         # (B, K, 4) in [-1, 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from worldgym.errors import ConfigError
from worldgym.models.backbones.proprioception import Integrator
from worldgym.models.joint.config import JointConfig, sampling_of
from worldgym.models.joint.network import JointNetwork
from worldgym.models.joint.sampling import Denoiser, imagine
from worldgym.models.joint.state import JointState
from worldgym.models.latent_model import LatentWorldModel, check_clips, read_model, write_model
from worldgym.models.tokenizers import build_tokenizer
from worldgym.nn import Reuse, row_noise
from worldgym.protocols import Decode, Imagined
from worldgym.utils.devices import randint

TYPE = "joint"


class JointModel(LatentWorldModel):
    """A joint world-action model as a world model; see the module docstring.

    Args:
        config: config of the model, with specs.
    """

    text_mean: Tensor
    text_std: Tensor

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tokenizer = build_tokenizer(c.tokenizer)
        self.canvas = c.canvas
        self.network = JointNetwork(c)
        self.integrator = Integrator(c.state_dim, c.action_dim, c.state_width)
        self.register_buffer("text_mean", torch.zeros(c.text_dim))
        self.register_buffer("text_std", torch.full((c.text_dim,), c.text_dim**-0.5))

    def with_sampling(self, **changes: Any) -> Self:
        """Change how it samples, in place, e.g. `with_sampling(steps=1)`; returns self.

        Args:
            changes: fields of `JointSampling`; `reuse` is a `Reuse`, or its settings by name.

        Raises:
            ConfigError: unknown names, or values of another type or range.
        """
        now = asdict(self.config.sampling)
        if isinstance(changes.get("reuse"), Reuse):
            changes["reuse"] = asdict(changes["reuse"])
        if unknown := sorted(set(changes) - set(now)):
            raise ConfigError(f"sampling has no {', '.join(unknown)}; it has {', '.join(now)}")
        self.config = replace(self.config, sampling=sampling_of({**now, **changes}))
        return self

    def inference_network(self) -> nn.Module:
        """The network that predicts velocities."""
        return self.network

    def words_of(self, embeddings: Tensor) -> Tensor:
        """Standardise embeddings of instructions `(B,E)`; their differences are small beside what they share."""
        return ((embeddings - self.text_mean) / self.text_std).clamp(-5, 5)

    # -- the protocol ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> JointState:
        """Create the state of episodes that start from real frames.

        Args:
            frames: `(B,Tc,H,W,3)` uint8 of the main camera, Tc >= 1. Of the earlier frames every K-th before the last
                one is used, as many as fit into the context.
            actions: `(B,Tc-1,A)` in [-1, 1] between the frames; only the last one is used.
            generator: draws the rows' noise keys; None draws from torch's global generator.
            states: `(B,Tc,S)` proprioception.
            views: `(B,Tc,H',W',3)` uint8 of the other cameras, by name.

        Raises:
            ConfigError: wrong shapes, no proprioception, or a family whose video does not follow actions.
        """
        c, device = self.config, self.device
        self.check_world_model()
        check_clips(frames)
        b, length = frames.shape[:2]
        if tuple(actions.shape) != (b, length - 1, c.action_dim):
            raise ConfigError(
                f"actions have shape {tuple(actions.shape)}, expected {(b, length - 1, c.action_dim)}"
            )
        states = self.known_states(states, b, length, "joint")
        at = [*range(length - 1, -1, -c.chunk)][: c.block_count][::-1]
        picture = self.canvas.pack(
            frames[:, at].to(device),
            None if views is None else {name: view[:, at].to(device) for name, view in views.items()},
        )
        latents = self.tokenizer.encode(picture.flatten(0, 1)).unflatten(0, (b, len(at)))
        context = latents.new_zeros(b, c.block_count, *latents.shape[2:])
        context[:, : len(at)] = latents
        normal = self.normalise_state(states.to(device).float())
        acted = actions[:, -1].to(device).float() if length > 1 else latents.new_zeros(b, c.action_dim)
        number = torch.full((b,), len(at), device=device)
        return JointState(
            latents[:, -1], states[:, -1].to(device).float(), normal[:, -1] - normal[:, max(0, length - 2)], acted,
            context, number, torch.zeros_like(number), randint(2**62, (b,), generator, device),
        )  # fmt: skip

    def check_world_model(self) -> None:
        """Raise a ConfigError if it is a policy only.

        Raises:
            ConfigError: its video does not depend on actions, it was trained on hardly any clean frame, or never
                without an instruction.
        """
        c = self.config
        if c.drawn_levels in ("decoupled", "high_noise"):
            raise ConfigError(
                f"this joint model was trained with levels={c.drawn_levels}, so it saw hardly any clean frame beside "
                "clean actions, and is a policy only; train a world model with levels=auto"
            )
        if not c.text_drop:
            raise ConfigError(
                "this joint model never saw a frame without an instruction (text_drop=0), and a world model gets none; "
                "train one with text_drop=0.15"
            )
        layout, rule = c.kind.step(c.sizes(1)), c.kind.rule()
        frames = [s for s in layout.segments if s.role == "video" and not s.clean]
        if not any(rule(query, key) for query in frames for key in layout.segments if key.role == "action"):
            raise ConfigError(
                f"the future frame of the family {c.family} does not attend to actions, so it is no world model; train "
                "one of the family gigaworld, whose actions are the same"
            )

    @torch.no_grad()
    def _imagine(
        self, net: nn.Module, state: JointState, actions: Tensor, decode: Decode
    ) -> tuple[JointState, Imagined]:
        """The part of `step` that runs in one thread."""
        parts = []
        for rows in state.groups():
            parts.append((rows, *self._alike(state.index(rows), actions[rows].float(), decode)))
        order = torch.cat([rows for rows, *_ in parts]).argsort()
        after = JointState.cat([part for _, part, _ in parts]).index(order)
        latents, states, errors = (
            torch.cat(v)[order] for v in zip(*(values for *_, values in parts), strict=True)
        )
        frames, views = self.decode(latents if decode != "none" else latents[:, :0])
        return after, Imagined(frames, latents, states, errors, views=views)

    def _alike(
        self, state: JointState, actions: Tensor, decode: Decode
    ) -> tuple[JointState, tuple[Tensor, Tensor, Tensor]]:
        """`step` for rows with as many frames in the context: state, and latents, proprioception, uncertainty."""
        shown, paths, errors = [], [], []
        for chunk in actions.split(self.config.chunk, 1):
            k = chunk.shape[1]
            path, last = self.integrator(self.normalise_state(state.states), state.last, state.acted, chunk)
            for i in range(1, k) if decode == "all" else ():
                shown.append(self._predict(state, chunk, i)[0])
            latent, error = self._predict(state, chunk, k)
            state = state.followed_by(latent, k == self.config.chunk).replace(
                states=self.denormalise_state(path[:, -1]),
                last=last,
                acted=chunk[:, -1],
                count=state.count + 1,
            )
            shown.append(latent)
            paths.append(self.denormalise_state(path))
            errors.append(error)
        latents = torch.stack(shown, 1) if decode == "all" else state.latent[:, None]
        return state, (latents, torch.cat(paths, 1), torch.stack(errors, 1).amax(1))

    def _predict(self, state: JointState, chunk: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The frame `(B,C,h,w)` after the first k actions of a chunk, and the uncertainty `(B,)`."""
        c, device = self.config, state.latent.device
        b, shape = len(chunk), state.latent.shape[1:]
        size = shape.numel()
        noise = row_noise(state.keys, state.count, (size + c.chunk * c.action_dim,)).to(device)
        given = chunk.new_zeros(b, c.chunk, c.action_dim)
        given[:, :k] = chunk[:, :k]
        there = torch.zeros(b, c.chunk, dtype=torch.bool, device=device)
        there[:, :k] = True
        states = self.normalise_state(state.states).clamp(-5, 5)
        words = torch.zeros(b, c.text_dim, device=device)
        block = Denoiser(self, state.context[:, : int(state.known[0])], states, words)
        video, actions = noise[:, :size].unflatten(1, shape), noise[:, size:].view_as(given)
        latent, error = imagine(block, video, actions, given, there)
        return self.tokenizer.project(latent), error

    @torch.no_grad()
    def observe(
        self,
        state: JointState,
        frames: Tensor,
        states: Tensor | None = None,
        *,
        views: Mapping[str, Tensor] | None = None,
    ) -> JointState:
        """Replace the current imagined frame by a real one, also in the context (DreamZero's closed loop).

        Args:
            state: current state.
            frames: `(B,H,W,3)` uint8 of the main camera.
            states: `(B,S)` proprioception; None keeps the imagined one.
            views: `(B,H',W',3)` uint8 of the other cameras, by name.
        """
        device = self.device
        views = None if views is None else {name: view.to(device) for name, view in views.items()}
        after = state.seeing(self.tokenizer.encode(self.canvas.pack(frames.to(device), views)))
        return after if states is None else after.replace(states=states.to(device).float())

    # -- disk --------------------------------------------------------------------------------------------------------
    def save_pretrained(self, path: Path | str) -> Path:
        """Write `config.json` and `model.safetensors`."""
        tensors = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        return write_model(path, {"type": TYPE, **self.config.to_dict()}, tensors)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> Self:
        """Load a model written by `save_pretrained`.

        Raises:
            CheckpointError: missing or damaged files; the message names them.
        """

        def make(config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
            model = cls(JointConfig.from_dict(config))
            # models of earlier versions had no absolute positions, which is the same as zeros
            tensors.setdefault("network.frame_place", torch.zeros_like(model.network.frame_place))
            model.load_state_dict(tensors)
            model.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return model

        return read_model(path, TYPE, "train one with `worldgym train wam`", make)
