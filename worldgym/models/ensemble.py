"""An ensemble of world models with one tokenizer: the first predicts, the others estimate the uncertainty.

A single network's estimate of its own error (`Imagined.uncertainty` of one model) was fitted on the logs and is not
reliable where there were none. Ensemble members that were trained separately agree where the data determined the
outcome and differ elsewhere. At every step all members get the leader's last frame and predict the next one; the
variance among these predictions is the uncertainty (one-step disagreement: PETS, Chua et al. 2018; Plan2Explore, Sekar
et al. 2020, section 3). The predicted video is the leader's alone, bit for bit. Each further member costs one more
network pass per frame, and no decoding.

Example::

    model = EnsembleWorldModel([load_world_model("tabletop-small"), load_world_model("runs/other/export")])
    envs = gym.make_vec("worldgym/Imagined-v0", num_envs=8, world_model=model, uncertainty_bound=0.02)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models.video.state import ImaginedState
from worldgym.models.video.world_model import VideoWorldModel
from worldgym.nn import RowBatch
from worldgym.protocols import Decode, Imagined
from worldgym.registry import TYPE
from worldgym.specs import Specs
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.sizes import ImageSize


@dataclass(frozen=True)
class EnsembleState(RowBatch):
    """States of all members; all caches contain the leader's frames."""

    members: tuple[ImaginedState, ...]

    @property
    def latent(self) -> Tensor:
        """The current clean latent `(B,C,h,w)` of the leader."""
        return self.members[0].latent

    @property
    def states(self) -> Tensor:
        """The leader's current proprioception `(B,S)`."""
        return self.members[0].states

    @property
    def batch_size(self) -> int:
        """B."""
        return self.members[0].batch_size

    @property
    def keys(self) -> Tensor:
        """Noise keys `(B,)` int64, shared by all members."""
        return self.members[0].keys

    def with_keys(self, keys: Tensor) -> EnsembleState:
        """The same state with new noise keys `(B,)` int64."""
        return EnsembleState(tuple(member.with_keys(keys) for member in self.members))


