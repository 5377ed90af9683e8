"""Checks of user input to an environment, with messages that explain the error.

Without them, a NaN that enters a world model shows only as a grey image fifty frames later. torch is not imported here
unless a tensor is given, so that simulators do not need it.

Example::

    from worldgym.imagination.checks import check_actions
    check_actions(actions, envs.action_space.shape, np.ones(envs.num_envs, bool))   # float32, within [-1, 1]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

_ROUNDING = 1e-5  # float32 policies output 1.0000001; this is a rounding error and accepted


def check_actions(actions: Any, shape: tuple[int, ...], used: NDArray[np.bool_]) -> Any:
    """Validate a batch of actions.

    Args:
        actions: array or tensor of `shape`, values in [-1, 1].
        shape: `(num_envs, ...)` of the batched action space.
        used: (num_envs,) bool; the other rows are about to be reset, so their actions are ignored and set to zero.

    Returns:
        Float32 of the same shape, without gradient; rounding errors beyond [-1, 1] are clipped. A tensor input gives a
        tensor on its device, any other input an array.

    Raises:
        ValueError: wrong shape, not numeric, NaN or infinity, values beyond [-1, 1].
    """
    tensor = hasattr(actions, "detach")
    batch: Any
    try:
        batch = actions.detach().float() if tensor else np.asarray(actions).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"actions are not numeric ({error}); expected a float32 array {shape}") from error
    if tuple(batch.shape) != shape:
        raise ValueError(
            f"actions have shape {tuple(batch.shape)}; expected {shape}, one row per environment"
            " (env.action_space.shape)"
        )
    if not used.all():
        batch = batch.clone() if tensor else batch.copy()
        batch[np.flatnonzero(~used).tolist()] = 0.0
    wrong = ~(abs(batch) <= 1.0 + _ROUNDING)  # comparisons with NaN are false, so this finds both errors
    if bool(wrong.any()):
        where = [int(i) for i in np.argwhere(wrong.cpu().numpy() if tensor else wrong)[0]]
        value = float(batch[tuple(where)])
        problem = "outside [-1, 1]" if np.isfinite(value) else "NaN or infinity"
        remedy = (
            "clip with np.clip(action, -1, 1) or wrap the environment in gymnasium.wrappers.ClipAction"
            if np.isfinite(value)
            else "look for a division by zero or a diverged loss in the policy that produced it"
        )
        raise ValueError(
            f"actions{where} is {value}; expected finite numbers in [-1, 1], but this is {problem}: {remedy}"
        )
    return batch.clamp(-1.0, 1.0) if tensor else np.clip(batch, -1.0, 1.0)


def check_mask(mask: Any, num_envs: int) -> NDArray[np.bool_]:
    """The slots to reset, (num_envs,) bool; None means all.

    Raises:
        ValueError: not a bool array of this shape, or all False.
    """
    if mask is None:
        return np.ones(num_envs, np.bool_)
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu().numpy()
    if (
        not isinstance(mask, np.ndarray)
        or mask.shape != (num_envs,)
        or mask.dtype != np.bool_
        or not mask.any()
    ):
        got = f"{mask.dtype} {mask.shape}, {mask.tolist()}" if isinstance(mask, np.ndarray) else repr(mask)
        raise ValueError(
            f"reset_mask is {got}; expected a bool array of shape ({num_envs},) with at least one True"
        )
    return mask


def check_image(image: Any, size: tuple[int, int], name: str = "initial_image") -> NDArray[np.uint8]:
    """Validate one real frame.

    Args:
        image: (H, W, 3) uint8 array or tensor.
        size: height and width that the world model was trained on, pixels.
        name: name of the image in error messages.

    Raises:
        ValueError: dtype or size differ from the world model's.
    """
    array = image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
    expected = (*size, 3)
    if array.dtype != np.uint8:
        hint = "; multiply by 255 and round" if np.issubdtype(array.dtype, np.floating) else ""
        raise ValueError(
            f"{name} has dtype {array.dtype}; expected uint8 in 0..255{hint}, then .astype(np.uint8)"
        )
    if array.shape != expected:
        raise ValueError(
            f"{name} has shape {array.shape}; expected {expected} (height, width, RGB): resize with"
            f" np.asarray(PIL.Image.fromarray(image).resize(({size[1]}, {size[0]})))"
        )
    return array


def check_instruction(text: Any, space: spaces.Text) -> str:
    """Validate an instruction against the environment's text space.

    Raises:
        ValueError: not a string, empty, too long, or with characters outside the space.
    """
    if not isinstance(text, str):
        raise ValueError(f"instruction is a {type(text).__name__}; expected a str")
    text = str(text)  # np.str_ becomes a plain str
    unknown = sorted(set(text) - set(space.character_set))
    if not 1 <= len(text) <= space.max_length or unknown:
        raise ValueError(
            f"instruction {text!r} has {len(text)} characters"
            + (f", among them {unknown}, which are not in the space" if unknown else "")
            + f"; expected 1 to {space.max_length} characters of {space.characters!r}. Pass all sentences that will be"
            " used to the environment: instructions=[...]"
        )
    return text
