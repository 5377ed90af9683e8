"""Select the weights that an improver trains: those of the whole policy, or of one component.

Example::

    torch.optim.AdamW(learned_parameters(policy, "goal"), lr=1e-4)
"""

from __future__ import annotations

from typing import Any

from torch import nn

from worldgym.errors import ConfigError

ALIASES = {"pointer": "goal"}
"""Names of components in earlier versions."""


def component_of(learn: str) -> str:
    """Return the component that a setting `learn` names."""
    return ALIASES.get(learn, learn)


def learned_parameters(policy: Any, learn: str) -> list[nn.Parameter]:
    """Return the weights to train.

    Args:
        policy: any policy; needs `parameters_of(component)` if `learn` names a component.
        learn: `all`, or a component.

    Raises:
        ConfigError: the policy has no weights, or no component of this name that can be trained alone.
    """
    if not hasattr(policy, "parameters"):
        raise ConfigError(
            f"a {type(policy).__name__} has no parameters(), so it has no weights to train; give a policy that is a "
            "torch.nn.Module with the methods of worldgym.protocols.TrainablePolicy"
        )
    if not hasattr(policy, "evaluate") and not hasattr(policy, "loss"):
        raise ConfigError(
            f"a {type(policy).__name__} has neither evaluate() nor loss(), so it cannot be trained further; give a "
            "policy with the methods of worldgym.protocols.TrainablePolicy, such as the bundled one (--policy sft)"
        )
    if learn == "all":
        return list(policy.parameters())
    if not hasattr(policy, "parameters_of"):
        raise ConfigError(
            f"learn is {learn!r}, and a {type(policy).__name__} has no parameters_of(component); set learn='all', or "
            "type --learn all"
        )
    return list(policy.parameters_of(component_of(learn)))
