"""Wan's and Cosmos' transformers with actions, a noise level per latent frame, and block-causal attention.

Both take a sequence of latent frames, each with its own noise level and its own actions, and predict the flow velocity
`v = noise - clean` of every frame. A level of 0 marks a frame of the clean context. Wan 2.2 TI2V and Cosmos-Predict 2
and 2.5 were trained with a level per frame, so a clean context is what they know.

Actions enter as in the released code of DreamDojo (arXiv 2602.06949): the outputs of an MLP whose last layers start at
zero are added to the time embedding and to the modulation of adaLN. Before training, and for frames without actions,
the network is therefore exactly the one of diffusers.

Example::

    network = WanNetwork(WanTransformer3DModel(...), action_dim=4, per_frame=4)
    v, written = network(latents, levels, actions, given, positions=[0, 1, 2])      # latents (B, 3, C, h, w)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldgym.models.backbones.attention import Attending, CosmosSelfAttention, Rotary, WanSelfAttention

CLEAN = 1e-4
"""Noise level that Cosmos' pipelines give to frames of the clean context (`conditional_frame_timestep`)."""
TRAIN_STEPS = 1000
"""Wan's timestep of pure noise; Cosmos' is 1."""


class ActionEmbedding(nn.Module):
    """Embeds the actions of a latent frame.

    Args:
        action_dim: A.
        per_frame: actions of one latent frame, r.
        sizes: sizes of the outputs: the time embedding and the modulation.
        width: width of the hidden layers.
    """

    def __init__(self, action_dim: int, per_frame: int, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(per_frame * (action_dim + 1), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.outputs = nn.ModuleList([nn.Linear(width, size) for size in sizes])
        for layer in self.outputs:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, actions: Tensor, given: Tensor) -> list[Tensor]:
        """Outputs `(B,F,size)`; zero for frames without actions.

        Args:
            actions: `(B,F,r,A)`, re-based.
            given: `(B,F,r)` bool, actions that are known; the others are ignored.
        """
        known = given.to(actions.dtype)
        x = torch.cat([(actions * known[..., None]).flatten(2), known], -1)
        hidden = self.trunk(x.to(self.outputs[0].weight.dtype))
        any_given = known.amax(-1, keepdim=True)
        return [layer(hidden) * any_given.to(hidden.dtype) for layer in self.outputs]


class VideoNetwork(nn.Module, ABC):
    """What both networks share; a subclass knows the modules of one transformer class.

    Args:
        transformer: the diffusers model.
        action_dim: A.
        per_frame: actions of one latent frame, r.
        sizes: sizes of its time embedding and of its modulation.
        text: width of its text input.
        width: width of the action MLP.
    """

    def __init__(
        self, transformer: Any, action_dim: int, per_frame: int, sizes: Sequence[int], text: int, width: int
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.actions = ActionEmbedding(action_dim, per_frame, sizes, width)
        # One token of zeros stands for the text. Any number of equal tokens gives the same cross-attention.
        self.register_buffer("text", torch.zeros(1, 1, text))
        self.checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer's weights."""
        return next(self.transformer.proj_out.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Change the precision of the transformer in place, except of what diffusers keeps in float32."""
        kept = set(getattr(self.transformer, "_keep_in_fp32_modules", None) or ())
        for name, parameter in self.transformer.named_parameters():
            exact = kept & set(name.split(".")) or "lora_" in name
            parameter.data = parameter.data.to(torch.float32 if exact else dtype)

    @abstractmethod
    def rotary(self, positions: Sequence[int], height: int, width: int, device: torch.device) -> Rotary:
        """Rotary embedding of the tokens of F frames at `positions`, `height x width` tokens each."""
        ...

    @abstractmethod
    def embed(
        self, latents: Tensor, levels: Tensor, actions: Tensor, given: Tensor
    ) -> tuple[Tensor, Any, tuple[Any, ...]]:
        """Tokens `(B,F,h',w',D)`, what the output layer needs, and the blocks' other arguments."""
        ...

    @abstractmethod
    def unembed(self, hidden: Tensor, conditions: Any) -> Tensor:
        """Values of the patches `(B, F h' w', C p p)` of the last hidden tokens."""
        ...

    @property
    @abstractmethod
    def blocks(self) -> Any:
        """The transformer's blocks."""
        ...

    def unpatch(self, values: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Latents `(B,F,C,h,w)` of the values of their patches."""
        _, ph, pw = self.transformer.config.patch_size
        x = values.unflatten(2, (ph, pw, -1)).unflatten(1, (frames, height, width))
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def forward(
        self,
        latents: Tensor,
        levels: Tensor,
        actions: Tensor,
        given: Tensor,
        positions: Sequence[int],
        *,
        mask: Tensor | None = None,
        cached: Sequence[Tensor] = (),
        keep: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict velocities.

        Args:
            latents: `(B,F,C,h,w)`.
            levels: `(B,F)` noise levels in [0, 1]; 0 is clean.
            actions: `(B,F,r,A)`, re-based.
            given: `(B,F,r)` bool, actions that are known.
            positions: F positions in the window; cached frames have 0, 1, ..., M - 1.
            mask: `(F,F)` bool, which frame may attend to which; None attends to all.
            cached: per layer, `(B, M, N, 2, heads, D)` of M cached frames of N tokens.
            keep: whether to return the keys and values of these frames.

        Returns:
            velocities `(B,F,C,h,w)` float32, and per layer `(B, F, N, 2, heads, D)`, or an empty list.
        """
        frames, dtype = latents.shape[1], self.dtype
        x, conditions, arguments = self.embed(latents.to(dtype), levels, actions, given)
        height, width = x.shape[2:4]
        at = [int(position) for position in positions]
        queries = self.rotary(at, height, width, x.device)
        keys = queries
        if len(cached):
            keys = self.rotary([*range(cached[0].shape[1]), *at], height, width, x.device)
        if mask is not None:
            mask = mask.repeat_interleave(height * width, 0).repeat_interleave(height * width, 1)
        written: dict[int, Tensor] | None = {} if keep else None
        attending = Attending(queries, keys, mask, [layer.flatten(1, 2) for layer in cached], written)
        hidden = x.flatten(1, 3)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(self._run, block, hidden, attending, arguments, use_reentrant=False)
            else:
                hidden = self._run(block, hidden, attending, arguments)
        values = self.unembed(hidden, conditions)
        kept = [written[i].unflatten(1, (frames, -1)) for i in sorted(written)] if written else []
        return self.unpatch(values, frames, height, width).float(), kept

    @abstractmethod
    def _run(self, block: Any, hidden: Tensor, attending: Attending, arguments: tuple[Any, ...]) -> Tensor: ...

    def over_tokens(self, values: Tensor, tokens: int) -> Tensor:
        """Repeat values `(B,F,...)` of frames for each of their tokens, `(B, F tokens, ...)`."""
        return values.repeat_interleave(tokens, 1)


class WanNetwork(VideoNetwork):
    """`diffusers.WanTransformer3DModel` with actions; see `VideoNetwork`.

    Args:
        transformer: a model that reads and writes the channels of its VAE (text to video, or TI2V).
        action_dim: A.
        per_frame: actions of one latent frame, r.
        width: width of the action MLP.
    """

    def __init__(self, transformer: Any, action_dim: int, per_frame: int, width: int = 256) -> None:
        c = transformer.config
        inner = c.num_attention_heads * c.attention_head_dim
        super().__init__(transformer, action_dim, per_frame, (inner, 6 * inner), c.text_dim, width)
        for layer, block in enumerate(transformer.blocks):
            block.attn1.set_processor(WanSelfAttention(layer))

    @property
    def blocks(self) -> Any:
        """The transformer's blocks."""
        return self.transformer.blocks

    def rotary(self, positions: Sequence[int], height: int, width: int, device: torch.device) -> Rotary:
        """See `VideoNetwork.rotary`."""
        rope, at = self.transformer.rope, torch.tensor(positions, device=device)
        sizes, parts = [rope.t_dim, rope.h_dim, rope.w_dim], []
        for table in (rope.freqs_cos, rope.freqs_sin):
            t, h, w = table.to(device).split(sizes, 1)
            shape = (len(positions), height, width, -1)
            parts.append(
                torch.cat(
                    [
                        t[at][:, None, None].expand(shape), h[:height][None, :, None].expand(shape),
                        w[:width][None, None].expand(shape),
                    ], -1,
                ).flatten(0, 2)
            )  # fmt: skip
        return parts[0], parts[1]

    def embed(
        self, latents: Tensor, levels: Tensor, actions: Tensor, given: Tensor
    ) -> tuple[Tensor, Any, tuple[Any, ...]]:
        """See `VideoNetwork.embed`."""
        x = self.transformer.patch_embedding(latents.transpose(1, 2)).permute(
            0, 2, 3, 4, 1
        )  # (B, F, h', w', D)
        b, frames, height, width = x.shape[:4]
        text = self.text.to(latents.dtype).expand(b, -1, -1)
        time, modulation, text, _ = self.transformer.condition_embedder(
            (TRAIN_STEPS * levels).flatten(), text, None, timestep_seq_len=frames
        )
        more_time, more_modulation = self.actions(actions, given)
        time, modulation = time + more_time.to(time), modulation + more_modulation.to(modulation)
        tokens = height * width
        modulation = self.over_tokens(modulation.unflatten(2, (6, -1)), tokens)
        return x, self.over_tokens(time, tokens), (text, modulation)

    def _run(self, block: Any, hidden: Tensor, attending: Attending, arguments: tuple[Any, ...]) -> Tensor:
        return block(hidden, *arguments, attending)

    def unembed(self, hidden: Tensor, conditions: Any) -> Tensor:
        """See `VideoNetwork.unembed`."""
        net = self.transformer
        shift, scale = (net.scale_shift_table[None] + conditions[:, :, None]).unbind(2)
        out = (net.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        return net.proj_out(out)


class CosmosNetwork(VideoNetwork):
    """`diffusers.CosmosTransformer3DModel` (Predict 2 and 2.5) with actions; see `VideoNetwork`.

    Args:
        transformer: a model whose input has one channel more than its VAE: the mask of the clean context.
        action_dim: A.
        per_frame: actions of one latent frame, r.
        width: width of the action MLP.
        fps: frame rate that the rotary embedding is scaled with; 16 is the pipelines' default.
    """

    def __init__(
        self, transformer: Any, action_dim: int, per_frame: int, width: int = 256, fps: float = 16.0
    ) -> None:
        c = transformer.config
        inner = c.num_attention_heads * c.attention_head_dim
        text = c.crossattn_proj_in_channels if c.use_crossattn_projection else c.text_embed_dim
        super().__init__(transformer, action_dim, per_frame, (inner, 3 * inner), text, width)
        self.fps = fps
        for layer, block in enumerate(transformer.transformer_blocks):
            block.attn1.set_processor(CosmosSelfAttention(layer))

    @property
    def blocks(self) -> Any:
        """The transformer's blocks."""
        return self.transformer.transformer_blocks

    def rotary(self, positions: Sequence[int], height: int, width: int, device: torch.device) -> Rotary:
        """See `VideoNetwork.rotary`."""
        rope, p = self.transformer.rope, self.transformer.config.patch_size
        # Its own embedding, of as many frames as are needed; the frames are then chosen.
        like = torch.empty(1, 1, max(positions) + 1, height * p[1], width * p[2], device=device)
        tables = [table.unflatten(0, (-1, height * width)) for table in rope(like, fps=self.fps)]
        at = torch.tensor(positions, device=device)
        cos, sin = (table[at].flatten(0, 1) for table in tables)
        return cos, sin

    def embed(
        self, latents: Tensor, levels: Tensor, actions: Tensor, given: Tensor
    ) -> tuple[Tensor, Any, tuple[Any, ...]]:
        """See `VideoNetwork.embed`."""
        net = self.transformer
        x, (b, frames) = latents.transpose(1, 2), latents.shape[:2]
        clean = (levels <= 0).to(x.dtype)[:, None, :, None, None].expand(-1, -1, -1, *x.shape[3:])
        x = torch.cat([x, clean], 1)
        if net.config.concat_padding_mask:  # no padding, as in the pipelines
            x = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
        extra = None if net.learnable_pos_embed is None else net.learnable_pos_embed(x)
        x = net.patch_embed(x)
        tokens = x.shape[2] * x.shape[3]
        modulation, time = (
            part.unflatten(0, (b, frames)) for part in net.time_embed(x, levels.clamp(min=CLEAN).flatten())
        )
        more_time, more_modulation = self.actions(actions, given)
        time = self.over_tokens(time + more_time.to(time), tokens)
        modulation = self.over_tokens(modulation + more_modulation.to(modulation), tokens)
        text = self.text.to(x.dtype).expand(b, -1, -1)
        if net.config.use_crossattn_projection:
            text = net.crossattn_proj(text)
        return x, (time, modulation), (text, time, modulation, extra)

    def _run(self, block: Any, hidden: Tensor, attending: Attending, arguments: tuple[Any, ...]) -> Tensor:
        text, time, modulation, extra = arguments
        return block(hidden, text, time, modulation, attending, extra)

    def unembed(self, hidden: Tensor, conditions: Any) -> Tensor:
        """See `VideoNetwork.unembed`."""
        return self.transformer.proj_out(self.transformer.norm_out(hidden, *conditions))
