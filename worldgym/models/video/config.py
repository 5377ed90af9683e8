"""Configuration of a video world model and its sampler; saved as config.json next to the weights.

It is separate from the model so that checkpoints, trainers and the command line can use it without loading a network.

Example::

    config = WorldModelConfig.preset("small").for_data(states, specs=dataset.specs)
    model = VideoWorldModel(config)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from worldgym.errors import ConfigError
from worldgym.models.canvas import Canvas
from worldgym.models.tokenizers import AnyTokenizerConfig, TokenizerConfig, tokenizer_config
from worldgym.models.video.compat import upgraded
from worldgym.models.video.object_motion import HandColumns, ObjectMotionConfig, bounds_of
from worldgym.specs import Camera, ObservationSpec, Specs, StateField
from worldgym.utils.sizes import ImageSize, short, size_of
from worldgym.utils.typed import from_values

PRESETS = ("base", "small", "tiny")
# For the bundled checkpoint's camera: image motion per unit of (dx, dy, dz, gripper), in latent cells right and down.
BUNDLED_MOTION = ObjectMotionConfig(
    hand=HandColumns((0, 1, 2), 3),
    projection=((0.95, 0.0, 0.0, 0.0), (0.0, -0.73, -0.61, 0.0)),
    grasp_range=(-2.0, 0.0),
    contact_height=-1.0,
)


@dataclass(frozen=True)
class DynamicsConfig:
    """Shape of the dynamics' transformer.

    Args:
        latent_channels: channels of the tokenizer's latents.
        grid: height and width of the tokenizer's latent grid in cells; one number for a square.
        patch: latent cells along one side of a token.
        width: width of the transformer.
        depth: number of its layers.
        heads: number of attention heads.
        window: number of frames that a frame attends to, including itself; also the length of the key-value ring.
        action_dim: A.
        state_dim: S; 0 if no proprioception was recorded.
        anchor: whether a clean frame from before the window is an input too.
        motion: how objects move with the hand; None for the plain dynamics, which makes no assumptions about the data.

    Raises:
        ConfigError: an invalid shape.
    """

    latent_channels: int = 16
    grid: ImageSize = 8
    patch: int = 2
    width: int = 256
    depth: int = 4
    heads: int = 4
    window: int = 12
    action_dim: int = 4
    state_dim: int = 4
    anchor: bool = True
    motion: ObjectMotionConfig | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", short(self.grid))
        for name, least in (("action_dim", 1), ("state_dim", 0), ("window", 1), ("depth", 1), ("patch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if any(side % self.patch for side in self.cells):
            raise ConfigError(f"patch {self.patch} does not divide the latent grid {self.grid}; try patch=1")
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")
        if self.motion is not None:
            self.motion.check(self.action_dim, self.state_dim)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return size_of(self.grid)

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        return self.cells[0] * self.cells[1] // self.patch**2


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the sampler that generates frames.

    Args:
        steps: denoising passes per frame; 1 predicts the mean of the possible outcomes (without noise), more passes
            draw a sample.
        dtype: precision of the transformer: `"float32"`, or `"bfloat16"` on devices on which it is faster.
        mask: which of the passes run the network; the others reuse its last output. Empty runs all. This is the fixed
            form of DreamZero's velocity caching; the adaptive form would depend on the whole batch, and a row's
            predictions must not depend on the other rows.

    Raises:
        ConfigError: invalid values.
    """

    steps: int = 2
    dtype: str = "bfloat16"
    mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"sampler steps must be at least 1, got {self.steps}")
        if self.dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"sampler dtype must be 'bfloat16' or 'float32', got {self.dtype!r}")
        mask = tuple(bool(runs) for runs in self.mask)  # json gives a list
        object.__setattr__(self, "mask", mask)
        if mask and (len(mask) != self.steps or not mask[0]):
            raise ConfigError(
                f"sampler mask must hold True or False for each of {self.steps} passes, the first True; got {mask}"
            )

    def runs(self, i: int) -> bool:
        """Whether the network runs at pass `i`."""
        return not self.mask or self.mask[i]

    def times(self) -> list[float]:
        """Noise levels of the passes, evenly spaced from 1 downwards."""
        return [1.0 - i / self.steps for i in range(self.steps)]


