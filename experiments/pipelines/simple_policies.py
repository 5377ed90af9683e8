"""Untrained policies, to test which success rates imagination gives them.

Training from scratch inside a world model starts with random actions, so the closed-loop gate is also run on them.
`random` draws uniformly; `gaussian` draws from a clipped normal distribution with standard deviation 1; `weak` is the
SFT policy with perturbed weights; `scripted` executes the actions of the scripted experts in Real from the same starts,
without using the imagined frames.

Example::

    policy = simple_policy("gaussian", bundle, env_kwargs={"horizon": 40})
    run_closed_loop(policy, world_model, judge, env, starts)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from experiments.bundle import Bundle
from experiments.pipelines.perturbed_policies import graded_policies
from experiments.suites import chosen_suite, domain_settings
from worldgym.evaluation import Start
from worldgym.evaluation.rollouts import reset_env
from worldgym.protocols import PolicyOutput
from worldgym.suite import Suite, extra, load_suite

NAMES = ("random", "gaussian", "weak", "scripted")
WEAK = 0.2
"""Noise of `weak`, relative to the standard deviation of each weight tensor."""


def simple_policy(
    name: str, bundle: Bundle, env_kwargs: dict[str, Any] | None = None, suite: Suite | None = None
) -> Any:
    """Create one of the policies in `NAMES`.

    Args:
        name: name of the policy.
        bundle: bundle that provides the SFT policy of `weak`, and the chunk length of the others.
        env_kwargs: settings of the environment in which `scripted` plans.
        suite: suite of the experts and actions; None uses that of the bundle.
    """
    suite, sft = chosen_suite(None, bundle.folder) if suite is None else suite, bundle.policy()
    if name == "weak":
        return graded_policies(sft, (WEAK,), ())[0].policy
    if name == "scripted":
        return ScriptedPolicy(sft.chunk, env_kwargs or {}, suite)
    assert suite.specs.action is not None
    return NoisePolicy(name, sft.chunk, suite.specs.action.dim)


class NoisePolicy:
    """Random actions, independent of the observation.

    Args:
        kind: `random` or `gaussian`.
        chunk: actions per call, K.
        size: action dimension, A.
    """

    def __init__(self, kind: str, chunk: int, size: int) -> None:
        self.kind, self.chunk, self.size = kind, chunk, size

    def act(
        self,
        observation: dict[str, Any],
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """`(B,K,A)` in [-1, 1]; the temperature is not used."""
        shape = (len(observation["instruction"]), self.chunk, self.size)
        if self.kind == "gaussian":
            actions = torch.randn(shape, generator=generator).clamp(-1, 1)
        else:
            actions = 2 * torch.rand(shape, generator=generator) - 1
        return PolicyOutput(actions, torch.zeros(shape[0]))


class ReplayPolicy:
    """Replays given actions, without looking at the frames.

    Args:
        chunk: actions per call, K.
        plans: `(N,T,A)` actions of N episodes, float32.
    """

    def __init__(self, chunk: int, plans: torch.Tensor) -> None:
        self.chunk, self.plans, self.calls = chunk, plans, 0

    def act(
        self,
        observation: dict[str, Any],
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Next chunk of each row's plan; `observation["row"]` has the plan of each row, all in order without it."""
        first = self.calls * self.chunk
        self.calls += 1
        rows = torch.as_tensor(observation.get("row", np.arange(len(self.plans))))
        actions = self.plans[rows, first : first + self.chunk]
        return PolicyOutput(actions, torch.zeros(len(actions)))


class ScriptedPolicy(ReplayPolicy):
    """Replays the actions of the scripted experts in Real.

    Args:
        chunk: actions per call, K.
        env_kwargs: settings of the environment in which the experts act.
        suite: suite of the experts; None uses the default one.

    Raises:
        ConfigError: the suite has no scripted expert.
    """

    def __init__(self, chunk: int, env_kwargs: dict[str, Any], suite: Suite | None = None) -> None:
        super().__init__(chunk, torch.zeros(0, 0, 0))
        self.suite = load_suite() if suite is None else suite
        self.env_kwargs = {**domain_settings(self.suite), **env_kwargs, "terminate_on_success": False}
        self.expert = extra(self.suite, "expert_action", "scripted expert")

    def prepare(self, starts: Sequence[Start]) -> None:
        """Record one episode of the experts from each start."""
        env, plans = self.suite.make_single(**self.env_kwargs), []
        for start in starts:
            reset_env(env, start)
            actions, over = [], False
            while not over:
                actions.append(self.expert(env))
                _, _, terminated, truncated, _ = env.step(actions[-1])
                over = bool(terminated or truncated)
            plans.append(np.stack(actions))
        env.close()
        self.plans, self.calls = torch.from_numpy(np.stack(plans).astype(np.float32)), 0
