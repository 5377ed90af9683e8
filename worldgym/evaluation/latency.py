"""Time that a policy takes to infer: the robot does not wait for free.

A policy that is measured between two steps of a simulator sees and acts in the same instant. On a robot the
observation is d control steps old when its chunk of actions arrives (`Latency.of`: d is inference time times control
rate, rounded up). `blocking`: the robot holds still for these steps. `asynchronous`: it executes what is left of the
last chunk, and of the new chunk it drops as many actions as it has executed meanwhile, as DreamZero does (arXiv
2602.15922, section on real-time execution). The observation is taken when d actions of a chunk are left. If d is more
than half a chunk, fewer are left, and the robot holds still for the rest of the inference.

Example::

    late = Latency.of(0.22, hz=5, execution="asynchronous")       # 2 steps
    pool.evaluate(policy, starts, latency=late)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec

Execution = Literal["blocking", "asynchronous"]
EXECUTIONS: tuple[str, ...] = get_args(Execution)


@dataclass(frozen=True)
class Latency:
    """Control steps that pass during inference, and what the robot does meanwhile.

    Args:
        steps: control steps from an observation to its actions, d.
        execution: `blocking` or `asynchronous`; see the module docstring.

    Raises:
        ConfigError: a negative number of steps, or an unknown execution.
    """

    steps: int
    execution: Execution = "asynchronous"

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"latency: got {self.steps!r} steps, expected a whole number; 0 is no latency")
        if self.execution not in EXECUTIONS:
            raise ConfigError(
                f"unknown execution {self.execution!r}; it is one of {', '.join(EXECUTIONS)}, e.g. 'blocking'"
            )

    @classmethod
    def of(cls, seconds: float, hz: float, execution: Execution = "asynchronous") -> Latency:
        """The latency of an inference that takes `seconds`, at a control rate of `hz` steps per second.

        Raises:
            ConfigError: a negative or infinite time, or a rate that is not positive.
        """
        if not 0 <= seconds < math.inf or not 0 < hz < math.inf:
            raise ConfigError(f"latency: got {seconds} s at {hz} steps per second, expected e.g. 0.2 s at 5")
        return cls(math.ceil(seconds * hz - 1e-9), execution)

    def leaves(self, chunk: int) -> bool:
        """Whether an action of a chunk of `chunk` actions is left when it arrives."""
        return self.execution == "blocking" or self.steps < chunk

    def check(self, chunk: int) -> None:
        """Check that chunks of `chunk` actions can be executed.

        Raises:
            ConfigError: no action of a chunk would be left when it arrives.
        """
        if not self.leaves(chunk):
            raise ConfigError(
                f"inference takes {self.steps} steps, and a chunk has {chunk} actions: none is left when it arrives; "
                "use execution='blocking', or a policy with longer chunks"
            )

    def plan(
        self, chunk: np.ndarray, left: np.ndarray | None, hold: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions up to the next observation.

        Args:
            chunk: `(K,A)` actions that the policy infers from the present observation.
            left: `(n,A)` actions of the last chunk that have not been executed; None for the first chunk.
            hold: `(A,)` action that holds the robot still.

        Returns:
            `(T,A)` actions to execute before the next observation, of which the first d pass during inference, and the
            actions `(m,A)` that are left for the next inference.
        """
        going_on = chunk[:0] if left is None or self.execution == "blocking" else left[: self.steps]
        still = np.repeat(hold[None], self.steps - len(going_on), 0)
        new = chunk[len(going_on) :]
        kept = min(self.steps, len(new)) if self.execution == "asynchronous" else 0
        return np.concatenate([going_on, still, new[: len(new) - kept]]), new[len(new) - kept :]


class Delays:
    """Plans the actions of several episodes under a latency, and remembers what each has left.

    The robot is held still by the action whose physical values are zero, with the gripper's last command (open at
    first). This holds a robot whose actions are differences or velocities; targets in absolute coordinates cannot be
    told from these, and the robot would move to their origin.

    Args:
        latency: the latency.
        chunk: actions per call of the policy, K.
        env: the environment; its specs, if it has any, give the bounds and the gripper.

    Raises:
        ConfigError: no action of a chunk would be left when it arrives, or zero lies outside the bounds of an action.
    """

    def __init__(self, latency: Latency, chunk: int, env: Any) -> None:
        latency.check(chunk)
        self.latency = latency
        action = getattr(getattr(env, "specs", None), "action", None)
        self.gripper: int | None = None
        self._still: np.ndarray | None = None
        if action is not None:
            self.gripper = None if action.gripper is None else action.gripper.index
            self._still = _still(action)
        self._left: dict[int, np.ndarray] = {}
        self._command: dict[int, float] = {}

    def plan(self, episode: int, chunk: np.ndarray) -> np.ndarray:
        """Actions `(T,A)` of an episode up to its next observation.

        Args:
            episode: any key of the episode.
            chunk: `(K,A)` actions that the policy infers from the present observation.
        """
        hold = np.zeros_like(chunk[0]) if self._still is None else self._still.copy()
        if self.gripper is not None:
            hold[self.gripper] = self._command.get(episode, 1.0)
        actions, self._left[episode] = self.latency.plan(chunk, self._left.get(episode), hold)
        if self.gripper is not None:
            self._command[episode] = float(actions[-1, self.gripper])
        return actions


def _still(action: ActionSpec) -> np.ndarray:
    """Normalised action `(A,)` whose physical values are zero."""
    low, high = np.array(action.low), np.array(action.high)
    still = -(low + high) / (high - low)
    outside = np.abs(still) > 1
    if action.gripper is not None:
        outside[action.gripper.index] = False
    if outside.any():
        name = action.names[int(outside.argmax())]
        raise ConfigError(
            f"the robot cannot be held still: 0 lies outside the bounds of its action {name}, so it is no difference "
            "or velocity; evaluate without a latency"
        )
    return np.clip(still, -1, 1).astype(np.float32)
