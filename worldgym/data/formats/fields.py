"""Parsers for loosely typed fields of recorded datasets: names, success flags, instructions, episode numbers.

Recording software stores the same information in various types: names may be a list, a dictionary or nested; success
may be a bool, a float or a list of one item. A value that cannot be parsed raises an error that shows it.

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
    """Names of the `count` dimensions of a feature, from any nesting.

    A dictionary name -> index is sorted by index; `{"motors": [...]}`, nested lists and a single string are flattened.
    If the result is not `count` different names, the names are `prefix_0`, `prefix_1`, ...
    """
    try:
        found = tuple(name for name in _flatten(names) if is_text(name))
    except RecursionError:
        found = ()
    if len(found) == count and len(set(found)) == count and all(found):
        return found
    return tuple(f"{prefix}_{i}" for i in range(count))


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be encoded; JSON can contain unpaired surrogates, which cannot."""
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
    """Parse a success column to `(N,)` bool.

    Values are bools, numbers (true if at least 0.5), words, or lists of one of these; a missing value is false.

    Raises:
        ValueError: a value has another form.
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
    raise ValueError(f"{value!r} means neither success nor failure; expected true or false, 1 or 0")


def numbers(values: Sequence[Any]) -> np.ndarray:
    """Parse a column of numbers, or lists of one number, to `(N,)` float64.

    Raises:
        ValueError: a value is not a number.
    """
    out = np.empty(len(values), np.float64)
    for i, value in enumerate(values):
        inner = value[0] if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1 else value
        if isinstance(inner, bool) or not isinstance(inner, (int, float, np.number, np.bool_)):
            raise ValueError(f"{value!r} is not a number")
        out[i] = float(inner)
    return out


def instruction_list(value: Any, sentences: Mapping[int, str]) -> tuple[str, ...]:
    """Parse the instructions in the metadata of an episode: a string is an instruction, an integer a task number.

    Raises:
        ValueError: a task number is not in `sentences`, or a value has another type.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        if not is_text(value):
            raise ValueError(f"task {value[:60]!r} holds an unpaired surrogate, which cannot be stored; correct it")
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"task {str(value)[:60]!r} is neither a sentence nor a task number")
    if isinstance(value, (int, np.integer)):
        if int(value) not in sentences:
            raise ValueError(f"task number {value} is not among the {len(sentences)} listed tasks")
        return (sentences[int(value)],)
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(dict.fromkeys(text for item in value for text in instruction_list(item, sentences)))
    raise ValueError(f"task {str(value)[:60]!r} is neither a sentence nor a task number")


def number_ranges(text: str) -> tuple[int, ...]:
    """Parse episode numbers such as `0-9,12`, in the given order, without repetitions.

    Raises:
        ValueError: the text has another form.
    """
    out: dict[int, None] = {}
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or not part:
            raise ValueError(f"{text!r} is not a list of episode numbers; expected e.g. 0-9,12")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 1_000_000:
            raise ValueError(f"{part!r} is not a range of episode numbers; expected e.g. 0-9")
        out |= dict.fromkeys(range(low, high + 1))
    return tuple(out)
