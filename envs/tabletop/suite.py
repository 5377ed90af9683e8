"""The tabletop as a `worldgym.suite.Suite`; MuJoCo is imported when an environment is created.

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
    from worldgym.data.counterfactual import Counterfactual


class TabletopSuite:
    """Language-conditioned manipulation of geometric primitives, in two domains; see `worldgym.suite.Suite`."""

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
        """Names of the splits, which differ in colours, combinations, instructions and appearance."""
        return self.manifest().names

    def specs_for(self, cameras: Sequence[str] | None = None, image_size: Any = None) -> Specs:
        """Specs with the given cameras; `image_size` is the size of the front camera."""
        return tabletop_specs(cameras or ("front",), CAMERAS["front"] if image_size is None else image_size)

    def manifest(self) -> SplitManifest:
        """The split manifest: it defines the held-out colours, combinations, instructions, tasks and seeds."""
        from worldgym.data import SplitManifest

        return SplitManifest.load(Path(__file__).parent / "manifest.json")

    def make(self, num_envs: int = 1, **settings: Any) -> Any:
        """Make a `TabletopVectorEnv`."""
        from envs.tabletop.vector import TabletopVectorEnv

        return TabletopVectorEnv(num_envs, **settings)

    def make_single(self, **settings: Any) -> Any:
        """Make a `TabletopEnv`."""
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
        """Run one episode of a scripted behaviour, or of the policy `act`, and return its log."""
        from envs.tabletop.collect import rollout

        return rollout(env, task, seed, behaviour, rng, split=split, act=act)

    # -- extras ------------------------------------------------------------------------------------------------------
    def expert_action(self, env: Any, instruction: str | None = None) -> Any:
        """The scripted expert's action in the current state, (4,) float32; for another instruction if one is given."""
        from envs.tabletop.collect import expert_for

        return expert_for(env, instruction)

    def counterfactuals(self, env: Any, *, task: str, seed: int, split: str = "seen") -> list[Counterfactual]:
        """The expert's actions from one start and perturbations of them; see `worldgym.data.counterfactual`."""
        from envs.recording import counterfactuals
        from envs.tabletop.collect import expert_for, other_instructions

        return counterfactuals(env, expert_for, other_instructions, task=task, seed=seed, split=split)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names along the second axis of `watched(...).positions`: the hand, and the objects by colour."""
        from envs.tabletop.positions import PARTS

        return PARTS

    def watched(self, **settings: Any) -> Any:
        """Make a `TabletopEnv` with `positions (T+1, K, 2)`: pixels (right, down) of the `parts`, nan if absent."""
        from envs.tabletop.positions import WatchedTabletop

        return WatchedTabletop(**settings)

    def measure_gap(self, gap: float, **settings: Any) -> dict[str, Any]:
        """Measure success rates of experts in Real and in Soft, and of the actions from Soft replayed in Real."""
        from envs.tabletop.gap import measure_gap

        return measure_gap(gap, **settings)

    def frozen_gap(self) -> float:
        """The fixed gap that comparisons use."""
        from envs.tabletop.gap import frozen

        return float(frozen()["gap"])

    def driver(self) -> str:
        """Name of the OpenGL driver, "" before the first frame is rendered."""
        from envs.render import driver

        return driver()

    def fulfilled(self, env: Any, instruction: str) -> bool:
        """Whether `instruction` is fulfilled in the current state, whatever the instruction of the episode is."""
        from envs.tabletop.tasks import judge_truth, scene_for

        scene = scene_for(env.batch.scene(), instruction)
        return scene is not None and bool(judge_truth(scene, env.batch.simulation().privileged())[0])

    def other_instructions(self, *, task: str, seed: int, split: str) -> tuple[str, ...]:
        """Other instructions that a policy could follow from the start state of (seed, task, split)."""
        from envs.tabletop.tasks import other_instructions

        return other_instructions(task, seed, split)

    def task_of(self, instruction: str) -> str:
        """The task of an instruction."""
        return task_of(instruction)
