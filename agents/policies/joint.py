"""A joint world-action model as a policy: actions by flow matching, with or without the frame that they lead to.

`JointPolicy` is the same model and the same folder as `worldgym.models.joint.JointModel`, so one checkpoint imagines
and acts. A policy sees the current observation only, so its context is one frame.

Example::

    policy = JointPolicy.from_pretrained("runs/wam/export").with_sampling(steps=4)
    out = policy.act({"image": image, "state": state, "instruction": ["push the red cube"]}, temperature=0)
    out.actions.shape                                  # (1, 5, 4)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from agents.policies.heads.flow import FlowHead
from agents.policies.lerobot import LeRobotPolicyMixin
from worldgym.errors import ConfigError
from worldgym.models.joint.config import JointConfig
from worldgym.models.joint.network import Inputs
from worldgym.models.joint.sampling import Denoiser, Stream, imagine
from worldgym.models.joint.world_model import JointModel
from worldgym.nn import Reuse, Reused
from worldgym.nn.noise import expand
from worldgym.protocols import ChunkBatch, Evaluation, Observation, PolicyOutput, Temperature, total_log_prob
from worldgym.text import embed
from worldgym.utils.devices import randn


class JointFlow(FlowHead):
    """The stochastic sampler of `FlowHead` with the velocities of a joint model; it has no weights of its own.

    Args:
        config: config of the model.
    """

    def __init__(self, config: JointConfig) -> None:
        nn.Module.__init__(self)
        self._set(config.chunk, config.action_dim, config.sampling.steps, config.sampling.noise)

    def velocity(self, features: Any, x: Tensor, t: Tensor) -> Tensor:
        """Velocity `(B,K,A)` at `x (B,K,A)` and time `t (B,)`; `features` is a `Stream`."""
        found: Tensor = features.velocity(x, t)
        return found


class JointPolicy(LeRobotPolicyMixin, JointModel):
    """A joint world-action model as a policy and as a world model; see the module docstring.

    Args:
        config: config of the model, with specs.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__(config)
        self.reset()

    @property
    def chunk(self) -> int:
        """Actions per call, K."""
        return self.config.chunk

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components that the policy samples."""
        return ("action",)

    def parameters_of(self, component: str) -> Iterator[nn.Parameter]:
        """Weights of a component: `action` or `all` are those of the network.

        Raises:
            ConfigError: no such component.
        """
        if component not in ("action", "all"):
            raise ConfigError(
                f"a joint model has no {component!r} that can be trained alone; set learn='all', or type --learn all"
            )
        yield from self.network.parameters()

    @classmethod
    def from_pretrained(cls, path: Path | str) -> Self:
        """Load a model written by `save_pretrained`; the weights of its network can be trained.

        Raises:
            CheckpointError: missing or damaged files; the message names them.
        """
        policy = super().from_pretrained(path)
        policy.network.requires_grad_(True)
        return policy

    # -- inputs ------------------------------------------------------------------------------------------------------
    def inputs_of(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Frame latents `(B,C,h,w)`, normalised proprioception `(B,S)` and standardised instruction `(B,E)`.

        Raises:
            ConfigError: numbers of rows or sizes that do not fit.
        """
        c, device = self.config, self.device
        image = torch.as_tensor(observation["image"], device=device)
        views = {}
        for camera in c.described.observation.cameras[1:]:
            key = f"image_{camera.name}"
            if key not in observation:
                raise ConfigError(
                    f"the observation lacks {key!r}, frames of the camera {camera}; it has {sorted(observation)}"
                )
            views[camera.name] = torch.as_tensor(observation[key], device=device)  # type: ignore[literal-required]
        with torch.no_grad():
            frames = self.tokenizer.encode(self.canvas.pack(image, views or None))
        given: Any = np.zeros((len(image), 0), np.float32)
        if c.state_dim:
            if "state" not in observation:
                raise ConfigError(f"the observation lacks 'state' (B, {c.state_dim}); it has {sorted(observation)}")
            given = observation["state"]
        state = torch.as_tensor(given, dtype=torch.float32, device=device)
        if tuple(state.shape) != (len(image), c.state_dim):
            raise ConfigError(f"state must be ({len(image)}, {c.state_dim}); got {tuple(state.shape)}")
        words: Any = observation["instruction"]
        if not isinstance(words, Tensor) and not (
            isinstance(words, np.ndarray) and words.dtype.kind in "fiu"
        ):
            words = embed([str(text) for text in words])
        text = torch.as_tensor(words, dtype=torch.float32, device=device)
        if tuple(text.shape) != (len(image), c.text_dim):
            raise ConfigError(
                f"{len(image)} images but instructions of shape {tuple(text.shape)}; give one for each"
            )
        return frames, self.normalise_state(state).clamp(-5, 5), self.words_of(text)

    def _stream(self, observation: Observation, noise: Tensor | None, reuse: Reuse) -> Stream:
        frames, states, words = self.inputs_of(observation)
        c = self.config
        block = Denoiser(self, frames[:, None], states, words, video=c.kind.future, guided=c.samples_video)
        return Stream(block, noise, c.samples_video, Reused(reuse, c.sampling.steps))

    def _noise(self, rows: int, generator: torch.Generator | None, greedy: bool) -> Tensor | None:
        """Noise of the frame: the same for every row and call if the actions are greedy."""
        c = self.config
        if not c.kind.future:
            return None
        shape = (c.tokenizer.latent_channels, *c.tokenizer.grid)
        if greedy:
            return randn(shape, torch.Generator().manual_seed(0), self.device).expand(rows, *shape)
        return randn((rows, *shape), generator, self.device)

    # -- the protocol ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Sample a chunk for each row.

        Args:
            observation: `image (B,H,W,3)` uint8, `state (B,S)` float, `instruction` B strings or `(B,E)` embeddings;
                `image_NAME` of the other cameras.
            temperature: scales the noise of the stochastic sampler; 0 follows the velocity.
            generator: source of randomness; the global one when None.

        Returns:
            actions `(B,K,A)` in [-1,1]; log-probabilities `(B,N,K,A)` of the steps of the sampler.

        Raises:
            ConfigError: a negative temperature, or inputs that do not fit.
        """
        temp = float(temperature["action"] if isinstance(temperature, Mapping) else temperature)
        if temp < 0:
            raise ConfigError(f"temperature must be >= 0; got {temp}. 0 is greedy, 1 samples")
        rows = len(observation["image"])
        noise, reuse = self._noise(rows, generator, temp == 0), self._reuse(temp == 0)
        stream = self._stream(observation, noise, reuse)
        actions, log_probs, trace = JointFlow(self.config).sample(stream, temp, generator)  # type: ignore[arg-type]
        trace["action_temperature"] = torch.full((rows,), temp, device=self.device)
        if noise is not None:
            trace["video_noise"] = noise.contiguous()
        return PolicyOutput(actions, {"action": log_probs}, trace, temperature)

    def _reuse(self, greedy: bool) -> Reuse:
        """Velocity caching of a sample; an adaptive plan depends on the batch, so it is for greedy actions only."""
        reuse = self.config.sampling.reuse
        return reuse if greedy or reuse.plan != "adaptive" else Reuse()

    def evaluate(
        self, observation: Observation, trace: Mapping[str, Tensor], components: Sequence[str] | None = None
    ) -> Evaluation:
        """Log-probabilities and entropies of a trace of `act` under the current weights, each `(B,N,K,A)`.

        The frame is a deterministic function of its noise, the actions and the weights, so it is computed again.

        Args:
            observation: input of `act`.
            trace: from the output of `act`.
            components: only `action`.
        """
        temp = trace["action_temperature"].to(self.device)
        noise = trace.get("video_noise")
        greedy = bool((temp == 0).all())
        stream = self._stream(
            observation, None if noise is None else noise.to(self.device), self._reuse(greedy)
        )
        path = {"path": trace["path"].to(self.device)}
        log_probs, entropies = JointFlow(self.config).evaluate(stream, path, temp)  # type: ignore[arg-type]
        return Evaluation({"action": log_probs}, {"action": entropies})

    def log_prob_of(self, observation: Observation, output: PolicyOutput) -> Tensor:
        """Differentiable `(B,)` log-probability of `output` under the current weights, at its temperature."""
        return total_log_prob(self.evaluate(observation, output.trace).log_probs)

    def loss(self, batch: ChunkBatch, components: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Flow-matching loss of demonstrated chunks, `{"action": scalar}`, without their true future frame.

        If the frame is sampled with the actions, it is imagined from the demonstrated actions, without gradient, and
        gets the noise level that sampling gives it. Else it is pure noise. `worldgym train wam` trains both.

        Args:
            batch: see `worldgym.protocols.ChunkBatch`.
            components: not used.
        """
        wanted = torch.as_tensor(np.asarray(batch["actions"]), dtype=torch.float32, device=self.device)
        known, clean = ~wanted.isnan(), wanted.nan_to_num()
        t = torch.rand(len(clean), device=clean.device)
        eps = torch.randn_like(clean)
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * eps
        c, noise, level = self.config, self._noise(len(clean), None, False), torch.ones_like(t)
        frames, states, words = self.inputs_of(batch["observation"])
        block = Denoiser(self, frames[:, None], states, words, video=c.kind.future)
        if c.samples_video and noise is not None:
            with torch.no_grad():
                frame, _ = imagine(block, noise, eps, clean, known.all(-1))
            level = t * (1 - c.video_end) + c.video_end
            noise = (1 - expand(level, frame)) * frame + expand(level, frame) * noise
        _, velocity = block.velocities(noise, level, x, t)
        off = (velocity - (eps - clean)).square()
        return {"action": off[known].mean()}

    @torch.no_grad()
    def metrics(self, batch: ChunkBatch) -> dict[str, float]:
        """Validation scores: `val_loss`, the loss with fixed noise, and `val_error`, greedy actions' mean error."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = float(self.loss(batch)["action"])
        wanted = torch.as_tensor(np.asarray(batch["actions"]), dtype=torch.float32, device=self.device)
        off = (self.act(batch["observation"], temperature=0.0).actions - wanted).abs()
        return {"val_loss": loss, "val_error": float(off[~wanted.isnan()].mean())}

    def features(self, observation: Observation, layer: int = -1) -> Tensor:
        """`(B,N,D)` hidden tokens of the first expert after a layer, with actions and frame at pure noise of zero.

        Raises:
            ConfigError: no such layer.
        """
        c = self.config
        if not -c.depth <= layer < c.depth:
            raise ConfigError(
                f"layer is {layer}, and the network has {c.depth} layers; give -{c.depth} to {c.depth - 1}"
            )
        frames, states, words = self.inputs_of(observation)
        b, one = len(frames), torch.ones(len(frames), 1, device=self.device)
        still = frames[:, None]
        inputs = Inputs(
            words, still, states[:, None], torch.zeros_like(still), still, one,
            frames.new_zeros(b, 1, c.chunk, c.action_dim),
            torch.ones(b, 1, c.chunk, dtype=torch.bool, device=self.device), one,
        )  # fmt: skip
        at = layer % c.depth
        return self.network(c.kind.step(c.sizes(1)), c.kind.rule(), inputs, taps=(at,)).taps[at].float()
