"""Reads robomimic's HDF5 files: `data/demo_N` with `actions`, `obs/NAME`, `rewards` and `dones`.

One file, or a folder of such files in the order of their names. Episodes are numbered from 0 in the order of the demo
numbers. Row t holds an observation and the action that followed; `next_obs` is not read. `dones` marks success in some
files, the end of a demonstration in others: it is used only if `--success next.success` says so.

Example::

    folder = RobomimicFolder("image.hdf5", ImportSettings(cameras=("agentview_image",), success="next.reward"))
    folder.cameras, list(folder.features)     # ["obs/agentview_image", ...], ["actions", "obs/robot0_eef_pos", ...]
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.choices import files_in
from worldgym.data.formats.importing import import_recorded
from worldgym.data.formats.recording import REWARD_KEY, SUCCESS_KEY
from worldgym.data.formats.rows import Feature, PicturedRows, RowPlace, blocks, check_size
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import DatasetError, DependencyError
from worldgym.utils.optional import require

ENDINGS = (".hdf5", ".h5")
STATE = ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos")
_DEMO = re.compile(r"demo_(\d{1,9})")
_DAMAGED = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError)


class RobomimicFormat:
    """Robomimic's HDF5 files; see `worldgym.data.formats.robomimic`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` is such a file, or a folder of them; a damaged HDF5 file counts as one."""
        files = [source] if source.is_file() else sorted(source.glob("*")) if source.is_dir() else []
        files = [path for path in files if path.suffix.lower() in ENDINGS]
        if not files:
            return False
        try:
            with _opened(files[0]) as file:
                return "data" in file and bool(_demos(file, files[0]))
        except (DatasetError, DependencyError):
            return True

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return the report of `import_recorded`."""
        return import_recorded(RobomimicFolder(source, settings), out, command=command)


class RobomimicFolder(PicturedRows):
    """HDF5 files of robomimic, read as episodes.

    Args:
        path: the file, or the folder of files.
        settings: import settings.

    Raises:
        DatasetError: a file is missing or damaged or holds no demonstrations, or see `RowFolder`.
    """

    layout, rate_place = "robomimic HDF5", "env_args"
    success_recorded = False  # `dones` may mean success or the end of a demonstration

    def __init__(self, path: str | os.PathLike[str], settings: ImportSettings | None = None) -> None:
        root = Path(path).expanduser()
        self._places: list[RowPlace] = []
        self._sentences: dict[Path, str] = {}
        rates: dict[float, Path] = {}
        for file in files_in(root, ENDINGS, "HDF5 file of robomimic, or a folder of them"):
            with _opened(file) as opened:
                demos = _demos(opened, file)
                if not demos:
                    raise DatasetError(
                        f"{file} has no group data with demo_0, demo_1, ..., only {sorted(opened) or 'nothing'}; "
                        "expected a file of robomimic"
                    )
                for name in demos:
                    self._places.append(RowPlace(len(self._places), file, name))
                env = _json(opened["data"].attrs.get("env_args"))
                self._sentences[file] = _instruction(_json(opened["data"].attrs.get("problem_info")))
                if len(self._places) == len(demos):
                    cameras, features = _features(opened, demos[0], file)
                    self._env = env
                elif _convention(env) != _convention(self._env):
                    raise DatasetError(
                        f"{root} has files with different environments or controllers (env_args), {file.name} and "
                        f"{self._places[0].data.name}; their actions have different meanings: import them one by one"
                    )
                rate = _kwargs(env).get("control_freq")
                if isinstance(rate, (int, float)) and 0 < rate < 10_000:
                    rates.setdefault(float(rate), file)
        if len(rates) > 1:
            raise DatasetError(
                f"{root} has files of different rates, {', '.join(f'{r:g} ({f.name})' for r, f in rates.items())}; a "
                "dataset has one: import them one by one"
            )
        self._rate = next(iter(rates), None)
        self.labels = {
            key: name for key, name in ((REWARD_KEY, "rewards"), (SUCCESS_KEY, "dones")) if name in features
        }
        robots = _kwargs(self._env).get("robots")
        robots = robots if isinstance(robots, list) else [robots]
        self.robot = "+".join(robot for robot in robots if isinstance(robot, str)) or "unknown"
        if not cameras:
            raise DatasetError(
                f"{root} has no pictures in obs, only {list(features)}; render them with robomimic's "
                "dataset_states_to_obs.py first"
            )
        state = [key for key in STATE if key in features]
        super().__init__(
            root, settings or ImportSettings(), cameras, features, state if len(state) == len(STATE) else [],
            ["actions"] if "actions" in features else [],
        )  # fmt: skip
        self.convention = _convention(self._env)

    @property
    def places(self) -> list[RowPlace]:
        """The demonstrations of all files."""
        return self._places

    @property
    def recorded_rate(self) -> float | None:
        """`control_freq` of `env_args`, if it was recorded."""
        return self._rate

    def origin(self, place: RowPlace) -> dict[str, Any]:
        """File, name of the demonstration, and the filter keys in `mask` that list it."""
        with _opened(place.data) as file:
            masks = [name for name, names in _masks(file, place.data).items() if place.name in names]
        return {"file": place.data.name, "demo": place.name} | ({"masks": masks} if masks else {})

    def facts(self) -> list[Any]:
        """The demonstrations, in order."""
        return [[place.data.name, place.name] for place in self._places]

    # ---- rows ----------------------------------------------------------------------------------------------------

    def length(self, place: RowPlace) -> int:
        """Number of rows, that of the actions or else of the main camera."""
        with _demo(place) as demo:
            found = len(_dataset(demo, next(iter([*self.action_keys, *self.chosen])), place))
            stated = demo.attrs.get("num_samples", found)
            if not isinstance(stated, (int, np.integer)) or stated != found:
                raise DatasetError(
                    f"{place.data}: {place.name} has {found} rows, but its num_samples is {stated}; the file is "
                    "damaged, copy or download it again"
                )
            return found

    def columns(self, place: RowPlace, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of numeric features, each `(N, ...)`."""
        with _demo(place) as demo:
            return {key: _numbers(demo, key, place) for key in keys}

    def sentences(self, place: RowPlace) -> list[str]:
        """The instruction in `ep_meta` of the demonstration, or in `problem_info` of the file, if there is one."""
        with _demo(place) as demo:
            own = _json(demo.attrs.get("ep_meta")).get("lang")
        text = own if isinstance(own, str) and own.strip() else self._sentences[place.data]
        return [text] if text else []

    def pictures(self, place: RowPlace, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The pictures of the given rows, `(H, W, 3)` uint8."""
        with _demo(place) as demo:
            found = _dataset(demo, camera, place)
            if len(found) <= rows[-1] or found.dtype != np.uint8 or found.ndim != 4:
                raise DatasetError(
                    f"{place.data}: {place.name}/{camera} is {found.shape} {found.dtype}, expected (N, H, W, 3) uint8 "
                    "with a picture for each row; choose another --camera"
                )
            check_size(found.shape[1:], f"{place.data}: {camera}")
            for first, end, kept in blocks(rows, int(np.prod(found.shape[1:]))):
                yield from found[first:end][kept]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An HDF5 file; errors of the library while it is open become a `DatasetError`."""
    h5py = require("h5py", extra="recordings")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DatasetError:
        raise
    except _DAMAGED as error:
        raise DatasetError(
            f"{path} can't be read as HDF5 ({type(error).__name__}: {error}); it may be cut off or damaged: copy or "
            "download it again"
        ) from error


@contextmanager
def _demo(place: RowPlace) -> Iterator[Any]:
    with _opened(place.data) as file:
        _inside(file, f"data/{place.name}", place.data)
        yield file["data"][place.name]


def _inside(group: Any, name: str, path: Path) -> Any:
    """The item `name` of a group, which must be in this file; None if there is none.

    Raises:
        DatasetError: a part of the name is a link to another file.
    """
    h5py = require("h5py", extra="recordings")
    found = group
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or (link := found.get(part, getlink=True)) is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise DatasetError(
                f"{path}: {name} is a link to another file, {link.filename!r}; nothing outside the file is read: copy "
                "the data into it"
            )
        found = found.get(part)
    return found


def _dataset(demo: Any, name: str, place: RowPlace) -> Any:
    """A dataset of a demonstration, which must be in this file.

    Raises:
        DatasetError: there is none, or its values are in another file.
    """
    h5py = require("h5py", extra="recordings")
    found = _inside(demo, name, place.data)
    if not isinstance(found, h5py.Dataset) or not found.shape:
        raise DatasetError(
            f"{place.data}: {place.name} has no rows {name!r}; choose others with --camera, --state-key and "
            "--action-key"
        )
    if found.external or found.is_virtual:
        raise DatasetError(
            f"{place.data}: the values of {place.name}/{name} are in another file; nothing outside the file is read: "
            "copy the data into it"
        )
    return found


def _numbers(demo: Any, name: str, place: RowPlace) -> np.ndarray:
    found = _dataset(demo, name, place)
    if found.dtype.kind not in "biuf":
        raise DatasetError(
            f"{place.data}: {place.name}/{name} has the type {found.dtype}, expected numbers; choose other features "
            "with --state-key and --action-key"
        )
    check_size(found.shape, f"{place.data}: {place.name}/{name}")
    return np.asarray(found[()])


def _demos(file: Any, path: Path) -> list[str]:
    """Names of the demonstrations, sorted by number."""
    h5py = require("h5py", extra="recordings")
    data = _inside(file, "data", path)
    if not isinstance(data, h5py.Group):
        return []
    names = [name for name in data if _DEMO.fullmatch(name)]
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _features(file: Any, name: str, path: Path) -> tuple[list[str], dict[str, Feature]]:
    """Cameras and numeric features of a demonstration."""
    h5py = require("h5py", extra="recordings")
    cameras, features = [], {}
    demo = _inside(file, f"data/{name}", path)
    names = [name for name in demo if name not in ("obs", "next_obs")]
    if isinstance(_inside(demo, "obs", path), h5py.Group):
        names += [f"obs/{name}" for name in demo["obs"]]
    for name in names:
        found = _inside(demo, name, path)
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf" or not found.shape:
            continue
        if found.ndim == 4 and found.dtype == np.uint8 and found.shape[3] == 3:
            cameras.append(name)
        elif found.ndim <= 3 and 0 < (size := int(np.prod(found.shape[1:]))) < 100_000:
            features[name] = Feature(size)
    return cameras, features


def _masks(file: Any, path: Path) -> dict[str, set[str]]:
    """Filter keys of the file, e.g. `train` and `valid`, with the demonstrations that each lists."""
    h5py = require("h5py", extra="recordings")
    group = _inside(file, "mask", path)
    out = {}
    for name in group if isinstance(group, h5py.Group) else ():
        found = _inside(group, name, path)
        if (
            isinstance(found, h5py.Dataset)
            and found.ndim == 1
            and not found.external
            and not found.is_virtual
        ):
            listed = [
                item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in found
            ]
            out[str(name)] = set(listed)
    return out


def _json(value: Any) -> dict[str, Any]:
    """An attribute that holds a JSON object; an empty object for anything else."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    try:
        found = json.loads(value, parse_constant=str) if isinstance(value, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kwargs(env: dict[str, Any]) -> dict[str, Any]:
    """`env_kwargs` of `env_args`; empty if there is none."""
    found = env.get("env_kwargs")
    return found if isinstance(found, dict) else {}


def _instruction(problem: dict[str, Any]) -> str:
    text = problem.get("language_instruction", "")
    text = " ".join(map(str, text)) if isinstance(text, list) else text
    return text.strip() if isinstance(text, str) else ""


def _convention(env: dict[str, Any]) -> dict[str, Any]:
    """What `env_args` records of the actions: the settings of robosuite's controller."""
    given = _kwargs(env).get("controller_configs")
    given = given[0] if isinstance(given, list) and given else given
    config: dict[str, Any] = given if isinstance(given, dict) else {}
    arms = config.get("body_parts")
    if isinstance(arms, dict):  # robosuite 1.5
        config = next((arm for name, arm in arms.items() if name != "base" and isinstance(arm, dict)), {})
        inner = [arm for arm in config.values() if isinstance(arm, dict) and "type" in arm]
        config = inner[0] if "type" not in config and inner else config
    delta = {"delta": True, "absolute": False}.get(str(config.get("input_type")), config.get("control_delta"))
    kind = "unknown" if not isinstance(delta, bool) else "delta" if delta else "absolute"
    scaled = kind == "delta" and "output_max" in config
    names = ("type", "input_min", "input_max", "output_min", "output_max", "control_delta", "input_type")
    kept = {name: config[name] for name in (*names, "input_ref_frame") if name in config}
    return {
        "kind": kind,
        "frame": str(config.get("input_ref_frame", "unknown")),
        "units": "controller input, scaled from input_min..input_max to output_min..output_max (m, rad) by the "
        "controller"
        if scaled
        else "unknown",
        "gripper": "unknown",
        "recorded": {"env_args: controller": kept},
    }
