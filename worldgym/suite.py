"""A suite: tasks, splits and domains of one simulator or robot, behind one interface, found by name.

Everything that is measured or recorded in a simulator asks a suite for environments, demonstrators and splits, so that
commands, agents and evaluation name no simulator. A suite is registered in `worldgym.registry.SUITES`, or by an
installed package under the entry-point group `worldgym.suites`; a suite with Gymnasium ids of its own registers them as
Gymnasium plugins do.

What a suite may have beyond the protocol is asked for by `extra`, which says so where it is absent:

* `expert_action(env) -> (A,)`: what the scripted expert would do now;
* `watched(**settings) -> env`, with an attribute `positions (T+1, K, 2)` in pixels, and `parts`, their K names: a ruler
  for what a world model drew;
* `measure_gap(gap, episodes=...) -> dict` and `frozen_gap() -> float`: how wrong the software simulator is;
* `task_of(instruction) -> str`: the task that an instruction names;
* `unseen_tasks`: tasks of the split `unseen_task`;
* `driver() -> str`: name of the OpenGL driver that drew, for `worldgym info`.

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
"""Entry points for worker processes; the keyword `suite` says which."""
POLICY = "policy"
"""Name of the behaviour in which a checkpoint acts; every suite can demonstrate it."""
_default: list[str] = []


@runtime_checkable
class Suite(Protocol):
    """Tasks in one simulator.

    Attributes:
        name: as registered.
        tasks: names of all tasks.
        default_tasks: those that are recorded and practised where nobody says which.
        splits: of starts and words, among `worldgym.data.SPLITS`.
        domains: as in `Episode.domain`; the first one plays the robot.
        gap_knobs: settings of `make` that say how wrong the other domains are; may be empty.
        horizon: frames of an episode.
        specs: cameras, state fields and actions with the default cameras and sizes.
        state_bounds: lower and upper bound of the state, S numbers each; infinite for none.
        behaviours: names of demonstrators, in the order in which weights are listed.
        mix: weights of the demonstrators in a mixed collection.
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
        """Specs with other cameras, or another size of the main one (a number, or height and width)."""
        ...

    def manifest(self) -> SplitManifest:
        """What is held out."""
        ...

    def make(self, num_envs: int = 1, **settings: Any) -> Any:
        """A vector environment whose slot i of `reset(seed=s)` depends on s + i alone.

        Its info has `success`, `progress` in [0, 1], `task`, `instruction_text`, and with a chunk `path`,
        `path_success`, `path_progress` of every frame; see `worldgym.imagination.slot_env.SlotVectorEnv`.

        Args:
            num_envs: number of slots.
            **settings: `domain`, `task`, `split`, `horizon`, `chunk`, `cameras`, `image_size`, `terminate_on_success`,
                `render_mode`, `autoreset_mode`, `instruction`, `flat_actions`, and the suite's `gap_knobs`.
        """
        ...

    def make_single(self, **settings: Any) -> Any:
        """The single environment of the same settings; `batch` is its batch of one, with `interactions` counted."""
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
        """One logged episode, with success and progress of every frame.

        Args:
            env: of `make_single(terminate_on_success=False)`; its horizon bounds the length.
            behaviour: one of `behaviours`, or `"policy"` with `act`.
            seed: of the start.
            task: with `seed` and `split` it decides the start.
            rng: randomness of the behaviour.
            split: which starts and words.
            act: `(observation, step) -> action (A,)`.
        """
        ...


def declare_default(name: str) -> None:
    """Make `name` the suite of those who name none; the first one declared counts."""
    _default.append(name)


def default_suite() -> str:
    """Name of the suite that is meant where nobody names one.

    Raises:
        ConfigError: none was declared, and there is not exactly one.
    """
    known = SUITES.names()  # finds the packages that declare one
    if _default:
        return _default[0]
    if len(known) == 1:
        return known[0]
    raise ConfigError(f"which suite? Type --suite NAME; known are {', '.join(known) or 'none'}")


def load_suite(name: str | None = None) -> Suite:
    """The suite of that name, or the default one.

    Raises:
        ConfigError: unknown, or what is registered is no suite; says what it lacks.
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
    """An optional part of a suite.

    Args:
        suite: the suite.
        member: its name.
        what: how the message calls it, e.g. "a scripted expert".

    Raises:
        ConfigError: the suite has none.
    """
    found = getattr(suite, member, None)
    if found is None:
        raise ConfigError(
            f"suite {suite.name} has no {what}, which this needs; a suite declares it as an attribute {member!r}"
        )
    return found


def make_env(suite: str | None = None, **settings: Any) -> Any:
    """`load_suite(suite).make_single(**settings)`, as an entry point for worker processes."""
    return load_suite(suite).make_single(**settings)


def make_vec_env(suite: str | None = None, num_envs: int = 1, **settings: Any) -> Any:
    """`load_suite(suite).make(num_envs, **settings)`, likewise."""
    return load_suite(suite).make(num_envs, **settings)


def _members() -> list[str]:
    names = [*Suite.__annotations__, *vars(Suite)]
    return [name for name in names if not name.startswith("_")]
