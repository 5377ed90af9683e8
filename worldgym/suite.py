"""Suites: a common interface to the tasks, splits and domains of one simulator or robot.

Code that measures or records in a simulator gets environments, demonstrators and splits from a suite, so commands,
agents and evaluation do not depend on a particular simulator. A suite is registered in `worldgym.registry.SUITES`, or
by an installed package under the entry-point group `worldgym.suites`. A suite with its own Gymnasium ids registers
them in the way of Gymnasium plugins.

A suite may have optional members beyond the protocol. `extra` returns such a member, or raises an error that names it:

* `expert_action(env, instruction=None) -> (A,)`: the action of the scripted expert in the current state, for the
  episode's instruction or another one that the scene allows;
* `counterfactuals(env, *, task, seed, split) -> list[Counterfactual]`: the expert's actions from one start, and
  perturbations of them that should fail; see `worldgym.data.counterfactual`;
* `watched(**settings) -> env`, whose attribute `positions (T+1, K, 2)` holds the true positions in pixels, and `parts`,
  the K names of the positions: ground truth for the position probe;
* `measure_gap(gap, episodes=...) -> dict` and `frozen_gap() -> float`: the sim-to-real gap of the software simulator;
* `fulfilled(env, instruction) -> bool`: whether an instruction is fulfilled in the current state, for audits of
  relabelled attempts;
* `other_instructions(*, task, seed, split) -> Sequence[str]`: other instructions of the task that a policy could follow
  from a start state, for relabelling failed attempts;
* `task_of(instruction) -> str`: the task that an instruction belongs to;
* `unseen_tasks`: tasks of the split `unseen_task`;
* `stock(seed) -> step`, where `step()` takes one control step in the simulator as its own package makes it, draws the
  frame, and returns 1: a reference for speed;
* `driver() -> str`: name of the OpenGL driver that rendered, for `worldgym info`.

Example::

    from worldgym.suite import load_suite
    suite = load_suite()                                    # the default one
    envs = suite.make(16, domain="real", task=suite.tasks[0], chunk=5)
    env = suite.make_single(terminate_on_success=False)
    episode = suite.demonstrate(env, suite.behaviours[0], seed=3, task=suite.tasks[0], rng=np.random.default_rng(3))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from worldgym.errors import ConfigError
from worldgym.registry import SUITES
from worldgym.specs import Specs

if TYPE_CHECKING:
    import numpy as np

    from worldgym.data import Episode, SplitManifest

SINGLE, BATCH = "worldgym.suite:make_env", "worldgym.suite:make_vec_env"
"""Entry points for worker processes; the keyword `suite` names the suite."""
COUNTERFACTUAL = "counterfactual"
"""Name of the behaviour that executes perturbed demonstrations; suites with `counterfactuals` support it."""
POLICY = "policy"
"""Name of the behaviour in which a trained policy acts; every suite supports it."""
_default: list[str] = []


@runtime_checkable
class Suite(Protocol):
    """Tasks in one simulator.

    Attributes:
        name: registered name.
        tasks: names of all tasks.
        default_tasks: tasks that are recorded and trained on by default.
        splits: splits of start states and instructions, a subset of `worldgym.data.SPLITS`.
        domains: values of `Episode.domain`; the first one stands in for the real robot.
        gap_knobs: settings of `make` that set how far the other domains deviate from the first; may be empty.
        horizon: frames per episode.
        specs: cameras, state fields and actions with the default cameras and sizes.
        state_bounds: lower and upper bounds of the state, S numbers each; infinite if a field is unbounded.
        behaviours: names of the demonstrators, in the order of listed weights.
        mix: sampling weights of the demonstrators in a mixed data collection.
    """

    name: str
    tasks: tuple[str, ...]
    default_tasks: tuple[str, ...]
    splits: tuple[str, ...]
    domains: tuple[str, ...]
    gap_knobs: tuple[str, ...]
    horizon: int
    specs: Specs
    state_bounds: tuple[tuple[float, ...], tuple[float, ...]]
    behaviours: tuple[str, ...]
    mix: Mapping[str, float]

    def specs_for(self, cameras: Sequence[str] | None = None, image_size: Any = None) -> Specs:
        """Specs for other cameras or another image size of the main camera (one number, or height and width)."""
        ...

    def manifest(self) -> SplitManifest:
        """Description of the held-out splits."""
        ...

    def make(self, num_envs: int = 1, **settings: Any) -> Any:
        """Make a vector environment; after `reset(seed=s)` the start of slot i depends only on s + i.

        Its info has `success`, `progress` in [0, 1], `task` and `instruction_text`. With `chunk` it also has `path`,
        `path_success` and `path_progress` of every frame; see `worldgym.imagination.slot_env.SlotVectorEnv`.

        Args:
            num_envs: number of slots.
            **settings: `domain`, `task`, `split`, `horizon`, `chunk`, `cameras`, `image_size`, `terminate_on_success`,
                `render_mode`, `autoreset_mode`, `instruction`, `flat_actions`, and the suite's `gap_knobs`.
        """
        ...

    def make_single(self, **settings: Any) -> Any:
        """Make a single environment with the same settings.

        Its attribute `batch` is the underlying vector environment of one slot, which counts its `interactions`.
        """
        ...

    def demonstrate(
        self,
        env: Any,
        behaviour: str,
        *,
        seed: int,
        task: str,
        rng: np.random.Generator,
        split: str = "seen",
        act: Callable[[dict[str, Any], int], Any] | None = None,
    ) -> Episode:
        """Record one episode, with success and progress of every frame.

        Args:
            env: made by `make_single(terminate_on_success=False)`; its horizon limits the episode length.
            behaviour: one of `behaviours`, or `"policy"` with `act`; `"counterfactual"` if the suite has it.
            seed: seed of the start state.
            task: the task; together with `seed` and `split` it determines the start state.
            rng: random generator of the behaviour.
            split: split of start states and instructions.
            act: `(observation, step) -> action (A,)`.
        """
        ...


def declare_default(name: str) -> None:
    """Make `name` the default suite; only the first declaration has an effect."""
    _default.append(name)


def default_suite() -> str:
    """Name of the suite that is used when none is given.

    Raises:
        ConfigError: no default was declared, and the number of registered suites is not one.
    """
    known = SUITES.names()  # imports the packages that declare a default
    if _default:
        return _default[0]
    if len(known) == 1:
        return known[0]
    raise ConfigError(f"no suite is given; type --suite NAME; the known suites are {', '.join(known) or 'none'}")


def load_suite(name: str | None = None) -> Suite:
    """Load the suite registered as `name`, or the default suite.

    Raises:
        ConfigError: the name is unknown, or the registered object is not a suite; the message lists missing members.
    """
    name = default_suite() if name is None else name
    found = SUITES.get(name)
    suite = found() if isinstance(found, type) else found
    if not isinstance(suite, Suite):
        lacking = [member for member in _members() if not hasattr(suite, member)]
        raise ConfigError(
            f"{name!r} is a {type(suite).__name__} without {', '.join(lacking)}; expected a worldgym.suite.Suite"
        )
    return suite


def extra(suite: Suite, member: str, what: str) -> Any:
    """Get an optional member of a suite.

    Args:
        suite: the suite.
        member: attribute name of the member.
        what: description for the error message, without an article, e.g. "scripted expert".

    Raises:
        ConfigError: the suite does not have the member.
    """
    found = getattr(suite, member, None)
    if found is None:
        raise ConfigError(
            f"suite {suite.name} has no {what}, which this needs; a suite declares it as an attribute {member!r}"
        )
    return found


def make_env(suite: str | None = None, **settings: Any) -> Any:
    """Return `load_suite(suite).make_single(**settings)`; an entry point for worker processes."""
    return load_suite(suite).make_single(**settings)


def make_vec_env(suite: str | None = None, num_envs: int = 1, **settings: Any) -> Any:
    """Return `load_suite(suite).make(num_envs, **settings)`; an entry point for worker processes."""
    return load_suite(suite).make(num_envs, **settings)


def _members() -> list[str]:
    names = [*Suite.__annotations__, *vars(Suite)]
    return [name for name in names if not name.startswith("_")]
