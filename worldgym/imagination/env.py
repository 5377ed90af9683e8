"""The single imagined environment: the batch-of-one view of `WorldModelVectorEnv`.

Task Description
    Predict frames from a real start frame under the agent's actions until the judge detects that the instruction is
    fulfilled.
Randomizations
    The start (image, state, instruction) and the world model's noise; fully determined by the seed.
Success Conditions
    The judge's probability of success reaches `success_threshold`, the judge's own by default. The judge can be wrong:
    verify important results by replaying the actions in the suite's real domain.

Example::

    from worldgym.imagination import WorldModelEnv
    env = WorldModelEnv("runs/wm", reward="rewards.models.learned:load_bundled", starts="runs/starts.npz")
    observation, info = env.reset(seed=0, options={"instruction": "push the red cube to the left"})
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    saved = env.save_state()  # env.restore_state(saved) continues from here, bit for bit
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from worldgym.imagination.batch_of_one import BatchOfOne
from worldgym.imagination.episodes import SavedState
from worldgym.imagination.starts import StartSet
from worldgym.imagination.vector import WorldModelVectorEnv
from worldgym.protocols import RewardModel, WorldModel


class WorldModelEnv(BatchOfOne):
    """A `gymnasium.Env` made of one world model, one judge and one start set.

    Args:
        world_model: a `protocols.WorldModel`, or the path or name of a checkpoint.
        reward: a `protocols.RewardModel`, an entry point "package.module:factory", or None for no reward.
        starts: a `StartSet`, the path or name of one, or None if every reset passes an `initial_image`.
        render_mode: None or "rgb_array".
        **settings: horizon, chunk, judge_every, ... as in `WorldModelVectorEnv`.

    Raises:
        TypeError: an unknown keyword, or an object that does not follow its protocol.
        ValueError: an impossible setting.
    """

    nan_keys = ("p_success",)
    batch: WorldModelVectorEnv

    def __init__(
        self,
        world_model: WorldModel | str | Path,
        reward: RewardModel | str | None = None,
        starts: StartSet | str | Path | None = None,
        *,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        for key in ("num_envs", "autoreset_mode"):
            if key in settings:
                raise TypeError(
                    f"{key} is a setting of batched environments; use gym.make_vec or WorldModelVectorEnv"
                )
        batch = WorldModelVectorEnv(
            world_model,
            reward,
            starts,
            num_envs=1,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
            **settings,
        )
        super().__init__(batch)

    @property
    def instruction(self) -> str:
        """The instruction of this episode."""
        return self.batch.instructions[0]

    def save_state(self) -> SavedState:
        """The whole episode, including its random streams, as a value that later steps do not change."""
        return self.batch.save_state()

    def restore_state(self, state: SavedState) -> None:
        """Inverse of `save_state`: the same actions then give identical bits."""
        self._share_stream()
        self.batch.restore_state(state)
