"""The action space of imagined environments, and the checks that turn bad input into an explanation.

Why: a NaN that enters a world model leaves no trace but a grey picture fifty frames later.

Example::

    from worldgym.imagination.spaces import action_space, check_actions
    action_space(4, chunk=5).shape  # (5, 4)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

_ROUNDING = 1e-5  # float32 policies end on 1.0000001; that is rounding, not a mistake


def action_space(action_dim: int, chunk: int | None = None, flat: bool = False) -> spaces.Box:
    """`Box(-1, 1, (A,))`, or `Box(-1, 1, (K, A))` when actions come in chunks of K frames, `(K A,)` if `flat`."""
    shape = (action_dim,) if chunk is None else (chunk * action_dim,) if flat else (chunk, action_dim)
    return spaces.Box(-1.0, 1.0, shape, np.float32)


def check_actions(
    actions: Any, shape: tuple[int, ...], used: NDArray[np.bool_], device: torch.device
) -> Tensor:
    """Validate a batch of actions and bring it to the model's device.

    Args:
        actions: array or tensor of `shape`, values in [-1, 1].
        shape: `(num_envs, A)` or `(num_envs, K, A)`.
        used: (num_envs,) bool; the other rows are about to be reset, their actions are ignored and become
            zero.
        device: where the world model lives.

    Returns:
        `(num_envs, K, A)` float32.

    Raises:
        ValueError: wrong shape, NaN or infinity, values beyond [-1, 1].
    """
    try:
        batch = torch.as_tensor(np.asarray(actions) if isinstance(actions, (list, tuple)) else actions)
    except (TypeError, ValueError) as error:
        raise ValueError(f"actions are not numeric ({error}); expected a float32 array {shape}") from error
    if tuple(batch.shape) != shape:
        raise ValueError(
            f"actions have shape {tuple(batch.shape)}; expected {shape}, one row per environment"
            " (env.action_space.shape)"
        )
    batch = batch.to(device=device, dtype=torch.float32)
    if not used.all():
        mask = torch.as_tensor(used, device=device).view(-1, *[1] * (batch.dim() - 1))
        batch = torch.where(mask, batch, torch.zeros_like(batch))
    wrong = ~(batch.abs() <= 1.0 + _ROUNDING)  # NaN compares false, so one test finds both
    if bool(wrong.any()):
        where = [int(i) for i in wrong.nonzero()[0]]
        value = float(batch[tuple(where)])
        remedy = (
            "clip with np.clip(action, -1, 1) or wrap the environment in gymnasium.wrappers.ClipAction"
            if np.isfinite(value)
            else "look for a division by zero or an exploded loss in the policy that made it"
        )
        raise ValueError(f"actions{where} is {value}; expected finite numbers in [-1, 1]: {remedy}")
    batch = batch.clamp(-1.0, 1.0)
    return batch if batch.dim() == 3 else batch[:, None]


def check_image(image: Any, image_size: int, name: str = "initial_image") -> NDArray[np.uint8]:
    """Validate one real frame.

    Args:
        image: (H, W, 3) uint8 array or tensor.
        image_size: H = W that the world model was trained on, pixels.
        name: how the caller names it, for the message.

    Raises:
        ValueError: another dtype or size than the world model's.
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    expected = (image_size, image_size, 3)
    if array.dtype != np.uint8:
        hint = "; multiply by 255 and round" if np.issubdtype(array.dtype, np.floating) else ""
        raise ValueError(
            f"{name} has dtype {array.dtype}; expected uint8 in 0..255{hint}, then .astype(np.uint8)"
        )
    if array.shape != expected:
        raise ValueError(
            f"{name} has shape {array.shape}; expected {expected} (height, width, RGB): resize with"
            f" np.asarray(PIL.Image.fromarray(image).resize(({image_size}, {image_size})))"
        )
    return array


def check_instruction(text: Any, space: spaces.Text) -> str:
    """Validate an instruction against the space of the environment's words.

    Raises:
        ValueError: not a string, empty, too long, or with characters outside the space.
    """
    if not isinstance(text, str):
        raise ValueError(f"instruction is a {type(text).__name__}; expected a str")
    text = str(text)  # np.str_ becomes a plain str
    strange = sorted(set(text) - set(space.character_set))
    if not 1 <= len(text) <= space.max_length or strange:
        raise ValueError(
            f"instruction {text!r} has {len(text)} characters"
            + (f", among them {strange}, which are not in the space" if strange else "")
            + f"; expected 1 to {space.max_length} characters of {space.characters!r}. Pass the sentences that you will"
            " use to the environment: instructions=[...]"
        )
    return text
