"""Make auxiliary losses from names and settings, as a command line gives them.

Example::

    settings = settings_of(["flare", "vla_jepa"], {"flare.weight": 0.2, "vla_jepa.steps": 2})
    config = VLAPolicyConfig.preset("small", future_tokens=token_count(settings))
    losses = make_auxiliaries(settings, VLAPolicy(config))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.auxiliary.base import AuxiliaryLoss
from worldgym.errors import ConfigError
from worldgym.registry import AUXILIARIES
from worldgym.utils.typed import from_values


def settings_of(names: Sequence[str], values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings by the name of the loss.

    Args:
        names: registered names; `vla-jepa` is `vla_jepa`.
        values: settings by name, as `weight`, or as `flare.weight` if there are several losses.

    Raises:
        ConfigError: an unknown or repeated name, or an unknown or invalid setting.
    """
    known = [name.replace("-", "_") for name in names]
    if len(set(known)) < len(known):
        raise ConfigError(f"--aux names a loss twice: {' '.join(names)}; name each one once")
    own: dict[str, dict[str, Any]] = {name: {} for name in known}
    kinds = {name: AUXILIARIES.get(name).Settings for name in known}
    for key, value in (values or {}).items():
        begin, dot, rest = key.partition(".")
        begin = begin.replace("-", "_")
        if dot and begin in own:
            own[begin][rest] = value
        elif dot or len(known) != 1:
            first = known[0] if known else "flare"
            raise ConfigError(
                f"--aux-settings {key}={value}: the auxiliary losses are {', '.join(known) or 'none'}; name one of "
                f"them with --aux and write its settings as {first}.weight=0.2"
            )
        else:
            own[known[0]][key] = value
    return {name: from_values(kinds[name], own[name], f"--aux {name}") for name in known}


def token_count(settings: Mapping[str, Any]) -> int:
    """Future tokens that a policy needs for these losses together."""
    return sum(int(each.token_count) for each in settings.values())


def future_view(settings: Mapping[str, Any]) -> bool:
    """Whether the policy sees a later frame in training, in a control arm."""
    return any(bool(each.future_view) for each in settings.values())


def make_auxiliaries(settings: Mapping[str, Any], policy: Any) -> list[AuxiliaryLoss]:
    """The losses for a policy, each with future tokens of its own, in the given order.

    Args:
        settings: from `settings_of`.
        policy: with at least `token_count(settings)` future tokens.

    Raises:
        ConfigError: the policy lacks what a loss needs.
    """
    made, first = [], 0
    for name, each in settings.items():
        made.append(AUXILIARIES.get(name)(each, policy, first))
        first += int(each.token_count)
    return made
