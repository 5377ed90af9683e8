"""Tasks of the Meta-World suite: names, sentences, and what a camera must show of them.

Start states of a task depend on the seed only; another split changes the sentence. Faucets that are to be opened and
to be closed look the same at the start, so only the sentence tells them apart.

Example::

    TASKS["faucet_open"].sentence(seed=3)                           # "turn the faucet on"
    TASKS["faucet_open"].sentence(seed=3, split="unseen_instruction")
"""

from __future__ import annotations

from dataclasses import dataclass

from worldgym.errors import ConfigError

SPLITS = ("seen", "unseen_instruction", "unseen_task")
UNSEEN_TASKS = ("button_press", "window_close")
"""Tasks of the split `unseen_task`; they are not recorded."""


@dataclass(frozen=True)
class Task:
    """A task of Meta-World.

    Args:
        environment: its name in Meta-World.
        sentences: instructions of the split `seen`, with equal probability.
        held_out: instruction of the split `unseen_instruction`.
        marker: draw a green ball at the goal; without it, the goal of such a task is invisible.
        axes: axes of the distance between object and goal, where Meta-World does not report one (`door-open-v3` reports
            0 always).
    """

    environment: str
    sentences: tuple[str, ...]
    held_out: str
    marker: bool = False
    axes: tuple[int, ...] = ()

    def sentence(self, seed: int, split: str = "seen") -> str:
        """Return the instruction of the start state `seed`."""
        if split == "unseen_instruction":
            return self.held_out
        return self.sentences[seed % len(self.sentences)]


TASKS = {
    "reach": Task(
        "reach-v3", ("move the gripper to the green marker", "go to the green ball"), "touch the marker", True
    ),
    "push": Task(
        "push-v3", ("push the puck to the green marker", "slide the puck to the green ball"),
        "shove the puck onto the goal", True,
    ),
    "pick_place": Task(
        "pick-place-v3", ("pick up the puck and bring it to the green marker", "lift the puck to the green ball"),
        "carry the puck to the goal in the air", True,
    ),
    "drawer_open": Task("drawer-open-v3", ("open the drawer", "pull the drawer out"), "slide the drawer open"),
    "drawer_close": Task("drawer-close-v3", ("close the drawer", "push the drawer shut"), "slide the drawer closed"),
    "button_press_topdown": Task(
        "button-press-topdown-v3", ("press the button from above", "push the red button down"), "hit the button on top"
    ),
    "door_open": Task("door-open-v3", ("open the door", "pull the door open"), "swing the safe door open", axes=(0,)),
    "window_open": Task("window-open-v3", ("open the window", "slide the window to the right"), "push the window open"),
    "faucet_open": Task("faucet-open-v3", ("turn the faucet on", "open the faucet"), "rotate the tap to open it"),
    "faucet_close": Task(
        "faucet-close-v3", ("turn the faucet off", "close the faucet"), "rotate the tap to shut it"
    ),
    "plate_slide": Task(
        "plate-slide-v3", ("slide the plate into the goal", "push the plate into the net"), "move the disc to the cage"
    ),
    "button_press": Task("button-press-v3", ("press the button from the front",), "push the button in"),
    "window_close": Task("window-close-v3", ("close the window",), "slide the window shut"),
}  # fmt: skip
DEFAULT_TASKS = (
    "reach", "drawer_open", "drawer_close", "button_press_topdown", "door_open", "window_open", "faucet_open",
    "faucet_close", "plate_slide",
)  # fmt: skip
"""Tasks that are recorded and trained on by default."""


def find_task(name: str) -> Task:
    """Return the task `name`.

    Raises:
        ConfigError: unknown name.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; the tasks of Meta-World here are {', '.join(TASKS)}")
    return TASKS[name]


def task_of(instruction: str) -> str:
    """Return the name of the task of an instruction.

    Raises:
        ConfigError: no task has this instruction.
    """
    for name, task in TASKS.items():
        if instruction in (*task.sentences, task.held_out):
            return name
    raise ConfigError(f"no task of Meta-World has the instruction {instruction!r}")
