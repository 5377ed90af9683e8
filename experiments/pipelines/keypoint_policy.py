"""Policies learned from scratch on the keypoints of a judge, as policies of worldgym.

The examples in `experiments.examples` train a small network on `rewards.judge_features` with Stable-Baselines3, RLlib
or a loop of their own. `KeypointPolicy` holds the policy part of such a network. It reads images and instructions
itself and is saved like any other policy, so `worldgym eval`, `worldgym bench closed-loop`
and `worldgym collect` take its folder. It cannot be trained further: `worldgym rl` refuses it.

Example::

    policy = KeypointPolicy.of_layers([body[0], body[2], mean], log_std=log_std, reach=features.reach, chunk=2)
    policy.save_pretrained("runs/ppo/policy")      # worldgym bench closed-loop --policies runs/ppo/policy --tasks reach
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from typing_extensions import Self

from rewards.judge_features import JudgeFeatures
from rewards.models.learned import LearnedJudge, load_bundled
from worldgym.errors import CheckpointError, ConfigError
from worldgym.hub import HubModel
from worldgym.pretrained import DEFAULT, path, remedy
from worldgym.protocols import Observation, PolicyOutput, Temperature
from worldgym.specs import Specs
from worldgym.text import EMBEDDING_DIM, embed
from worldgym.utils.devices import randn
from worldgym.utils.files import read_json


@dataclass(frozen=True)
class KeypointConfig:
    """Sizes of a `KeypointPolicy`.

    Args:
        widths: number of inputs, of units of each hidden layer, and of actions.
        chunk: frames for which an action is repeated, K.
        squash: how an action is brought into [-1, 1], `clip` or `tanh`.
        spread: whether the log standard deviation is a `fixed` parameter, or a `linear` function of the last hidden
            layer.
        judge: SHA-256 of the weights of the judge whose keypoints were learned from; "" is not checked.

    Raises:
        ConfigError: a size below 1, or another value of `squash` or `spread`.
    """

    widths: tuple[int, ...]
    chunk: int = 1
    squash: Literal["clip", "tanh"] = "clip"
    spread: Literal["fixed", "linear"] = "fixed"
    judge: str = ""

    def __post_init__(self) -> None:
        """Validate the settings."""
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if len(self.widths) < 2 or min(self.widths) < 1 or self.chunk < 1:
            raise ConfigError(
                f"widths {self.widths} and chunk {self.chunk}; expected two or more widths and a chunk, all at least 1"
            )
        if self.squash not in ("clip", "tanh") or self.spread not in ("fixed", "linear"):
            raise ConfigError(
                f"squash {self.squash!r} and spread {self.spread!r}; expected clip or tanh, and fixed or linear"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KeypointConfig:
        """Config from a dict, as stored in `config.json`."""
        return cls(**values)


class KeypointPolicy(nn.Module, HubModel, coders={KeypointConfig: (asdict, KeypointConfig.from_dict)}):
    """A perceptron with tanh on the keypoints of a judge; Gaussian actions, each repeated for a chunk.

    Args:
        config: sizes; may also be a plain dict.

    Raises:
        CheckpointError: the policy was learned from the keypoints of another judge than the bundled one.
    """

    def __init__(self, config: KeypointConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, KeypointConfig) else KeypointConfig.from_dict(config)
        sizes = self.config.widths
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.body, self.mean = nn.Sequential(*layers), nn.Linear(sizes[-2], sizes[-1])
        linear = self.config.spread == "linear"
        self.log_std = nn.Linear(sizes[-2], sizes[-1]) if linear else nn.Parameter(torch.zeros(sizes[-1]))
        judge = load_bundled()
        if self.config.judge and self.config.judge != fingerprint(judge):
            raise CheckpointError(
                "this policy was learned from the keypoints of another judge than the bundled one; load it with the "
                "version of worldgym that trained it, or train it again with this one"
            )
        states = sizes[0] - 3 * (judge.config.keypoints + judge.config.asked)
        if states < 0:
            raise ConfigError(
                f"{sizes[0]} inputs are fewer than the keypoints of the judge take, {sizes[0] - states}"
            )
        self.reach: Tensor
        self.register_buffer("reach", torch.ones(states))
        self._judge = [judge]  # in a list, so that it is not a submodule: it is neither trained nor saved
        self._eyes: list[JudgeFeatures] = []  # likewise; made at first use

    @property
    def chunk(self) -> int:
        """Actions per call, K."""
        return self.config.chunk

    @classmethod
    def of_layers(
        cls, layers: Sequence[nn.Linear], log_std: Tensor | nn.Linear, reach: Tensor, chunk: int,
        squash: Literal["clip", "tanh"] = "clip",
    ) -> Self:  # fmt: skip
        """Policy with copies of trained layers, which are joined by tanh.

        Args:
            layers: the hidden layers and the one that outputs the mean action.
            log_std: log standard deviation `(A,)`, or a layer that outputs it from the last hidden layer.
            reach: `(S,)`, by which each entry of the state was divided (`JudgeFeatures.reach`).
            chunk: frames for which an action is repeated.
            squash: see `KeypointConfig`.
        """
        widths = (layers[0].in_features, *(layer.out_features for layer in layers))
        spread: Literal["fixed", "linear"] = "linear" if isinstance(log_std, nn.Linear) else "fixed"
        policy = cls(KeypointConfig(widths, chunk, squash, spread, fingerprint(load_bundled())))
        own = [layer for layer in policy.body if isinstance(layer, nn.Linear)] + [policy.mean]
        with torch.no_grad():
            for mine, theirs in zip(own, layers, strict=True):
                mine.load_state_dict(theirs.state_dict())
            if isinstance(log_std, nn.Linear):
                policy.log_std.load_state_dict(log_std.state_dict())
            else:
                policy.log_std.copy_(log_std)
            policy.reach.copy_(reach)
        return policy.eval()

    @property
    def eyes(self) -> JudgeFeatures:
        """The features that the network reads."""
        if not self._eyes:
            bound, size = self.reach.cpu().numpy(), self._judge[0].config.image_size
            eyes = JudgeFeatures(
                spaces.Dict(
                    {
                        "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
                        "state": spaces.Box(-bound, bound, dtype=np.float32),
                        "instruction": spaces.Box(-np.inf, np.inf, (EMBEDDING_DIM,), np.float32),
                    }
                ),
                self._judge[0],
            )
            self._eyes = [eyes.to(self.reach.device)]
        return self._eyes[0]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._eyes = []
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Like torch's; the features then use the loaded `reach`."""
        self._eyes = []
        return super().load_state_dict(*args, **kwargs)

    @property
    def specs(self) -> Specs:
        """Those of the bundled policy: observations as the judge reads them, and actions of the tabletop."""
        folder = path(DEFAULT, "policy_sft")
        return Specs.from_dict(read_json(folder / "config.json", remedy(folder))["specs"])

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Chunks `(B,K,A)` in [-1, 1], one action repeated K times.

        The log-probability `(B,)` is that of the Gaussian sample, before it is brought into [-1, 1].

        Args:
            observation: `image (B,H,W,3)` uint8, `state (B,S)` and `instruction`, B texts.
            temperature: scale of the standard deviation, or `{"action": scale}`; 0 is greedy.
            generator: random generator of the samples.

        Raises:
            ConfigError: images or states of another shape.
        """
        device = self.mean.weight.device
        words = torch.from_numpy(embed(list(observation["instruction"]))).to(device)
        rows = {k: torch.as_tensor(observation[k], device=device) for k in ("image", "state")}  # type: ignore[literal-required]
        size, states = self._judge[0].config.image_size, len(self.reach)
        shapes = [tuple(rows[k].shape) for k in ("image", "state")]
        if shapes != [(len(words), size, size, 3), (len(words), states)]:
            raise ConfigError(
                f"image and state have the shapes {shapes[0]} and {shapes[1]}; this policy reads "
                f"{(len(words), size, size, 3)} and {(len(words), states)}, as the tabletop gives them"
            )
        hidden = self.body(self.eyes({**rows, "instruction": words}))
        mean = self.mean(hidden)
        log_std = (
            self.log_std(hidden) if isinstance(self.log_std, nn.Linear) else self.log_std.expand_as(mean)
        )
        scale = float(temperature.get("action", 1.0) if isinstance(temperature, Mapping) else temperature)
        std = scale * log_std.clamp(-20, 2).exp()  # the bounds of SB3's SAC
        action = mean + std * randn(mean.shape, generator, device)
        sure = std == 0
        log_prob = torch.distributions.Normal(mean, std.masked_fill(sure, 1)).log_prob(action)
        log_prob = log_prob.masked_fill(sure, 0).sum(-1)
        bounded = action.tanh() if self.config.squash == "tanh" else action.clamp(-1, 1)
        return PolicyOutput(bounded[:, None].repeat(1, self.chunk, 1), log_prob, temperature=temperature)


def fingerprint(judge: LearnedJudge) -> str:
    """SHA-256 of the weights of a judge."""
    digest = hashlib.sha256()
    for name, value in sorted(judge.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


class Checkpoints:
    """Saves a policy at given shares of a training, and at its end.

    Args:
        out: run folder; checkpoints go to `out/checkpoints/PERCENT`, the last one to `out/policy`.
        shares: shares of the training, above 0 and below 1, ascending.
    """

    def __init__(self, out: Path, shares: Sequence[float] = (0.1, 0.25, 0.5)) -> None:
        self.out, self.waiting = out, list(shares)

    def passed(self, share: float) -> Iterator[Path]:
        """Folders to save to once the `share` of the training is done."""
        while self.waiting and share >= self.waiting[0]:
            yield self.out / "checkpoints" / f"{round(100 * self.waiting.pop(0))}"

    @property
    def last(self) -> Path:
        """Folder of the trained policy."""
        return self.out / "policy"
