"""Checks of numbers and paths shared by all commands, done once after the command line is parsed.

Without them, a NaN, a negative number of steps or a path with `~` would fail minutes later inside a library, with a
message that does not name the option.

Example::

    config = tyro.cli(RlConfig, args=expand_home(arguments))
    check_numbers(config)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from worldgym.errors import ConfigError

AT_LEAST_ONE = frozenset(
    {
        "steps", "minutes", "epochs", "batch", "batch_size", "limit", "window", "shift_steps", "tokenizer_steps",
        "processes", "demos_per_task", "folds", "horizon", "image_size", "episodes", "iterations", "starts", "rounds",
        "attempts", "threads", "chunk", "group", "updates", "every", "piece", "samples", "shard_episodes", "scale",
        "rollout_horizon", "confirm", "demos_limit", "bc_batch", "concurrent", "cpus", "grace", "batches",
        "left_out", "after", "length", "windows", "replays",
    }
)  # fmt: skip
"""Options that must be at least 1 if they are given."""
POSITIVE = frozenset({"lr", "minutes", "seconds", "imitation_lr"})
NOT_NEGATIVE = frozenset(
    {
        "seed", "seeds", "start_seed", "workers", "patience", "finish_steps", "imagined_episodes",
        "start_oversampling", "clips",
        "temperature", "action_temperature", "temperatures", "noises", "gpus", "audit_every", "audit_episodes", "soak",
        "imitation_steps", "contact_odds", "check_episodes", "branches", "augment", "max_uncertainty", "penalty",
    }
)  # fmt: skip
SEED_LIMIT = 2**63


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Replace `~` and `~user` at the start of a value, including `--out=~/x`, which shells do not expand."""
    out = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--") and equals:
            out.append(f"{name}={os.path.expanduser(value)}")
        else:
            out.append(os.path.expanduser(argument))
    return out


def check_numbers(config: Any, prefix: str = "--") -> None:
    """Refuse numbers that no command can use; a config allows 0 for the names in its `MAY_BE_ZERO`.

    Raises:
        ConfigError: NaN or infinity, a count below one, or a rate that is not positive; names the option.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        option = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_numbers(value, f"{option}.")
            continue
        zero = field.name in getattr(config, "MAY_BE_ZERO", ())
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool) and not (zero and number == 0):
                _check(field, option, number)


def _check(field: dataclasses.Field[Any], option: str, number: float) -> None:
    name = field.name
    if not math.isfinite(number):
        expected = "a finite number"
    elif name in AT_LEAST_ONE and name not in POSITIVE and number < 1:
        expected = "at least 1"
    elif name in POSITIVE and number <= 0:
        expected = "a positive number"
    elif name in NOT_NEGATIVE and number < 0:
        expected = "0 or more"
    elif name in ("seed", "seeds", "start_seed") and number >= SEED_LIMIT:
        expected = f"less than {SEED_LIMIT}"
    else:
        return
    usual = field.default
    usable = isinstance(usual, int | float) and not isinstance(usual, bool) and usual == usual
    remedy = f"try {option} {usual:g}" if usable and usual < 10**6 else f"leave {option} out"
    raise ConfigError(f"{option} is {number:g}, expected {expected}; {remedy}")


def values_of(given: Sequence[str], option: str, example: str) -> dict[str, Any]:
    """Parse the `name=value` pairs of an option; values are YAML.

    Args:
        given: the pairs.
        option: the option, for messages.
        example: a valid pair, for messages.

    Raises:
        ConfigError: no name, no value, or no YAML.

    Example:
        >>> values_of(["head=flow", "steps=[1, 2]"], "--settings", "head=flow")
        {'head': 'flow', 'steps': [1, 2]}
    """
    import yaml

    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {pair!r}: expected name=value, such as {option} {example}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {pair!r}: {value!r} is no YAML value; put it in quotes") from error
        if not value.strip():
            raise ConfigError(
                f"{option} {pair!r} gives no value; expected name=value, such as {option} {example}, or {name}=null to "
                "leave an option out"
            )
    return found
