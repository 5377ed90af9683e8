"""Registries of world models, judges, policies, heads, improvers, dataset formats and suites, by name.

The `config.json` of a saved component holds its `type`. The registry maps that name to a class and calls the class's
`from_pretrained`. Names are looked up in three places, in this order: `register` calls of the running program, the
lazy tables of this project's packages (`register_lazily`, in `<package>/registered.py`), and entry points of installed
packages. Nothing is loaded from a hub, and no code is loaded from a checkpoint.

Example of another package's setup.cfg::

    [options.entry_points]
    worldgym.policies =
        my_policy = my_package.policy:MyPolicy

Example::

    from worldgym.registry import JUDGES
    @JUDGES.register("always")
    class AlwaysJudge: ...
    JUDGES.get("always"), JUDGES.names()
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.files import read_json
from worldgym.utils.folders import MANIFEST, save_folder, settle, verify_file, verify_listed

T = TypeVar("T")
HOME_PACKAGES = ("worldgym", "rewards", "agents", "envs", "experiments")
"""Packages of this project. The `registered` module of each, if it exists, is imported at the first look-up."""
TYPE = "type"


class Registry:
    """Registry of one kind of component.

    Args:
        kind: singular name of the kind for messages, e.g. "world model".
        group: entry-point group, e.g. "worldgym.world_models".
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._known: dict[str, Any] = {}
        self._lazy: dict[str, str] = {}
        self._legacy: Callable[[Path, dict[str, Any]], str | None] | None = None

    # -- registering -----------------------------------------------------------------------------------------------
    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class (or factory) as `name`.

        Raises:
            ConfigError: another object is registered under that name.
        """

        def add(item: T) -> T:
            old = self._known.get(name)
            if old is not None and _path(old) != _path(item):
                raise ConfigError(
                    f"{self.kind} type {name!r} is already {_path(old)}; register {_path(item)} by another name"
                )
            self._known[name] = item
            return item

        return add

    def register_lazily(self, **paths: str) -> None:
        """Register names as "module:attribute"; the module is imported on first use."""
        self._lazy.update(paths)

    def legacy(self, find: Callable[[Path, dict[str, Any]], str | None]) -> None:
        """Set `find(folder, config)`, which finds the type of a folder that an earlier version wrote without a type."""
        self._legacy = find

    # -- looking up ------------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        """All registered names, sorted."""
        discover()
        return sorted({*self._known, *self._lazy, *_entry_points(self.group)})

    def get(self, name: str) -> Any:
        """The class (or factory) registered as `name`.

        Raises:
            ConfigError: the name is unknown; the message lists the known names.
        """
        if name in self._known:
            return self._known[name]
        discover()
        if name in self._known:
            return self._known[name]
        plugins = _entry_points(self.group)
        if name in self._lazy:
            module, _, attribute = self._lazy[name].partition(":")
            item = getattr(importlib.import_module(module), attribute)
        elif name in plugins:
            item = plugins[name].load()
        else:
            known = self.names()
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"unknown {self.kind} type {name!r}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
                + f"; known types are {', '.join(known) or 'none'}. To add one, call "
                f"worldgym.registry.{self.constant}.register(...) or use the entry-point group {self.group!r}"
            )
        self._known[name] = item
        return item

    @property
    def constant(self) -> str:
        """Name of this registry's constant in this module, e.g. `JUDGES`."""
        return self.group.rpartition(".")[2].upper()

    def name_of(self, item: Any) -> str | None:
        """The name under which a class, or the class of an object, is registered; None if it is not registered."""
        wanted = _path(item if isinstance(item, type) else type(item))
        discover()
        for name, known in self._known.items():
            if _path(known) == wanted:
                return name
        for name, path in {
            **self._lazy,
            **{n: p.value for n, p in _entry_points(self.group).items()},
        }.items():
            if path.rpartition(":")[2] == wanted.rpartition(":")[2] and _path(self.get(name)) == wanted:
                return name
        return None

    # -- disk ------------------------------------------------------------------------------------------------------
    def type_of(self, folder: str | Path) -> str:
        """The type of the component saved in `folder`.

        Raises:
            CheckpointError: there is no folder, no readable config.json, or no type in it.
        """
        folder = Path(folder).expanduser()
        remedy = f"Give a folder that the save_pretrained of a {self.kind} wrote"
        if not folder.is_dir():
            raise CheckpointError(f"there is no folder {folder}. {remedy}")
        settle(folder)
        file = folder / "config.json"
        if file.is_file():
            verify_file(file, remedy[:1].lower() + remedy[1:])
        config: Any = read_json(file, remedy) if file.is_file() else {}
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} holds a {type(config).__name__}, expected settings. {remedy}")
        name = config.get(TYPE)
        if name is None:
            discover()
            name = self._legacy(folder, config) if self._legacy is not None else None
        if not isinstance(name, str):
            raise CheckpointError(
                f"there is no {self.kind} in {folder}: "
                + (f"config.json has no {TYPE!r}" if config else "config.json is missing")
                + f". {remedy}, of a type among {', '.join(self.names())}"
            )
        return name

    def load(self, folder: str | Path, *, offered: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """Load the component saved in `folder` with the `from_pretrained` of its type.

        Args:
            folder: written by a `save_pretrained`.
            offered: optional keyword arguments; only those in the signature of `from_pretrained` are passed to it.
            **kwargs: keyword arguments that are always passed to `from_pretrained`.

        Raises:
            CheckpointError: the folder holds no component of this kind, it is damaged, or its weights are not finite.
            ConfigError: its type is not registered; the message lists the known types.
        """
        name, path = self.type_of(folder), Path(folder).expanduser()
        read, own = self.get(name).from_pretrained, name in self._lazy
        if not own and (path / MANIFEST).is_file():  # this project's own components verify what they read
            verify_listed(path, "restore it from a copy, or train it again")
        part = read(str(path), **accepted(read, offered or {}), **kwargs)
        if not own and hasattr(part, "state_dict"):
            from worldgym.utils.tensors import require_finite

            require_finite(part.state_dict(), path)
        return part

    def save(self, part: Any, folder: str | Path) -> None:
        """Save a component with its own `save_pretrained`, and check that `load` will find its type.

        The folder is replaced as a whole and gets a manifest of sizes and hashes.

        Raises:
            ConfigError: the component has no `save_pretrained`, or does not write its type.
        """
        name, kind = self.name_of(part), type(part).__name__
        if not hasattr(part, "save_pretrained"):
            raise ConfigError(
                f"a {kind} cannot be saved; give it save_pretrained(folder) and from_pretrained(folder)"
            )
        if name in self._lazy:  # this project's own components write a manifest themselves
            part.save_pretrained(str(folder))
            self._require_type(folder, name, kind)
            return
        with save_folder(folder) as stage:
            part.save_pretrained(str(stage))
            self._require_type(stage, name, kind)

    def _require_type(self, folder: str | Path, name: str | None, kind: str) -> None:
        try:
            written: str | None = self.type_of(folder)
        except CheckpointError:
            written = None
        if name is not None and written != name:
            raise ConfigError(
                f"{kind}.save_pretrained wrote a config.json with the type {written!r}, but the {self.kind} is "
                f"registered as {name!r}; write {{{TYPE!r}: {name!r}, ...}} into config.json"
            )

    # -- listing ---------------------------------------------------------------------------------------------------
    def sources(self) -> dict[str, str]:
        """The "module:attribute" of every registered name, sorted by name; nothing is imported."""
        discover()
        plugins = {name: point.value for name, point in _entry_points(self.group).items()}
        known = {name: _path(item) for name, item in self._known.items()}
        return dict(sorted({**plugins, **self._lazy, **known}.items()))


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments in `offered` that the signature of `function` names; a `**kwargs` is ignored."""
    parameters = inspect.signature(function).parameters
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in offered.items() if name in named}


def registered_name(part: Any) -> str | None:
    """The registered name of a component or class, from the first registry that has it; None if none has it."""
    return next((name for registry in REGISTRIES if (name := registry.name_of(part)) is not None), None)


def _path(item: Any) -> str:
    return f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', repr(item))}"


@lru_cache(maxsize=1)
def discover() -> None:
    """Import the `registered` modules of this project's packages, once per process."""
    for package in HOME_PACKAGES:
        if importlib.util.find_spec(package) and importlib.util.find_spec(f"{package}.registered"):
            importlib.import_module(f"{package}.registered")


@lru_cache(maxsize=32)
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}


WORLD_MODELS = Registry("world model", "worldgym.world_models")
JUDGES = Registry("judge", "worldgym.judges")
POLICIES = Registry("policy", "worldgym.policies")
HEADS = Registry("action head", "worldgym.heads")
IMPROVERS = Registry("improver", "worldgym.improvers")
DATASET_FORMATS = Registry("dataset format", "worldgym.dataset_formats")
SUITES = Registry("suite", "worldgym.suites")
REGISTRIES = (WORLD_MODELS, JUDGES, POLICIES, HEADS, IMPROVERS, DATASET_FORMATS, SUITES)
