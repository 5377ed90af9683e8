"""Configuration of a world model on a diffusers video transformer; saved as config.json next to the weights.

Example::

    config = BackboneConfig.preset("tiny-wan").for_data(states, specs)
    model = DiffusersWorldModel(config)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from worldgym.errors import ConfigError
from worldgym.models.backbones.shapes import SHAPES
from worldgym.models.canvas import Canvas
from worldgym.specs import Specs
from worldgym.utils.sizes import ImageSize, short, size_of
from worldgym.utils.typed import from_values

TRANSFORMERS = ("WanTransformer3DModel", "CosmosTransformer3DModel")
VAE = "AutoencoderKLWan"
PER_FRAME = 4
"""Actions of one latent frame: the temporal compression of the VAE of Wan 2.1, Wan 2.2 and Cosmos-Predict 2 and 2.5."""
SAMPLERS = ("unipc", "flow_euler")
CLASS = "_class_name"


@dataclass(frozen=True)
class BackboneConfig:
    """Shape and sampling of a `DiffusersWorldModel`.

    Args:
        transformer: settings of the transformer as in its `config.json`, with its class in `_class_name`.
        vae: settings of the VAE as in its `config.json`.
        image_size: height and width of the frames in pixels, a multiple of `multiple`; one number for a square.
        attention: `causal` lets a latent frame attend to earlier ones only, so that their keys and values are cached;
            `full` lets all frames of the window attend to one another, as the published weights were trained, and
            computes the whole window in every sampling step.
        window: latent frames besides the first one that a prediction sees, 4 actions each.
        steps: passes of the network for a latent frame.
        sampler: `unipc` or `flow_euler`, diffusers' UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler.
        shift: shift of the noise levels towards noise, in training and sampling.
        causal_frames: whether the frame after action k depends on the actions up to k only. Each of the 4 frames of a
            latent frame is then predicted from the actions up to it. False predicts all 4 at once from 4 actions, as
            DreamDojo does, at a quarter of the cost when every frame is decoded.
        residual: expected standard deviation of the change from one latent frame to the next, for networks trained from
            nothing: they then predict what differs from the frame before. Published weights need 0.
        decoded: latent frames before the current one that the VAE decodes with it. Its decoder is causal in time, and
            this truncates its memory.
        tiny_decoder: width of a small decoder that is used in place of the VAE's; 0 uses the VAE's.
        action_width: width of the MLP that embeds actions.
        state_width: width of the network that predicts proprioception.
        summed: action dimensions that are changes per step; they are re-based at each latent frame: the network gets
            their sum since the frame before. The others, such as a gripper, are given as they are.
        fps: frame rate in Cosmos' rotary embedding.
        state_mean: mean of the data's proprioception, per dimension.
        state_std: standard deviation of the data's proprioception, per dimension.
        action_dim: A.
        dtype: precision of the transformer and the VAE in inference, `float32` or `bfloat16`.
        specs: cameras, proprioception and actions of the data.

    Raises:
        ConfigError: another class, a VAE that does not fit the transformer, or another impossible value.
    """

    transformer: dict[str, Any] = field(default_factory=lambda: dict(SHAPES["tiny-wan"][0]))
    vae: dict[str, Any] = field(default_factory=lambda: dict(SHAPES["tiny-wan"][1]))
    image_size: ImageSize = 64
    attention: Literal["causal", "full"] = "causal"
    window: int = 4
    steps: int = 4
    sampler: str = "unipc"
    shift: float = 5.0
    causal_frames: bool = True
    residual: float = 0.0
    decoded: int = 2
    tiny_decoder: int = 0
    action_width: int = 256
    state_width: int = 128
    summed: tuple[int, ...] = ()
    fps: float = 16.0
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    action_dim: int = 4
    dtype: str = "float32"
    specs: Specs | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", short(self.image_size))
        for name in ("window", "steps", "decoded", "action_width", "state_width", "action_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1; try {name}=4")
        if self.attention not in ("causal", "full"):
            raise ConfigError(f"attention is {self.attention!r}, expected 'causal' or 'full'")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler is {self.sampler!r}, expected one of {', '.join(SAMPLERS)}")
        if not self.shift > 0 or not self.fps > 0:
            raise ConfigError(
                f"shift and fps must be positive, got {self.shift} and {self.fps}; try shift=5.0"
            )
        if self.tiny_decoder < 0:
            raise ConfigError(
                f"tiny_decoder is {self.tiny_decoder}, expected 0 or its width; try tiny_decoder=64"
            )
        if self.residual < 0:
            raise ConfigError(
                f"residual is {self.residual}, expected 0 or a standard deviation; try residual=0.5"
            )
        if self.dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"dtype must be 'bfloat16' or 'float32', got {self.dtype!r}")
        if len(self.state_mean) != len(self.state_std):
            raise ConfigError(
                f"state_mean has {len(self.state_mean)} numbers and state_std {len(self.state_std)}; give one of each "
                "per dimension of proprioception"
            )
        if any(not 0 <= i < self.action_dim for i in self.summed):
            raise ConfigError(f"summed is {self.summed}, expected dimensions from 0 to {self.action_dim - 1}")
        check_transformer(self.transformer)
        check_vae(self.vae)
        self._check_channels()
        if self.attention == "causal" and self.transformer.get("extra_pos_embed_type") is not None:
            raise ConfigError(
                "this transformer adds learned positions in every block, so its frames can't be cached; set "
                "attention='full'"
            )
        if any(side % self.multiple or side < 1 for side in self.size):
            raise ConfigError(
                f"image_size is {self.image_size}, expected multiples of {self.multiple}: {self.reduction} pixels of "
                f"the VAE times the {self.patch} latent cells of a patch"
            )

    def _check_channels(self) -> None:
        z, cosmos = self.channels, self.family == "cosmos"
        reads, writes = self.transformer.get("in_channels", 16), self.transformer.get("out_channels", 16)
        expected = (z + cosmos, z)
        if (reads, writes) != expected:
            raise ConfigError(
                f"the transformer reads {reads} channels and writes {writes}, but its VAE has {z}; expected "
                f"{expected[0]} and {expected[1]}"
                + (", with the mask of the clean context" if cosmos else "")
                + ". Take transformer and VAE from the same pipeline folder, of a text-to-video, TI2V or Video2World "
                "model: image-to-video models of Wan 2.1 read a second video and are not supported"
            )

    # -- shape ---------------------------------------------------------------------------------------------------------
    @property
    def family(self) -> Literal["wan", "cosmos"]:
        """Which network reads the transformer."""
        return "wan" if self.transformer[CLASS] == TRANSFORMERS[0] else "cosmos"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return size_of(self.image_size)

    @property
    def channels(self) -> int:
        """Latent channels, C."""
        return int(self.vae.get("z_dim", 16))

    @property
    def reduction(self) -> int:
        """Pixels along one side of a latent cell."""
        levels = len(self.vae.get("dim_mult", (1, 2, 4, 4))) - 1
        return int(2**levels * (self.vae.get("patch_size") or 1))

    @property
    def patch(self) -> int:
        """Latent cells along one side of a token."""
        return int(self.transformer.get("patch_size", (1, 2, 2))[1])

    @property
    def multiple(self) -> int:
        """Pixels along one side of a token."""
        return self.reduction * self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid, h and w."""
        return self.size[0] // self.reduction, self.size[1] // self.reduction

    @property
    def per_frame(self) -> int:
        """Actions of one latent frame, r."""
        return PER_FRAME

    @property
    def state_dim(self) -> int:
        """Dimension of proprioception, S."""
        return len(self.state_mean)

    @property
    def described(self) -> Specs:
        """The specs.

        Raises:
            ConfigError: the config has none; make it with `for_data`.
        """
        if self.specs is None:
            raise ConfigError("this config has no specs; make it with BackboneConfig.for_data(states, specs)")
        return self.specs

    @property
    def canvas(self) -> Canvas:
        """Layout of the cameras in the VAE's image."""
        return Canvas(self.described.observation.cameras, max(8, self.multiple))

    # -- making --------------------------------------------------------------------------------------------------------
    @staticmethod
    def preset(name: str) -> BackboneConfig:
        """A config with random weights of a named shape: one of `SHAPES`.

        Raises:
            ConfigError: another name.
        """
        if name not in SHAPES:
            raise ConfigError(
                f"unknown preset {name!r} of the type diffusers; the presets are {', '.join(SHAPES)}. Type --preset "
                "tiny-wan, or --initial FOLDER with the transformer and the VAE of a diffusers pipeline"
            )
        transformer, vae = SHAPES[name]
        tiny = name.startswith("tiny")
        return BackboneConfig(
            dict(transformer), dict(vae), image_size=64 if tiny else 128, residual=0.5 if tiny else 0.0,
            dtype="float32" if tiny else "bfloat16", action_width=64 if tiny else 1024,
        )  # fmt: skip

    def for_data(self, states: np.ndarray, specs: Specs) -> BackboneConfig:
        """This config for other data.

        Args:
            states: `(F,S)` proprioception of the training logs.
            specs: specs of the data.

        Raises:
            ConfigError: the specs have no action spec.
        """
        if specs.action is None:
            raise ConfigError("these specs have no action spec; this world model is conditioned on actions")
        canvas = Canvas(specs.observation.cameras, max(8, self.multiple))
        gripper = None if specs.action.gripper is None else specs.action.gripper.index
        return replace(
            self,
            image_size=canvas.size,
            summed=tuple(i for i in range(specs.action.dim) if i != gripper),
            state_mean=tuple(float(v) for v in states.mean(0)),
            state_std=tuple(float(v) for v in states.std(0) + 1e-6),
            action_dim=specs.action.dim,
            specs=specs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        specs = None if self.specs is None else self.specs.to_dict()
        return {**asdict(replace(self, specs=None)), "specs": specs}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneConfig:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: unknown fields, or values of another type.
        """
        values = dict(data)
        specs = values.pop("specs", None)
        read = from_values(cls, values, "diffusers world model")
        return replace(read, specs=None if specs is None else Specs.from_dict(specs))


def check_transformer(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError if these are not the settings of a transformer that can be a world model."""
    name = settings.get(CLASS)
    if name not in TRANSFORMERS:
        raise ConfigError(f"the transformer is a {name}, expected a {' or a '.join(TRANSFORMERS)}")
    if settings.get("added_kv_proj_dim") or settings.get("img_context_dim_in"):
        raise ConfigError(
            f"this {name} also reads the features of an image encoder, which is not supported; give a text-to-video, "
            "TI2V or Video2World model"
        )
    patch = tuple(settings.get("patch_size", (1, 2, 2)))
    if len(patch) != 3 or patch[0] != 1 or patch[1] != patch[2]:
        raise ConfigError(
            f"the transformer has patches of {patch}, expected (1, p, p): one latent frame each"
        )


def check_vae(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError if these are not the settings of a VAE with one latent frame per 4 frames."""
    name = settings.get(CLASS, VAE)
    if name != VAE:
        raise ConfigError(
            f"the VAE is a {name}, expected an {VAE}, as Wan and Cosmos-Predict 2 and 2.5 have it"
        )
    ratio = 2 ** sum(bool(level) for level in settings.get("temperal_downsample", (False, True, True)))
    if ratio != PER_FRAME or settings.get("scale_factor_temporal", PER_FRAME) != PER_FRAME:
        raise ConfigError(
            f"the VAE makes one latent frame of {ratio} frames, expected {PER_FRAME}: {VAE}.encode reads frames in "
            "groups of 4 and drops the rest. Give a VAE whose temperal_downsample has two True"
        )
