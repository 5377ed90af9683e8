"""FAST action tokens: the cosine transform of an action chunk, rounded, and compressed by byte-pair encoding.

FAST (Pertsch et al. 2025, arXiv 2501.09747, section V and algorithm 1): each dimension of a chunk is transformed over
time (DCT-II, orthonormal), coefficients are multiplied by `scale` and rounded, written in the order of their frequency
with the dimensions side by side, and compressed by BPE. Smooth chunks need few tokens. The published tokenizer is not
needed: one is trained on the chunks of the data.

Example::

    codec = FastCodec.fit(chunks, vocabulary=256)       # chunks (N,K,A) in [-1, 1]
    tokens = codec.encode(chunks[:1])                   # one list of ints, shorter than K A
    codec.decode(tokens)                                # (1,K,A)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.fft import dct, idct
from torch import Tensor, nn

from agents.policies.heads.base import Head
from agents.policies.hf.config import HFVLAConfig
from worldgym.errors import ConfigError
from worldgym.utils.devices import multinomial

FIRST = 0x4E00  # characters that stand for coefficients: one block of 20,992 letters without any special treatment
LARGEST = 10_000


class FastCodec:
    """Action chunks `(K,A)` to tokens and back.

    Args:
        chunk: K.
        action_dim: A.
        scale: coefficients are multiplied by this before they are rounded; larger is finer.
        low: smallest rounded coefficient; smaller ones are cut.
        high: largest rounded coefficient.
        bpe: the tokenizer, content of a `tokenizer.json`.

    Raises:
        ConfigError: a value is invalid, or the tokenizer lacks a coefficient.
    """

    def __init__(self, chunk: int, action_dim: int, scale: float, low: int, high: int, bpe: str) -> None:
        from tokenizers import Tokenizer

        if not (low <= high and high - low < LARGEST and scale > 0):
            raise ConfigError(
                f"FAST tokens have scale {scale} and coefficients from {low} to {high}; expected others"
            )
        self.chunk, self.action_dim, self.scale, self.low, self.high, self.bpe = (
            chunk, action_dim, scale, low, high, bpe,
        )  # fmt: skip
        try:
            self._tokenizer = Tokenizer.from_str(bpe)
        except Exception as error:  # the library raises a plain Exception
            raise ConfigError(f"the tokenizer of the FAST tokens is damaged: {error}") from error
        lacking = [
            c for c in range(low, high + 1) if self._tokenizer.token_to_id(chr(FIRST + c - low)) is None
        ]
        if lacking:
            raise ConfigError(
                f"the tokenizer of the FAST tokens lacks the coefficients {lacking[:5]}; fit it again"
            )

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self._tokenizer.get_vocab_size())

    @classmethod
    def fit(cls, chunks: np.ndarray, vocabulary: int = 254, scale: float = 10.0) -> FastCodec:
        """Train a tokenizer.

        Args:
            chunks: `(N,K,A)` actions in [-1, 1], without NaN.
            vocabulary: largest number of tokens.
            scale: see the class; 10 is FAST's.

        Raises:
            ConfigError: there are no chunks, or more different coefficients than tokens.
        """
        from tokenizers import Tokenizer, models, trainers

        chunks = np.asarray(chunks, np.float64)
        if chunks.ndim != 3 or not len(chunks):
            raise ConfigError(f"FAST tokens are made from chunks (N, K, A); got the shape {chunks.shape}")
        rounded = np.rint(scale * dct(chunks, axis=1, norm="ortho")).astype(np.int64)
        # All coefficients between the ends are kept, so that chunks that are not in the data can be written too.
        low, high = int(rounded.min()), int(rounded.max())
        if high - low + 1 > min(vocabulary, LARGEST):
            raise ConfigError(
                f"the chunks have coefficients from {low} to {high}, more than {vocabulary} tokens; set fast_scale "
                f"below {scale}, or n_bins above {high - low + 2}"
            )
        alphabet = [chr(FIRST + value) for value in range(high - low + 1)]
        made = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        made.train_from_iterator(cls._written(rounded, low), trainer)
        return cls(chunks.shape[1], chunks.shape[2], scale, low, high, made.to_str())

    @staticmethod
    def _written(rounded: np.ndarray, low: int) -> list[str]:
        """One text for each chunk: coefficients by frequency, the dimensions side by side."""
        return ["".join(chr(FIRST + int(c) - low) for c in chunk.reshape(-1)) for chunk in rounded]

    def encode(self, actions: Any) -> list[list[int]]:
        """Tokens of `actions (B,K,A)`."""
        coefficients = dct(np.asarray(actions, np.float64), axis=1, norm="ortho")
        rounded = np.rint(self.scale * coefficients).clip(self.low, self.high).astype(np.int64)
        return [code.ids for code in self._tokenizer.encode_batch(self._written(rounded, self.low))]

    def decode(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Actions `(B,K,A)` float32 in [-1, 1]. Missing coefficients are zero, and those past the end are left out."""
        size = self.chunk * self.action_dim
        rounded = np.zeros((len(tokens), size))
        for row, ids in zip(rounded, tokens, strict=True):
            letters = "".join(self._tokenizer.id_to_token(int(i)) or "" for i in ids)[:size]
            row[: len(letters)] = [ord(letter) - FIRST + self.low for letter in letters]
        shaped = rounded.reshape(-1, self.chunk, self.action_dim) / self.scale
        return np.clip(idct(shaped, axis=1, norm="ortho"), -1, 1).astype(np.float32)

    def to_json(self) -> str:
        """Settings and tokenizer as text, for a policy's config."""
        fields = ("chunk", "action_dim", "scale", "low", "high", "bpe")
        return json.dumps({name: getattr(self, name) for name in fields})

    @classmethod
    def from_json(cls, text: str) -> FastCodec:
        """Rebuild from `to_json`.

        Raises:
            ConfigError: the text is not of that form.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise (
                error
                if isinstance(error, ConfigError)
                else ConfigError(f"`fast` of the policy is damaged: {error}; train the policy again")
            ) from error


class FastTokens(Head):
    """FAST tokens, one after the other, with a last token that ends the chunk; the number of tokens varies.

    Args:
        config: `n_bins` is the number of tokens with the last one, `fast` the codec.
        width: width of the language model.

    Raises:
        ConfigError: there is no codec, or one of other actions.
    """

    def __init__(self, config: HFVLAConfig, width: int) -> None:
        super().__init__()
        if config.fast is None:
            raise ConfigError(
                "head='fast' needs a tokenizer of action chunks; train with `worldgym train policy --type hf_vla`, "
                "which makes one from the data, or give fast=FastCodec.fit(chunks).to_json()"
            )
        self.codec = FastCodec.from_json(config.fast)
        if (self.codec.chunk, self.codec.action_dim) != (config.chunk, config.action_dim):
            raise ConfigError(
                f"the FAST tokens are of chunks ({self.codec.chunk}, {self.codec.action_dim}), expected "
                f"({config.chunk}, {config.action_dim}); fit them to these actions"
            )
        if self.codec.vocabulary > config.n_bins - 1:
            raise ConfigError(
                f"the FAST tokens are {self.codec.vocabulary} and one that ends a chunk, but n_bins is {config.n_bins}"
            )
        self.binary_dims = list(config.binary_dims)
        self.end, self.length = self.codec.vocabulary, config.chunk * config.action_dim + 1
        self.begin = nn.Parameter(0.02 * torch.randn(1, width))
        mask = torch.zeros(config.n_bins)
        mask[self.end + 1 :] = -1e9
        self.register_buffer("mask", mask, persistent=False)
        self.mask: Tensor

    def tokens_of(self, actions: Any) -> Tensor:
        """`(B,L)` int64 tokens of `actions (B,K,A)`; the last token is repeated behind the end.

        NaN, actions after the end of an episode, repeats the last known action.
        """
        filled = torch.as_tensor(actions).detach().cpu().double().numpy().copy()
        for step in range(1, filled.shape[1]):
            unknown = np.isnan(filled[:, step])
            filled[:, step][unknown] = filled[:, step - 1][unknown]
        codes = self.codec.encode(np.nan_to_num(filled))
        out = torch.full((len(codes), max(map(len, codes), default=0) + 1), self.end)
        for row, code in zip(out, codes, strict=True):
            row[: len(code)] = torch.tensor(code)
        return out.to(self.mask.device)

    def actions_of(self, tokens: Tensor) -> Tensor:
        """`(B,K,A)` for `tokens (B,L)`; a binary dimension becomes -1 or 1 by its sign."""
        ended = (tokens == self.end).cumsum(1) > 0
        codes = [row[~over].tolist() for row, over in zip(tokens.cpu(), ended.cpu(), strict=True)]
        actions = torch.from_numpy(self.codec.decode(codes))
        for dim in self.binary_dims:
            actions[..., dim] = torch.where(actions[..., dim] >= 0, 1.0, -1.0)
        return actions.to(tokens.device)

    def _counted(self, tokens: Tensor) -> Tensor:
        """`(B,L)` bool: tokens up to the first that ends the chunk."""
        return ((tokens == self.end).cumsum(1) - (tokens == self.end).long()) == 0

    def logits(self, features: Any, tokens: Tensor) -> Tensor:
        """`(B,L,n_bins)` float32 for `tokens (B,L)`."""
        begin = self.begin.expand(len(features), 1, -1)
        embeds = torch.cat([begin, features.embed(tokens[:, :-1]).to(begin.dtype)], 1)
        order = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        found: Tensor = features.logits(features.read(embeds, order)) + self.mask
        return found

    def sample(
        self, features: Any, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Head`; trace `tokens (B,L)` int64, log-probabilities `(B,L)`, 0 behind the end."""
        drawn, chosen, embeds = [], [], self.begin.expand(len(features), 1, -1)
        over = torch.zeros(len(features), dtype=torch.bool, device=self.mask.device)
        for step in range(self.length):
            logits = features.logits(features.extend(embeds, step))[:, 0] + self.mask
            log_probs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            if temperature == 0:
                token = log_probs.argmax(-1, keepdim=True)
            else:
                token = multinomial(log_probs.exp(), 1, generator)
            token = torch.where(over[:, None], self.end, token)
            drawn.append(token)
            chosen.append(torch.where(over[:, None], 0.0, log_probs.gather(-1, token)))
            over = over | (token[:, 0] == self.end)
            embeds = features.embed(token)
        tokens = torch.cat(drawn, 1)
        return self.actions_of(tokens), torch.cat(chosen, 1), {"tokens": tokens}

    def evaluate(
        self, features: Any, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Head`; each `(B,L)`, 0 behind the end."""
        tokens, counted = trace["tokens"], self._counted(trace["tokens"])
        heat = torch.where(temperature == 0, 1.0, temperature).view(-1, 1, 1)
        log_probs = torch.log_softmax(self.logits(features, tokens) / heat, dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        chosen = log_probs.gather(-1, tokens[..., None])[..., 0]
        return torch.where(counted, chosen, 0.0), torch.where(counted, entropy, 0.0)

    def loss(self, features: Any, actions: Tensor, known: Tensor) -> Tensor:
        """Mean cross-entropy per token, in nats; chunks without any known action are left out."""
        tokens = self.tokens_of(actions)
        counted = self._counted(tokens) & known.flatten(1).any(1)[:, None]
        chosen = torch.log_softmax(self.logits(features, tokens), dim=-1).gather(-1, tokens[..., None])[
            ..., 0
        ]
        return -chosen[counted].mean()


def chunks_of(arrays: Any, chunk: int) -> np.ndarray:
    """All windows `(N,K,A)` of K recorded actions within the episodes of `EpisodeArrays`.

    Raises:
        ConfigError: no episode has K actions.
    """
    windows = [
        np.lib.stride_tricks.sliding_window_view(actions, chunk, axis=0).transpose(0, 2, 1)
        for first, end, has in zip(arrays.offsets[:-1], arrays.offsets[1:], arrays.has_action, strict=True)
        if has and len(actions := arrays.actions[first : end - 1]) >= chunk
    ]
    if not windows:
        raise ConfigError(f"no episode has {chunk} actions; set chunk lower, or take other data")
    return np.concatenate(windows)
