"""A policy conditioned on an advantage indicator and on future tokens predicted by the world model.

RECAP (pi*0.6) and RAMP (GigaBrain-0.5M*, arXiv 2602.12099) train a policy on all logged actions, good and bad, each
labelled with `I = 1[advantage > quantile]`. At test time the policy is conditioned on I = 1. RAMP adds tokens z of the
future that the world model predicts. Both inputs are dropped with probability 0.2 in training, so the policy also runs
without them. The condition is a vector in the observation (`condition_vector`). It is appended to the instruction
embedding, and its weights start at zero, so the new policy initially behaves as the policy it was made from.

Example::

    policy = ConditionedPolicy.of(VLAPolicy.from_pretrained("runs/sft"), tokens=16)
    observation = {"image": image, "state": state, "instruction": ["reach the red cube"]}
    policy.act({**observation, "condition": condition_vector(good=True, size=16)[None]})
    policy.act(observation)                                                         # the default condition: I = 1
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policies.vla import VLAPolicy
from agents.policies.vla_config import VLAPolicyConfig
from worldgym.errors import ConfigError
from worldgym.models.foresight import Foresight
from worldgym.protocols import Observation
from worldgym.registry import TYPE
from worldgym.text import EMBEDDING_DIM, embed
from worldgym.utils.folders import save_folder

FLAG_REPEATS = 8
"""Number of copies of each flag: a single input whose weights start at zero took 250 steps to be learned."""
FLAGS = 3 * FLAG_REPEATS  # good, bad, has future tokens
STRENGTH = 0.2  # standard deviation by which flags are divided: scales them by five, within the bounds of an input


def condition_vector(
    good: bool | None = None, tokens: np.ndarray | None = None, size: int | None = None
) -> np.ndarray:
    """Build the condition of one row.

    Args:
        good: requested action quality: True is better than usual, False is worse, None is unspecified.
        tokens: `(Z,)` future tokens predicted by the world model; None gives zeros.
        size: Z, used if `tokens` is None.

    Returns:
        `(FLAGS + Z,)` float32.
    """
    count = len(tokens) if tokens is not None else int(size or 0)
    out = np.zeros(FLAGS + count, np.float32)
    if good is not None:
        out[:FLAG_REPEATS] = float(good)
        out[FLAG_REPEATS : 2 * FLAG_REPEATS] = 1.0 - float(good)
    if tokens is not None:
        out[2 * FLAG_REPEATS : FLAGS], out[FLAGS:] = 1.0, tokens
    return out


class ConditionedPolicy(VLAPolicy):
    """A `VLAPolicy` with a condition appended to its instruction embedding.

    Args:
        config: sizes; `text_dim` is the length of the embedding plus the condition.
    """

    def __init__(self, config: VLAPolicyConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        self.size = self.config.text_dim - EMBEDDING_DIM - FLAGS
        if self.size < 0:
            raise ConfigError(
                f"text_dim is {self.config.text_dim}, expected at least {EMBEDDING_DIM + FLAGS}: an embedding and a "
                "condition; make one with ConditionedPolicy.of(policy)"
            )
        wanted = torch.zeros(FLAGS + self.size)
        wanted[:FLAG_REPEATS] = 1.0
        self.standing: Tensor
        self.register_buffer("standing", wanted)

    @classmethod
    def of(cls, policy: VLAPolicy, tokens: int = 0) -> ConditionedPolicy:
        """Extend a policy by a condition, without changing its behaviour at first.

        Args:
            policy: unconditioned policy.
            tokens: number of future tokens in the condition.
        """
        more = FLAGS + tokens
        made = cls(dataclasses.replace(policy.config, text_dim=policy.config.text_dim + more))
        weights = {}
        for name, value in policy.state_dict().items():
            if name in ("text.0.weight", "pointer.text.0.weight"):
                value = torch.cat([value, value.new_zeros(len(value), more)], 1)
            elif name == "text_mean":
                value = torch.cat([value, value.new_zeros(more)])
            elif name == "text_std":
                value = torch.cat([value, value.new_full((FLAGS,), STRENGTH), value.new_ones(tokens)])
            weights[name] = value
        made.load_state_dict({**weights, "standing": made.standing})
        return made.to(policy.device).eval()

    def text_of(self, observation: Observation) -> Tensor:
        """`(B,E)`: embeddings of B strings, each followed by its condition, or by `standing` if none is given."""
        words = torch.as_tensor(embed([str(text) for text in observation["instruction"]]), device=self.device)
        given = observation.get("condition")
        if given is None:
            condition = self.standing.expand(len(words), -1)
        else:
            condition = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        if tuple(condition.shape) != (len(words), len(self.standing)):
            raise ConfigError(
                f"condition must be ({len(words)}, {len(self.standing)}); got {tuple(condition.shape)}. Make rows with "
                f"condition_vector(good, size={self.size})"
            )
        return torch.cat([words, condition], 1)

    def set_text_stats(self, instructions: Sequence[str]) -> None:
        """Standardise the embedding only, not the condition."""
        vectors = torch.from_numpy(embed(sorted({str(text) for text in instructions}))).to(self.device)
        self.text_mean[:EMBEDDING_DIM] = vectors.mean(0)
        self.text_std[:EMBEDDING_DIM] = vectors.std(0, correction=0).clamp_min(0.01)


class ForesightPolicy:
    """RAMP's standard inference: before every chunk a world model predicts future tokens in one step for the policy.

    Args:
        policy: conditioned on as many tokens as `foresight` outputs.
        foresight: joint predictor of future tokens and value.
    """

    def __init__(self, policy: ConditionedPolicy, foresight: Foresight) -> None:
        self.policy, self.foresight = policy, foresight

    def to(self, device: torch.device | str) -> ForesightPolicy:
        """Move both parts to `device`; returns self."""
        self.policy.to(device)
        self.foresight.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both parts into the subfolders `policy` and `foresight`."""
        with save_folder(folder) as stage:
            self.policy.save_pretrained(stage / "policy")
            self.foresight.save_pretrained(stage / "foresight")
            (stage / "config.json").write_text(json.dumps({TYPE: "foresight"}) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ForesightPolicy:
        """Load from a folder with the subfolders `policy` and `foresight`."""
        place = Path(folder)
        return cls(
            ConditionedPolicy.from_pretrained(place / "policy"),
            Foresight.from_pretrained(place / "foresight"),
        )

    @property
    def chunk(self) -> int:
        """Actions per call."""
        return self.policy.chunk

    @property
    def config(self) -> VLAPolicyConfig:
        """Configuration of the policy."""
        return self.policy.config

    @torch.no_grad()
    def act(self, observation: Any, **how: Any) -> Any:
        """Predict future tokens, then act as `VLAPolicy.act` with the condition I = 1."""
        texts = [str(text) for text in observation["instruction"]]
        device = self.policy.device
        latents = self.foresight.tokenizer.encode(torch.as_tensor(observation["image"]).to(device))
        states = torch.as_tensor(observation["state"]).float().to(device)
        prediction = self.foresight(latents, states, torch.from_numpy(embed(texts)).to(device))
        condition = np.stack([condition_vector(True, tokens) for tokens in prediction.tokens.cpu().numpy()])
        conditioned = Observation(
            image=observation["image"], state=observation["state"], instruction=texts, condition=condition
        )
        return self.policy.act(conditioned, **how)
