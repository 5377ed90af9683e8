"""Checks of what a judge needs and of what it returns.

Example::

    from worldgym.judge_checks import check_verdict
    p, valid = check_verdict(judge.score(frames, texts), len(frames), "my judge")
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from worldgym.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def check_inputs(judge: Any, missing: Sequence[str]) -> None:
    """Raise ConfigError if `score` of a judge has no default for an input that is not available."""
    known = inspect.signature(judge.score).parameters
    for key in missing:
        if key in known and known[key].default is inspect.Parameter.empty:
            source = (
                "this world model predicts none" if key == "latents" else "there is no proprioception here"
            )
            raise ConfigError(
                f"the judge {getattr(judge, 'name', type(judge).__name__)} reads {key}, and {source}; take a judge "
                f"that does not read {key}, or give `{key}` of its score a default, for frames without {key}"
            )


def check_accepts(judge: Any, keys: Iterable[str]) -> None:
    """Raise ConfigError if `score` of a judge does not take an input that the judge declares."""
    known = inspect.signature(judge.score).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"the judge {getattr(judge, 'name', type(judge).__name__)} declares that it reads {key}, and its score "
                f"takes {', '.join(known)}; define score(self, frames, instructions, *, {key}=None)"
            )


def check_verdict(verdict: Any, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Probabilities and validity of a judgement, `(count,)` each, checked.

    Raises:
        TypeError: not a `Judgement`, or a part of it is not a tensor.
        ValueError: another number of rows, or probabilities outside [0, 1].
    """
    import torch

    expected = f"expected Judgement(p_success, progress, valid) with p_success and valid of shape ({count},)"
    try:
        p = torch.as_tensor(verdict.p_success).detach()
        valid = torch.as_tensor(verdict.valid, device=p.device).detach().bool()
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise TypeError(f"judge {name} returned {type(verdict).__name__} ({error}); {expected}") from error
    if tuple(p.shape) != (count,) or tuple(valid.shape) != (count,):
        raise ValueError(
            f"judge {name} gave p_success {tuple(p.shape)}, valid {tuple(valid.shape)}; {expected}"
        )
    valid = valid & torch.isfinite(p)
    beyond = valid & ((p < -1e-4) | (p > 1 + 1e-4))  # rounding is accepted
    if bool(beyond.any()):
        raise ValueError(
            f"judge {name} gave p_success {float(p[beyond][0]):g}; expected a probability in [0, 1]: apply a sigmoid "
            "to logits, or divide percentages by 100"
        )
    return p, valid
