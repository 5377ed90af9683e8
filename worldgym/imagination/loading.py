"""Loading of checkpoints, judges and start sets that a JSON-able `EnvSpec` names as strings.

An environment id has to be sent to worker processes as text, while the environment itself should not handle files.
Everything that reads from disk to build an imagined environment is in this module.

Example::

    from worldgym.imagination.loading import resolve_reward, resolve_starts, resolve_world_model
    model = resolve_world_model("runs/bundle/world_model")
    judge = resolve_reward("rewards.models.learned:load_bundled")
    starts = resolve_starts("runs/bundle/starts.npz")
"""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from typing import Any, cast

from worldgym import pretrained
from worldgym.imagination.starts import ArrayStarts, StartSet
from worldgym.protocols import RewardModel, WorldModel
from worldgym.registry import JUDGES
from worldgym.serving.address import is_address

# One copy of each checkpoint per process, for as long as it is in use: N single environments share the weights. This
# is safe because everything that changes is stored in the imagined state.
_models: weakref.WeakValueDictionary[tuple[str, int], Any] = weakref.WeakValueDictionary()


def resolve_world_model(model: WorldModel | str | Path) -> WorldModel:
    """A world model, loaded by `worldgym.models.load_world_model` when given as a path or name.

    Raises:
        CheckpointError: no such checkpoint; the message names the bundled ones and `worldgym build`.
        TypeError: the object lacks part of `worldgym.protocols.WorldModel`.
    """
    if isinstance(model, (str, Path)):
        return _load_world_model(str(model))
    if not isinstance(model, WorldModel):
        lacking = [
            n for n in ("action_dim", "begin", "step", "fork", "merge", "observe") if not hasattr(model, n)
        ]
        raise TypeError(
            f"world_model is a {type(model).__name__} without {', '.join(lacking)}; expected a"
            " worldgym.protocols.WorldModel, or the path or name of a checkpoint"
        )
    return model


def _load_world_model(name: str) -> WorldModel:
    from worldgym.models import load_world_model

    if is_address(name):
        return cast(WorldModel, load_world_model(name))
    folder = Path(name) if Path(name).exists() else pretrained.path(name)
    newest = max((file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()), default=0)
    key = (str(folder.resolve()), newest)
    if key not in _models:
        loaded: Any = load_world_model(folder)
        _models[key] = loaded
        return cast(WorldModel, loaded)
    return cast(WorldModel, _models[key])


def resolve_reward(
    reward: RewardModel | str | Path | None, kwargs: dict[str, Any] | None = None
) -> RewardModel | None:
    """A judge: as given, loaded from a folder, or made by the entry point `pkg.mod:factory` with `kwargs`.

    A folder is loaded by the registered type named in its config.json. The type receives those of `kwargs` that it
    accepts, such as `cache`.

    Raises:
        CheckpointError: a folder without a judge, or a damaged one.
        ConfigError: a folder with a judge of an unknown type.
        ValueError: the string is neither a folder nor an importable entry point.
        TypeError: the result is not a `worldgym.protocols.RewardModel`.
    """
    if reward is None:
        return None
    made: Any = reward
    if isinstance(reward, Path) or (isinstance(reward, str) and Path(reward).is_dir()):
        made = JUDGES.load(reward, offered=kwargs)
    elif isinstance(reward, str):
        module, _, attribute = reward.partition(":")
        if not module or not attribute:
            raise ValueError(
                f"reward={reward!r}; expected the folder of a judge, or 'package.module:factory', e.g. "
                "'rewards.models.learned:load_bundled'"
            )
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"reward={reward!r} cannot be imported ({error}); expected 'package.module:factory', e.g."
                " 'rewards.models.learned:load_bundled'; a remote worker needs the package in its working_dir"
            ) from error
        made = factory(**(kwargs or {}))
    if not isinstance(made, RewardModel):
        raise TypeError(
            f"reward resolved to a {type(made).__name__}; expected a worldgym.protocols.RewardModel: a `name` and"
            " score(frames (B,T,H,W,3) uint8, instructions) -> Judgement"
        )
    return made


def resolve_starts(starts: StartSet | str | Path | None) -> StartSet | None:
    """A start set: as given, loaded from an .npz file or a dataset folder, or the set of a named bundled checkpoint.

    Raises:
        CheckpointError: nothing with that name exists.
        TypeError: the object lacks part of `StartSet`.
    """
    if starts is None:
        return None
    if isinstance(starts, (str, Path)):
        path = Path(starts)
        if path.suffix == ".npz":
            return ArrayStarts.load(path)
        if path.is_dir():
            from worldgym.data import EpisodeDataset
            from worldgym.imagination.starts import DatasetStarts

            return DatasetStarts(EpisodeDataset(path))
        return ArrayStarts.load(pretrained.path(str(starts)) / "starts.npz")
    if not isinstance(starts, StartSet):
        raise TypeError(
            f"starts is a {type(starts).__name__}; expected a StartSet (such as ArrayStarts),"
            " an .npz file, a dataset folder or the name of a bundled checkpoint"
        )
    return starts
