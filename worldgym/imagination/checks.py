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

from worldgym.specs import Camera, ObservationSpec

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


def check_imagined(
    imagined: Any, spec: ObservationSpec, count: int, steps: int, decode: str, name: str
) -> None:
    """Validate what a world model's `step` returned.

    Args:
        imagined: a `worldgym.protocols.Imagined`.
        spec: observation spec of the world model.
        count: number of episodes, B.
        steps: number of actions, K.
        decode: "all" if K frames were asked for, else "last".
        name: name of the world model's class, for the message.

    Raises:
        ValueError: a frame, state or uncertainty is missing, has another shape or dtype, or is not finite.
    """
    given = {spec.main.name: imagined.frames, **imagined.views}
    shown = f"{steps}" if decode == "all" else "at least 1"
    for camera in spec.cameras:
        video = given.get(camera.name)
        expected = f"uint8 ({count}, {shown}, {camera.height}, {camera.width}, 3)"
        if video is None:
            where = "" if camera == spec.main else f"views={{{camera.name!r}: frames}}"
            raise ValueError(
                f"{name}.step returned no frames of camera {camera.name}, which is in its specs; return "
                f"Imagined({where or 'frames'}, ...) with {expected}"
            )
        shape, kind = tuple(video.shape), str(video.dtype).removeprefix("torch.")
        enough = len(shape) == 5 and shape[1] >= 1 and (decode != "all" or shape[1] == steps)
        if not enough or (shape[0], *shape[2:]) != (count, *camera.size, 3) or kind != "uint8":
            raise ValueError(
                f"{name}.step returned frames of camera {camera.name} as {kind} {shape} for decode={decode!r}; "
                f"expected {expected}: episode, frame, height, width, RGB, with values 0..255"
            )
    if tuple(imagined.states.shape) != (count, steps, spec.state_dim):
        raise ValueError(
            f"{name}.step returned states {tuple(imagined.states.shape)}; expected ({count}, {steps}, "
            f"{spec.state_dim}): episode, action, state field of its specs"
        )
    if not bool(imagined.states.isfinite().all()):
        raise ValueError(
            f"{name}.step returned states that are NaN or infinite; expected finite numbers: look for a division by "
            "zero, or for weights that diverged in training"
        )
    if tuple(getattr(imagined.uncertainty, "shape", (None,))) != (count,):
        got = "None" if imagined.uncertainty is None else str(tuple(imagined.uncertainty.shape))
        raise ValueError(
            f"{name}.step returned uncertainty {got}; expected ({count},), one number per episode, or "
            f"torch.zeros({count}) from a model that does not estimate it"
        )


def check_picture(picture: Any, camera: Camera, name: str) -> Any:
    """Validate the image that a simulator's `draw_slot` returned.

    Raises:
        ValueError: it is not `(height, width, 3)` uint8 of the camera.
    """
    shape, kind = getattr(picture, "shape", None), getattr(picture, "dtype", type(picture).__name__)
    if shape != (*camera.size, 3) or kind != np.uint8:
        raise ValueError(
            f"{name}.draw_slot returned {kind} {shape} for camera {camera.name}; expected uint8 "
            f"{(*camera.size, 3)}: height, width, RGB, with values 0..255"
        )
    return picture


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
