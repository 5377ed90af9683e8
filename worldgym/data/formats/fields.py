"""Loosely typed fields of recorded datasets, read one way: names, success flags, instructions, episode numbers.

Recorders write the same fact in many shapes: a name list may be a dictionary or nested, success a bool, a float or a
list of one. A value that can't be read is an error that names it; nothing is taken at face value.

Example::

    flat_names({"delta_x": 0, "gripper": 1}, 2)      # ("delta_x", "gripper")
    flags([[True], [False]])                         # array([ True, False])
    number_ranges("0-2,7")                           # (0, 1, 2, 7)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TRUE_WORDS = {"true", "1", "1.0", "yes", "success", "succeeded", "successful", "t", "y"}
FALSE_WORDS = {"false", "0", "0.0", "no", "failure", "failed", "fail", "f", "n", "", "none", "nan"}


def flat_names(names: Any, count: int, prefix: str) -> tuple[str, ...]:
    """Names of the `count` dimensions of a feature, whatever their nesting.

    A dictionary name -> index is ordered by index; `{"motors": [...]}`, lists of lists and a single string are
    flattened. Where that does not give `count` different names, they are `prefix_0`, `prefix_1`, ...
    """
    try:
        found = tuple(name for name in _flatten(names) if is_text(name))
    except RecursionError:
        found = ()
    if len(found) == count and len(set(found)) == count and all(found):
        return found
    return tuple(f"{prefix}_{i}" for i in range(count))


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be stored; JSON can spell half of a character."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _flatten(names: Any) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, Mapping):
        if all(isinstance(v, int) and not isinstance(v, bool) for v in names.values()):
            return [str(name) for name, _ in sorted(names.items(), key=lambda item: item[1])]
        return [name for part in names.values() for name in _flatten(part)]
    if isinstance(names, Sequence):
        return [name for part in names for name in _flatten(part)]
    return []


def flags(values: Sequence[Any]) -> np.ndarray:
    """`(N,)` bool of a success column: bools, numbers (true from 0.5 on), words, or lists of one of these.

    Raises:
        ValueError: a value that is none of them; missing ones are false.
    """
    return np.array([_flag(value) for value in values], bool)


def _flag(value: Any) -> bool:
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1:
        return _flag(value[0])
    if value is None:
        return False
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)):
        return bool(float(value) >= 0.5)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TRUE_WORDS or word in FALSE_WORDS:
            return word in TRUE_WORDS
    raise ValueError(f"{value!r} says neither success nor failure; expected true or false, 1 or 0")


def numbers(values: Sequence[Any]) -> np.ndarray:
    """`(N,)` float64 of a column of numbers or lists of one.

    Raises:
        ValueError: a value that is no number.
    """
    out = np.empty(len(values), np.float64)
    for i, value in enumerate(values):
        inner = value[0] if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1 else value
        if isinstance(inner, bool) or not isinstance(inner, (int, float, np.number, np.bool_)):
            raise ValueError(f"{value!r} is no number")
        out[i] = float(inner)
    return out


def instruction_list(value: Any, sentences: Mapping[int, str]) -> tuple[str, ...]:
    """The instructions that an episode's listing names: a string is one, an integer is looked up in the tasks.

    Raises:
        ValueError: an integer that the tasks do not have, or something else.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        if not is_text(value):
            raise ValueError(f"task {value[:60]!r} holds half of a character, which no file can store")
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"task {str(value)[:60]!r} is neither a sentence nor a number of one")
    if isinstance(value, (int, np.integer)):
        if int(value) not in sentences:
            raise ValueError(f"task number {value} is not among the {len(sentences)} listed tasks")
        return (sentences[int(value)],)
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(dict.fromkeys(text for item in value for text in instruction_list(item, sentences)))
    raise ValueError(f"task {str(value)[:60]!r} is neither a sentence nor a number of one")


def number_ranges(text: str) -> tuple[int, ...]:
    """Episode numbers such as `0-9,12`, in the order given, each once.

    Raises:
        ValueError: not of that form.
    """
    out: dict[int, None] = {}
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or not part:
            raise ValueError(f"{text!r} is no list of episode numbers; expected something like 0-9,12")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 1_000_000:
            raise ValueError(f"{part!r} is no range of episode numbers; expected something like 0-9")
        out |= dict.fromkeys(range(low, high + 1))
    return tuple(out)
