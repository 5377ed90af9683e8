"""Recipes: the commands that make a bundle, in a YAML file.

A recipe lists stages. A stage is a command of worldgym with its options; a build executes them in order.

Example of a recipe::

    name: my-robot
    hours: 3
    values:                      # `--set episodes=200` replaces one
      episodes: 2000
    stages:
      - collect: {out: $out/data, suite: metaworld, episodes: $episodes}
        minutes: 8               # expected on two cores
      - train tokenizer: {data: $out/data, out: $out/tokenizer, minutes: {share: 0.2}}
      - bench closed-loop: {bundle: $out/bundle, policies: [sft]}
        accept: [0, 1]           # 1: the gate has failed, which is a result

`$out` is the folder of the build, other names are values of the recipe, `{share: x}` is x times `hours`, in minutes.
Positional arguments of a command are listed under `_`.
`needs: [labels]` refuses a stage whose dataset has no success labels, `needs: [left_out]` one whose `limit` leaves no
episode of it out. `required: [source]` lists values that have no default.

A recipe with `base: FILE` in place of stages has those of the recipe FILE, a path relative to its own folder. Its
`values`, `about` and `hours` replace those of that recipe.

`presets: {tiny: {episodes: 6}}` names sets of values. `results: {policy: $out/rl/policy}` names what the stages make,
for programs that go on with it (`worldgym coevolve`).
"""

from __future__ import annotations

import math
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldgym.errors import ConfigError

STAGE_KEYS = {"name", "minutes", "accept", "needs", "note", "environment"}
RECIPE_KEYS = {"name", "about", "hours", "values", "presets", "stages", "base", "required", "results"}
NEEDS = ("labels", "left_out")


@dataclass(frozen=True)
class Stage:
    """One command of a build.

    Args:
        name: unique within the recipe.
        words: words of the command, such as `("train", "judge")`.
        arguments: its options as on the command line.
        minutes: expected duration on two cores; None if unknown.
        accept: exit codes with which the build goes on.
        needs: what the data must have, among `NEEDS`.
        data: dataset folder that the stage reads; None if none.
        note: a sentence for the page.
        environment: further environment variables.
    """

    name: str
    words: tuple[str, ...]
    arguments: tuple[str, ...]
    minutes: float | None = None
    accept: tuple[int, ...] = (0,)
    needs: tuple[str, ...] = ()
    data: Path | None = None
    note: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The command line, which does the same when typed by hand."""
        return shlex.join(["worldgym", *self.words, *self.arguments])


@dataclass(frozen=True)
class Recipe:
    """The stages of a build.

    Args:
        name: name of the bundle.
        about: description.
        hours: time that the shares divide.
        stages: in order.
        results: what the stages make, by name.
    """

    name: str
    about: str
    hours: float
    stages: tuple[Stage, ...]
    results: Mapping[str, str] = field(default_factory=dict)

    @property
    def minutes(self) -> float:
        """Expected duration of all stages on two cores, as far as known."""
        return sum(stage.minutes or 0.0 for stage in self.stages)


def read_recipe(
    path: Path,
    out: Path,
    hours: float | None = None,
    values: Mapping[str, Any] | None = None,
    preset: str | None = None,
) -> Recipe:
    """Read a recipe and fill in its values.

    Args:
        path: a YAML file.
        out: folder of the build, `$out`.
        hours: replaces the `hours` of the recipe.
        values: replace `values` of the recipe and of the preset.
        preset: name of a set of values of the recipe; None for the values as they stand.

    Raises:
        ConfigError: the file is missing or is no recipe; the message names the stage and what is wrong with it.
    """
    data = _content(path)
    known = {**data["values"], **_preset(path, data, preset)}
    if unknown := set(values or {}) - set(known):
        raise ConfigError(f"{path} has no values {sorted(unknown)}; it has {', '.join(sorted(known)) or 'none'}")
    required = _listed(data.get("required", []), str, f"{path}: `required`")
    if lacking := [name for name in required if {**known, **(values or {})}.get(name) is None]:
        raise ConfigError(f"{path} needs values: type --set {' '.join(f'{name}=...' for name in lacking)}")
    total = number(hours if hours is not None else data.get("hours", 1.0), f"{path}: `hours`")
    fill = {**known, **(values or {}), "out": str(out)}
    stages = [_stage(path, position, item, fill, total) for position, item in enumerate(data["stages"], 1)]
    names = [stage.name for stage in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: several stages have the name {', '.join(twice)}; give each a `name`")
    results = data.get("results", {})
    if not isinstance(results, dict) or not all(isinstance(each, str) for each in results.values()):
        raise ConfigError(
            f"{path}: `results` is {results!r}; expected names with paths, such as {{policy: $out/policy}}"
        )
    made = {str(name): str(_filled(text, fill, total, f"{path}: `results`")) for name, text in results.items()}
    return Recipe(str(data.get("name", path.stem)), str(data.get("about", "")), total, tuple(stages), made)


def _preset(path: Path, data: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Values of a preset of a recipe."""
    presets = data.get("presets") or {}
    if not isinstance(presets, dict) or not all(isinstance(given, dict) for given in presets.values()):
        raise ConfigError(
            f"{path}: `presets` is {presets!r}; expected names with values, such as {{tiny: {{steps: 2}}}}"
        )
    if name is None:
        return {}
    if name not in presets:
        raise ConfigError(f"{path} has no preset {name!r}; it has {', '.join(map(str, presets)) or 'none'}")
    if unknown := set(presets[name]) - set(data["values"]):
        raise ConfigError(f"{path}: the preset {name} has {sorted(unknown)}, which are no `values` of the recipe")
    return dict(presets[name])


