"""Vision-language models of transformers: built from a config or a local folder, images to tokens, text to tokens.

Images and text reach the language model as embeddings, in one order for all model families: image tokens of every
camera, prompt, proprioception. So a policy needs no processor (which would need torchvision), and no remote code.

Example::

    vlm, tokenizer = load_vlm("models/SmolVLM-256M-Instruct")
    tokens = image_tokens(vlm, frames)                 # (B,N,D)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.policies.hf.prismatic import Prismatic
from worldgym.errors import CheckpointError, ConfigError

STACKED = ("idefics2", "idefics3", "smolvlm")
PATCHED = ("qwen2_vl", "qwen2_5_vl")
PLAIN = ("paligemma", "llava")
PRISMATIC = "openvla"
FAMILIES = (*STACKED, *PATCHED, *PLAIN, PRISMATIC)
"""Model types whose layouts of images are known, and tested."""
FULL_PREFIX = ("paligemma",)
"""Families that were trained with bidirectional attention over image and prompt."""


def transformers() -> Any:
    """The package transformers.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("this policy needs transformers; type: pip install 'worldgym[vla]'") from error
    return transformers


def build_vlm(config: Mapping[str, Any]) -> Any:
    """A model with random weights for a transformers config.

    Raises:
        ConfigError: a family that is not known here, or a config that transformers refuses.
    """
    library, kind = transformers(), str(config.get("model_type"))
    if kind not in FAMILIES:
        raise ConfigError(
            f"the vision-language model is of type {kind!r}; the layouts of these types are known: "
            f"{', '.join(FAMILIES)}"
        )
    if kind == PRISMATIC:
        return Prismatic(config)
    values = {
        key: value for key, value in config.items() if key not in ("model_type", "auto_map", "architectures")
    }
    try:
        known = library.AutoConfig.for_model(kind, **values)
        return library.AutoModelForImageTextToText.from_config(known)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"transformers cannot build a model of type {kind!r} from this config: {error}"
        ) from error


def load_vlm(folder: str | Path) -> tuple[Any, str]:
    """Load a vision-language model and the text of its `tokenizer.json` from a local folder, without remote code.

    Raises:
        CheckpointError: the folder, its weights or its tokenizer are missing or damaged.
        ConfigError: a family that is not known here.
    """
    library, path = transformers(), Path(folder).expanduser()
    kind = config_of(path).get("model_type")
    if kind not in FAMILIES or kind == PRISMATIC:
        raise ConfigError(
            f"{path} holds a model of type {kind!r}; the layouts of these types are known: {', '.join(FAMILIES)}"
        )
    text = tokenizer_of(path)
    try:
        vlm, report = library.AutoModelForImageTextToText.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load the model in {path}: {error}") from error
    tied = getattr(vlm.config, "tie_word_embeddings", False) or getattr(
        vlm.config.get_text_config(), "tie_word_embeddings", False
    )
    missing = [name for name in report["missing_keys"] if not (tied and "lm_head" in name)]
    if missing or report.get("mismatched_keys"):
        raise CheckpointError(
            f"the weights in {path} do not fit its config: {len(missing)} are missing, such as {missing[:1]}; "
            f"{len(report.get('mismatched_keys') or ())} have another shape"
        )
    return vlm, text


def config_of(folder: Path) -> dict[str, Any]:
    """Content of the `config.json` of a model folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give a folder with a transformers model")
    try:
        found = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged: expected an object, got {type(found).__name__}"
        )
    return found


def tokenizer_of(folder: Path) -> str:
    """Content of the `tokenizer.json` of a model folder.

    Raises:
        CheckpointError: it is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save it there with the tokenizer's save_pretrained"
        )
    return (folder / "tokenizer.json").read_text()


def image_size(vlm: Any) -> int:
    """Side of the square images that the vision tower takes, in pixels."""
    size = getattr(vlm.config.vision_config, "image_size", None)
    return int(size) if isinstance(size, int) else 224


def image_tokens(vlm: Any, frames: Tensor) -> Tensor:
    """Embeddings `(B,N,D)` of `frames (B,H,W,3)` uint8, resized to the model's size and scaled to [-1, 1]."""
    kind = vlm.config.model_type
    if kind == PRISMATIC:
        projected: Tensor = vlm.image_tokens(frames)
        return projected
    vision = vlm.config.vision_config
    x = frames.movedim(-1, 1).to(vlm.device).float() / 127.5 - 1
    if kind in PATCHED:
        cell = vision.patch_size * vision.spatial_merge_size
        side = max(1, round(min(frames.shape[1], image_size(vlm)) / cell)) * cell
    else:
        side = image_size(vlm)
    if tuple(x.shape[-2:]) != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    x = x.to(vlm.dtype)
    if kind in PATCHED:
        patches, grid = _patches(x, vision)
        found = vlm.model.get_image_features(patches, grid).pooler_output
    elif kind in STACKED:
        found = vlm.model.get_image_features(x[:, None]).pooler_output
    else:
        found = vlm.model.get_image_features(x).pooler_output
    tokens: Tensor = torch.stack(list(found)) if isinstance(found, (list, tuple)) else found
    return tokens.reshape(len(frames), -1, tokens.shape[-1])


def _patches(x: Tensor, vision: Any) -> tuple[Tensor, Tensor]:
    """Flat patches `(B gh gw, 3 T p p)` in the order of Qwen's image processor, and the grid `(B,3)` of each image."""
    p, m, t = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    b, c, height, width = x.shape
    gh, gw = height // p, width // p
    x = x[:, None].expand(-1, t, -1, -1, -1).reshape(b, 1, t, c, gh // m, m, p, gw // m, m, p)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    grid = torch.tensor([[1, gh, gw]] * b, device=x.device)
    return x.reshape(b * gh * gw, c * t * p * p), grid


class Words:
    """Prompts to token ids with the model's own `tokenizer.json`.

    Args:
        text: content of `tokenizer.json`.
        vocabulary: number of embeddings of the language model.
        actions: ids that stand for actions; a prompt must not contain them.
        length: largest number of tokens.

    Raises:
        CheckpointError: the text is no tokenizer.
        ConfigError: the tokenizer has more ids than the model has embeddings.
    """

    def __init__(self, text: str, vocabulary: int, actions: range, length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"this is no content of a tokenizer.json: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.text, self.actions, self.length = text, actions, length
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocabulary:
            raise ConfigError(
                f"the tokenizer has ids up to {largest}, the language model {vocabulary} embeddings; give the "
                "tokenizer of this model"
            )

    def ids(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids `(B,L)`, padded at the right with 0, and `real (B,L)` bool.

        Raises:
            ConfigError: a prompt has more than `length` tokens, none, or one that stands for an action.
        """
        rows = [code.ids for code in self.tokenizer.encode_batch(prompts)]
        for prompt, row in zip(prompts, rows, strict=True):
            if not 0 < len(row) <= self.length:
                raise ConfigError(
                    f"the prompt {prompt[:80]!r} has {len(row)} tokens, expected 1 to {self.length}; "
                    "set text_length higher"
                )
            if taken := [token for token in row if token in self.actions]:
                raise ConfigError(
                    f"the prompt {prompt[:80]!r} contains the token {taken[0]}, which stands for an action; the "
                    f"tokenizer's vocabulary is too small for {len(self.actions)} bins: set n_bins lower"
                )
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        real = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
        return ids, real
