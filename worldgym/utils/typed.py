"""Builds config dataclasses from JSON and checks the types strictly: `true` is not an integer, `"3"` not a number.

pydantic checks the types in strict mode. This module adds errors for unknown keys, with a suggestion, and for NaN, and
raises the project's ConfigError.

Example::

    from worldgym.utils.typed import from_values
    config = from_values(LearnedJudgeConfig, json.loads(text), "runs/judge/config.json")
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from worldgym.errors import ConfigError

T = TypeVar("T")


def from_values(kind: type[T], values: Any, where: str = "") -> T:
    """Build an instance of the dataclass `kind` from JSON values; lists become tuples.

    Args:
        kind: a dataclass whose fields are numbers, strings, tuples, mappings or dataclasses of this form.
        values: mapping from field names to values, like `json.loads(json.dumps(dataclasses.asdict(x)))`.
        where: name of the file for the message.

    Raises:
        ConfigError: `values` is not a mapping, a key is unknown, a value has another type or is not finite, or the
            dataclass rejects it.
    """
    from pydantic import ValidationError

    place = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place}got a {type(values).__name__}, expected the settings of a {kind.__name__}")
    _refuse_unknown(kind, values, place)
    try:
        text = json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise ConfigError(f"{place}holds NaN or infinity, expected finite numbers") from error
    try:
        return _adapter(kind).validate_json(text, strict=True)  # type: ignore[no-any-return,arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        shown = repr(first["input"])
        got = f" (got {shown if len(shown) <= 80 else shown[:77] + '...'})" if name else ""
        raise ConfigError(f"{place}{name + ': ' if name else ''}{reason}{got}") from error


@lru_cache(maxsize=256)
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _refuse_unknown(kind: Any, values: Mapping[str, Any], place: str, prefix: str = "") -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {prefix + near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{place}unknown setting {prefix + str(key)!r}{hint}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown(hints[key], value, place, f"{prefix}{key}.")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the differences between two JSON-serialisable mappings; "" if they are equal."""
    names = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return "; ".join(f"{k}: there {_short(before.get(k))}, here {_short(now.get(k))}" for k in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
