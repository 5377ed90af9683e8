"""Registries of world models, judges, policies, heads, improvers, auxiliary losses, data formats and suites, by name.

The `config.json` of a saved component holds its `type`. The registry maps that name to a class and calls the class's
`from_pretrained`. Names are looked up in three places, in this order: `register` calls of the running program, the
lazy tables of this project's packages (`register_lazily`, in `<package>/registered.py`), and entry points of installed
packages. Nothing is loaded from a hub, and no code is loaded from a checkpoint. A broken entry point is an error only
for the name that it registers; the other names stay usable.

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
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.files import read_json
from worldgym.utils.folders import MANIFEST, save_folder, settle, verify_file, verify_listed

logger = logging.getLogger(__name__)

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
        self._warned: set[str] = set()

    # -- registering -----------------------------------------------------------------------------------------------
    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class (or factory) as `name`; the same one may be registered again.

        Raises:
            ConfigError: another object has that name: it was registered before, is built in, or is an entry point.
        """

        def add(item: T) -> T:
            if (taken := self._taken(name, item)) is not None:
                raise ConfigError(
                    f"{self.kind} type {name!r} is already {taken}; register {_path(item)} by another name"
                )
            self._known[name] = item
            return item

        return add

    def _taken(self, name: str, item: Any) -> str | None:
        """What has this name already, for a message; None if nothing has it, or `item` itself."""
        discover()
        path = _path(item)
        if name in self._known:
            known = _path(self._known[name])
            return None if known == path else known
        if name in self._lazy:
            value = self._lazy[name]
            same = value == path or (_attribute(value) == _attribute(path) and _path(self.get(name)) == path)
            return None if same else f"{value}, which is built in"
        # The module of an entry point may be running this very call, so its value is compared and not loaded.
        points = _entry_points(self.group).get(name, ())
        if not points or any(_attribute(point.value) == _attribute(path) for point in points):
            return None
        return " and ".join(map(_said, points))

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
            ConfigError: the name is unknown, and the message lists the known names; its entry point can't be loaded; or
                several packages register it.
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
            item = self._load(name, plugins[name])
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

    def _load(self, name: str, points: Collection[metadata.EntryPoint]) -> Any:
        """Load the object of an entry point.

        Raises:
            ConfigError: it can't be loaded, or there are several.
        """
        (point, *others) = points
        if others:
            raise ConfigError(
                f"{len(points)} packages register the {self.kind} type {name!r}: {' and '.join(map(_said, points))}; "
                f"keep one of them, e.g. type: pip uninstall {_package(others[-1])}"
            )
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the {self.kind} type {name!r} can't be loaded. Its entry point is {_said(point)}, which failed: "
                f"{_failure(point, error)}"
            ) from error

    def available(self, *, without: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
        """Name and class of every type, except those in `without`; a broken one is skipped with a warning."""
        for name in self.names():
            if name not in without and (item := self._get_or_warn(name)) is not None:
                yield name, item

    def _get_or_warn(self, name: str) -> Any:
        """The class registered as `name`; None, and one warning per process, if it can't be loaded."""
        try:
            return self.get(name)
        except ConfigError as error:
            if name not in self._warned:
                self._warned.add(name)
                logger.warning("skipped: %s", error)
            return None

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
        for name, path in self._lazy.items():
            if _attribute(path) == _attribute(wanted) and _path(self.get(name)) == wanted:
                return name
        for name, points in _entry_points(self.group).items():
            if name in self._lazy or all(_attribute(p.value) != _attribute(wanted) for p in points):
                continue
            if _path(self._get_or_warn(name)) == wanted:
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
                + (f"config.json has no {TYPE!r}" if file.is_file() else "config.json is missing")
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
        """The "module:attribute" of every registered name, sorted by name; nothing is imported.

        Where several packages register a name, all of them are listed, with a note.
        """
        discover()
        plugins = _entry_points(self.group)
        out = {name: points[0].value for name, points in plugins.items()}
        for name, points in plugins.items():
            if len(points) > 1:
                out[name] = f"{' and '.join(map(_said, points))}: a clash, uninstall all but one"
        out |= self._lazy
        for name in self._lazy.keys() & plugins.keys():
            out[name] += f" (built in; it hides {' and '.join(map(_said, plugins[name]))})"
        known = {name: _path(item) for name, item in self._known.items() if name not in self._lazy}
        return dict(sorted({**out, **known}.items()))


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


def _attribute(path: str) -> str:
    """The attribute in "module:attribute"."""
    return path.rpartition(":")[2].strip()


@lru_cache(maxsize=1)
def discover() -> None:
    """Import the `registered` modules of this project's packages, once per process."""
    for package in HOME_PACKAGES:
        if importlib.util.find_spec(package) and importlib.util.find_spec(f"{package}.registered"):
            importlib.import_module(f"{package}.registered")


@lru_cache(maxsize=32)
def _entry_points(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """The entry points of a group by name: usually one each, several if packages register different objects."""
    found: dict[str, dict[str, metadata.EntryPoint]] = {}
    for point in _points_of(group):
        found.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: tuple(points.values()) for name, points in found.items()}


def _points_of(group: str) -> list[metadata.EntryPoint]:
    try:
        return list(metadata.entry_points(group=group))
    except Exception:  # the metadata of one package are malformed; read those of the others
        points: list[metadata.EntryPoint] = []
        for package in metadata.distributions():
            try:
                points += [point for point in package.entry_points if point.group == group]
            except Exception as error:
                logger.warning(
                    "skipped the entry points of %s: %s", getattr(package, "_path", package), error
                )
        return points


def _package(point: metadata.EntryPoint) -> str:
    """Name of the distribution of an entry point."""
    return "UNKNOWN" if point.dist is None else str(point.dist.name)


def _said(point: metadata.EntryPoint) -> str:
    version = "" if point.dist is None else f" {point.dist.version}"
    return f"{point.value} of the package {_package(point)}{version}"


def _failure(point: metadata.EntryPoint, error: BaseException) -> str:
    """Why an entry point can't be loaded, and what to type."""
    package, module = _package(point), point.value.partition(":")[0].strip()
    remedy = f"correct that package, or type: pip uninstall {package}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        if module == error.name or module.startswith(f"{error.name}."):
            return f"the module {error.name!r} is missing; {remedy}"
        return missing_module(error.name)
    if not metadata.EntryPoint.pattern.match(point.value):
        return f"{point.value!r}, expected MODULE:CLASS; {remedy}"
    return f"{type(error).__name__}: {error}; {remedy}"


def missing_module(name: str) -> str:
    """What is missing if the module `name` can't be found, and what to type."""
    package, dot, _ = name.partition(".")
    try:
        installed = bool(dot) and importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        installed = False
    if installed:
        return (
            f"the module {name!r} is missing, but its package {package!r} is installed, so its version is another one "
            f"than expected. Type: pip install --upgrade {package}"
        )
    return f"the package {package!r} is missing. Type: make setup (in a checkout), or pip install {package}"


WORLD_MODELS = Registry("world model", "worldgym.world_models")
JUDGES = Registry("judge", "worldgym.judges")
POLICIES = Registry("policy", "worldgym.policies")
HEADS = Registry("action head", "worldgym.heads")
IMPROVERS = Registry("improver", "worldgym.improvers")
DATASET_FORMATS = Registry("dataset format", "worldgym.dataset_formats")
SUITES = Registry("suite", "worldgym.suites")
TRAINERS = Registry("trainer of world models", "worldgym.trainers")
"""Trainers by the type of world model that they train; a type without one is trained by its own class."""
AUXILIARIES = Registry("auxiliary loss", "worldgym.auxiliaries")
REGISTRIES = (WORLD_MODELS, JUDGES, POLICIES, HEADS, IMPROVERS, AUXILIARIES, DATASET_FORMATS, SUITES)
