"""Load published OpenVLA and OpenVLA-OFT checkpoints as an `HFVLAPolicy`, without remote code and without pickle.

A folder has `config.json` (with `norm_stats`), `tokenizer.json`, and `model.safetensors` or its shards; one of OFT also
has `action_head.safetensors` (`agents.policies.hf.oft`). The language model of OpenVLA (arXiv 2406.09246) predicts one
token per action dimension, which stands for one of 255 cells between the 1 % and 99 % quantiles of a dataset's actions.
The policy's actions are those physical values in the units of the environment's `ActionSpec`.

Example::

    policy = HFVLAPolicy.from_vlm("models/openvla-7b", specs, unnorm_key="bridge_orig")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from agents.policies.hf.oft import read_parts
from agents.policies.hf.prismatic import Prismatic
from agents.policies.hf.vlm import tokenizer_of
from worldgym.errors import CheckpointError, ConfigError
from worldgym.specs import ActionSpec, Specs
from worldgym.utils.tensors import load_tensors

STATISTICS = "dataset_statistics.json"
INDEX = "model.safetensors.index.json"
BEFORE_ACTIONS = "\u2581"
"""The token in front of the first action: Llama's token of an empty word."""
AFTER_ACTIONS = "</s>"


def unnormalised(actions: np.ndarray, statistics: Mapping[str, Any]) -> np.ndarray:
    """Physical actions `(...,A)` of normalised `actions (...,A)` in [-1, 1].

    `0.5 (a + 1) (q99 - q01) + q01` where `mask` is true, `a` elsewhere, as the published model computes them.

    Args:
        actions: normalised actions.
        statistics: of a dataset's actions: `q01`, `q99`, and optionally `mask`, one value per dimension.
    """
    low, high = np.asarray(statistics["q01"], np.float64), np.asarray(statistics["q99"], np.float64)
    mask = np.asarray(statistics.get("mask", np.ones(len(low), bool)), bool)
    return np.where(mask, 0.5 * (actions + 1) * (high - low) + low, actions)


def statistics_of(config: Mapping[str, Any], folder: Path, key: str | None) -> Mapping[str, Any]:
    """Statistics of the dataset `key`, with `action`; of the only one if None.

    Raises:
        ConfigError: no such dataset, or several and none chosen.
        CheckpointError: the folder has no statistics, or they lack quantiles.
    """
    known = config.get("norm_stats")
    if (folder / STATISTICS).is_file():  # fine-tuned checkpoints
        known = {**(known or {}), **json.loads((folder / STATISTICS).read_text())}
    if not isinstance(known, Mapping) or not known:
        raise CheckpointError(
            f"{folder} has no action statistics: neither norm_stats in config.json nor {STATISTICS}"
        )
    if key is None and len(known) > 1:
        raise ConfigError(
            f"{folder} has statistics of {len(known)} datasets; choose one, unnorm_key={sorted(known)[0]!r}, among "
            f"{', '.join(sorted(known))}"
        )
    name = next(iter(known)) if key is None else key
    if name not in known:
        raise ConfigError(
            f"unnorm_key is {name!r}; the statistics in {folder} are of {', '.join(sorted(known))}"
        )
    found: Any = known[name]
    actions = found.get("action") if isinstance(found, Mapping) else None
    if not isinstance(actions, Mapping) or not {"q01", "q99"} <= set(actions):
        raise CheckpointError(f"the statistics of {name!r} in {folder} lack q01 or q99 of the actions")
    return found  # type: ignore[no-any-return]