def _content(path: Path, based: bool = False) -> dict[str, Any]:
    """The mapping in a recipe file, with what it takes from its base."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = ", ".join(str(p) for p in sorted(Path("recipes").glob("*.yaml"))) or "none here"
        raise ConfigError(f"no recipe {path} ({error.strerror}); recipes in this folder: {shipped}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    base = data.get("base") if isinstance(data, dict) else None
    if base is None and (not isinstance(data, dict) or not isinstance(data.get("stages"), list) or not data["stages"]):
        raise ConfigError(f"{path} is no recipe: expected a mapping with a list of `stages`")
    if unknown := set(map(str, data)) - RECIPE_KEYS:
        raise ConfigError(f"{path}: unknown keys {sorted(unknown)}; expected some of {sorted(RECIPE_KEYS)}")
    known = data.get("values") or {}
    if not isinstance(known, dict) or not all(isinstance(name, str) for name in known) or "out" in known:
        raise ConfigError(f"{path}: `values` is {known!r}; expected names with values, and none named out")
    if base is None:
        return {**data, "values": known}
    if not isinstance(base, str) or "stages" in data or based:
        raise ConfigError(
            f"{path}: `base` is {base!r}; expected the file name of a recipe with stages, in place of `stages`"
        )
    below = _content(path.parent / base, based=True)
    if unknown := set(known) - set(below["values"]):
        names = ", ".join(sorted(below["values"])) or "none"
        raise ConfigError(f"{path}: {path.parent / base} has no values {sorted(unknown)}; it has {names}")
    merged = {**below, **data, "values": {**below["values"], **known}}
    return {**merged, "name": data.get("name", path.stem)}


def number(value: Any, what: str) -> float:
    """Return a positive finite number.

    Raises:
        ConfigError: it is something else; the message begins with `what`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{what} is {value!r}; expected a number above 0")
    return float(value)


