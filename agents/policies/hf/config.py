"""Configuration of an `HFVLAPolicy`: which vision-language model, which action head, what is trained.

Example::

    config = HFVLAConfig(vlm={"model_type": "smolvlm", ...}, head="parallel", action_dim=4)
    config = HFVLAConfig.for_data("tiny", specs)
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldgym.errors import ConfigError
from worldgym.specs import Specs
from worldgym.utils.typed import from_values

ACTION_HEADS = ("tokens", "parallel", "fast", "l1", "flow")
SLOTS = ("learned", "oft")
STATES = ("token", "text", "none")
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
"""Prompt of OpenVLA (arXiv 2406.09246, section 3); `{state}` may stand in it where `state` is `text`."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (peft) in place of training all weights of the language model.

    Args:
        rank: rank of the adapters.
        alpha: scale; the update is multiplied by alpha / rank.
        dropout: dropout on the adapters' inputs, in training mode.
        targets: names of the linear layers that get an adapter.
    """

    rank: int = 32
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise ConfigError(
                f"lora has rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, targets={self.targets}; "
                "expected rank >= 1, alpha > 0, dropout in [0, 1) and at least one layer name"
            )


@dataclass(frozen=True)
class HFVLAConfig:
    """Shape of an `HFVLAPolicy`.

    Args:
        vlm: config of the vision-language model as transformers writes it (`config.json`), with `model_type`.
        action_dim: length of one action, A.
        chunk: actions per call, K.
        state_dim: length of the proprioception vector, S; 0 if there is none.
        head: `tokens` (autoregressive action tokens: RT-2, OpenVLA), `parallel` (all action tokens of the chunk in one
            pass, with bidirectional attention: OpenVLA-OFT), `fast` (autoregressive tokens of the cosine transform of a
            chunk: FAST), `l1` (regression on all slots of the chunk: OpenVLA-OFT) or `flow` (flow-matching action
            expert that attends to the keys and values of the language model: pi0).
        n_bins: bins per dimension of the token heads, on the last ids of the vocabulary, the lowest action on the last
            id. OpenVLA's 256 edges are 255 bins. For `fast` the number of tokens, with the one that ends a chunk.
        action_low: lower edge of the first bin, per dimension; -1 if None. With bounds of the data at -1 and 1, these
            are the quantiles of RT-2 and OpenVLA.
        action_high: upper edge of the last bin, per dimension; 1 if None.
        unused_ids: ids at the end of the vocabulary behind those of the actions (padding of the embedding table).
        begin_id: token in front of the first action, for head `tokens`; None learns one.
        end_id: token behind the slots, for `slots` of `oft`.
        slots: how the chunk is put behind the prefix for the heads `parallel` and `l1`: `learned`, one embedding for
            each number, or `oft`, as published OpenVLA-OFT checkpoints: zero embeddings and a last token, every token
            attends to every other, and the state in front of a slot is read.
        l1_scale: scale of the Laplace distribution of `l1`.
        images_after: number of prompt tokens in front of the images.
        state_after_images: put the token of proprioception behind the images, not behind the prompt.
        state_clip: normalised proprioception is cut to this size.
        binary_dims: action dimensions with two values, -1 and 1, for the token heads.
        prompt: text around the instruction; must contain `{instruction}`.
        state: proprioception as one projected `token`, as `text` in the prompt at `{state}` (256 bins, as pi0.5), or
            `none`.
        text_length: largest number of prompt tokens; longer prompts are refused.
        prefix_attention: `full` lets image and prompt tokens attend to each other in both directions (PaliGemma, pi0);
            `causal` keeps the order of the language model; None chooses what the model was trained with.
        lora: adapters; None trains the weights themselves.
        train_vision: train the vision tower and its projector too.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        bf16: run the vision-language model in bfloat16 autocast, on devices on which that is faster than float32 or if
            `weights` are in bfloat16; probabilities stay float32.
        weights: precision in which its weights are held, `float32` or `bfloat16`. The latter halves the memory; it is
            for acting and for adapters (which stay float32), since it loses small updates.
        expert_width: width of the action expert of `flow`.
        expert_ffn: width of its feed-forward layers.
        flow_steps: integration steps of `flow`.
        flow_noise: noise of the stochastic sampler of `flow`.
        fast_scale: scale of the coefficients of `fast` before they are rounded.
        fast: tokenizer of `fast` (`FastCodec.to_json`); training on data makes it.
        specs: specs of the training data; their cameras are read in order. None means one camera.

    Raises:
        ConfigError: an invalid value; the message says what to set instead.
    """

    vlm: Mapping[str, Any]
    action_dim: int = 7
    chunk: int = 5
    state_dim: int = 0
    head: str = "parallel"
    n_bins: int = 255
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    unused_ids: int = 0
    begin_id: int | None = None
    end_id: int | None = None
    slots: str = "learned"
    l1_scale: float = 0.2
    images_after: int = 0
    state_after_images: bool = False
    state_clip: float = 5.0
    binary_dims: tuple[int, ...] = ()
    prompt: str = PROMPT
    state: str = "token"
    text_length: int = 128
    prefix_attention: str | None = None
    lora: LoRA | None = None
    train_vision: bool = True
    gradient_checkpointing: bool = False
    bf16: bool = False
    weights: str = "float32"
    expert_width: int = 256
    expert_ffn: int = 1024
    flow_steps: int = 5
    flow_noise: float = 0.5
    fast_scale: float = 10.0
    fast: str | None = None
    specs: Specs | None = None

    def __post_init__(self) -> None:
        """Validate, and convert JSON lists to tuples."""
        object.__setattr__(self, "binary_dims", tuple(self.binary_dims))
        for name in ("action_low", "action_high"):
            given = getattr(self, name)
            if given is None:
                continue
            object.__setattr__(self, name, tuple(float(value) for value in given))
            if len(getattr(self, name)) != self.action_dim:
                raise ConfigError(
                    f"{name} has {len(given)} values, expected one for each of {self.action_dim} dimensions"
                )
        if any(low >= high for low, high in zip(*self.range, strict=True)):
            raise ConfigError(
                f"expected action_low < action_high, got {self.action_low} and {self.action_high}"
            )
        if not isinstance(self.vlm, Mapping) or not isinstance(self.vlm.get("model_type"), str):
            raise ConfigError(
                "vlm must be the config of a transformers model with a `model_type`: the content of its config.json"
            )
        for name in (
            "action_dim",
            "chunk",
            "n_bins",
            "text_length",
            "expert_width",
            "expert_ffn",
            "flow_steps",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.state_dim < 0:
            raise ConfigError(f"state_dim is {self.state_dim}, expected at least 0")
        if not self.state_clip > 0 or not 0 < self.l1_scale < 10:
            raise ConfigError(
                f"state_clip is {self.state_clip} and l1_scale {self.l1_scale}; expected positive numbers, l1_scale "
                "below 10"
            )
        if self.slots == "oft" and (self.end_id is None or self.head not in ("parallel", "l1")):
            raise ConfigError(
                f"slots='oft' needs end_id and head='parallel' or 'l1'; got end_id={self.end_id}, head={self.head!r}"
            )
        choices = (("head", ACTION_HEADS), ("slots", SLOTS), ("state", STATES), ("weights", ("float32", "bfloat16")))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; there are {', '.join(known)}")
        if self.prefix_attention not in (None, "full", "causal"):
            raise ConfigError(
                f"prefix_attention is {self.prefix_attention!r}; expected 'full', 'causal' or None"
            )
        bad = [dim for dim in self.binary_dims if not 0 <= dim < self.action_dim]
        if bad:
            raise ConfigError(f"binary_dims must lie in [0, {self.action_dim}); got {bad}")
        self._check_prompt()

    def _check_prompt(self) -> None:
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None}
        except ValueError as error:
            raise ConfigError(
                f"prompt {self.prompt!r} is no template ({error}); write {{{{ for a brace"
            ) from error
        wanted = {"instruction"} | ({"state"} if self.state == "text" and self.state_dim else set())
        if fields != wanted:
            raise ConfigError(
                f"prompt {self.prompt!r} has the fields {sorted(fields)}, expected {sorted(wanted)} with state="
                f"{self.state!r} and state_dim={self.state_dim}"
            )

    @property
    def range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lower edges of the first bins, and upper edges of the last."""
        low = (-1.0,) * self.action_dim if self.action_low is None else self.action_low
        high = (1.0,) * self.action_dim if self.action_high is None else self.action_high
        return low, high

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the cameras beside the main one."""
        return () if self.specs is None else tuple(camera.name for camera in self.specs.observation.views)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HFVLAConfig:
        """Build from a JSON object.

        Raises:
            ConfigError: an unknown key (with a suggestion), a missing `vlm`, or a value of another type.
        """
        values = dict(values)
        specs = values.pop("specs", None)
        read = from_values(cls, values, "policy of type hf_vla")
        return dataclasses.replace(read, specs=Specs.from_dict(specs) if isinstance(specs, Mapping) else specs)