def range_in(spec: ActionSpec, statistics: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ends of the range that the tokens cover, in the normalised units of `spec`.

    Raises:
        ConfigError: another number of dimensions, or a dimension whose direction is reversed.
    """
    count = len(statistics["q01"])
    if count != spec.dim:
        raise ConfigError(
            f"the checkpoint's actions have {count} dimensions, the data or environment {spec.dim} "
            f"({', '.join(spec.names)}); choose the statistics of a robot with the same actions, or convert the "
            "actions of the environment"
        )
    low, high = (unnormalised(np.full(count, end), statistics) for end in (-1.0, 1.0))
    low, high = (spec.normalise(end, clip=False) for end in (low, high))
    if bad := [name for name, a, b in zip(spec.names, low, high, strict=True) if a >= b]:
        raise ConfigError(
            f"{', '.join(bad)}: the checkpoint's lowest value is not below its highest in the environment's "
            "convention; its sign is reversed, as of a gripper whose 1 means closed"
        )
    return tuple(low.tolist()), tuple(high.tolist())


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that its index lists.

    Raises:
        CheckpointError: a file is missing or damaged, or a shard lacks a tensor that the index promises.
    """
    if not (folder / INDEX).is_file():
        return load_tensors(folder / "model.safetensors")
    try:
        where = json.loads((folder / INDEX).read_text())["weight_map"]
        shards = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is damaged: {error!r}") from error
    found: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / INDEX} names a file outside its folder: {shard}")
        found |= load_tensors(folder / shard)
    if missing := sorted(set(where) - set(found)):
        raise CheckpointError(
            f"the shards in {folder} lack {len(missing)} tensors of the index, such as {missing[0]}"
        )
    return found


def openvla_settings(
    config: Mapping[str, Any], folder: Path, spec: ActionSpec, statistics: Mapping[str, Any], begin: int | None
) -> dict[str, Any]:
    """Fields of `HFVLAConfig` that a published checkpoint determines."""
    if begin is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has no token {BEFORE_ACTIONS!r}; give that of the checkpoint"
        )
    low, high = range_in(spec, statistics["action"])
    return {
        "head": "tokens", "chunk": 1, "n_bins": int(config.get("n_action_bins", 256)) - 1, "action_low": low,
        "action_high": high, "unused_ids": int(config.get("pad_to_multiple_of", 64)), "begin_id": begin,
        "images_after": 1, "state": "none", "binary_dims": (), "prefix_attention": "causal",
    }  # fmt: skip


def load_openvla(
    folder: Path, config: Mapping[str, Any], specs: Specs, key: str | None
) -> tuple[dict[str, Any], dict[str, Any], Prismatic, str, dict[str, Tensor]]:
    """Load a published checkpoint.

    Args:
        folder: with the files named in the module docstring.
        config: content of its `config.json`.
        specs: actions and state of the environment.
        key: dataset whose statistics apply; the only one if None.

    Returns:
        the config of the model, settings of the policy, the model, its tokenizer, and further weights of the policy.

    Raises:
        CheckpointError: files or tensors are missing, damaged or of another shape.
        ConfigError: no such statistics, another number of dimensions, or an unknown backbone.
    """
    from tokenizers import Tokenizer

    text = tokenizer_of(folder)
    assert specs.action is not None
    words, statistics = Tokenizer.from_str(text), statistics_of(config, folder, key)
    settings = openvla_settings(config, folder, specs.action, statistics, words.token_to_id(BEFORE_ACTIONS))
    parts, size = read_parts(folder, statistics, words.token_to_id(AFTER_ACTIONS)), specs.observation.state_dim
    if parts is not None:
        if parts.state_dim not in (0, size):
            raise ConfigError(
                f"the checkpoint reads {parts.state_dim} numbers of proprioception, the data or environment has {size} "
                f"({', '.join(field.name for field in specs.observation.state)}); remove "
                "proprio_projector.safetensors, or give an environment with the same state"
            )
        settings |= parts.settings
    plain = {
        name: value
        for name, value in config.items()
        if name not in ("norm_stats", "auto_map", "architectures")
    }
    model, found = Prismatic(plain), read_weights(folder)
    wanted = model.state_dict()
    missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or more:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config: {len(missing)} are missing, such as {missing[:1]}, and "
            f"{len(more)} are not known, such as {more[:1]}"
        )
    if other := [name for name in wanted if wanted[name].shape != found[name].shape]:
        name = other[0]
        raise CheckpointError(
            f"{name} in {folder} has the shape {tuple(found[name].shape)}, but the config asks for "
            f"{tuple(wanted[name].shape)}"
        )
    model.load_state_dict(found)
    return plain, settings, model, text, {} if parts is None else parts.weights