def _listed(value: Any, kind: type, what: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(type(each) is kind for each in value):
        raise ConfigError(f"{what} is {value!r}; expected a list of values of type {kind.__name__}, such as [..., ...]")
    return tuple(value)


def _stage(path: Path, position: int, item: Any, fill: Mapping[str, Any], hours: float) -> Stage:
    where = f"{path}, stage {position}"
    commands = [key for key in item if key not in STAGE_KEYS] if isinstance(item, dict) else []
    if len(commands) != 1 or not isinstance(commands[0], str):
        raise ConfigError(
            f"{where}: expected one command, such as `train judge: {{...}}`, and optionally {sorted(STAGE_KEYS)}; got "
            f"{sorted(map(str, item)) if isinstance(item, dict) else item!r}"
        )
    command = commands[0]
    options = item[command] or {}
    if not isinstance(options, dict):
        raise ConfigError(f"{where}: the options of {command!r} are {options!r}; expected a mapping of names to values")
    filled = {str(key): _filled(value, fill, hours, where) for key, value in options.items()}
    minutes = item.get("minutes")
    if minutes is None and isinstance(filled.get("minutes"), (int, float)):
        minutes = filled["minutes"]
    if minutes is not None:
        minutes = number(minutes, f"{where}: `minutes`")
    needs = _listed(item.get("needs", []), str, f"{where}: `needs`")
    accept = _listed(item.get("accept", [0]), int, f"{where}: `accept`")
    if unknown := set(needs) - set(NEEDS):
        raise ConfigError(f"{where}: unknown needs {sorted(unknown)}; expected some of {', '.join(NEEDS)}")
    out = filled.get("out")
    default = f"{command} {Path(str(out)).name}" if out else command
    variables = item.get("environment", {})
    if not isinstance(variables, dict) or not all(isinstance(k, str) and k and "=" not in k for k in variables):
        raise ConfigError(f"{where}: `environment` is {variables!r}; expected names of variables with values")
    environment = {key: str(_filled(value, fill, hours, where)) for key, value in variables.items()}
    if any("\0" in text for text in (*arguments_of(filled), *environment.values())):
        raise ConfigError(f"{where}: an option or a variable contains a NUL character")
    return Stage(
        str(item.get("name") or default),
        tuple(command.split()),
        tuple(arguments_of(filled)),
        minutes,
        accept,
        needs,
        Path(str(filled["data"])) if "data" in filled else None,
        str(item.get("note", "")),
        environment,
    )


def _filled(value: Any, fill: Mapping[str, Any], hours: float, where: str, depth: int = 0) -> Any:
    if depth > 8:
        raise ConfigError(f"{where}: options are nested more than eight deep, or refer to themselves")
    if isinstance(value, dict):
        if set(value) == {"share"}:
            return round(60 * hours * number(value["share"], f"{where}: `share`"), 2)
        return {str(key): _filled(each, fill, hours, where, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, fill, hours, where, depth + 1) for each in value]
    if not isinstance(value, str):
        return value
    if value.startswith("$") and value[1:] in fill:
        return fill[value[1:]]  # keeps its type
    try:
        return string.Template(value).substitute(fill)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{where}: {value!r} has a $ without the name of a value; the recipe has {', '.join(sorted(fill))}. Write "
            "$$ for a dollar"
        ) from error


def arguments_of(options: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """Options of a command line: `{"steps": 3, "compile": True}` gives `--steps 3 --compile`; `_` positional ones.

    Keys of a nested mapping are names, such as behaviours: `{"mix": {"near_miss": 1}}` gives `--mix.near_miss 1`.
    """
    found: list[str] = []
    for key, value in options.items():
        if key == "_":
            if not isinstance(value, list):
                raise ConfigError(f"positional arguments are {value!r}; expected a list, such as _: [$out/data]")
            found = [*map(str, value), *found]
            continue
        name = key.replace("_", "-") if prefix == "--" else key
        flag = prefix + name
        if isinstance(value, Mapping):
            found += arguments_of(value, f"{flag}.")
        elif value is True:
            found.append(flag)
        elif value is False:
            found.append(f"{prefix}no-{name}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found += [flag, *map(str, value)]
        elif value is not None:
            found += [flag, str(value)]
    return found
