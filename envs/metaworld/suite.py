"""Meta-World as a `worldgym.suite.Suite`; MuJoCo and metaworld are imported when an environment is created.

Example::

    from worldgym.suite import load_suite
    suite = load_suite("metaworld")
    env = suite.make_single(cameras=("front", "wrist"), terminate_on_success=False)
    episode = suite.demonstrate(env, "expert", seed=3, task="drawer_open", rng=np.random.default_rng(3))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.metaworld.specs import CAMERAS, HORIZON, STATE_HIGH, STATE_LOW, metaworld_specs
from envs.metaworld.tasks import DEFAULT_TASKS, SPLITS, TASKS, UNSEEN_TASKS, task_of
from worldgym.specs import Specs

if TYPE_CHECKING:
    import numpy as np

    from worldgym.data import Episode, SplitManifest
    from worldgym.data.counterfactual import Counterfactual


class MetaWorldSuite:
    """Thirteen tasks of Meta-World with instructions, in two domains; see `worldgym.suite.Suite`."""

    name = "metaworld"
    tasks = tuple(TASKS)
    default_tasks = DEFAULT_TASKS
    unseen_tasks = UNSEEN_TASKS
    splits = SPLITS
    domains = ("real", "soft")
    gap_knobs = ("gap", "looks")
    horizon = HORIZON
    state_bounds = (STATE_LOW, STATE_HIGH)
    behaviours = ("expert", "noisy", "near_miss", "distracted", "random")
    mix = {"expert": 0.35, "noisy": 0.2, "near_miss": 0.25, "distracted": 0.1, "random": 0.1}
    specs = metaworld_specs()

    def specs_for(self, cameras: Sequence[str] | None = None, image_size: Any = None) -> Specs:
        """Specs with the given cameras; `image_size` is the size of the front camera."""
        return metaworld_specs(cameras or ("front",), CAMERAS["front"] if image_size is None else image_size)

    def manifest(self) -> SplitManifest:
        """The split manifest: it defines the held-out instructions, tasks and seeds."""
        from worldgym.data import SplitManifest

        return SplitManifest.load(Path(__file__).parent / "manifest.json")

    def make(self, num_envs: int = 1, **settings: Any) -> Any:
        """Make a `MetaWorldVectorEnv`."""
        from envs.metaworld.vector import MetaWorldVectorEnv

        return MetaWorldVectorEnv(num_envs, **settings)

    def make_single(self, **settings: Any) -> Any:
        """Make a `MetaWorldEnv`."""
        from envs.metaworld.vector import MetaWorldEnv

        return MetaWorldEnv(**settings)

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
        """Run one episode of a scripted behaviour, or of the policy `act`, and return its log."""
        from envs.metaworld.collect import rollout

        return rollout(env, task, seed, behaviour, rng, split=split, act=act)

    # -- extras ------------------------------------------------------------------------------------------------------
    def expert_action(self, env: Any, instruction: str | None = None) -> Any:
        """The scripted expert's action in the current state, (4,) float32; for another instruction if one is given."""
        from envs.metaworld.collect import expert_for

        return expert_for(env, instruction)

    def counterfactuals(self, env: Any, *, task: str, seed: int, split: str = "seen") -> list[Counterfactual]:
        """The expert's actions from one start and perturbations of them; see `worldgym.data.counterfactual`."""
        from envs.metaworld.collect import expert_for, other_instructions
        from envs.recording import counterfactuals

        return counterfactuals(env, expert_for, other_instructions, task=task, seed=seed, split=split)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names along the second axis of `watched(...).positions`: the hand, the goal, and the objects."""
        from envs.metaworld.positions import PARTS

        return PARTS

    def watched(self, **settings: Any) -> Any:
        """Make a `MetaWorldEnv` with `positions (T+1, K, 2)`: pixels (right, down) of the `parts`, nan if absent."""
        from envs.metaworld.positions import WatchedMetaWorld

        return WatchedMetaWorld(**settings)

    def measure_gap(self, gap: float, **settings: Any) -> dict[str, Any]:
        """Measure success rates of experts in Real and in Soft, and of the actions from Soft replayed in Real."""
        from envs.metaworld.gap import measure_gap

        return measure_gap(gap, **settings)

    def frozen_gap(self) -> float:
        """The fixed gap that comparisons use."""
        from envs.metaworld.gap import frozen

        return float(frozen()["gap"])

    def stock(self, seed: int = 0) -> Callable[[], int]:
        """A step of the environment as Meta-World's package draws it, for comparisons of speed."""
        from envs.metaworld.stock import stock

        return stock(self.specs.observation.main.height, seed)

    def driver(self) -> str:
        """Name of the OpenGL driver, "" before the first frame is rendered."""
        from envs.render import driver

        return driver()

    def task_of(self, instruction: str) -> str:
        """The task of an instruction."""
        return task_of(instruction)
