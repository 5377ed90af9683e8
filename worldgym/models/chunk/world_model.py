"""The chunk world model behind the `WorldModel` protocol: one pass per action chunk.

A policy that acts in chunks reads one frame per chunk, so the model predicts that frame alone. Proprioception is
predicted at every step. Frames between the ends of chunks are predicted on request, each from the same frame before the
chunk and the first actions of the chunk, so that they cost a pass each and change nothing about later chunks.

Example::

    model = ChunkWorldModel.from_pretrained("runs/chunk/export")
    state = model.begin(frames[:, None], torch.zeros(len(frames), 0, 4))
    state, imagined = model.step(state, actions, decode="last")         # (B, K, 4) in [-1, 1]
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.models.chunk.between import Between
from worldgym.models.chunk.config import HAND, ChunkConfig
from worldgym.models.chunk.decoder import LightDecoder
from worldgym.models.chunk.members import disagreement_of_places, own_picture, own_slots
from worldgym.models.chunk.picture import Parts, Picture
from worldgym.models.chunk.slots import Kinematics, SlotMotion, Slots
from worldgym.models.chunk.state import ChunkState
from worldgym.models.latent_model import LatentWorldModel, check_clips, read_model, write_model
from worldgym.models.probe import PositionProbe, PositionProbeConfig
from worldgym.models.tokenizers import build_tokenizer
from worldgym.protocols import Decode, Imagined
from worldgym.utils.devices import autocast, faster_dtype, randint
from worldgym.utils.row_threads import by_rows

TYPE = "chunk"
EXACT = ("background",)  # buffers that are saved in their own precision


class ChunkWorldModel(LatentWorldModel):
    """Predicts video under actions, one pass per chunk. Implements `worldgym.protocols.WorldModel`.

    Args:
        config: config of the model, with specs.
    """

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tokenizer = build_tokenizer(c.tokenizer)
        self.canvas = c.canvas
        self.kinematics = Kinematics(c)
        self.picture = Picture(c)
        self.motion = SlotMotion(c) if c.objects else None
        self.other_motions = nn.ModuleList(SlotMotion(c) for _ in range(c.members - 1) if c.objects)
        self.locator: PositionProbe | None = None
        if c.parts:
            side = c.tokenizer.size[0]
            self.locator = PositionProbe(PositionProbeConfig(c.parts, side, c.probe_width))
        self.light: LightDecoder | None = None
        if c.decoder_widths is not None:
            self.light = LightDecoder(c.tokenizer.latent_channels, c.decoder_widths, c.decoder_blocks)
        self.between = None if c.between_width is None else Between(c)
        self._asked: str | None = None  # by `with_dtype`
        self._fast: list[Picture] = []

    def with_dtype(self, dtype: str) -> ChunkWorldModel:
        """Infer in another precision, `"bfloat16"` or `"float32"`, on every device; it is not saved with the model."""
        self._asked = replace(self.config, dtype=dtype).dtype
        self.refresh()
        return self

    @property
    def dtype(self) -> str:
        """Precision of inference: that of `with_dtype`, else the config's; bfloat16 only where it is the faster one."""
        return self._asked or faster_dtype(self.config.dtype, self.device)

    def inference_network(self) -> Picture:
        """The picture network in the precision of inference; call `refresh` after training steps."""
        if self.dtype == "float32":
            return self.picture
        if not self._fast:
            fast = copy.deepcopy(self.picture).to(torch.bfloat16).eval().requires_grad_(False)
            self._fast = [fast.to(memory_format=torch.channels_last)]  # type: ignore[call-overload]
        return self._fast[0]

    def refresh(self) -> None:
        """Make the inference copy anew from the current weights at its next use."""
        self._fast = []

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Like torch's; also updates the inference copy."""
        result = super().load_state_dict(*args, **kwargs)
        self.refresh()
        return result

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._fast = []
        return super()._apply(*args, **kwargs)

    @property
    def uncertainty_kind(self) -> str:
        """What `info["uncertainty"]` is: `ensemble`, the disagreement of the members, or `own`, the expected error."""
        return "ensemble" if self.config.members > 1 else "own"

    @property
    def motions(self) -> list[SlotMotion]:
        """The network that moves the objects, of each member; empty without objects."""
        return [] if self.motion is None else [self.motion, *self.other_motions]  # type: ignore[list-item]

    def copy_first_member(self) -> None:
        """Give every member the weights of the first."""
        for motion in self.motions[1:]:
            motion.load_state_dict(self.motions[0].state_dict())
        for ending in self.picture.others:
            ending.copy_from(self.picture)  # type: ignore[operator]
        self.refresh()

    # -- positions ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def locate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `(N,P,2)` in image widths and presence `(N,P)` of all parts in `frames (N,H,W,3)` uint8."""
        assert self.locator is not None
        found = self.locator.locate(frames)
        where = torch.from_numpy(found.positions).float() / self.config.tokenizer.size[0]
        return where.to(self.device), torch.from_numpy(found.present).float().to(self.device)

    def with_hand(self, hand: Tensor, objects: Tensor) -> Tensor:
        """Positions of all parts in their order: the hand `(B,2)` in its place among `objects (B,M,2)`."""
        if HAND not in self.config.parts:
            return objects
        at = self.config.parts.index(HAND)
        return torch.cat([objects[:, :at], hand[:, None], objects[:, at:]], 1)

    def objects_of(self, parts: Tensor) -> Tensor:
        """Drop the hand from values `(B,P,...)` of all parts."""
        keep = [i for i, name in enumerate(self.config.parts) if name != HAND]
        return parts[:, keep]

    # -- the protocol ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> ChunkState:
        """Create the state of episodes that start from real frames. A single model is deterministic.

        Each episode follows one member of an ensemble, drawn here (RWM-U, arXiv 2504.16680).

        Args:
            frames: `(B,Tc,H,W,3)` uint8 of the main camera, Tc >= 1; the first is the anchor.
            actions: `(B,Tc-1,A)` in [-1, 1] between the frames; only the last one is used.
            generator: draws the members; None uses torch's global generator. A single model draws nothing.
            states: `(B,Tc,S)` proprioception.
            views: `(B,Tc,H',W',3)` uint8 of the other cameras, by name.

        Raises:
            ConfigError: wrong shapes, or no proprioception.
        """
        check_clips(frames)
        b, context = frames.shape[:2]
        states = self.known_states(states, b, context, "chunk")
        states = states.to(self.device).float()
        picture = self.canvas.pack(
            frames.to(self.device),
            None if views is None else {name: view.to(self.device) for name, view in views.items()},
        )
        # The first and the last frame; episodes that start from one frame encode it once.
        ends = picture[:, [0, -1] if context > 1 else [0]]
        flat = ends.flatten(0, 1)
        encoded = by_rows(lambda rows: self.tokenizer.encode(flat[rows]), len(flat), self.device)
        latents = torch.cat(encoded).unflatten(0, ends.shape[:2])
        normal = self.normalise_state(states)
        last = normal[:, -1] - normal[:, max(0, context - 2)]
        features = first = slots = None
        if self.locator is not None:
            net = self.inference_network()
            features = net.shift.unfold(latents[:, 0].to(net.embed.weight.dtype))
            found = by_rows(lambda rows: self.locate(flat[rows]), len(flat), self.device)
            where, present = (
                torch.cat(parts).unflatten(0, ends.shape[:2]) for parts in zip(*found, strict=True)
            )
            hand = self.kinematics.place(normal[:, 0])
            first = self.with_hand(hand, self.objects_of(where[:, 0]))
            slots = Slots.new(
                self.objects_of(where[:, -1]), self.objects_of(present[:, -1]), self.config.memory
            )
        acted = torch.zeros(b, self.action_dim, device=self.device)
        if context > 1:
            acted = actions[:, -1].to(self.device).float()
        members = self.config.members
        keys = randint(2**62, (b,), generator, self.device) if members > 1 else None
        return ChunkState(
            latents[:, -1], states[:, -1], last, acted, latents[:, 0], features, first, slots, keys, members
        )

    @torch.no_grad()
    def _imagine(
        self, net: Picture, state: ChunkState, actions: Tensor, decode: Decode
    ) -> tuple[ChunkState, Imagined]:
        """The part of `step` that runs in one thread: `"all"` predicts every frame, else the last one of a chunk."""
        actions = actions.float()
        shown, states, errors = [], [], []
        for chunk in actions.split(self.config.chunk, 1):
            path = self.path(state, chunk)
            after, error = self.advance(net, state, chunk, path)
            if decode == "all":
                shown += self.within(net, state, after, chunk, path)
            state = after
            shown.append(state.latent)
            states.append(self.denormalise_state(path[:, 1:]))
            errors.append(error.exp())
        latents = torch.stack(shown, 1) if decode == "all" else state.latent[:, None]
        frames, views = self.decode(latents if decode != "none" else latents[:, :0])
        return state, Imagined(
            frames, latents, torch.cat(states, 1), torch.stack(errors, 1).amax(1), views=views
        )

    def within(
        self, net: Picture, state: ChunkState, after: ChunkState, chunk: Tensor, path: Tensor
    ) -> list[Tensor]:
        """Latents `(B,C,h,w)` after each action of a chunk but the last; later chunks do not depend on them."""
        k = chunk.shape[1]
        if k == 1:
            return []
        if self.between is None:
            return [self.advance(net, state, chunk[:, :i], path[:, : i + 1])[0].latent for i in range(1, k)]
        hand = start = end = present = None
        if state.slots is not None and after.slots is not None:
            hand = self.kinematics.place(path)
            start = self.with_hand(hand[:, 0], state.slots.positions)
            end = self.with_hand(hand[:, -1], after.slots.positions)
            present = self.presence(after.slots)
        with autocast(path.device, self.dtype != "float32", always=True):
            latents = self.between(state.latent, after.latent, path, start, end, present, hand)
        return list(self.tokenizer.project(latents, 2).unbind(1))

    def presence(self, slots: Slots) -> Tensor:
        """`(B,P)` probability that a part is in the image; 1 for the hand."""
        ones = slots.positions.new_ones(len(slots.positions), 2)
        return self.with_hand(ones, slots.present[..., None].expand(-1, -1, 2))[..., 0]

    def path(self, state: ChunkState, actions: Tensor) -> Tensor:
        """Normalised proprioception `(B,k+1,S)` before a chunk and after each of its `actions (B,k,A)`."""
        now = self.normalise_state(state.states)
        objects = None if state.slots is None else state.slots.positions
        return torch.cat([now[:, None], self.kinematics(now, state.last, state.acted, actions, objects)], 1)

    def advance(
        self, net: Picture, state: ChunkState, actions: Tensor, path: Tensor
    ) -> tuple[ChunkState, Tensor]:
        """State after one chunk, and the log of its uncertainty `(B,)`, by the picture network `net`.

        The uncertainty of a single model is its expected error. That of an ensemble is the disagreement of its members'
        predictions from the same state (`worldgym.models.chunk.members`).

        Args:
            net: `picture`, or its copy for inference.
            state: state before the chunk.
            actions: `(B,k,A)` actions of the chunk.
            path: `(B,k+1,S)` normalised proprioception before the chunk and after each action.
        """
        parts, slots, places, member = None, state.slots, None, state.member
        if state.slots is not None and state.first is not None:
            hand = self.kinematics.place(path)
            if self.motions:
                each = [motion(state.slots, path, hand) for motion in self.motions]
                slots, places = own_slots(each, member), disagreement_of_places(each)
            parts = Parts(
                self.with_hand(hand[:, 0], state.slots.positions),
                self.with_hand(hand[:, -1], slots.positions), state.first, self.presence(slots),
            )  # fmt: skip
        given, every = self.given(actions, path), range(self.config.members)
        found = net(state.latent, state.anchor, state.features, parts, given, every)
        latents, error = own_picture(found, member)
        if places is not None:
            error = torch.logaddexp(error, places)
        after = state.replace(
            latent=self.tokenizer.project(latents), states=self.denormalise_state(path[:, -1]),
            last=path[:, -1] - path[:, -2], acted=actions[:, -1], slots=slots,
        )  # fmt: skip
        return after, error

    def given(self, actions: Tensor, path: Tensor) -> Tensor:
        """What the picture network knows of the hand, `(B,G)`: actions, which of them there are, proprioception."""
        b, k = actions.shape[:2]
        missing = self.config.chunk - k
        there = torch.cat([actions.new_ones(b, k), actions.new_zeros(b, missing)], 1)
        actions = torch.cat([actions, actions.new_zeros(b, missing, actions.shape[2])], 1)
        path = torch.cat([path, path[:, -1:].expand(-1, missing, -1)], 1)
        return torch.cat([actions.flatten(1), there, path.flatten(1)], 1)

    def decode_pixels(self, z: Tensor) -> Tensor:
        """Decode latents `(N,C,h,w)` to `(N,H,W,3)` uint8, by the light decoder if the model has one."""
        if self.light is None:
            return super().decode_pixels(z)
        background = self.tokenizer.background
        with torch.no_grad(), autocast(z.device):
            z = z.contiguous(memory_format=torch.channels_last)
            pixels = self.light(z).float() / 2 + background
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def fork(self, state: ChunkState, index: Tensor, generator: torch.Generator | None = None) -> ChunkState:
        """Rows `index (B',)` as a new state. With `generator`, each copy follows a member of an ensemble drawn anew."""
        forked: ChunkState = super().fork(state, index, None if state.keys is None else generator)
        return forked

    @torch.no_grad()
    def observe(
        self,
        state: ChunkState,
        frames: Tensor,
        states: Tensor | None = None,
        *,
        views: Mapping[str, Tensor] | None = None,
    ) -> ChunkState:
        """Replace the current imagined frame by a real observation.

        Args:
            state: current state.
            frames: `(B,H,W,3)` uint8 of the main camera.
            states: `(B,S)` proprioception; None keeps the imagined one.
            views: `(B,H',W',3)` uint8 of the other cameras, by name.
        """
        device = self.device
        views = None if views is None else {name: view.to(device) for name, view in views.items()}
        picture = self.canvas.pack(frames.to(device), views)
        changes: dict[str, Any] = {"latent": self.tokenizer.encode(picture)}
        if states is not None:
            changes["states"] = states.to(device).float()
        if state.slots is not None:
            where, present = self.locate(picture)
            found, seen = self.objects_of(where), self.objects_of(present)
            known = (seen > 0.5)[..., None]
            positions = torch.where(known, found, state.slots.positions)
            changes["slots"] = state.slots.replace(positions=positions, present=seen)
        return state.replace(**changes)

    # -- disk --------------------------------------------------------------------------------------------------------
    def save_pretrained(self, path: Path | str) -> Path:
        """Write `config.json` and `model.safetensors` (bf16, except what positions are computed from)."""
        exact = (*EXACT, "kinematics", "motion", "locator")
        tensors = {
            k: v.detach().to("cpu", v.dtype if any(part in k for part in exact) else torch.bfloat16)
            for k, v in self.state_dict().items()
        }
        return write_model(path, {"type": TYPE, **self.config.to_dict()}, tensors)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> ChunkWorldModel:
        """Load a model written by `save_pretrained`.

        Raises:
            CheckpointError: missing or damaged files; the message names them.
        """

        def make(config: dict[str, Any], tensors: dict[str, Tensor]) -> ChunkWorldModel:
            model = cls(ChunkConfig.from_dict(config))
            model.load_state_dict({k: v.float() for k, v in tensors.items()})
            model.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return model

        return read_model(path, TYPE, "train one with `worldgym train world-model --type chunk`", make)
