"""The observation space that imagined environments and the tabletop share: keys, their order, words, bounds.

Why one function: spaces that compare equal can still flatten in different orders, and a policy that reads flat vectors
would then read garbage without a word. No torch in here: a simulator needs none.

Example::

    from worldgym.imagination.observations import observation_space
    observation_space(64, 4, state_low=-1.0, state_high=1.0)        # Dict(image, instruction, state)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory

InstructionMode = Literal["text", "embedding"]
CHARSET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,'-?!"
MAX_INSTRUCTION = 128
EMBEDDING_DIM = 384


class Instruction(spaces.Text):
    """A `Text` space that refuses shared memory: Gymnasium (1.2.2 to 1.4.0) reads text from it once, at the start.

    Every learner of an asynchronous vector environment would get the instruction "aaaa...".
    """


@create_shared_memory.register(Instruction)
def _refuse(space: Instruction, n: int = 1, ctx: Any = None) -> Any:
    raise CustomSpaceError(
        "instructions are text, which Gymnasium does not pass through shared memory; type gym.make_vec(..., "
        'vectorization_mode="async", vector_kwargs={"shared_memory": False}), or make the environments with '
        'instruction="embedding". The batch, gym.make_vec(...) without a mode, needs neither'
    )


def instruction_space(known: Sequence[str] = ()) -> Instruction:
    """Words of 1 to 128 of the default characters, or of as many and such as the `known` sentences need."""
    strange = sorted(set("".join(known)) - set(CHARSET))
    longest = max((len(text) for text in known), default=0)
    return Instruction(max_length=max(MAX_INSTRUCTION, longest), charset=CHARSET + "".join(strange))


def observation_space(
    image_size: int,
    state_dim: int,
    instruction: InstructionMode = "text",
    state_low: float | Sequence[float] = -np.inf,
    state_high: float | Sequence[float] = np.inf,
    words: spaces.Text | None = None,
) -> spaces.Dict:
    """`Dict(image (H,W,3) u8, instruction, state (S,) f32)`, keys in this order; no state where S is 0.

    Args:
        image_size: pixels of a side.
        state_dim: S.
        instruction: `"text"`, or `"embedding"` for a sentence embedding (384,) f32.
        state_low: bound of the state, a number or S numbers; minus infinity for none.
        state_high: upper bound.
        words: space of the text; None for the default characters.

    Raises:
        ValueError: unknown `instruction` mode, or bounds that do not fit `state_dim` or are not low < high.
    """
    try:
        low = np.broadcast_to(np.asarray(state_low, np.float32), (state_dim,)).copy()
        high = np.broadcast_to(np.asarray(state_high, np.float32), (state_dim,)).copy()
    except ValueError:
        low = high = np.full(max(1, state_dim), np.nan, np.float32)
    if not (low < high).all():
        raise ValueError(
            f"state_low={state_low}, state_high={state_high}; expected low < high, a number or {state_dim} numbers "
            "each (infinite for no bound)"
        )
    if instruction not in ("text", "embedding"):
        raise ValueError(f"instruction={instruction!r}; expected 'text' or 'embedding'")
    parts: dict[str, spaces.Space[Any]] = {"image": spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)}
    if instruction == "text":
        parts["instruction"] = words if words is not None else instruction_space()
    else:
        parts["instruction"] = spaces.Box(-1.0, 1.0, (EMBEDDING_DIM,), np.float32)
    if state_dim:
        parts["state"] = spaces.Box(low, high, dtype=np.float32)
    return spaces.Dict(parts)
