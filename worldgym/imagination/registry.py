"""Constructors of `worldgym/Imagined-v0`: any world model, or any checkpoint folder with its judge and its starts.

`gym.make` takes an id and JSON-able keywords, so that an `EnvSpec` can be sent to a worker. These functions build the
environments from them and name the command to run when the weights are missing.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/Imagined-v0", checkpoint="runs/bundle", horizon=40)
    envs = gym.make_vec("worldgym/Imagined-v0", num_envs=16, world_model="runs/wm", starts="runs/starts.npz")
    observation, info = env.reset(seed=0)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError
from worldgym.imagination.env import WorldModelEnv
from worldgym.imagination.loading import resolve_world_model
from worldgym.imagination.vector import WorldModelVectorEnv
from worldgym.suite import load_suite

JUDGE = "rewards.loading:load_judge"
"""Entry point of the loader, which the commands use too."""
METADATA, VECTOR_METADATA = WorldModelEnv.metadata, WorldModelVectorEnv.metadata
PARTS = {"world_model": "world_model", "reward": "judge", "starts": "starts.npz"}


def make_imagined(**settings: Any) -> WorldModelEnv:
    """One imagined environment.

    Args:
        **settings: `checkpoint` (the name of a bundled one, or a folder that holds `world_model/`, `judge/` and
            `starts.npz`), which supplies `world_model`, `reward` and `starts` if they are not given; `suite`, which
            supplies the bounds of the state (by default the suite in the checkpoint's card); and any keyword of
            `WorldModelEnv`. Without `checkpoint` and `world_model`, the checkpoint is the bundled
            `worldgym.pretrained.DEFAULT`.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete; `worldgym build` makes one from a recipe.
    """
    return WorldModelEnv(**filled(**settings))


def make_imagined_vec(num_envs: int = 1, **settings: Any) -> WorldModelVectorEnv:
    """`num_envs` imagined environments, stepped as one batch; keywords as in `make_imagined`.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete; `worldgym build` makes one from a recipe.
    """
    return WorldModelVectorEnv(num_envs=num_envs, **filled(**settings))


# Gymnasium reads the render modes from the entry point, to add its wrappers for "human" and "rgb_array_list".
make_imagined.metadata = METADATA  # type: ignore[attr-defined]
make_imagined_vec.metadata = VECTOR_METADATA  # type: ignore[attr-defined]


def constructors(name: str, suite: str) -> tuple[Callable[..., WorldModelEnv], Callable[..., WorldModelVectorEnv]]:
    """Entry points of an environment id that has a checkpoint of its own: the single and the vector environment.

    Args:
        name: bundled checkpoint that the keyword `checkpoint` replaces.
        suite: suite that the checkpoint belongs to.

    Returns:
        Functions with the keywords of `make_imagined` and `make_imagined_vec`. They raise a `CheckpointError` if the
        checkpoint is missing.
    """

    def single(checkpoint: str | Path = name, **settings: Any) -> WorldModelEnv:
        return make_imagined(checkpoint=checkpoint, suite=suite, **settings)

    def batch(num_envs: int = 1, checkpoint: str | Path = name, **settings: Any) -> WorldModelVectorEnv:
        return make_imagined_vec(num_envs, checkpoint=checkpoint, suite=suite, **settings)

    single.metadata = METADATA  # type: ignore[attr-defined]
    batch.metadata = VECTOR_METADATA  # type: ignore[attr-defined]
    return single, batch


def filled(checkpoint: str | Path | None = None, suite: str | None = None, **settings: Any) -> dict[str, Any]:
    """Complete an environment's keywords with the parts of a checkpoint and the state bounds of its suite.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete; `worldgym build` makes one from a recipe.
        ConfigError: the named suite is not registered.
    """
    if checkpoint is None and "world_model" not in settings:
        checkpoint = pretrained.DEFAULT
    if checkpoint is not None and not all(key in settings for key in PARTS):
        folder = _folder(checkpoint)
        for key, name in PARTS.items():
            if key not in settings and not (folder / name).exists():
                bare = " (reward=None for an environment without reward)" if key == "reward" else ""
                raise CheckpointError(
                    f"checkpoint {str(checkpoint)!r} has no {name} in {folder}; make it with `worldgym bundle`, or"
                    f" pass {key}=...{bare}"
                )
        settings.setdefault("starts", str(folder / PARTS["starts"]))
        model = settings.setdefault("world_model", str(folder / PARTS["world_model"]))
        settings["world_model"] = resolve_world_model(model)
        if "reward" not in settings:
            module, _, attribute = JUDGE.partition(":")
            load = getattr(importlib.import_module(module), attribute)
            tokenizer = getattr(settings["world_model"], "tokenizer", None)
            settings["reward"] = load(folder / PARTS["reward"], tokenizer=tokenizer)
    if suite is None and checkpoint is not None:
        suite = _suite_of(checkpoint)
    if suite is not None:
        low, high = load_suite(suite).state_bounds
        settings = {"state_low": low, "state_high": high, **settings}
    return settings


def _folder(checkpoint: str | Path) -> Path:
    return Path(checkpoint) if Path(checkpoint).is_dir() else pretrained.path(str(checkpoint))


def _suite_of(checkpoint: str | Path) -> str | None:
    """The suite in a checkpoint's card, or None if it is not registered here: imagination needs no simulator."""
    name = pretrained.read_card(_folder(checkpoint)).get("suite")
    try:
        return None if name is None else load_suite(name).name
    except ConfigError:
        return None
