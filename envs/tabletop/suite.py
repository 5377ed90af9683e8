"""The tabletop as a `worldgym.suite.Suite`; MuJoCo is imported when an environment is made.

Example::

    from worldgym.suite import load_suite
    suite = load_suite("tabletop")
    env = suite.make_single(domain="soft", gap=0.5, cameras=("front", "wrist"), terminate_on_success=False)
    episode = suite.demonstrate(env, "expert", seed=3, task="push", rng=np.random.default_rng(3))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.tabletop.grammar import TASKS, task_of
from envs.tabletop.specs import CAMERAS, HORIZON, STATE_HIGH, STATE_LOW, tabletop_specs
from worldgym.specs import Specs

if TYPE_CHECKING:
    import numpy as np

    from worldgym.data import Episode, SplitManifest


class TabletopSuite:
    """Language-conditioned manipulation of primitives, in two domains; see `worldgym.suite.Suite`."""

    name = "tabletop"
    tasks = TASKS
    default_tasks = ("reach", "push", "pick_place")
    unseen_tasks = ("stack",)
    domains = ("real", "soft")
    gap_knobs = ("gap", "looks", "randomise")
    horizon = HORIZON
    state_bounds = (STATE_LOW, STATE_HIGH)
    behaviours = ("expert", "noisy", "near_miss", "distracted", "random")
    mix = {"expert": 0.35, "noisy": 0.2, "near_miss": 0.25, "distracted": 0.1, "random": 0.1}
    specs = tabletop_specs()

    @property
    def splits(self) -> tuple[str, ...]:
        """Which colours, combinations, words and looks occur."""
        return self.manifest().names

    def specs_for(self, cameras: Sequence[str] | None = None, image_size: Any = None) -> Specs:
        """Specs with these cameras, `image_size` of the front one."""
        return tabletop_specs(cameras or ("front",), CAMERAS["front"] if image_size is None else image_size)

    def manifest(self) -> SplitManifest:
        """What is held out."""
        from worldgym.data import SplitManifest

        return SplitManifest.load(Path(__file__).parent / "manifest.json")

    def make(self, num_envs: int = 1, **settings: Any) -> Any:
        """`TabletopVectorEnv`."""
        from envs.tabletop.vector import TabletopVectorEnv

        return TabletopVectorEnv(num_envs, **settings)

    def make_single(self, **settings: Any) -> Any:
        """`TabletopEnv`."""
        from envs.tabletop.env import TabletopEnv

        return TabletopEnv(**settings)

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
        """One logged episode of a scripted hand, or of `act`."""
        from envs.tabletop.collect import rollout

        return rollout(env, task, seed, behaviour, rng, split=split, act=act)

    # -- extras ------------------------------------------------------------------------------------------------------
    def expert_action(self, env: Any) -> Any:
        """What the scripted expert would do now, (4,) float32."""
        from envs.tabletop.experts import expert_action

        return expert_action(env.batch.scene(), env.batch.simulation().privileged())

    @property
    def parts(self) -> tuple[str, ...]:
        """What `watched(...).positions` tells of: the hand, and objects by colour."""
        from envs.tabletop.positions import PARTS

        return PARTS

    def watched(self, **settings: Any) -> Any:
        """A `TabletopEnv` with `positions (T+1, K, 2)`: pixels right and down of the `parts`, nan where absent."""
        from envs.tabletop.positions import WatchedTabletop

        return WatchedTabletop(**settings)

    def measure_gap(self, gap: float, **settings: Any) -> dict[str, Any]:
        """Experts in Real, in Soft, and Soft's actions replayed in Real."""
        from envs.tabletop.gap import measure_gap

        return measure_gap(gap, **settings)

    def frozen_gap(self) -> float:
        """The gap at which comparisons are decided."""
        from envs.tabletop.gap import frozen

        return float(frozen()["gap"])

    def driver(self) -> str:
        """The name of the OpenGL driver that drew, "" before the first drawing."""
        from envs.tabletop.render import driver

        return driver()

    def task_of(self, instruction: str) -> str:
        """The verb that an instruction names."""
        return task_of(instruction)
