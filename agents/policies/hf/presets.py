"""Shapes with random weights: `tiny` for tests, and published sizes to measure cost and to train from nothing.

Example::

    vlm, tokenizer, settings = shape("tiny")
"""

from __future__ import annotations

from typing import Any

from worldgym.errors import ConfigError

BYTES = 256


def byte_tokenizer() -> str:
    """Content of a `tokenizer.json` with one token per byte, ids 0 to 255."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return str(made.to_str())


def _smolvlm(
    width: int, ffn: int, layers: int, heads: int, kv_heads: int, head_dim: int, vision: dict[str, int], scale: int,
    vocabulary: int,
) -> dict[str, Any]:  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "rope_theta": 100_000.0, "pad_token_id": 0, "bos_token_id": 0,
        "eos_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    return {
        "model_type": "smolvlm", "text_config": text, "vision_config": {"model_type": "smolvlm_vision", **vision},
        "scale_factor": scale, "image_token_id": vocabulary - 1, "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip


def shape(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Config of the vision-language model, tokenizer, and settings of the policy.

    `tiny` is 0.4M weights; `smolvlm-256m` and `smolvlm-500m` have the shapes of SmolVLM (arXiv 2504.05299), and
    `openvla-7b` that of OpenVLA (arXiv 2406.09246), with its own layout of a prompt and seven actions. All have a
    tokenizer of bytes, and random weights: give a folder in place of a name to start from a trained model.

    Raises:
        ConfigError: an unknown name.
    """
    if name == "tiny":
        vision = {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 64, "patch_size": 8,
        }  # fmt: skip
        vlm = _smolvlm(96, 192, 3, 4, 2, 24, vision, 2, 2 * BYTES)
        return vlm, byte_tokenizer(), {"text_length": 128, "expert_width": 64, "expert_ffn": 128}
    big = {"image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
           "num_attention_heads": 12}  # fmt: skip
    shapes = {"smolvlm-256m": (576, 1536, 30, 9, 3), "smolvlm-500m": (960, 2560, 32, 15, 5)}
    if name in shapes:
        own: dict[str, Any] = {"text_length": 128, "expert_width": 720, "expert_ffn": 2048}
        return _smolvlm(*shapes[name], 64, big, 4, 49_280), byte_tokenizer(), own
    if name == "openvla-7b":
        llama: dict[str, Any] = {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_064, "pad_token_id": 32_000,
        }  # fmt: skip
        dual = "dinosiglip-vit-so-224px"
        published: dict[str, Any] = {"model_type": "openvla", "vision_backbone_id": dual, "text_config": llama}
        own = {
            "head": "tokens", "chunk": 1, "unused_ids": 64, "begin_id": 29_871, "images_after": 1, "state": "none",
            "prefix_attention": "causal",
        }  # fmt: skip
        return published, byte_tokenizer(), own
    raise ConfigError(
        f"unknown preset {name!r}; there are tiny, smolvlm-256m, smolvlm-500m, openvla-7b, or give a folder with a "
        "model"
    )
