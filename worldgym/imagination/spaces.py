"""Spaces of the imagined environments, and the checks that turn bad input into an explanation.

Why: the tabletop and its imagined copy must have equal spaces, so that a policy moves from one to the other
unchanged; and a NaN that enters a world model leaves no trace but a grey picture fifty frames later.

Example::

    from worldgym.imagination.spaces import action_space, check_actions, observation_space
    observation_space(image_size=64, state_dim=4)
    action_space(4, chunk=5).shape  # (5, 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

InstructionMode = Literal["text", "embedding"]
CHARSET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,'-?!"  # the tabletop's
MAX_INSTRUCTION = 128
EMBEDDING_DIM = 384
_ROUNDING = 1e-5  # float32 policies end on 1.0000001; that is rounding, not a mistake


def observation_space(
    image_size: int,
    state_dim: int,
    instruction: InstructionMode = "text",
    state_low: float | Sequence[float] = -1.0,
    state_high: float | Sequence[float] = 1.0,
) -> spaces.Dict:
    """`Dict(image (H,W,3) u8, state (S,) f32 in [state_low, state_high], instruction)`.

    Raises:
        ValueError: unknown `instruction` mode, or bounds that do not fit `state_dim` or are not finite.
    """
    try:
        low = np.broadcast_to(np.asarray(state_low, np.float32), (state_dim,)).copy()
        high = np.broadcast_to(np.asarray(state_high, np.float32), (state_dim,)).copy()
    except ValueError:
        low = high = np.full(state_dim, np.nan, np.float32)
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(
            f"state_low={state_low}, state_high={state_high}; expected finite low < high, a number or"
            f" {state_dim} numbers each"
        )
    words: spaces.Space[Any]
    if instruction == "text":
        words = spaces.Text(max_length=MAX_INSTRUCTION, charset=CHARSET)
    elif instruction == "embedding":
        words = spaces.Box(-1.0, 1.0, (EMBEDDING_DIM,), np.float32)
    else:
        raise ValueError(f"instruction={instruction!r}; expected 'text' or 'embedding'")
    return spaces.Dict(
        {
            "image": spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
            "state": spaces.Box(low, high, dtype=np.float32),
            "instruction": words,
        }
    )


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


def check_instruction(text: Any) -> str:
    """Validate an instruction: 1 to 128 letters, digits, spaces and `.,'-?!`.

    Raises:
        ValueError: not a string, empty, too long, or with characters outside the space.
    """
    if not isinstance(text, str):
        raise ValueError(f"instruction is a {type(text).__name__}; expected a str")
    text = str(text)  # np.str_ becomes a plain str
    strange = sorted(set(text) - set(CHARSET))
    if not 1 <= len(text) <= MAX_INSTRUCTION or strange:
        raise ValueError(
            f"instruction {text!r} has {len(text)} characters"
            + (f", among them {strange}" if strange else "")
            + f"; expected 1 to {MAX_INSTRUCTION} letters, digits, spaces and .,'-?!"
        )
    return text
