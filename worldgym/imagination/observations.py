"""Spaces shared by imagined environments and simulators: observation keys, their order, text, bounds.

They are built in one place because spaces that compare equal can still flatten in different orders, and a policy that
reads flat vectors would then get wrong inputs without an error. torch is not used: simulators do not need it.

Example::

    from worldgym.specs import Camera, ObservationSpec, StateField
    spec = ObservationSpec((Camera("front", 96, 128), Camera("wrist", 48, 64)), (StateField("x"),))
    observation_space(spec)                         # Dict(image, image_wrist, instruction, state)
    action_space(4, chunk=5).shape                  # (5, 4)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory

from worldgym.specs import ALPHABET, MAX_INSTRUCTION, ObservationSpec

InstructionMode = Literal["text", "embedding"]
Bound = float | Sequence[float]
EMBEDDING_DIM = 384


class Instruction(spaces.Text):
    """A `Text` space that refuses shared memory.

    Gymnasium (1.2.2 to 1.4.0) reads text from shared memory only once, at the start. Every learner of an asynchronous
    vector environment would then get the instruction "aaaa...".
    """


@create_shared_memory.register(Instruction)
def _refuse(space: Instruction, n: int = 1, ctx: Any = None) -> Any:
    raise CustomSpaceError(
        "instructions are text, which Gymnasium does not pass through shared memory; type gym.make_vec(..., "
        'vectorization_mode="async", vector_kwargs={"shared_memory": False}), or make the environments with '
        'instruction="embedding". The batch, gym.make_vec(...) without vectorization_mode, needs neither'
    )


def instruction_space(
    known: Sequence[str] = (), alphabet: str = ALPHABET, longest: int = MAX_INSTRUCTION
) -> Instruction:
    """Text space of 1 to `longest` characters of `alphabet`, extended where the `known` sentences need more."""
    extra = sorted(set("".join(known)) - set(alphabet))
    longest = max(longest, max((len(text) for text in known), default=0))
    return Instruction(max_length=longest, charset=alphabet + "".join(extra))


def observation_space(
    spec: ObservationSpec,
    instruction: InstructionMode = "text",
    state_low: Bound = -np.inf,
    state_high: Bound = np.inf,
    words: spaces.Text | None = None,
) -> spaces.Dict:
    """`Dict(image (H,W,3) u8, image_<name> (H',W',3) u8 ..., instruction, state (S,) f32)`, keys in this order.

    There is one image per camera of the spec, and no state if S is 0.

    Args:
        spec: cameras with their sizes, state fields, and the alphabet of instructions.
        instruction: `"text"`, or `"embedding"` for a sentence embedding (384,) f32.
        state_low: lower bound of the state, a number or S numbers; minus infinity for none.
        state_high: upper bound of the state, likewise.
        words: text space of the instruction; None uses the alphabet of the spec.

    Raises:
        ValueError: unknown `instruction` mode, or bounds that do not fit the state or do not satisfy low < high.
    """
    size = spec.state_dim
    try:
        low = np.broadcast_to(np.asarray(state_low, np.float32), (size,)).copy()
        high = np.broadcast_to(np.asarray(state_high, np.float32), (size,)).copy()
    except ValueError:
        low = high = np.full(max(1, size), np.nan, np.float32)
    if not (low < high).all():
        raise ValueError(
            f"state_low={state_low}, state_high={state_high}; expected low < high, a number or {size} numbers "
            "each (infinite for no bound)"
        )
    if instruction not in ("text", "embedding"):
        raise ValueError(f"instruction={instruction!r}; expected 'text' or 'embedding'")
    parts: dict[str, spaces.Space[Any]] = {
        spec.camera_keys[camera.name]: spaces.Box(0, 255, (*camera.size, 3), np.uint8)
        for camera in spec.cameras
    }
    if instruction == "text":
        parts["instruction"] = (
            instruction_space((), spec.alphabet, spec.max_instruction) if words is None else words
        )
    else:
        parts["instruction"] = spaces.Box(-1.0, 1.0, (EMBEDDING_DIM,), np.float32)
    if size:
        parts["state"] = spaces.Box(low, high, dtype=np.float32)
    return spaces.Dict(parts)


def state_of(observation: Mapping[str, Any]) -> Any:
    """Proprioception of an observation; of length 0, with the batch dimensions of `image`, if it has none."""
    if "state" in observation:
        return observation["state"]
    image = observation["image"]
    shape = (*image.shape[:-3], 0)
    return np.zeros(shape, np.float32) if isinstance(image, np.ndarray) else image.new_zeros(shape).float()


def action_space(action_dim: int, chunk: int | None = None, flat: bool = False) -> spaces.Box:
    """`Box(-1, 1, (A,))`; with chunks of K frames `Box(-1, 1, (K, A))`, or `(K A,)` if `flat`."""
    shape = (action_dim,) if chunk is None else (chunk * action_dim,) if flat else (chunk, action_dim)
    return spaces.Box(-1.0, 1.0, shape, np.float32)
