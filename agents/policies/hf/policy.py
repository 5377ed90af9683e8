"""`HFVLAPolicy`: a vision-language model of transformers as a policy with exact log-probabilities.

Example::

    policy = HFVLAPolicy.from_vlm("models/SmolVLM-256M-Instruct", specs, head="parallel")
    out = policy.act({"image": image, "state": state, "instruction": ["open the drawer"]}, temperature=0)
    out.actions.shape                                  # (1, 5, 4)
    policy.save_pretrained("runs/policy")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from agents.policies.heads import Bins
from agents.policies.hf.config import HFVLAConfig, LoRA
from agents.policies.hf.context import Context, Prefix, recomputed
from agents.policies.hf.fast import FastCodec, chunks_of
from agents.policies.hf.heads import make_hf_head
from agents.policies.hf.openvla import load_openvla
from agents.policies.hf.presets import shape
from agents.policies.hf.vlm import (
    FULL_PREFIX,
    PATCHED,
    PRISMATIC,
    Words,
    build_vlm,
    config_of,
    image_tokens,
    load_vlm,
)  # fmt: skip
from agents.policies.lerobot import LeRobotPolicyMixin
from worldgym.errors import CheckpointError, ConfigError
from worldgym.hub import HubModel
from worldgym.protocols import ChunkBatch, Evaluation, Observation, PolicyOutput, Temperature, total_log_prob
from worldgym.specs import Specs
from worldgym.utils.devices import autocast, bfloat16_pays

VISION = (
    "vision_backbone",
    "projector",
    "vision_tower",
    "vision_model",
    "visual",
    "multi_modal_projector",
    "connector",
)
STATE_BINS = 256


class HFVLAPolicy(
    LeRobotPolicyMixin,
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["robotics", "vla", "worldgym"],
    coders={HFVLAConfig: (dataclasses.asdict, HFVLAConfig.from_dict)},
):
    """Images, instruction and proprioception -> a distribution over an action chunk, by a vision-language model.

    Args:
        config: the model and the head; also accepts a plain dict (as in `config.json`).
        tokenizer: content of the model's `tokenizer.json`.

    Raises:
        ConfigError: an unknown model family, or a vocabulary that is too small for the action tokens.
    """

    texts: ClassVar[Mapping[str, str]] = {"tokenizer": "tokenizer.json"}

    def __init__(self, config: HFVLAConfig | Mapping[str, Any], tokenizer: str) -> None:
        super().__init__()
        self.config = config if isinstance(config, HFVLAConfig) else HFVLAConfig.from_dict(config)
        self.tokenizer = tokenizer
        self._assemble(build_vlm(self.config.vlm))

    def _assemble(self, vlm: Any) -> None:
        config, decoder = self.config, vlm.get_decoder()
        width, vocabulary = decoder.config.hidden_size, decoder.get_input_embeddings().num_embeddings
        used = vocabulary - config.unused_ids
        if config.n_bins >= used:
            raise ConfigError(
                f"the language model has {used} tokens, and {config.n_bins} of them would stand for actions; set "
                "n_bins lower"
            )
        actions = range(0) if config.head == "flow" else range(used - config.n_bins, used)
        self.words = Words(self.tokenizer, vocabulary, actions, config.text_length)
        self.register_buffer("action_ids", used - 1 - torch.arange(config.n_bins), persistent=False)
        self.action_ids: Tensor
        self.vlm = vlm.to(getattr(torch, config.weights))
        if config.state == "token" and config.state_dim:
            self.state_token = nn.Sequential(
                nn.Linear(config.state_dim, width), nn.GELU(), nn.Linear(width, width)
            )
        self.head = make_hf_head(config, decoder)
        self.register_buffer("state_mean", torch.zeros(config.state_dim))
        self.register_buffer("state_std", torch.ones(config.state_dim))
        self.state_mean: Tensor
        self.state_std: Tensor
        if config.lora is not None:
            _adapt(decoder, config.lora)
            vlm.get_output_embeddings().requires_grad_(False)
        if not config.train_vision or config.lora is not None:
            for name, weight in vlm.model.named_parameters():
                if name.split(".")[0] in VISION:
                    weight.requires_grad_(False)
        if config.gradient_checkpointing:
            if config.head == "flow":
                raise ConfigError(
                    "gradient_checkpointing does not work with head='flow', whose expert reads keys and values that "
                    "checkpointing drops; set one of the two otherwise"
                )
            # the second is the name in versions of transformers before 5.23
            enable = (
                getattr(vlm, "activation_checkpointing_enable", None) or vlm.gradient_checkpointing_enable
            )
            enable()
        self.reset()

    @classmethod
    def from_vlm(cls, folder: str | Path, specs: Specs, **settings: Any) -> HFVLAPolicy:
        """Start from the weights of a vision-language model in a local folder; head and state token are new.

        Args:
            folder: as transformers' `save_pretrained` writes it, with `tokenizer.json`.
            specs: specs of the training data.
            **settings: fields of `HFVLAConfig`; for a published OpenVLA checkpoint (`agents.policies.hf.openvla`) also
                `unnorm_key`, the dataset whose action statistics apply.

        Raises:
            CheckpointError: the folder is incomplete or damaged.
            ConfigError: the model family is not known, or a setting is invalid.
        """
        path, key = Path(folder).expanduser(), settings.pop("unnorm_key", None)
        given = config_of(path)
        more: dict[str, Tensor] = {}
        if given.get("model_type") == PRISMATIC:
            plain, own, vlm, tokenizer, more = load_openvla(path, given, shape_of(specs)["specs"], key)
        else:
            vlm, tokenizer = load_vlm(path)
            plain, own = _plain(vlm.config), {}
        config = HFVLAConfig.from_dict({"vlm": plain, **shape_of(specs), **own, **settings})
        policy = cls.__new__(cls)
        nn.Module.__init__(policy)
        policy.config, policy.tokenizer = config, tokenizer
        policy._assemble(vlm)
        policy._take(more, path)
        return policy

    def _take(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Load further weights of a published checkpoint: all of the head, and those of proprioception."""
        own = self.state_dict()
        wanted = {name for name in own if weights and name.startswith("head.model.")} | set(weights)
        other = [n for n in wanted if n not in own or n not in weights or own[n].shape != weights[n].shape]
        if other:
            name = min(other)
            shapes = [tuple(part[name].shape) if name in part else "none" for part in (weights, own)]
            raise CheckpointError(
                f"{name} from {folder} has the shape {shapes[0]}, expected {shapes[1]}: the action head or the "
                "projector is of another model or robot"
            )
        self.load_state_dict({**own, **weights})

    @classmethod
    def for_data(
        cls, specs: Specs, preset: str, arrays: Any = None, *, settings: Mapping[str, Any] | None = None
    ) -> HFVLAPolicy:
        """A policy for `worldgym train policy --type hf_vla --preset NAME --settings head=flow`.

        Args:
            specs: specs of the training data.
            preset: a name (`agents.policies.hf.presets`, random weights), or a folder with a vision-language model.
            arrays: the data; `head="fast"` makes its tokenizer from their actions.
            settings: fields of `HFVLAConfig`.
        """
        settings = dict(settings or {})
        if settings.get("head") == "fast" and "fast" not in settings and arrays is not None:
            known = {field.name: field.default for field in dataclasses.fields(HFVLAConfig)}
            chunk, tokens, scale = (settings.get(name, known[name]) for name in ("chunk", "n_bins", "fast_scale"))
            chunks = chunks_of(arrays, int(chunk))
            settings["fast"] = FastCodec.fit(chunks, int(tokens) - 1, float(scale)).to_json()
        if Path(preset).expanduser().is_dir():
            return cls.from_vlm(preset, specs, **settings)
        vlm, tokenizer, own = shape(preset)
        return cls(HFVLAConfig.from_dict({"vlm": vlm, **shape_of(specs), **own, **settings}), tokenizer)

    @property
    def chunk(self) -> int:
        """Actions per call."""
        return self.config.chunk

    @property
    def specs(self) -> Specs | None:
        """Cameras, state fields and actions of the training data."""
        return self.config.specs

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.state_mean.device

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components that the policy samples."""
        return ("action",)

    def parameters_of(self, component: str) -> Iterator[nn.Parameter]:
        """Weights that are trained: all that are not frozen. There is one component, `action`.

        Raises:
            ConfigError: another component.
        """
        if component not in ("all", "action"):
            raise ConfigError(f"this policy has no {component!r} that can be trained alone; type --learn all")
        yield from (weight for weight in self.parameters() if weight.requires_grad)

    def set_state_stats(self, states: np.ndarray | Tensor) -> None:
        """Set the normalisation of proprioception to mean and std of `states (N,S)`."""
        if self.config.state_dim:
            states = torch.as_tensor(states, dtype=torch.float32, device=self.device)
            self.state_mean.copy_(states.mean(0))
            self.state_std.copy_(states.std(0, correction=1 if len(states) > 1 else 0).clamp_min(1e-3))

    # -- inputs -------------------------------------------------------------------------------------------------

    def context(self, observation: Observation) -> Context:
        """Embed the observations. Image tokens of all cameras come first, then the prompt, then proprioception.

        Raises:
            ConfigError: an image, proprioception or instruction of another shape or number.
        """
        config, vlm = self.config, self.vlm
        images = [
            self._image(observation, "image"),
            *(self._image(observation, f"image_{name}") for name in config.views),
        ]
        batch = len(images[0])
        texts = [str(text) for text in observation["instruction"]]
        if len(texts) != batch or any(len(image) != batch for image in images):
            raise ConfigError(f"{batch} images but {len(texts)} instructions; give one for each row")
        state = self._state(observation, batch)
        learns = torch.is_grad_enabled() and config.train_vision and config.lora is None
        bf16 = config.bf16 and (config.weights == "bfloat16" or bfloat16_pays(self.device.type))
        with autocast(self.device, bf16, always=True), torch.set_grad_enabled(learns):
            seen = [image_tokens(vlm, image) for image in images]
        ids, real = self.words.ids([self._prompt(text, row) for text, row in zip(texts, state, strict=True)])
        ids, real, first = ids.to(self.device), real.to(self.device), config.images_after
        words = vlm.get_input_embeddings()(ids)
        if hasattr(self, "state_token") and config.state_after_images:
            seen = [*seen, self.state_token(state)[:, None]]
        parts, masks = [words[:, :first], *seen, words[:, first:]], [real[:, :first]]
        masks += [*(real.new_ones(x.shape[:2]) for x in seen), real[:, first:]]
        if hasattr(self, "state_token") and not config.state_after_images:
            parts.append(self.state_token(state)[:, None])
            masks.append(real.new_ones(batch, 1))
        embeds, present = torch.cat([part.to(words.dtype) for part in parts], 1), torch.cat(masks, 1)
        full = config.prefix_attention == "full"
        if config.prefix_attention is None:
            full = vlm.config.model_type in FULL_PREFIX
        prefix = Prefix(embeds, present, self._positions(seen, present), full)
        return Context(vlm.get_decoder(), vlm.get_output_embeddings(), prefix, self.action_ids, bf16)

    def _positions(self, seen: list[Tensor], present: Tensor) -> Tensor:
        flat = (present.long().cumsum(1) - 1).clamp_min(0)
        if self.vlm.config.model_type not in PATCHED:
            return flat
        # Qwen2-VL (arXiv 2409.12191, section 2.1): an image advances positions by its longer side, not by its tokens
        first = self.config.images_after
        axes, at, column = flat.expand(3, -1, -1).clone(), first, first
        for image in seen:
            side = round(image.shape[1] ** 0.5)
            cells = torch.arange(image.shape[1], device=flat.device)
            where = torch.stack([torch.zeros_like(cells), cells // side, cells % side]) + at
            axes[:, :, column : column + len(cells)] = where[:, None]
            at, column = at + side, column + len(cells)
        axes[:, :, column:] = flat[:, column:] - column + at
        return axes

    def _image(self, observation: Observation, key: str) -> Tensor:
        if key not in observation:
            raise ConfigError(f"the observation lacks {key!r}; it has {sorted(observation)}")
        image = torch.as_tensor(observation[key], device=self.device)  # type: ignore[literal-required]
        if image.dtype != torch.uint8:
            raise TypeError(f"{key} must be uint8 in [0, 255], channels last; got {image.dtype}")
        if image.ndim != 4 or image.shape[-1] != 3:
            raise ConfigError(f"{key} must be (B, H, W, 3); got {tuple(image.shape)}")
        return image

    def _state(self, observation: Observation, batch: int) -> Tensor:
        size = self.config.state_dim
        given = observation["state"] if size else torch.zeros(batch, 0)
        state = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        if state.shape != (batch, size):
            raise ConfigError(f"state must be ({batch}, {size}); got {tuple(state.shape)}")
        clip = self.config.state_clip
        return ((state - self.state_mean) / self.state_std).clamp(-clip, clip)

    def _prompt(self, text: str, state: Tensor) -> str:
        if self.config.vlm["model_type"] == PRISMATIC:
            text = text.lower()  # as in its training data
        if self.config.state != "text" or not self.config.state_dim:
            return self.config.prompt.format(instruction=text)
        bins = ((state.clamp(-3, 3) + 3) / 6 * (STATE_BINS - 1)).round().long().tolist()
        return self.config.prompt.format(instruction=text, state=" ".join(map(str, bins)))

    # -- the policy protocol ------------------------------------------------------------------------------------

    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Sample a chunk for each row; see `worldgym.protocols.Policy`.

        Args:
            observation: `image (B,H,W,3)` uint8 of any size (and `image_<camera>`), `state (B,S)`, `instruction`.
            temperature: sampling temperature of the `action`; 0 is greedy.
            generator: source of randomness; the global one when None.
        """
        temp = self._temperature(temperature)
        with torch.no_grad():
            context = self.context(observation)
            actions, log_probs, trace = self.head.sample(context, temp, generator)
        trace = {**trace, "action_temperature": torch.full((len(context),), temp, device=self.device)}
        return PolicyOutput(actions, {"action": log_probs}, trace, temperature)

    @staticmethod
    def _temperature(temperature: Temperature) -> float:
        if isinstance(temperature, Mapping):
            if unknown := set(temperature) - {"action"}:
                raise ConfigError(
                    f"unknown components {sorted(unknown)} of temperature; this policy has action"
                )
            temperature = temperature.get("action", 1.0)
        if float(temperature) < 0:
            raise ConfigError(f"temperature must be >= 0; got {temperature}. 0 is greedy, 1 samples")
        return float(temperature)

    def evaluate(
        self, observation: Observation, trace: Mapping[str, Tensor], components: Sequence[str] | None = None
    ) -> Evaluation:
        """See `worldgym.protocols.TrainablePolicy`."""
        moved = {name: value.to(self.device) for name, value in trace.items()}
        with recomputed(self.vlm, self.config.gradient_checkpointing):
            found = self.head.evaluate(self.context(observation), moved, moved["action_temperature"])
        log_probs, entropies = found
        return Evaluation({"action": log_probs}, {"action": entropies})

    def log_prob_of(self, observation: Observation, output: PolicyOutput) -> Tensor:
        """Differentiable `(B,)` log-probability of `output` under the current weights, at its temperature."""
        return total_log_prob(self.evaluate(observation, output.trace).log_probs)

    def loss(self, batch: ChunkBatch, components: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`action`: cross-entropy in nats per dimension (token heads), or squared error of the velocity (`flow`)."""
        actions = torch.as_tensor(np.asarray(batch["actions"], np.float32), device=self.device)
        return {"action": self.head.loss(self.context(batch["observation"]), actions, ~actions.isnan())}

    @torch.no_grad()
    def metrics(self, batch: ChunkBatch) -> dict[str, float]:
        """Validation scores: val_loss, as `loss`; for token heads val_accuracy and val_entropy (nats)."""
        actions = torch.as_tensor(np.asarray(batch["actions"], np.float32), device=self.device)
        known, context = ~actions.isnan(), self.context(batch["observation"])
        if not isinstance(self.head, Bins):
            return {"val_loss": float(self.head.loss(context, actions, known))}
        tokens = self.head.tokens_of(actions.nan_to_num())
        head: Any = self.head
        log_probs = torch.log_softmax(head.logits(context, tokens), -1)
        return {
            "val_loss": -float(log_probs.gather(-1, tokens[..., None])[..., 0][known].mean()),
            "val_accuracy": float((log_probs.argmax(-1) == tokens)[known].float().mean()),
            "val_entropy": -float((log_probs.exp() * log_probs).sum(-1)[known].mean()),
        }

    def features(self, observation: Observation, layer: int = -1) -> Tensor:
        """`(B,L,D)`: image, prompt and state tokens after layer `layer` of the language model."""
        context = self.context(observation)
        prefix = context.prefix
        out = context.run(prefix.embeds, prefix.visible, prefix.positions, output_hidden_states=True)
        hidden: Tensor = out.hidden_states[1:][layer]  # the first are the embeddings
        return hidden.float()

    # -- tokens -------------------------------------------------------------------------------------------------

    def tokens_of(self, actions: np.ndarray | Tensor) -> Tensor:
        """Nearest tokens of `actions (...,A)`; token heads only."""
        tokens: Tensor = self.head.tokens_of(actions)
        return tokens

    def actions_of(self, tokens: Tensor) -> Tensor:
        """Actions in [-1,1] for `tokens (...,A)`; token heads only."""
        actions: Tensor = self.head.actions_of(tokens)
        return actions


def shape_of(specs: Specs) -> dict[str, Any]:
    """Settings of `HFVLAConfig` that follow from the specs of the data.

    Raises:
        ConfigError: the specs have no actions.
    """
    if specs.action is None:
        raise ConfigError("a policy needs data with actions, but these specs have none")
    gripper = specs.action.gripper
    return {
        "action_dim": specs.action.dim, "state_dim": specs.observation.state_dim, "specs": specs,
        "binary_dims": () if gripper is None else (gripper.index,),
    }  # fmt: skip


def _plain(config: Any) -> dict[str, Any]:
    """A transformers config as JSON data."""
    import json

    return {
        key: value
        for key, value in json.loads(config.to_json_string(use_diff=False)).items()
        if value is not None
    }


def _adapt(decoder: Any, lora: LoRA) -> None:
    """Add adapters to the linear layers of a language model in place, and freeze all its other weights."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("adapters need peft; type: pip install 'worldgym[vla]'") from error
    decoder.requires_grad_(False)
    alpha: Any = lora.alpha  # peft annotates an int, and multiplies by it
    config = LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets)
    )
    try:
        inject_adapter_in_model(config, decoder)
    except ValueError as error:
        raise ConfigError(
            f"no adapter can be added to the layers {', '.join(lora.targets)}: {error}"
        ) from error
    for name, weight in decoder.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
