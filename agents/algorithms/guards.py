"""Checks between a policy and an improver: log-probabilities that fit the rollouts, and finite losses and weights.

Without them, a NaN loss would make all weights NaN, which would then be saved over the last good checkpoint.

Example::

    now = evaluated(policy, observation, trace, old, components)
    require_finite_step(float(loss), "loss", policy, lr=1e-4)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from worldgym.errors import ConfigError, DivergedError
from worldgym.protocols import Evaluation, Observation

MOST_DIFFERENCE = 0.5
"""Largest mean difference, nats per choice, between the log-probabilities of `act` and `evaluate` at equal weights."""


def evaluated(
    policy: Any,
    observation: Observation,
    trace: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    components: Sequence[str] | None = None,
    *,
    entropies: bool = False,
) -> Evaluation:
    """Call `policy.evaluate` and check that its result has the components and shapes of the rollouts.

    Args:
        policy: implements `evaluate` of `worldgym.protocols.TrainablePolicy`.
        observation: inputs of `act`, M rows.
        trace: trace of these choices.
        stored: log-probabilities that `act` returned, by component, each `(M,...)`.
        components: components to evaluate; None evaluates all.
        entropies: the entropies are needed too.

    Raises:
        ConfigError: a component is missing, or has another shape.
    """
    now = (
        policy.evaluate(observation, trace)
        if components is None
        else policy.evaluate(observation, trace, components)
    )
    name = f"{type(policy).__name__}.evaluate"
    if not isinstance(getattr(now, "log_probs", None), Mapping):
        raise ConfigError(
            f"{name} returned a {type(now).__name__}; expected worldgym.protocols.Evaluation(log_probs, entropies), "
            "each a dict by component"
        )
    for kind in ("log_probs", "entropies") if entropies else ("log_probs",):
        given = getattr(now, kind)
        for part in stored if components is None else components:
            if part not in stored:
                raise ConfigError(
                    f"{type(policy).__name__}.act returned no log_probs[{part!r}]; it returned those of "
                    f"{_listed(stored)}, and this run trains the component {part!r}. Type --learn all to train all"
                )
            if part not in given:
                raise ConfigError(
                    f"{name} returned no {kind}[{part!r}]; it returned those of {_listed(given)}, and act those of "
                    f"{_listed(stored)}. evaluate must return every component that act returns"
                )
            got = getattr(given[part], "shape", None)
            if got is None or tuple(got) != tuple(stored[part].shape):
                raise ConfigError(
                    f"{name} returned {kind}[{part!r}] of shape {None if got is None else tuple(got)}; expected "
                    f"{tuple(stored[part].shape)}, the shape of the log-probabilities that act returned"
                )
    return now  # type: ignore[no-any-return]


def require_agreement(policy: Any, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
    """Compare the log-probabilities of `evaluate` with those of `act` at the same weights.

    Args:
        policy: the policy, for its name.
        new: log-probabilities by component from `evaluate`.
        old: those from `act`, with the same shapes.

    Raises:
        ConfigError: their mean absolute difference exceeds `MOST_DIFFERENCE`, so that ratios would be meaningless.
    """
    for part, value in new.items():
        gap = float((value.detach().cpu() - old[part]).abs().mean())
        if gap > MOST_DIFFERENCE:
            raise ConfigError(
                f"the log-probabilities of {type(policy).__name__}.evaluate and .act differ by {gap:.2f} nats per "
                f"choice for the component {part!r}, before the first optimizer step; expected less than "
                f"{MOST_DIFFERENCE}. evaluate must return the log-probabilities of the choices in the stored trace, at "
                "the temperature of act, without dropout, and the rollouts must come from the policy with its "
                "current weights"
            )


def require_finite_step(value: float, what: str, policy: Any, lr: float | None = None) -> None:
    """Refuse an optimizer step with a loss or gradient norm that is NaN or infinite.

    Args:
        value: the loss or the gradient norm.
        what: what it is, such as `loss of the component 'action'`.
        policy: the policy, for its name.
        lr: learning rate of the optimizer, for the message.

    Raises:
        DivergedError: the value is not finite.
    """
    if not math.isfinite(value):
        rate = "" if lr is None else f" (now {lr:g})"
        raise DivergedError(
            f"the {what} of {type(policy).__name__} is {value}; expected a finite number. This step was not taken. "
            f"Train again with a lower learning rate{rate}, such as --lr or --imitation-lr of `worldgym rl`; if the "
            "first steps already fail, look for a division by zero or a logarithm of zero in the policy"
        )


def require_finite_weights(policy: Any, cause: str) -> None:
    """Refuse weights that are NaN or infinite, before they are averaged or saved.

    Args:
        policy: the policy; one without `state_dict` is not checked.
        cause: what changed the weights, such as `improver 'grpo'`.

    Raises:
        DivergedError: a weight is not finite; the message names the tensor.
    """
    if not hasattr(policy, "state_dict"):
        return
    for name, tensor in policy.state_dict().items():
        if (
            isinstance(tensor, Tensor)
            and tensor.is_floating_point()
            and not bool(torch.isfinite(tensor).all())
        ):
            count = int((~torch.isfinite(tensor)).sum())
            raise DivergedError(
                f"{cause} left {count} of {tensor.numel()} values NaN or infinite in the weight {name!r} of "
                f"{type(policy).__name__}; expected finite weights. Nothing was saved. Train again with a lower "
                "learning rate, such as --lr or --imitation-lr of `worldgym rl`"
            )


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(repr, names))) or "no component"