class EnsembleWorldModel:
    """An ensemble as one `worldgym.protocols.WorldModel`.

    Args:
        members: two or more world models with the same tokenizer; the first one is the leader.

    Raises:
        ConfigError: fewer than two members, the same object twice, or different tokenizers.
    """

    def __init__(self, members: Sequence[VideoWorldModel]) -> None:
        if len(members) < 2 or len({id(member) for member in members}) < len(members):
            raise ConfigError(
                f"got {len(members)} members, expected at least two different ones: one model never disagrees with "
                "itself"
            )
        self.members = tuple(members)
        self.leader = members[0]
        leader_weights = self.leader.tokenizer.state_dict()
        for i, member in enumerate(members[1:], 1):
            other_weights = member.tokenizer.state_dict()
            if leader_weights.keys() != other_weights.keys() or not all(
                torch.equal(leader_weights[k], other_weights[k]) for k in leader_weights
            ):
                raise ConfigError(
                    f"member {i} has another tokenizer than the leader, so their latents can't be compared; train it "
                    "with `worldgym train world-model --tokenizer` and the leader's tokenizer"
                )
        self.tokenizer = self.leader.tokenizer
        self.action_dim, self.state_dim = self.leader.action_dim, self.leader.state_dim

    @property
    def uncertainty_kind(self) -> str:
        """What `info["uncertainty"]` is: disagreement of predicted latents."""
        return "ensemble"

    @property
    def specs(self) -> Specs:
        """Specs of the leader."""
        return self.leader.specs

    @property
    def image_size(self) -> ImageSize:
        """Height and width of the main camera's frames in pixels; one number for a square."""
        return self.leader.image_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.leader.device

    def to(self, device: torch.device | str) -> EnsembleWorldModel:
        """Move every member to `device`; returns self."""
        for member in self.members:
            member.to(device)
        return self

    def with_sampler(self, **changes: object) -> EnsembleWorldModel:
        """Change every member's sampler, see `VideoWorldModel.with_sampler`; returns self."""
        for member in self.members:
            member.with_sampler(**changes)
        return self

    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> EnsembleState:
        """Like `VideoWorldModel.begin`; draws as many random numbers as the leader alone."""
        first = self.leader.begin(frames, actions, generator, states=states, views=views)
        rest = [
            member.begin(frames, actions, torch.Generator().manual_seed(0), states=states, views=views)
            for member in self.members[1:]
        ]
        return EnsembleState((first, *rest)).with_keys(first.keys)

    def step(
        self, state: EnsembleState, actions: Tensor, *, decode: Decode = "all"
    ) -> tuple[EnsembleState, Imagined]:
        """Like `VideoWorldModel.step`; `uncertainty (B,)` is the members' variance, the largest of the K steps.

        The variance is that of a latent value (latents have unit mean square), averaged over the frame.
        """
        if decode not in ("all", "last", "none"):
            raise ConfigError(f"decode must be 'all', 'last' or 'none', got {decode!r}")
        if actions.ndim != 3 or actions.shape[1] < 1:
            raise ConfigError(
                f"actions have shape {tuple(actions.shape)}, expected (B, K, {self.action_dim}), K >= 1"
            )
        actions, members = actions.to(self.device), list(state.members)
        latents, states, disagreements = [], [], []
        for i in range(actions.shape[1]):
            chunk = actions[:, i : i + 1]
            before = members[0]
            members[0], imagined = self.leader.step(before, chunk, decode="none")
            predictions = [imagined.latents[:, 0]]
            for j, member in enumerate(self.members[1:], 1):
                member_state = members[j].replace(latent=before.latent, states=before.states)
                members[j], prediction = member.step(member_state, chunk, decode="none")
                predictions.append(prediction.latents[:, 0])
            disagreements.append(torch.stack(predictions).var(0, correction=0).mean((1, 2, 3)))
            latents.append(imagined.latents)
            states.append(imagined.states)
        every = torch.cat(latents, 1)
        shown = {"all": every, "last": every[:, -1:], "none": every[:, :0]}[decode]
        frames, views = self.leader.decode(shown)
        return EnsembleState(tuple(members)), Imagined(
            frames=frames,
            latents=every,
            states=torch.cat(states, 1),
            uncertainty=torch.stack(disagreements, 1).amax(1),
            views=views,
        )

    def fork(
        self, state: EnsembleState, index: Tensor, generator: torch.Generator | None = None
    ) -> EnsembleState:
        """Like `VideoWorldModel.fork`."""
        first = self.leader.fork(state.members[0], index, generator)
        pairs = zip(self.members[1:], state.members[1:], strict=True)
        rest = (member.fork(other_weights, index) for member, other_weights in pairs)
        return EnsembleState((first, *rest)).with_keys(first.keys)

    def merge(self, state: EnsembleState, rows: Tensor, other: EnsembleState) -> EnsembleState:
        """Like `VideoWorldModel.merge`."""
        parts = zip(self.members, state.members, other.members, strict=True)
        return EnsembleState(tuple(member.merge(own, rows, new) for member, own, new in parts))

    def observe(
        self,
        state: EnsembleState,
        frames: Tensor,
        states: Tensor | None = None,
        *,
        views: Mapping[str, Tensor] | None = None,
    ) -> EnsembleState:
        """Like `VideoWorldModel.observe`."""
        first = self.leader.observe(state.members[0], frames, states, views=views)
        rest = (member.replace(latent=first.latent, states=first.states) for member in state.members[1:])
        return EnsembleState((first, *rest))

    def render(self, state: EnsembleState) -> Tensor:
        """The main camera's current frame, `(B,H,W,3)` uint8."""
        return self.leader.render(state.members[0])

    def render_views(self, state: EnsembleState) -> dict[str, Tensor]:
        """The other cameras' current frames by name, `(B,H',W',3)` uint8."""
        return self.leader.render_views(state.members[0])

    # -- disk -------------------------------------------------------------------------------------
    def save_pretrained(self, path: Path | str) -> Path:
        """Write every member to a numbered folder, the leader to `0`, and the number of members to config.json."""
        with save_folder(path) as folder:
            for i, member in enumerate(self.members):
                member.save_pretrained(folder / str(i))
            (folder / "config.json").write_text(json.dumps({TYPE: "ensemble", "members": len(self.members)}))
        return Path(path)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> EnsembleWorldModel:
        """Load an ensemble written by `save_pretrained`.

        Raises:
            CheckpointError: missing or damaged files.
        """
        remedy = "give a folder written by EnsembleWorldModel.save_pretrained"
        folder = verify_folder(path, ("config.json",), remedy)
        config = read_json(folder / "config.json", remedy)
        count = config.get("members") if isinstance(config, dict) else None
        if not isinstance(count, int) or not 2 <= count <= 64:
            raise CheckpointError(f"{folder}/config.json has members={count!r}, expected 2 to 64; {remedy}")
        return cls([VideoWorldModel.from_pretrained(folder / str(i)) for i in range(count)])
