"""A small policy whose faults can be switched on, for tests of improvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldgym.protocols import Evaluation, PolicyOutput


class GaussPolicy(nn.Module):
    """Normal actions around a trained mean; `fault` changes what it returns."""

    def __init__(self, fault: str = "", chunk: int = 5, dims: int = 4) -> None:
        super().__init__()
        self.fault, self.chunk, self.dims = fault, chunk, dims
        self.mean = nn.Parameter(torch.zeros(chunk, dims))

    def _normal(self, count: int) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean.expand(count, -1, -1), 0.5)

    @torch.no_grad()
    def act(self, observation: Any, *, temperature: Any = 1.0, generator: Any = None) -> PolicyOutput:
        count = len(observation["instruction"])
        raw = self.mean + 0.5 * torch.randn((count, self.chunk, self.dims), generator=generator)
        log_probs = self._normal(count).log_prob(raw)
        if self.fault == "actions":
            raw = raw * float("nan")
        if self.fault == "log_probs":
            log_probs = log_probs * float("nan")
        if self.fault == "short":
            raw = raw[:, :2]
        return PolicyOutput(
            raw, {} if self.fault == "silent" else {"action": log_probs}, {"raw": raw}, temperature
        )

    def evaluate(self, observation: Any, trace: Any, components: Any = None) -> Evaluation:
        normal = self._normal(len(trace["raw"]))
        log_probs, entropies = normal.log_prob(trace["raw"]), normal.entropy()
        if self.fault == "disagrees":
            log_probs = log_probs - 3
        if self.fault == "nan":
            log_probs = log_probs * float("nan")
        if self.fault == "gradient":
            log_probs = log_probs + (self.mean - self.mean.detach()).abs().sqrt()
        if self.fault == "sums":
            log_probs = log_probs.sum((1, 2))
        if self.fault == "lacks":
            return Evaluation({}, {})
        if self.fault == "no entropies":
            return Evaluation({"action": log_probs}, {})
        return Evaluation({"action": log_probs}, {"action": entropies})

    def loss(self, batch: Any, components: Any = None) -> dict[str, Tensor]:
        wanted = torch.as_tensor(batch["actions"]).float()
        error = (self.mean[: wanted.shape[1]] - wanted.nan_to_num()).square()
        loss = error[~wanted.isnan()].mean()
        if self.fault == "loss":
            return {"action": loss * float("nan")}
        if self.fault == "no loss":
            return {}
        if self.fault == "loss gradient":
            return {"action": loss + (self.mean - self.mean.detach()).abs().sqrt().sum()}
        return {"action": loss}
