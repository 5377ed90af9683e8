"""One transformer for world models, policies and joint video-action models.

It has adaptive layer norm from per-token conditioning (adaLN-zero: Peebles and Xie 2023, section 3.2; or one shared
MLP with an offset per layer: PixArt-alpha's adaLN-single, Chen et al. 2023, section 2.3), rotary positions on one to
three axes, cross-attention, experts per modality (mixture of transformers: separate weights, joint attention), a
key-value cache and taps of intermediate layers. The attention pattern is given by a layout and a rule
(`worldgym.nn.layout`).

Example::

    config = TransformerConfig(experts=(Expert("video", 256), Expert("action", 128)), depth=4, heads=4, head_dim=32,
                               modulation="zero", condition_dim=64)
    net = Transformer(config)
    out = net({"video": x, "action": a}, layout, block_causal(), condition=c)       # c (B, L, 64)
    out.tokens["action"], out.taps
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.nn.attention import Rotary, attend
from worldgym.nn.block import TransformerBlock
from worldgym.nn.kv_cache import KVCache, additive
from worldgym.nn.layout import Kind, Rule, SequenceLayout
from worldgym.utils.compiling import compiled, compiler


@dataclass(frozen=True)
class Expert:
    """Weights of one modality.

    Args:
        name: name of the modality; also the role of its segments, unless `roles` is given.
        width: width of its tokens.
        roles: roles of the segments that it processes.
        context_dim: width of the tokens that it cross-attends to; None for no cross-attention.
    """

    name: str
    width: int
    roles: tuple[str, ...] = ()
    context_dim: int | None = None

    @property
    def serves(self) -> tuple[str, ...]:
        """Roles of its segments."""
        return self.roles or (self.name,)


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a transformer.

    Args:
        experts: at least one; a single one processes all roles.
        depth: number of layers.
        heads: number of attention heads, shared by all experts.
        head_dim: channels per head; None for the width of the first expert divided by `heads`.
        modulation: `none`; `zero`, a separate adaLN per layer with gates initialised to 0; or `single`, one MLP for all
            layers with a learned offset per layer.
        condition_dim: size of the conditioning per token; needed unless `modulation` is `none`.
        axes: number of head channels that each axis of the rotary positions rotates; None is one axis, the block.
        activation: activation of the MLPs, `gelu` or `silu`.

    Raises:
        ConfigError: an invalid shape.
    """

    experts: tuple[Expert, ...]
    depth: int = 4
    heads: int = 4
    head_dim: int | None = None
    modulation: Literal["none", "zero", "single"] = "none"
    condition_dim: int = 0
    axes: tuple[int, ...] | None = None
    activation: Literal["gelu", "silu"] = "gelu"

    def __post_init__(self) -> None:
        if not self.experts or self.depth < 1 or self.heads < 1:
            raise ConfigError("a transformer needs at least one expert, layer and head")
        roles = [role for expert in self.experts for role in expert.serves]
        if len(set(roles)) != len(roles):
            raise ConfigError(f"two experts serve one role: {roles}; give every role to one expert")
        if self.head_dim is None and self.experts[0].width % self.heads:
            raise ConfigError(
                f"width {self.experts[0].width} is not a multiple of {self.heads} heads; give head_dim"
            )
        if self.size % 2:
            raise ConfigError(
                f"head_dim is {self.size}, expected an even number: rotary positions rotate pairs of channels"
            )
        if (self.modulation == "none") != (self.condition_dim == 0):
            raise ConfigError(
                f"modulation={self.modulation!r} with condition_dim={self.condition_dim}; conditioning needs both"
            )

    @property
    def size(self) -> int:
        """Channels per head."""
        return self.head_dim or self.experts[0].width // self.heads

    def expert_of(self, role: str) -> int:
        """Index of the expert that processes a role.

        Raises:
            ConfigError: no expert processes the role.
        """
        if len(self.experts) == 1:
            return 0
        for i, expert in enumerate(self.experts):
            if role in expert.serves:
                return i
        raise ConfigError(
            f"no expert serves the role {role!r}; they serve {[e.serves for e in self.experts]}"
        )


class TransformerOutput(NamedTuple):
    """Output of the transformer.

    Args:
        tokens: hidden tokens by expert, `(B, Le, De)`, in the order of the layout.
        taps: tokens after the requested layers, by layer and expert.
    """

    tokens: dict[str, Tensor]
    taps: dict[int, dict[str, Tensor]]


