"""Records an episode of a suite: steps an environment with a controller and returns the log.

Example::

    def begin(observation, info):
        return Begun(MyController(env), observation, info)

    episode = record(env, begin, task="push", seed=3, split="seen", provenance={"behaviour": "expert"})
    episode = scripted(env, MyController, task="push", seed=3, behaviour="expert", rng=rng, version=1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from worldgym.data.counterfactual import FAMILIES, UNPERTURBED, WRONG_OBJECT, Counterfactual, perturbed
from worldgym.data.episode import Episode
from worldgym.suite import COUNTERFACTUAL

LINGER = 3
"""Steps after a success until the controller is told, so that the log shows the success for a moment."""


class Controller(Protocol):
    """Chooses actions for one episode."""

    def act(self, observation: dict[str, Any], step: int) -> NDArray[np.float32]:
        """The next action `(A,)` in [-1, 1]."""
        ...

    def finished(self) -> bool:
        """Called once, `LINGER` steps after the instruction was fulfilled; True ends the episode."""
        ...


class Begun(NamedTuple):
    """An episode that is about to be recorded.

    Args:
        controller: chooses the actions.
        observation: the first observation of the log.
        info: its info.
        used: steps taken since the reset, which count towards the horizon.
    """

    controller: Controller
    observation: dict[str, Any]
    info: dict[str, Any]
    used: int = 0


class Acting:
    """Controller that asks a function `(observation, step) -> action (A,)`, and does not stop at success."""

    def __init__(self, act: Callable[[dict[str, Any], int], Any]) -> None:
        self._act = act

    def act(self, observation: dict[str, Any], step: int) -> NDArray[np.float32]:
        """The function's action."""
        return np.asarray(self._act(observation, step), np.float32)

    def finished(self) -> bool:
        """Go on."""
        return False


def record(
    env: Any,
    begin: Callable[[dict[str, Any], dict[str, Any]], Begun],
    *,
    task: str,
    seed: int,
    split: str,
    provenance: dict[str, Any],
) -> Episode:
    """Run one episode and log it with success and progress of every frame.

    Args:
        env: made by `make_single(terminate_on_success=False)`; its horizon bounds the length.
        begin: called with the observation and info of the reset.
        task: name of the task; with `seed` and `split` it determines the start state.
        seed: seed of the start state.
        split: split of start states and instructions.
        provenance: what else to store with the episode.
    """
    controller, observation, info, used = begin(*env.reset(seed=seed, options={"task": task, "split": split}))
    observations, actions = [observation], []
    success, progress = [info["success"]], [info["progress"]]
    since = 0
    for step in range(env.batch.horizon - used):
        action = controller.act(observation, step)
        observation, _, _, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        success.append(info["success"])
        progress.append(info["progress"])
        since = since + 1 if since or info["success"] else 0
        if (since == LINGER and controller.finished()) or truncated:
            break
    batch = env.batch
    keys = batch.specs.observation.camera_keys
    videos = {name: np.stack([each[key] for each in observations]) for name, key in keys.items()}
    return Episode(
        frames=videos.pop(batch.specs.observation.main.name),
        actions=np.stack(actions).astype(np.float32),
        state=np.stack([each["state"] for each in observations]).astype(np.float32),
        views=videos,
        instruction=env.instruction,
        success=np.array(success, bool),
        progress=np.array(progress, np.float32),
        domain=batch.domain,
        split=split,
        task=task,
        provenance={"seed": int(seed), "gap": batch.gap, "steps": len(actions), **provenance},
    )


