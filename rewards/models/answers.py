r"""Parse the score from the text that a language model wrote; a number outside the scale gives no score.

Example::

    read_score("It lies in the tray.\\nFinal Score (0 or 1): 1", Scale())       # 1.0
    read_score("Final Score: 12/100", Scale())                                # None
    read_score('```json\\n{"score": 7}\\n```', Scale(lowest=0, highest=10))     # 7.0
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from worldgym.errors import ConfigError

PROMPT = """These frames, in the order of time, show a robot at a table. They come from a video world model and may \
contain artifacts; judge what they show, not how well they are drawn.
Instruction to the robot: "{instruction}"
Score 1 if the last frame shows the instruction fulfilled, 0 if it does not or if you cannot tell.
Explain your judgement in two or three sentences, then end with a line of its own:
Final Score: X"""

_NAMED = re.compile(r"final[\s_*-]*score", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w./,-])-?\d+(?:[.,]\d+)?(?:\s*(?:/|out\s+of|of)\s*\d+(?:[.,]\d+)?)?\s*%?(?!\w)", re.IGNORECASE
)
_WHOLE = re.compile(r"\d+(?:\.0+)?")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_JSON = re.compile(r"\{[^{}]*\}")
_KEYS = ("final_score", "final score", "finalscore", "score", "success")


@dataclass(frozen=True)
class Scale:
    r"""The scores that an answer may give, and how to parse them.

    Args:
        lowest: lowest score, a whole number.
        highest: highest score, a whole number.
        success: an answer counts as success if its score is at least this; None for `highest`.
        pattern: a regular expression with one group that holds the score; its last match counts. None for the built-in
            parser, which reads the text after the last "final score", `\\boxed{...}`, or JSON with a key such as
            `score`.

    Raises:
        ConfigError: `lowest` is not below `highest`, `success` is outside the scale, or `pattern` is not a regular
            expression with one group.
    """

    lowest: int = 0
    highest: int = 1
    success: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise ConfigError(
                f"lowest is {self.lowest} and highest {self.highest}; expected lowest < highest"
            )
        if not self.lowest < self.success_at <= self.highest:
            raise ConfigError(
                f"success is {self.success}; expected more than {self.lowest} and at most {self.highest}"
            )
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ConfigError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
            if groups != 1:
                raise ConfigError(
                    f"pattern {self.pattern!r} has {groups} groups; expected one group, around the score"
                )

    @property
    def success_at(self) -> float:
        """The lowest score that counts as success."""
        return float(self.highest if self.success is None else self.success)

    def value(self, text: str) -> float | None:
        """Parse `text` as a whole number; None if it is not one or lies outside the scale."""
        word = text.strip().strip("*_`$ .")
        if not _WHOLE.fullmatch(word):
            return None
        number = float(word)
        return number if self.lowest <= number <= self.highest else None


def read_score(text: str, scale: Scale) -> float | None:
    """Parse the score from `text`; None if there is no readable score.

    After the last "final score", the score is the last number after the last colon of the same line (or of the next
    line). Text in brackets is ignored.
    """
    if scale.pattern is not None:
        found = re.findall(scale.pattern, text)
        return scale.value(found[-1]) if found else None
    named = list(_NAMED.finditer(text))
    if named:
        rest = text[named[-1].end() :]
        return _after(rest, scale) if _NUMBER.search(rest) else _from_json(text, scale)
    boxed = _BOXED.findall(text)
    if boxed:
        return scale.value(re.sub(r"\\text\{|\}", "", boxed[-1]))
    return _from_json(text, scale)


def _after(rest: str, scale: Scale) -> float | None:
    boxed = _BOXED.findall(rest)
    if boxed:
        return scale.value(boxed[-1])
    for line in [line for line in rest.splitlines() if line.strip()][:2]:
        bare = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", line)  # "1 (not 0)", "1 (at 12:0)", "[0 or 1] 1"
        bare = bare.rpartition(":")[2]
        numbers = _NUMBER.findall(bare)
        if numbers:
            return scale.value(numbers[-1])
    return None


def _from_json(text: str, scale: Scale) -> float | None:
    for block in reversed(_JSON.findall(text)):
        try:
            data: Any = json.loads(block)
        except ValueError:
            continue
        lowered = {str(key).lower(): value for key, value in data.items()}
        for key in _KEYS:
            if key in lowered:
                value = lowered[key]
                if isinstance(value, bool):
                    return float(scale.highest if value else scale.lowest)
                return scale.value(str(value))
    return None
