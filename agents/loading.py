"""A saved policy of any registered type.

Example::

    policy = load_policy("runs/policy")     # its config.json says which type it is
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym.registry import POLICIES


def load_policy(folder: str | Path, *, device: str | None = None) -> Any:
    """The policy in `folder`, in evaluation mode.

    Args:
        folder: written by the `save_pretrained` of a policy whose type `worldgym list` shows.
        device: such as `cuda`, for policies whose `from_pretrained` takes it.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        ConfigError: its type is unknown here; lists what is known.
    """
    policy = POLICIES.load(folder, offered={} if device is None else {"device": device})
    if hasattr(policy, "eval"):
        policy.eval()
    return policy