def scripted(
    env: Any,
    controller: Callable[[Any, str, np.random.Generator], Controller],
    *,
    task: str,
    seed: int,
    behaviour: str,
    rng: np.random.Generator,
    version: int,
    split: str = "seen",
    act: Callable[[dict[str, Any], int], Any] | None = None,
    warmup: tuple[float, int] = (0.5, 6),
) -> Episode:
    """Run one episode of a scripted behaviour, or of a policy, and log it.

    Args:
        env: made with `terminate_on_success=False`; its horizon bounds the length.
        controller: makes the controller of a behaviour, `(env, behaviour, rng)`; it knows `"expert"` and `"random"`.
        task: name of the task; with `seed` and `split` it determines the start state.
        seed: seed of the start state.
        behaviour: name of the behaviour, or `"policy"` with `act`.
        rng: randomness of the behaviour.
        version: version of the suite's collector, stored with the episode.
        split: split of start states and instructions.
        act: function `(observation, step) -> action (A,)` for `"policy"`.
        warmup: share of the experts' episodes that begin with random steps, and their largest number. Demonstrations
            from perturbed start states show how to recover from the errors of a policy.

    Raises:
        ValueError: unknown behaviour, or `"policy"` without `act`.
    """
    if behaviour == "policy" and act is None:
        raise ValueError("behaviour 'policy' needs act=, a function (observation, step) -> action (A,)")
    provenance: dict[str, Any] = {"behaviour": behaviour, "collector_version": version, "warmup": 0}

    def begin(observation: dict[str, Any], info: dict[str, Any]) -> Begun:
        if behaviour == "policy":
            assert act is not None
            return Begun(Acting(act), observation, info)
        used = 0
        if behaviour == "expert" and rng.random() < warmup[0]:
            used = int(rng.integers(1, warmup[1] + 1))
            shaken = controller(env, "random", rng)
            for step in range(used):
                observation, _, _, _, info = env.step(shaken.act(observation, step))
        provenance["warmup"] = used
        return Begun(controller(env, behaviour, rng), observation, info, used)

    return record(env, begin, task=task, seed=seed, split=split, provenance=provenance)


Expert = Callable[[Any, "str | None"], NDArray[np.float32]]
"""The scripted expert's action `(A,)` in the current state, for the episode's instruction or for another one."""


def counterfactuals(
    env: Any, expert: Expert, others: Callable[[Any], Sequence[str]], *, task: str, seed: int, split: str
) -> list[Counterfactual]:
    """Actions of the expert from one start state, and every perturbation of them that applies there.

    Args:
        env: made by `make_single(terminate_on_success=False)`; the expert acts in it.
        expert: the scripted expert.
        others: other instructions that the current scene allows, for `wrong_object`; the first one is taken.
        task: name of the task; with `seed` and `split` it determines the start state.
        seed: seed of the start state.
        split: split of start states and instructions.

    Returns:
        the expert's sequence, and then its perturbations; none where the expert fails.
    """
    plan, end = _plan(env, expert, None, task, seed, split)
    found = [Counterfactual(UNPERTURBED, 0.0, plan, end)]
    if end is None:
        return found
    spec = env.batch.specs.action
    for number, (family, severities) in enumerate(FAMILIES.items()):
        if family == WRONG_OBJECT:
            for other in others(env)[:1]:
                wrong = _plan(env, expert, other, task, seed, split)[0]
                found.append(Counterfactual(family, severities[0], wrong, end))
            continue
        for severity in severities:
            rng = np.random.default_rng([seed, number])
            changed = perturbed(plan, spec, family, severity, end=end, rng=rng)
            if changed is not None:
                found.append(Counterfactual(family, severity, changed, end))
    return found


def counterfactual(
    env: Any,
    expert: Expert,
    others: Callable[[Any], Sequence[str]],
    *,
    task: str,
    seed: int,
    split: str,
    rng: np.random.Generator,
    version: int,
) -> Episode:
    """Execute one of the perturbed sequences of `counterfactuals`, drawn uniformly; the expert's if it failed.

    Planning executes the demonstration once more, and that of the other instruction, which the log does not count.
    """
    found = counterfactuals(env, expert, others, task=task, seed=seed, split=split)
    drawn = found[0] if len(found) == 1 else found[1 + int(rng.integers(len(found) - 1))]

    def begin(observation: dict[str, Any], info: dict[str, Any]) -> Begun:
        return Begun(Acting(lambda _, step: drawn.actions[step]), observation, info)

    facts: dict[str, Any] = {"behaviour": COUNTERFACTUAL, "collector_version": version, "warmup": 0}
    facts |= {"family": drawn.family, "severity": drawn.severity}
    return record(env, begin, task=task, seed=seed, split=split, provenance=facts)


def _plan(
    env: Any, expert: Expert, instruction: str | None, task: str, seed: int, split: str
) -> tuple[NDArray[np.float32], int | None]:
    """Actions `(T,A)` of the expert over the horizon, and after how many the episode's instruction is fulfilled."""
    env.reset(seed=seed, options={"task": task, "split": split})
    actions: list[NDArray[np.float32]] = []
    end, truncated = None, False
    while not truncated:
        actions.append(np.asarray(expert(env, instruction), np.float32))
        _, _, _, truncated, info = env.step(actions[-1])
        end = len(actions) if end is None and info["success"] else end
    return np.stack(actions), end
