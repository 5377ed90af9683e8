r"""The score in what a language model wrote, or nothing: a number that is not on the scale is no verdict.

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
    r"""Which numbers are verdicts.

    Args:
        lowest: whole number, the least score.
        highest: whole number, the greatest score.
        success: the score from which on an answer says success; None for the highest.
        pattern: a regular expression with one group that holds the score; its last match counts. None for the built-in
            reading: what follows the last "final score", `\\boxed{...}`, or JSON with a key such as `score`.

    Raises:
        ConfigError: an empty scale, a success outside it, or a pattern that is no expression with one group.
    """

    lowest: int = 0
    highest: int = 1
    success: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise ConfigError(
                f"the scale goes from {self.lowest} to {self.highest}; expected lowest < highest"
            )
        if not self.lowest < self.success_at <= self.highest:
            raise ConfigError(
                f"success is {self.success}, expected above {self.lowest}, at most {self.highest}"
            )
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ConfigError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
            if groups != 1:
                raise ConfigError(
                    f"pattern {self.pattern!r} has {groups} groups, expected one, around the score"
                )

    @property
    def success_at(self) -> float:
        """The score from which on an answer says success."""
        return float(self.highest if self.success is None else self.success)

    def value(self, text: str) -> float | None:
        """A whole number of the scale, or None."""
        word = text.strip().strip("*_`$ .")
        if not _WHOLE.fullmatch(word):
            return None
        number = float(word)
        return number if self.lowest <= number <= self.highest else None


def read_score(text: str, scale: Scale) -> float | None:
    """The score that `text` gives, or None where it gives none that can be read.

    After the last "final score" the last number counts that follows the last colon of its line (or of the next line);
    what stands in brackets does not.
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
        said = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", line)  # "1 (not 0)", "1 (at 12:0)", "[0 or 1] 1"
        said = said.rpartition(":")[2]
        numbers = _NUMBER.findall(said)
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
