"""Instructions of the tabletop: templates per task; the last template of each is held out for `unseen_instruction`.

Every scene has several objects, so the instruction determines the goal. Paraphrases prevent a policy from memorising
strings, and the held-out paraphrase measures whether it generalises to new wording.

Example::

    from envs.tabletop.grammar import phrase
    phrase("push", 0, target="red cube", side="left")  # "push the red cube to the left zone"
"""

from __future__ import annotations

import re

TEMPLATES: dict[str, tuple[str, ...]] = {
    "reach": (
        "reach the {target}",
        "move to the {target}",
        "go to the {target}",
        "touch the {target}",
        "bring the hand to the {target}",
        "hover right over the {target}",
    ),
    "push": (
        "push the {target} to the {side} zone",
        "push the {target} to the {side}",
        "slide the {target} to the {side} zone",
        "slide the {target} into the {side} area",
        "push the {target} over to the {side} side",
        "shove the {target} across to the {side}",
    ),
    "pick_place": (
        "put the {target} in the tray",
        "place the {target} in the tray",
        "pick up the {target} and put it in the tray",
        "pick the {target} and place it on the tray",
        "lift the {target} into the tray",
        "drop the {target} onto the white tray",
    ),
    "stack": (
        "stack the {target} on the {base}",
        "put the {target} on top of the {base}",
        "place the {target} on the {base}",
        "pick up the {target} and stack it on the {base}",
        "set the {target} on top of the {base}",
        "build a tower with the {target} above the {base}",
    ),
    "open_drawer": (
        "open the drawer",
        "pull the drawer open",
        "slide the drawer open",
        "pull out the drawer",
        "open up the drawer",
        "get the drawer to stand open",
    ),
    "close_drawer": (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer closed",
        "shut the drawer",
        "push the drawer in",
        "make sure the drawer is shut",
    ),
    "press_button": (
        "press the button",
        "push down the button",
        "press the orange button",
        "hit the button",
        "push the button",
        "switch the lamp on with the button",
    ),
}

TASKS = tuple(TEMPLATES)


def paraphrases(task: str, split: str) -> range:
    """Indices of the templates that `split` uses."""
    n = len(TEMPLATES[task])
    return range(n - 1, n) if split == "unseen_instruction" else range(n - 1)


def phrase(task: str, index: int, *, target: str = "", side: str = "", base: str = "") -> str:
    """Fill in template `index` of `task`."""
    return TEMPLATES[task][index].format(target=target, side=side, base=base)


def parse(instruction: str) -> tuple[str, dict[str, str]]:
    """Task of an instruction and its words: `target`, `side`, `base`, where the task has them.

    Raises:
        ValueError: the instruction matches no template.
    """
    patterns = {"target": r"\w+ \w+", "base": r"\w+ \w+", "side": "left|right"}
    for task, templates in TEMPLATES.items():
        for template in templates:
            named = template.format(**{name: f"(?P<{name}>{p})" for name, p in patterns.items()})
            if found := re.fullmatch(named, instruction):
                return task, found.groupdict()
    raise ValueError(f"{instruction!r} is of no known task; the tasks are {', '.join(TEMPLATES)}")


def task_of(instruction: str) -> str:
    """The task of an instruction.

    Raises:
        ValueError: the instruction matches no template.
    """
    return parse(instruction)[0]
