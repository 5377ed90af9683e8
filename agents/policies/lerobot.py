"""LeRobot's policy interface: `select_action`, `predict_action_chunk`, `reset`.

LeRobot's evaluators call these three methods on any policy and pass dictionaries with keys such as
`observation.image` (float, channels first) and `task`. The mixin accepts both key formats.

Example::

    policy.reset()
    action = policy.select_action({"image": image, "state": state, "instruction": ["open the drawer"]})  # (B, A)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldgym.protocols import Observation

if TYPE_CHECKING:
    from worldgym.protocols import PolicyOutput


class LeRobotPolicyMixin:
    """Adds the three methods that LeRobot's tools expect to a `worldgym` policy; actions are greedy."""

    _queue: deque[Tensor]

    if TYPE_CHECKING:

        def act(
            self,
            observation: Observation,
            *,
            temperature: float = 1.0,
            generator: torch.Generator | None = None,
        ) -> PolicyOutput:
            """Provided by the policy class."""
            ...

    def reset(self) -> None:
        """Clear the queue of actions; call it at the start of an episode."""
        self._queue = deque()

    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """Next action `(B,A)`; a new chunk is predicted when the queue is empty."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).unbind(1))
        return self._queue.popleft()

    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """Greedy chunk `(B,K,A)` in [-1,1]."""
        return self.act(to_observation(batch), temperature=0.0).actions


def to_observation(batch: Mapping[str, Any]) -> Observation:
    """Convert a LeRobot batch into an `Observation`; an `Observation` is returned unchanged.

    Raises:
        KeyError: no image, state or instruction under any known key.
    """
    if "image" in batch:
        state = batch["state"] if "state" in batch else np.zeros((len(batch["image"]), 0), np.float32)
        return Observation(image=batch["image"], state=state, instruction=batch["instruction"])
    camera = next((key for key in batch if key.startswith("observation.image")), None)
    task = batch.get("task", batch.get("instruction"))
    if camera is None or "observation.state" not in batch or task is None:
        raise KeyError(
            "need 'observation.image*', 'observation.state' and 'task' (LeRobot), or 'image', 'state' and "
            f"'instruction'; got {sorted(batch)}"
        )
    image = torch.as_tensor(batch[camera])
    if image.is_floating_point():
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    if image.shape[-1] != 3:
        image = image.movedim(-3, -1)
    state = batch["observation.state"]
    if isinstance(task, str):
        task = [task] * image.shape[0]
    return Observation(image=image, state=np.asarray(state, np.float32), instruction=task)
