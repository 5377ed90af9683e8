"""Training data of improvers: trajectories as flat tensors, one row per trajectory, grouped by start.

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

from worldgym.errors import ConfigError
from worldgym.protocols import Observation, PolicyOutput


@dataclass
class Rollouts:
    """N trajectories of C chunks of K actions.

    Args:
        images: `(N,C,H,W,3)` uint8, policy input before each chunk.
        states: `(N,C,S)` float32, proprioception before each chunk.
        instructions: N strings.
        actions: `(N,C,K,A)` float32 in [-1,1], zero where `mask` is False.
        mask: `(N,C)` bool, True up to and including the chunk judged successful.
        reward: `(N,)` float32, 1 for success.
        valid: `(N,)` bool, False if the judge failed or the world model's uncertainty exceeded its limit.
        groups: `(N,)` int64, index of the start of each row.
        p_success: `(N,C)` float32, the judge's success probability after each chunk, nan if not judged.
        final_images: `(N,H,W,3)` uint8, the last frame of each trajectory.
        log_probs: by component of the policy, `(N,C,...)` float32: log-probabilities of the choices when sampled.
        trace: by name, `(N,C,...)`: data with which the policy evaluates its choices again; only the policy reads it.
        frames: `(N,C*K+1,H,W,3)` uint8 if all frames were kept, else None.
        path: `(N,C*K,S)` float32, proprioception after each action if it was kept, else None.
        views: by name, `(N,C,H',W',3)` uint8: policy input from the cameras beside the main one.
        weights: `(N,)` importance weights of trajectories that were not drawn from the policy alone; None for ones.
        uncertainty: `(N,)` float32, largest uncertainty of the world model, or of the verdict, in each trajectory;
            None in a simulator.
        other_instructions: for each trajectory, other instructions that a policy could follow from its start; None if
            they are not known.
        frames_used: number of environment or world-model steps, for the budget.
        seconds: wall time by stage: `imagine`, `judge`, `policy`.
    """

    images: Tensor
    states: Tensor
    instructions: list[str]
    actions: Tensor
    mask: Tensor
    reward: Tensor
    valid: Tensor
    groups: Tensor
    p_success: Tensor
    final_images: Tensor
    log_probs: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    trace: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    frames: Tensor | None = None
    path: Tensor | None = None
    views: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    weights: Tensor | None = None
    uncertainty: Tensor | None = None
    other_instructions: list[tuple[str, ...]] | None = None
    frames_used: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Number of trajectories."""
        return self.images.shape[0]

    @property
    def lengths(self) -> Tensor:
        """`(N,)` int64, number of chunks until success or the horizon."""
        return self.mask.sum(1)

    @staticmethod
    def empty(
        images: Tensor,
        states: Tensor,
        instructions: list[str],
        group_size: int,
        shape: tuple[int, int, int],
    ) -> Rollouts:
        """Allocate one unsolved trajectory per row of `images (N,H,W,3)` and `states (N,S)`; `shape` is (C, K, A)."""
        total, (chunks, k, a) = len(images), shape
        return Rollouts(
            images=torch.zeros((total, chunks, *images.shape[1:]), dtype=torch.uint8),
            states=torch.zeros(total, chunks, states.shape[1]),
            instructions=instructions,
            actions=torch.zeros(total, chunks, k, a),
            mask=torch.zeros(total, chunks, dtype=torch.bool),
            reward=torch.zeros(total),
            valid=torch.ones(total, dtype=torch.bool),
            groups=torch.arange(total) // group_size,
            p_success=torch.full((total, chunks), float("nan")),
            final_images=images.clone(),
            path=torch.zeros(total, chunks * k, states.shape[1]),
        )

    def record(
        self, rows: Tensor, chunk: int, observation: Observation, output: PolicyOutput, live: Tensor
    ) -> None:
        """Write observation and output of chunk `chunk` into `rows`; `live` selects the matching rows of the inputs.

        Raises:
            ConfigError: log-probabilities or trace have other names or shapes than in the first recorded chunk.
        """
        self.images[rows, chunk] = torch.as_tensor(observation["image"])[live].cpu()
        self.states[rows, chunk] = torch.as_tensor(observation["state"])[live].cpu()
        for key, value in observation.items():
            if key.startswith("image_"):
                frames, name = torch.as_tensor(value), key.removeprefix("image_")  # type: ignore[arg-type]
                if name not in self.views:
                    self.views[name] = torch.zeros((*self.mask.shape, *frames.shape[1:]), dtype=torch.uint8)
                self.views[name][rows, chunk] = frames[live].cpu()
        self.actions[rows, chunk] = output.actions[live].cpu()
        first = not bool(self.mask.any())
        for kind, kept, given in (
            ("log_probs", self.log_probs, output.log_probs),
            ("trace", self.trace, output.trace),
        ):
            if not first and given.keys() != kept.keys():
                raise ConfigError(
                    f"the policy returned {kind} of {sorted(given)}, but of {sorted(kept)} at the first chunk; "
                    "expected the same names at every chunk"
                )
            for name, value in given.items():
                if name in kept and value.shape[1:] != kept[name].shape[2:]:
                    raise ConfigError(
                        f"the policy returned {kind}[{name!r}] with rows of shape {tuple(value.shape[1:])}, but "
                        f"{tuple(kept[name].shape[2:])} at the first chunk; expected the same shape at every chunk"
                    )
                if name not in kept:
                    kept[name] = torch.zeros((*self.mask.shape, *value.shape[1:]), dtype=value.dtype)
                kept[name][rows, chunk] = value[live].cpu()
        self.mask[rows, chunk] = True

    def success_rate(self) -> float:
        """Mean reward of the valid trajectories; nan if there are none."""
        return float(self.reward[self.valid].mean()) if bool(self.valid.any()) else float("nan")

    def select(self, rows: Tensor) -> Rollouts:
        """Select rows by index or boolean mask."""
        index = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
        values: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                values[field.name] = value[index]
            elif field.name in ("log_probs", "trace", "views"):
                values[field.name] = {name: part[index] for name, part in value.items()}
            elif field.name in ("instructions", "other_instructions"):
                values[field.name] = None if value is None else [value[i] for i in index.tolist()]
            else:
                values[field.name] = value
        return Rollouts(**values)  # type: ignore[arg-type]

    @staticmethod
    def concatenate(parts: list[Rollouts]) -> Rollouts:
        """Join collections of one policy; group ids are renumbered so that groups stay separate."""
        if not parts:
            raise ValueError("nothing to concatenate: got an empty list of Rollouts")
        kinds = {(*sorted(part.log_probs), *sorted(part.trace), *sorted(part.views)) for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"cannot join rollouts of different policies; their traces have {sorted(kinds)}")
        values: dict[str, object] = {}
        offset, groups = 0, []
        for part in parts:
            groups.append(part.groups + offset)
            offset = int(groups[-1].max()) + 1 if len(part) else offset
        for field in dataclasses.fields(Rollouts):
            column = [getattr(part, field.name) for part in parts]
            if field.name == "groups":
                values["groups"] = torch.cat(groups)
            elif field.name in ("frames", "path", "weights", "uncertainty"):
                values[field.name] = None if any(c is None for c in column) else torch.cat(column)
            elif field.name in ("log_probs", "trace", "views"):
                values[field.name] = {name: torch.cat([c[name] for c in column]) for name in column[0]}
            elif isinstance(column[0], Tensor):
                values[field.name] = torch.cat(column)
            elif field.name in ("instructions", "other_instructions"):
                known = all(c is not None for c in column)
                values[field.name] = [item for c in column for item in c] if known else None
            elif field.name == "frames_used":
                values[field.name] = sum(column)
            elif field.name == "seconds":
                values[field.name] = {k: sum(c.get(k, 0.0) for c in column) for k in column[0]}
        return Rollouts(**values)  # type: ignore[arg-type]

    def trace_at(self, row: Tensor, chunk: Tensor) -> dict[str, Tensor]:
        """Trace at `(row, chunk)` pairs, each `(M,)` int64."""
        return {name: value[row, chunk] for name, value in self.trace.items()}

    def observation(self, row: Tensor, chunk: Tensor) -> Observation:
        """Policy input at `(row, chunk)` pairs, each `(M,)` int64."""
        made = Observation(
            image=self.images[row, chunk],
            state=self.states[row, chunk],
            instruction=[self.instructions[i] for i in row.tolist()],
        )
        for name, frames in self.views.items():
            made[f"image_{name}"] = frames[row, chunk]  # type: ignore[literal-required]
        return made
