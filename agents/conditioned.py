"""A policy that is told, beside the instruction, how good what it does is to be, and what the world model foresees.

RECAP (pi*0.6) and RAMP (GigaBrain-0.5M*, arXiv 2602.12099) train a policy on everything that was logged, good and bad,
each action labelled with `I = 1[advantage > quantile]`; asked for I = 1 it does what was good. RAMP adds tokens z of
the future that the world model foresees. Both are dropped with probability 0.2 in training, so the policy also runs
without them. Here the condition is appended to the instruction's embedding (`Told`), through weights that begin at
zero: at first the policy does what the one it was made of did.

Example::

    policy = ConditionedPolicy.of(VLAPolicy.from_pretrained("runs/sft"), tokens=16)
    policy.act({"image": image, "state": state, "instruction": [Told("reach the red cube", good=True)]})
    policy.act({"image": image, "state": state, "instruction": ["reach the red cube"]})    # as `standing` says: I = 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.vla import VLAPolicy
from agents.vla_config import VLAPolicyConfig
from worldgym.errors import ConfigError
from worldgym.models.foresight import Foresight
from worldgym.protocols import Observation
from worldgym.text import EMBEDDING_DIM, embed

LOUD = 8
"""Times that a flag is said: one number in four hundred, whose weights begin at zero, took 250 steps to be heard."""
FLAGS = 3 * LOUD  # good, bad, foreseen
STRENGTH = 0.2  # of a flag's standardisation: it is heard five times as strongly, as far as a policy's inputs go


class Told(str):
    """An instruction with a condition.

    Args:
        text: the instruction.
        good: what is wanted: an action better than usual, a worse one, or (None) whatever.
        tokens: `(Z,)` what the world model foresees; None is nothing.
    """

    good: bool | None
    tokens: np.ndarray | None

    def __new__(cls, text: str, good: bool | None = None, tokens: np.ndarray | None = None) -> Told:
        """A string like any other."""
        told = super().__new__(cls, text)
        told.good, told.tokens = good, tokens
        return told

    def vector(self, size: int) -> np.ndarray:
        """`(FLAGS + size,)` float32."""
        out = np.zeros(FLAGS + size, np.float32)
        if self.good is not None:
            out[:LOUD] = float(self.good)
            out[LOUD : 2 * LOUD] = 1.0 - float(self.good)
        if self.tokens is not None:
            out[2 * LOUD : FLAGS], out[FLAGS:] = 1.0, self.tokens
        return out


class ConditionedPolicy(VLAPolicy):
    """A `VLAPolicy` whose embedding of the instruction has a condition behind it.

    Args:
        config: sizes; `text_dim` is that of the embedding and the condition together.
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
        wanted[:LOUD] = 1.0
        self.standing: Tensor
        self.register_buffer("standing", wanted)

    @classmethod
    def of(cls, policy: VLAPolicy, tokens: int = 0) -> ConditionedPolicy:
        """The same policy, which can be told more.

        Args:
            policy: unconditioned.
            tokens: how many numbers of foresight it is told.
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
        return made.eval()

    def embedding_of(self, instruction: Sequence[str] | np.ndarray | Tensor) -> Tensor:
        """`(B,E)`: embeddings of B strings, each with its condition (`Told`) or the standing one behind it."""
        if isinstance(instruction, np.ndarray | Tensor):
            return super().embedding_of(instruction)
        standing: Tensor = self.standing.cpu()
        told = [
            torch.from_numpy(text.vector(self.size)) if isinstance(text, Told) else standing for text in instruction
        ]
        words = torch.from_numpy(embed([str(text) for text in instruction]))
        return torch.cat([words, torch.stack(told)], 1).to(self.device, torch.float32)

    def set_text_stats(self, instructions: Sequence[str]) -> None:
        """Standardise the words alone."""
        vectors = torch.from_numpy(embed(sorted({str(text) for text in instructions}))).to(self.device)
        self.text_mean[:EMBEDDING_DIM] = vectors.mean(0)
        self.text_std[:EMBEDDING_DIM] = vectors.std(0, correction=0).clamp_min(0.01)


class ForesightPolicy:
    """RAMP's standard inference: before every chunk the world model foresees, in one step, and the policy is told.

    Args:
        policy: conditioned on as many tokens as `foresight` gives.
        foresight: the joint predictor.
    """

    def __init__(self, policy: ConditionedPolicy, foresight: Foresight) -> None:
        self.policy, self.foresight = policy, foresight

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ForesightPolicy:
        """A folder with `policy` and `foresight` in it."""
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
        """Of the policy."""
        return self.policy.config

    @torch.no_grad()
    def act(self, observation: Any, **how: Any) -> Any:
        """Foresee, then act as `VLAPolicy.act` does, asked for what is good."""
        texts = [str(text) for text in observation["instruction"]]
        latents = self.foresight.tokenizer.encode(torch.as_tensor(observation["image"]).cpu())
        states = torch.as_tensor(observation["state"]).float().cpu()
        seen = self.foresight(latents, states, torch.from_numpy(embed(texts)))
        told = [Told(text, True, tokens) for text, tokens in zip(texts, seen.tokens.numpy(), strict=True)]
        heard = Observation(image=observation["image"], state=observation["state"], instruction=told)
        return self.policy.act(heard, **how)