class Mixed(NamedTuple):
    """Where the tokens of each expert are in the sequence.

    Args:
        segments: positions of each expert's segments in the layout.
        lengths: their numbers of tokens.
    """

    segments: tuple[tuple[int, ...], ...]
    lengths: tuple[tuple[int, ...], ...]

    def join(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """One sequence of the experts' tokens, in the order of the layout."""
        if len(parts) == 1:
            return parts[0]
        pieces: dict[int, Tensor] = {}
        for part, segments, lengths in zip(parts, self.segments, self.lengths, strict=True):
            pieces |= dict(zip(segments, part.split(lengths, dim), strict=True))
        return torch.cat([pieces[i] for i in range(len(pieces))], dim)

    def split(self, x: Tensor, dim: int) -> list[Tensor]:
        """The tokens of each expert; the inverse of `join`."""
        if len(self.segments) == 1:
            return [x]
        lengths = dict(
            pair
            for segments, lengths in zip(self.segments, self.lengths, strict=True)
            for pair in zip(segments, lengths, strict=True)
        )
        pieces = x.split([lengths[i] for i in range(len(lengths))], dim)
        return [torch.cat([pieces[i] for i in segments], dim) for segments in self.segments]


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return compiled(Transformer._layers, dynamic=False)


def compiled_layers(*args: Any) -> Any:
    """`Transformer._layers` through torch.compile, for the shapes that it meets; networks of one shape share it.

    Raises:
        ConfigError: the compilation fails.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        with config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):  # else it goes on uncompiled
            return _compiled()(*args)
    except (RuntimeError, FailOnRecompileLimitHit) as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"torch.compile failed: {reason}. On a CPU it needs a C++ compiler, such as the package g++, which "
            f"must be the program that CXX names (now {compiler()!r}); or leave out --compile, or set compile=False"
        ) from error


class Transformer(nn.Module):
    """The transformer; see the module docstring."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        activation: Callable[[], nn.Module] = nn.GELU if config.activation == "gelu" else nn.SiLU
        self.layers = nn.ModuleList()
        self.modulate, self.final = nn.ModuleDict(), nn.ModuleDict()
        for _ in range(config.depth):
            self.layers.append(
                nn.ModuleDict(
                    {
                        e.name: TransformerBlock(
                            e.width, config.heads, head_dim=config.size, activation=activation,
                            affine=config.modulation == "none", offset=config.modulation == "single",
                            context_dim=e.context_dim,
                        )
                        for e in config.experts
                    }
                )
            )  # fmt: skip
        for e in config.experts:
            self.final[e.name] = nn.LayerNorm(e.width)
            if config.modulation != "none":
                count = 1 if config.modulation == "single" else config.depth
                linear = nn.Linear(config.condition_dim, count * 6 * e.width)
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
                self.modulate[e.name] = nn.Sequential(nn.SiLU(), linear)

    def empty_cache(
        self, batch: int, slots: int, kinds: tuple[Kind, ...], dtype: torch.dtype = torch.float32
    ) -> KVCache:
        """Create a cache for `slots` tokens of segments of these `kinds` (`SequenceLayout.kinds`)."""
        c, device = self.config, next(self.parameters()).device
        return KVCache.empty(c.depth, batch, c.heads, slots, c.size, kinds=kinds, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor],
        layout: SequenceLayout,
        rule: Rule,
        *,
        condition: Tensor | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        cache: KVCache | None = None,
        taps: Collection[int] = (),
        compiled: bool = False,
    ) -> TransformerOutput:
        """Compute hidden tokens of a sequence, or of its next segments if a cache holds the earlier ones.

        Args:
            x: tokens `(B, L, D)`, or by expert `(B, Le, De)` if there are several, each in the order of the layout.
            layout: segments of the tokens.
            rule: defines which segments may attend to which.
            condition: conditioning `(B, G, condition_dim)`, with one row for all tokens, one for each segment of the
                layout, or one for each token.
            positions: `(L, axes)` or `(B, L, axes)` rotary positions; None takes them from the layout.
            context: `(B, M, context_dim)`, for experts with cross-attention.
            cache: keys and values of earlier segments; the new ones are written into it and committed, in place.
            taps: layers, counted from 0, whose output is returned.
            compiled: run the layers through torch.compile, which needs a C++ compiler on a CPU and takes a minute for
                each new shape; without a cache only.

        Raises:
            ConfigError: the tokens do not match the layout.
        """
        c = self.config
        names = [e.name for e in c.experts]
        tokens = {names[0]: x} if isinstance(x, Tensor) else dict(x)
        own = [
            [i for i, s in enumerate(layout.segments) if c.expert_of(s.role) == n] for n in range(len(names))
        ]
        lengths = [tuple(layout.segments[i].length for i in segments) for segments in own]
        for name, needed in zip(names, lengths, strict=True):
            given = tokens[name].shape[1] if name in tokens else 0
            if given != sum(needed):
                raise ConfigError(
                    f"the layout has {sum(needed)} tokens for {name!r}, got {given}; x needs as many"
                )
        used = [n for n, segments in enumerate(own) if segments]
        mixed = Mixed(tuple(tuple(own[n]) for n in used), tuple(lengths[n] for n in used))
        device = tokens[names[used[0]]].device
        rotary = self._rotary(layout, positions, device)
        if cache is None:
            mask = additive(layout.mask(rule)).to(device)
        else:
            cache.check_length(layout, rule)
            cache.note(layout)
            mask = additive(cache.mask(layout, rule))[:, None]
        shared, groups = self._modulation(condition, layout, own, lengths)
        run = compiled_layers if compiled and cache is None else Transformer._layers
        final, tapped = run(self, tokens, used, mixed, (shared, groups), rotary, mask, context, cache, tuple(taps))
        if cache is not None:
            cache.advance(layout.length)
        return TransformerOutput(final, tapped)

    def _layers(
        self,
        tokens: dict[str, Tensor],
        used: list[int],
        mixed: Mixed,
        modulation: tuple[dict[int, Tensor], dict[int, tuple[int, ...]]],
        rotary: Rotary,
        mask: Tensor,
        context: Tensor | None,
        cache: KVCache | None,
        taps: tuple[int, ...],
    ) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        """All layers and the last norm; without a cache this depends on tensors and constants alone."""
        names = [e.name for e in self.config.experts]
        shared, groups = modulation
        tapped: dict[int, dict[str, Tensor]] = {}
        layers: Any = self.layers
        for i, layer in enumerate(layers):
            six = {
                n: layer[names[n]].modulation(self._layer_modulation(shared, n, i), groups.get(n))
                for n in used
            }
            parts = [layer[names[n]].project(tokens[names[n]], six[n]) for n in used]
            q, k, v = (mixed.join(part, 2) for part in zip(*parts, strict=True))
            rotary = rotary.to(q.dtype)
            q, k = rotary.turn(q), rotary.turn(k)
            if cache is not None:
                k, v = cache.write(i, k, v)
            attended = mixed.split(attend(q, k, v, mask), 1)
            tokens = {
                names[n]: layer[names[n]].finish(tokens[names[n]], part, six[n], context)
                for n, part in zip(used, attended, strict=True)
            }
            if i in taps:
                tapped[i] = tokens
        return {names[n]: self.final[names[n]](tokens[names[n]]) for n in used}, tapped

    def _rotary(self, layout: SequenceLayout, positions: Tensor | None, device: torch.device) -> Rotary:
        c = self.config
        if positions is None:
            positions = layout.positions()
            positions = positions[:, 0] if c.axes is None else positions[:, : len(c.axes)]
        elif c.axes is None:
            positions = positions.squeeze(-1) if positions.shape[-1:] == (1,) else positions
        rotary = Rotary.of(positions.to(device), c.size, c.axes)
        return rotary.heads() if rotary.cos.ndim == 3 else rotary

    def _modulation(
        self,
        condition: Tensor | None,
        layout: SequenceLayout,
        own: list[list[int]],
        lengths: list[tuple[int, ...]],
    ) -> tuple[dict[int, Tensor], dict[int, tuple[int, ...]]]:
        """Output of the modulating network by expert, and the numbers of tokens of its groups if they differ."""
        c = self.config
        if (condition is None) != (c.modulation == "none"):
            given = "missing" if condition is None else "given"
            raise ConfigError(
                f"modulation is {c.modulation!r}, and the condition is {given}; give both or none"
            )
        if condition is None:
            return {}, {}
        count, segments = condition.shape[1], len(layout.segments)
        if count not in (1, segments, layout.length):
            raise ConfigError(
                f"the condition has {count} rows, expected 1, {segments} (segments) or {layout.length} (tokens)"
            )
        slices, shared, groups = layout.slices(), {}, {}
        for n, mine in enumerate(own):
            if not mine:
                continue
            part = condition
            if count == segments and segments > 1:
                part, groups[n] = condition[:, mine], lengths[n]
            elif count > 1:
                part = torch.cat([condition[:, slices[i]] for i in mine], 1)
            shared[n] = self.modulate[c.experts[n].name](part)
        return shared, groups

    def _layer_modulation(self, shared: dict[int, Tensor], expert: int, layer: int) -> Tensor | None:
        if expert not in shared:
            return None
        width = 6 * self.config.experts[expert].width
        first = layer * width if self.config.modulation == "zero" else 0
        return shared[expert][..., first : first + width].unflatten(-1, (6, -1))
