"""Check of what `Policy.act` returns, the same for imagined episodes, simulator rollouts, Ray workers and evaluations.

Without it, a wrong shape would fail deep inside a world model, and NaN actions would make every episode invalid, as if
the judge had failed.

Example::

    output = check_output(policy.act(observation), policy, observation, action_dim=7, chunk=policy.chunk, stored=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.protocols import PolicyOutput


def check_output(
    output: Any,
    policy: Any,
    observation: Mapping[str, Any],
    *,
    action_dim: int | None = None,
    chunk: int | None = None,
    live: Any = None,
    stored: bool = False,
) -> PolicyOutput:
    """Validate the output of a policy.

    Args:
        output: what `act` returned.
        policy: the policy, for its name in messages and its specs.
        observation: input of `act`; its instructions give the number of rows.
        action_dim: action dimension; None takes that of the policy's specs, if it has specs.
        chunk: chunk length that the policy declares; None accepts any.
        live: `(B,)` bool, rows that are still running; the values of the others are not used, and not checked. None
            means all.
        stored: the output becomes training data: the chunk must have the declared length, and log-probabilities and
            trace are checked too. Otherwise a shorter chunk, such as the end of a plan, is accepted.

    Returns:
        `output` itself, or a copy with float32 actions if they have another floating-point type.

    Raises:
        ConfigError: the type or a shape is wrong, or a value is NaN or infinite.
    """
    name = f"{type(policy).__name__}.act"
    if not hasattr(output, "actions") or not hasattr(output, "log_probs"):
        raise ConfigError(
            f"{name} returned {_kind(output)}; expected worldgym.protocols.PolicyOutput(actions, log_probs)"
        )
    rows = len(observation["instruction"])
    if action_dim is None:
        action_dim = getattr(getattr(getattr(policy, "specs", None), "action", None), "dim", None)
    actions = output.actions
    _require_tensor(actions, f"{name} returned actions that are")
    k, a = "K" if chunk is None else chunk, "A" if action_dim is None else action_dim
    expected = f"({rows}, {k}, {a}): one row per observation, chunk length, action dimension"
    if actions.ndim != 3:
        remedy = "; actions[:, None] is a chunk of one action" if actions.ndim == 2 else ""
        raise ConfigError(
            f"{name} returned actions of shape {tuple(actions.shape)}; expected {expected}{remedy}"
        )
    length = actions.shape[1]
    fits = length >= 1 and (chunk is None or (length == chunk if stored else length <= chunk))
    if actions.shape[0] != rows or not fits or action_dim not in (None, actions.shape[2]):
        remedy = (
            "" if fits else f"; set the policy's attribute `chunk` to the length of its chunks ({length})"
        )
        raise ConfigError(
            f"{name} returned actions of shape {tuple(actions.shape)}; expected {expected}{remedy}"
        )
    if not actions.is_floating_point():
        raise ConfigError(f"{name} returned actions of type {actions.dtype}; expected torch.float32")
    if not bool(torch.isfinite(actions).all()):
        _refuse_values(actions, ~torch.isfinite(actions), name, observation, live)
    if stored:
        _check_stored(output, name, rows, live)
    if actions.dtype != torch.float32:
        return PolicyOutput(actions.float(), output.log_probs, output.trace, output.temperature)
    return output  # type: ignore[no-any-return]


def _check_stored(output: PolicyOutput, name: str, rows: int, live: Any) -> None:
    """Check log-probabilities and trace."""
    for kind, given in (("log_probs", output.log_probs), ("trace", output.trace)):
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name} returned {kind} that are {_kind(given)}; expected a dict of tensors")
        for key, value in given.items():
            _require_tensor(value, f"{name} returned {kind}[{key!r}] that is")
            if value.ndim < 1 or value.shape[0] != rows:
                raise ConfigError(
                    f"{name} returned {kind}[{key!r}] of shape {tuple(value.shape)}; expected ({rows}, ...), one row "
                    "per observation"
                )
    for key, value in output.log_probs.items():
        if bool(torch.isnan(value).any()) and (count := _rows_with(torch.isnan(value), live)):
            raise ConfigError(
                f"{name} returned log_probs[{key!r}] with NaN in {count} of {rows} rows; expected finite numbers: look "
                "for a division by zero, a logarithm of zero or a diverged loss in the policy"
            )


def _refuse_values(
    actions: Tensor, wrong: Tensor, name: str, observation: Mapping[str, Any], live: Any
) -> None:
    """Raise the error for actions that are not finite, unless only finished rows have them."""
    count = _rows_with(wrong, live)
    if not count:
        return
    running = torch.ones(len(wrong), dtype=torch.bool) if live is None else torch.as_tensor(live)
    first = (wrong & running.to(wrong.device).view(-1, 1, 1)).nonzero()[0].tolist()
    state = observation.get("state")
    blind = state is not None and not bool(torch.isfinite(torch.as_tensor(state)[first[0]].float()).all())
    remedy = (
        "the observation of this row has a state with NaN or infinity, so look for the fault in the world model or "
        "the environment first"
        if blind
        else "look for a division by zero or a diverged loss in the policy that produced it"
    )
    raise ConfigError(
        f"{name} returned actions with NaN or infinity in {count} of {len(wrong)} rows: actions{first} is "
        f"{float(actions[tuple(first)])}; expected finite numbers in [-1, 1]: {remedy}"
    )


def _rows_with(wrong: Tensor, live: Any) -> int:
    """Number of running rows with an entry in `wrong (B,...)`."""
    rows = wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong
    return int((rows if live is None else rows & torch.as_tensor(live).to(rows.device)).sum())


def _require_tensor(value: Any, begin: str) -> None:
    if not isinstance(value, Tensor):
        remedy = "; convert it with torch.from_numpy(...)" if type(value).__module__ == "numpy" else ""
        raise ConfigError(f"{begin} {_kind(value)}; expected a torch.Tensor{remedy}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__module__}.{type(value).__qualname__}"
