"""Building blocks for networks over token sequences: layouts, masks, a transformer, caches, noise, samplers.

Example::

    from worldgym.nn import Expert, Segment, SequenceLayout, Transformer, TransformerConfig, block_causal
    layout = SequenceLayout(tuple(Segment("video", f, 16) for f in range(4)))
    net = Transformer(TransformerConfig((Expert("video", 64),), depth=2, heads=2))
    hidden = net(x, layout, block_causal(window=3)).tokens["video"]       # x (B, 64, 64)
"""

from worldgym.nn.attention import Rotary, attend
from worldgym.nn.block import Modulation, TransformerBlock
from worldgym.nn.ema import EMA
from worldgym.nn.kv_cache import KVCache, additive
from worldgym.nn.layout import (
    Rule,
    Segment,
    SequenceLayout,
    block_causal,
    encoder_decoder,
    full,
    joint_video_action,
    teacher_forcing,
)
from worldgym.nn.noise import (
    FLOW,
    BetaTimes,
    DiffusersNoise,
    FlowNoise,
    LogitNormalTimes,
    MixedTimes,
    NoiseProcess,
    PowerTimes,
    ShiftedTimes,
    residual_velocity,
    row_noise,
    uniform,
)
from worldgym.nn.norm import GroupNorm
from worldgym.nn.patches import from_tokens, to_tokens, with_coordinates
from worldgym.nn.reuse import Reuse, Reused
from worldgym.nn.rows import RowBatch, row_field
from worldgym.nn.sampler import DiffusersSampler, Euler, Sampler, make_sampler, renoise
from worldgym.nn.transformer import Expert, Transformer, TransformerConfig

__all__ = [
    "EMA",
    "FLOW",
    "BetaTimes",
    "DiffusersNoise",
    "DiffusersSampler",
    "Euler",
    "Expert",
    "FlowNoise",
    "GroupNorm",
    "KVCache",
    "LogitNormalTimes",
    "MixedTimes",
    "Modulation",
    "NoiseProcess",
    "PowerTimes",
    "Reuse",
    "Reused",
    "Rotary",
    "RowBatch",
    "Rule",
    "Sampler",
    "Segment",
    "SequenceLayout",
    "ShiftedTimes",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "additive",
    "attend",
    "block_causal",
    "encoder_decoder",
    "from_tokens",
    "full",
    "joint_video_action",
    "make_sampler",
    "renoise",
    "residual_velocity",
    "row_field",
    "row_noise",
    "teacher_forcing",
    "to_tokens",
    "uniform",
    "with_coordinates",
]
