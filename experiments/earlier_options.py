"""Options that had another name in an earlier version: they still work, with a line that says the new name.

Example::

    current_options(RlConfig, ["--hesitation", "3"], say=print)      # ["--start-oversampling", "3"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

RENAMED = {
    "--practise": "--train-tasks",
    "--hesitation": "--start-oversampling",
    "--practise-horizon": "--rollout-horizon",
    "--token-temperature": "--action-temperature",
    "--batch": "--batch-size",
    "--kind": "--type",
    "--eyes": "--init-policy",
    "--dream-episodes": "--imagined-episodes",
}
"""Earlier option -> option now."""
VALUES = {("--learn", "pointer"): "goal"}
"""Option and its earlier value -> value now."""


def current_options(config_class: type[Any], arguments: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """`arguments` under the options that `config_class` has now.

    Args:
        config_class: dataclass of the command's options.
        arguments: as typed.
        say: called with one line for each earlier name.
    """
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config_class)}
    current: list[str] = []
    for word in arguments:
        option, equals, value = word.partition("=")
        new = RENAMED.get(option.replace("_", "-")) if option.startswith("--") else None
        if new in fields and option not in fields:
            say(f"{option} is now {new}; the earlier name will be removed in the next version")
            word = f"{new}{equals}{value}"
        before = current[-1] if current else ""
        if (before, word) in VALUES:
            say(f"{before} {word} is now {before} {VALUES[before, word]}")
            word = VALUES[before, word]
        elif (option, value) in VALUES:
            word = f"{option}={VALUES[option, value]}"
        current.append(word)
    return current