@dataclass(frozen=True)
class _OtherFields:
    """Fields of a config besides its parts."""

    state_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    state_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything needed to build the model; saved as config.json next to the weights.

    Args:
        tokenizer: config of the tokenizer; its frames are the canvas of all cameras.
        dynamics: config of the dynamics.
        sampler: config of the sampler.
        state_mean: mean of the data's proprioception, per dimension.
        state_std: standard deviation of the data's proprioception, per dimension.
        tasks: tasks in the training logs.
        specs: observation and action specs; None if the data had none, see `described`.

    Raises:
        ConfigError: the parts do not fit together.
    """

    tokenizer: AnyTokenizerConfig = field(default_factory=TokenizerConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    state_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    state_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    tasks: tuple[str, ...] = ()
    specs: Specs | None = None

    def __post_init__(self) -> None:
        t, d = self.tokenizer, self.dynamics
        wanted = (t.latent_channels, t.grid, len(self.state_mean), len(self.state_std))
        found = (d.latent_channels, d.cells, d.state_dim, d.state_dim)
        if wanted != found:
            raise ConfigError(
                "the parts of this world model do not fit: tokenizer channels and grid, and lengths of state_mean and "
                f"state_std, are {wanted}, but the dynamics take {found}; make the shape with WorldModelConfig.for_data"
            )
        if self.specs is not None:
            self._check_specs(self.specs)

    def _check_specs(self, specs: Specs) -> None:
        d, observation, remedy = (
            self.dynamics,
            specs.observation,
            "make the shape with WorldModelConfig.for_data",
        )
        dims = (d.state_dim, d.action_dim)
        described = (observation.state_dim, d.action_dim if specs.action is None else specs.action.dim)
        if dims != described:
            raise ConfigError(
                f"the specs have {described[0]} state fields and {described[1]} actions, the dynamics {dims[0]} "
                f"and {dims[1]}; {remedy}"
            )
        if self.canvas.size != self.tokenizer.size:
            raise ConfigError(
                f"the cameras of the specs make a picture of {self.canvas.size} pixels, the tokenizer takes "
                f"{self.tokenizer.size}; {remedy}"
            )
        if d.motion is not None and d.motion.hand != HandColumns.of(observation):
            raise ConfigError(
                f"object motion reads {d.motion.hand}, but by the specs the hand is {HandColumns.of(observation)}; "
                "give three state fields the role ee_position and one gripper, or disable it with motion=None"
            )

    # -- specs and canvas ------------------------------------------------------------------------------------------
    @property
    def described(self) -> Specs:
        """The specs, or specs derived from the shapes if there are none.

        State fields are then named `state_i` with role `other`, except those that object motion reads.
        """
        if self.specs is not None:
            return self.specs
        hand = None if self.dynamics.motion is None else self.dynamics.motion.hand
        return Specs(_observation((Camera("front", *self.tokenizer.size),), self.dynamics.state_dim, hand))

    @property
    def canvas(self) -> Canvas:
        """Layout of the cameras in the tokenizer's image."""
        cameras = self.described.observation.cameras
        if not cameras:
            raise ConfigError("the specs have no camera; a video world model needs at least one")
        return Canvas(cameras, self.tokenizer.reduction * self.dynamics.patch)

    def canvas_for(self, cameras: Sequence[Camera]) -> Canvas:
        """The canvas that `for_data` makes for these cameras.

        Its sides are multiples of a token's side. The exception is a single square frame with an odd number of latent
        cells, which is not padded and gets a patch of one cell.
        """
        cell = self.tokenizer.reduction
        return Canvas(tuple(cameras), cell * _patch(tuple(cameras), self.dynamics.patch, cell))

    # -- construction --------------------------------------------------------------------------------------------------
    @staticmethod
    def preset(name: str) -> WorldModelConfig:
        """A named shape, with the bundled camera and robot until `for_data`.

        Args:
            name: `"base"` (128 px, 64 tokens a frame, 100 M parameters; one GPU), `"small"` (64 px, 16 tokens; bundled,
                2 CPU cores) or `"tiny"` (tests).

        Raises:
            ConfigError: another name.
        """
        if name == "base":
            doubled = (  # twice the cells along a side of the grid: the same motion is twice as many of them
                tuple(2 * value for value in BUNDLED_MOTION.projection[0]),
                tuple(2 * value for value in BUNDLED_MOTION.projection[1]),
            )
            return WorldModelConfig(
                TokenizerConfig(image_size=128, widths=(64, 128, 256)),
                DynamicsConfig(
                    grid=16, width=768, depth=12, heads=12, motion=replace(BUNDLED_MOTION, projection=doubled)
                ),
            )
        if name == "small":
            return WorldModelConfig(dynamics=DynamicsConfig(motion=BUNDLED_MOTION))
        if name == "tiny":
            return WorldModelConfig(
                TokenizerConfig(widths=(8, 16, 32), blocks=(1, 1, 1), latent_channels=8),
                DynamicsConfig(
                    latent_channels=8, width=64, depth=2, heads=2, window=4, motion=BUNDLED_MOTION
                ),
            )
        raise ConfigError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")

    def for_data(
        self,
        states: np.ndarray,
        action_dim: int | None = None,
        image_size: ImageSize = 64,
        *,
        hand: bool | None = None,
        specs: Specs | None = None,
    ) -> WorldModelConfig:
        """Adapt this config to other data: sizes, cameras, and the mean and standard deviation of proprioception.

        Doubling the side of a frame doubles the side of the latent grid and gives four times the tokens. Object motion
        is used only if the data have a hand (`ObservationSpec.has_hand`) and one static camera.

        Args:
            states: `(F,S)` proprioception of the training logs.
            action_dim: A; None takes it from `specs.action`.
            image_size: image size in pixels of the only camera, if there are no specs.
            hand: whether objects move with the hand. With specs, None enables it whenever possible. Without specs, True
                (also None) means that proprioception is x, y, z first and the gripper opening last.
            specs: specs of the data.

        Raises:
            ConfigError: `hand` is set but the data have no hand, or the size of the action is unknown.
        """
        size = states.shape[1]
        if specs is not None:
            observation, given = specs.observation, specs.action
            action_dim = action_dim if action_dim is not None or given is None else given.dim
            columns = HandColumns.of(observation)
            if hand and columns is None:
                raise ConfigError(
                    f"no hand in {observation}; give three state fields the role ee_position and one gripper"
                )
        else:
            if hand is not False and size < 4:
                raise ConfigError(
                    f"proprioception has {size} dimensions; a hand's has at least four: x, y, z, ..., opening"
                )
            columns = None if hand is False else HandColumns((0, 1, 2), size - 1)
            observation = _observation((Camera("front", *size_of(image_size)),), size, columns)
        if action_dim is None:
            raise ConfigError(
                "the number of action dimensions is unknown; give action_dim, or specs with an action spec"
            )
        cameras = observation.cameras
        cell = self.tokenizer.reduction
        canvas = self.canvas_for(cameras)
        picture, patch = canvas.size, canvas.multiple // cell
        static = all(camera.static for camera in cameras)
        if hand is False or len(cameras) > 1 or not static or self.dynamics.motion is None:
            columns = None
        mean, std = states.mean(0), states.std(0) + 1e-6
        grid = (picture[0] // cell, picture[1] // cell)
        motion = None if columns is None else self._motion(states, action_dim, picture, columns)
        tokenizer = replace(self.tokenizer, image_size=picture)
        if isinstance(tokenizer, TokenizerConfig):
            tokenizer = replace(tokenizer, background=tokenizer.background and static)
        return replace(
            self,
            tokenizer=tokenizer,
            dynamics=replace(
                self.dynamics,
                action_dim=action_dim,
                state_dim=size,
                grid=short(grid),
                patch=patch,
                motion=motion,
            ),
            state_mean=tuple(float(v) for v in mean),
            state_std=tuple(float(v) for v in std),
            specs=specs,
        )

    def _motion(
        self, states: np.ndarray, action_dim: int, picture: tuple[int, int], hand: HandColumns
    ) -> ObjectMotionConfig:
        d = self.dynamics
        assert d.motion is not None
        same = (action_dim, states.shape[1], picture) == (d.action_dim, d.state_dim, self.tokenizer.size)
        zero = (0.0,) * action_dim
        grasp, low = bounds_of(states, hand)
        projection = d.motion.projection if same else (zero, zero)
        return replace(d.motion, hand=hand, projection=projection, grasp_range=grasp, contact_height=low)

    # -- disk -------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON data."""
        specs = None if self.specs is None else self.specs.to_dict()
        return {**asdict(replace(self, specs=None)), "specs": specs}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> WorldModelConfig:
        """Inverse of `to_dict`; also accepts configs of earlier versions.

        Raises:
            ConfigError: unknown or missing settings, or values of another type.
        """
        values = upgraded(data)
        specs = values.pop("specs", None)
        parts = {
            "tokenizer": tokenizer_config(values.pop("tokenizer", {}), "tokenizer"),
            "dynamics": from_values(DynamicsConfig, values.pop("dynamics"), "dynamics"),
            "sampler": from_values(SamplerConfig, values.pop("sampler", {}), "sampler"),
        }
        rest = from_values(_OtherFields, values)
        return WorldModelConfig(
            **parts,
            **vars(rest),
            specs=None if specs is None else Specs.from_dict(specs),  # type: ignore[arg-type]
        )


def _observation(cameras: tuple[Camera, ...], state_dim: int, hand: HandColumns | None) -> ObservationSpec:
    roles = {} if hand is None else {**dict.fromkeys(hand.position, "ee_position"), hand.gripper: "gripper"}
    fields = tuple(StateField(f"state_{i}", roles.get(i, "other")) for i in range(state_dim))
    return ObservationSpec(cameras, fields)


def _patch(cameras: tuple[Camera, ...], patch: int, cell: int) -> int:
    """Patch size; 1 if the only frame is a square with an odd number of latent cells, which is not padded."""
    height, width = cameras[0].size if len(cameras) == 1 else (0, 1)
    return 1 if height == width and height % cell == 0 and height // cell % patch else patch
