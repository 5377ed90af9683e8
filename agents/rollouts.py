"""What improvers learn from: trajectories as flat tensors, one row a trajectory, grouped by start.

Example::

    rollouts = collect(world_model, judge, policy, starts, group_size=8)
    rollouts.success_rate(), rollouts.images.shape  # 0.31, (128, 8, 64, 64, 3)
    kept = rollouts.select(rollouts.reward > 0)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from worldgym.protocols import Observation, PolicyOutput


@dataclass
class Rollouts:
    """N trajectories of C chunks of K actions.

    Args:
        images: `(N,C,H,W,3)` uint8, what the policy saw before each chunk.
        states: `(N,C,S)` float32, proprioception before each chunk.
        instructions: N strings.
        tokens: `(N,C,K,A)` int64, the sampled bins.
        log_probs: `(N,C,K,A)` float32, their log-probabilities when sampled, at `temperature`.
        actions: `(N,C,K,A)` float32 in [-1,1], zero where `mask` is False.
        mask: `(N,C)` bool, True up to and including the chunk in which success was judged.
        reward: `(N,)` float32, 1 for success.
        valid: `(N,)` bool, False where the judge failed or the world model lost confidence.
        groups: `(N,)` int64, which start a row belongs to.
        p_success: `(N,C)` float32, the judge's probability after each chunk, nan where nothing was judged.
        final_images: `(N,H,W,3)` uint8, the last frame that was reached.
        temperature: at which places were sampled.
        frames: `(N,C*K+1,H,W,3)` uint8 when every frame was asked for, else None.
        path: `(N,C*K,S)` float32, proprioception after each action, when it was kept, else None.
        aims: `(N,C,2)` standardised places that the policy acted towards.
        place_log_probs: `(N,C)` float32, their log-probability when sampled, at `temperature`.
        token_temperature: at which the tokens were sampled; `temperature` is that of the places.
        frames_used: environment or world-model steps spent, for the budget.
        seconds: wall time by stage: `imagine`, `judge`, `policy`.
    """

    images: Tensor
    states: Tensor
    instructions: list[str]
    tokens: Tensor
    log_probs: Tensor
    actions: Tensor
    mask: Tensor
    reward: Tensor
    valid: Tensor
    groups: Tensor
    p_success: Tensor
    final_images: Tensor
    aims: Tensor
    place_log_probs: Tensor
    temperature: float = 1.0
    token_temperature: float = 1.0
    frames: Tensor | None = None
    path: Tensor | None = None
    frames_used: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Number of trajectories."""
        return self.images.shape[0]

    @property
    def lengths(self) -> Tensor:
        """`(N,)` int64, chunks until success or the horizon."""
        return self.mask.sum(1)

    @staticmethod
    def empty(
        images: Tensor,
        states: Tensor,
        instructions: list[str],
        group_size: int,
        shape: tuple[int, int, int],
        temperature: float = 1.0,
        token_temperature: float = 1.0,
    ) -> Rollouts:
        """Room for one trajectory a row of `images (N,H,W,3)`, `states (N,S)`, `shape` (C, K, A); nothing solved."""
        total, (chunks, k, a) = len(images), shape
        return Rollouts(
            images=torch.zeros((total, chunks, *images.shape[1:]), dtype=torch.uint8),
            states=torch.zeros(total, chunks, states.shape[1]),
            instructions=instructions,
            tokens=torch.zeros(total, chunks, k, a, dtype=torch.int64),
            log_probs=torch.zeros(total, chunks, k, a),
            actions=torch.zeros(total, chunks, k, a),
            mask=torch.zeros(total, chunks, dtype=torch.bool),
            reward=torch.zeros(total),
            valid=torch.ones(total, dtype=torch.bool),
            groups=torch.arange(total) // group_size,
            p_success=torch.full((total, chunks), float("nan")),
            final_images=images.clone(),
            aims=torch.zeros(total, chunks, 2),
            place_log_probs=torch.zeros(total, chunks),
            temperature=temperature,
            token_temperature=token_temperature,
            path=torch.zeros(total, chunks * k, states.shape[1]),
        )

    def record(
        self, rows: Tensor, chunk: int, image: Tensor, state: Tensor, output: PolicyOutput, live: Tensor
    ) -> None:
        """Write what was seen and done at `chunk` into `rows`; `live` chooses among the rows of the other arguments."""
        self.images[rows, chunk] = image[live].cpu()
        self.states[rows, chunk] = state[live].cpu()
        self.actions[rows, chunk] = output.actions[live].cpu()
        for name, key in (
            ("tokens", "tokens"),
            ("log_probs", "token_log_probs"),
            ("aims", "aim"),
            ("place_log_probs", "place_log_prob"),
        ):
            getattr(self, name)[rows, chunk] = output.trace[key][live].cpu()
        self.mask[rows, chunk] = True

    def success_rate(self) -> float:
        """Mean reward of the valid trajectories; nan without any."""
        return float(self.reward[self.valid].mean()) if bool(self.valid.any()) else float("nan")

    def select(self, rows: Tensor) -> Rollouts:
        """Rows by index or boolean mask."""
        index = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
        values: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                values[field.name] = value[index]
            elif field.name == "instructions":
                values[field.name] = [value[i] for i in index.tolist()]
            else:
                values[field.name] = value
        return Rollouts(**values)  # type: ignore[arg-type]

    @staticmethod
    def concatenate(parts: list[Rollouts]) -> Rollouts:
        """Join collections sampled at one temperature; group ids are kept apart."""
        if not parts:
            raise ValueError("nothing to concatenate: got an empty list of Rollouts")
        if len({(part.temperature, part.token_temperature) for part in parts}) > 1:
            raise ValueError(
                "cannot join rollouts of different temperatures: their log-probabilities differ in meaning"
            )
        values: dict[str, object] = {
            "temperature": parts[0].temperature,
            "token_temperature": parts[0].token_temperature,
        }
        offset, groups = 0, []
        for part in parts:
            groups.append(part.groups + offset)
            offset = int(groups[-1].max()) + 1 if len(part) else offset
        for field in dataclasses.fields(Rollouts):
            column = [getattr(part, field.name) for part in parts]
            if field.name == "groups":
                values["groups"] = torch.cat(groups)
            elif field.name in ("frames", "path"):
                values[field.name] = None if any(c is None for c in column) else torch.cat(column)
            elif isinstance(column[0], Tensor):
                values[field.name] = torch.cat(column)
            elif field.name == "instructions":
                values[field.name] = [text for c in column for text in c]
            elif field.name == "frames_used":
                values[field.name] = sum(column)
            elif field.name == "seconds":
                values[field.name] = {k: sum(c.get(k, 0.0) for c in column) for k in column[0]}
        return Rollouts(**values)  # type: ignore[arg-type]

    def observation(self, row: Tensor, chunk: Tensor) -> Observation:
        """Policy input at `(row, chunk)` pairs, each `(M,)` int64."""
        return Observation(
            image=self.images[row, chunk],
            state=self.states[row, chunk],
            instruction=[self.instructions[i] for i in row.tolist()],
        )
