"""Reads RLDS datasets: TFRecord shards of episodes as TensorFlow Datasets writes them, without TensorFlow.

A folder has `features.json`, `dataset_info.json` and `NAME-SPLIT.tfrecord-00000-of-00001`. A record is an episode,
whose features are `steps/action`, `steps/observation/image_0`, and so on; they are named here without `steps/`. A step
holds an observation and the action that followed; the action of the last step has no result. All splits whose files
exist are read, in the listed order, and episodes keep the number that they have among all listed ones.

Example::

    folder = RldsFolder("data/bridge/1.0.0", ImportSettings(cameras=("image_0",), recorded_fps=5.0))
    folder.cameras, list(folder.features)     # ["observation/image_0", ...], ["action", "observation/state", ...]
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.choices import is_inside
from worldgym.data.formats.importing import import_recorded
from worldgym.data.formats.recording import REWARD_KEY, SUCCESS_KEY
from worldgym.data.formats.rows import Feature, PicturedRows, check_size
from worldgym.data.formats.settings import ImportSettings
from worldgym.data.formats.tfrecords import parse, read_record, record_index
from worldgym.errors import CheckpointError, DatasetError
from worldgym.utils.files import read_json

FEATURES, INFO = "features.json", "dataset_info.json"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
SENTENCES = (
    "language_instruction", "observation/natural_language_instruction", "observation/language_instruction",
    "natural_language_instruction", "episode_metadata/language_instruction",
)  # fmt: skip
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Tensor:
    """A feature of `features.json`: shape of a step `(...)`, dtype, and encoding (none, bytes, zlib, or image)."""

    shape: tuple[int, ...]
    dtype: str
    encoding: str
    description: str = ""

    @property
    def size(self) -> int:
        """Number of values in a step."""
        return int(np.prod(self.shape)) if self.shape else 1

    @property
    def is_picture(self) -> bool:
        """Whether a step is an RGB picture, encoded or as numbers."""
        if self.encoding == "image":
            return True
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] == 3

    @property
    def is_numeric(self) -> bool:
        """Whether a step is a fixed number of numbers."""
        known = self.dtype in ("float64", "float32", "float16", "bool") or "int" in self.dtype
        return (
            known
            and self.encoding != "image"
            and all(side > 0 for side in self.shape)
            and self.size < 100_000
        )


@dataclass(frozen=True)
class RldsPlace:
    """An episode: its number, shard, number of the record in the shard, and split."""

    index: int
    data: Path
    record: int
    split: str
    length: int = -1  # the number of steps is not listed


class RldsFormat:
    """RLDS datasets; see `worldgym.data.formats.rlds`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` has TFDS's `features.json` and `dataset_info.json`, or TFRecord shards and one of them."""
        found = (source / FEATURES).is_file() + (source / INFO).is_file()
        return found == 2 or bool(found and any(source.glob("*.tfrecord-*-of-*")))

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return the report of `import_recorded`."""
        return import_recorded(RldsFolder(source, settings), out, command=command)


class RldsFolder(PicturedRows):
    """A folder of RLDS shards, read as episodes.

    Args:
        path: the folder of one version, with `features.json`.
        settings: import settings.

    Raises:
        DatasetError: a file is missing or damaged, or see `RowFolder`.
    """

    rate_place = INFO

    def __init__(self, path: str | os.PathLike[str], settings: ImportSettings | None = None) -> None:
        root = Path(path).expanduser()
        self.info = _object(root, INFO)
        self.tensors = _tensors(root)
        self.layout = f"RLDS {self.info.get('name', root.name)} {self.info.get('version', '')}".strip()
        steps = {name: t for name, t in self.tensors.items() if not name.startswith("episode_metadata/")}
        numeric = {n: Feature(t.size) for n, t in steps.items() if t.is_numeric and not t.is_picture}
        self.labels = {
            key: name
            for key, name in ((REWARD_KEY, "reward"), (SUCCESS_KEY, "success"))
            if name in numeric and numeric[name].size == 1
        }
        state = [name for name in ("observation/state", "observation/proprio") if name in numeric][:1]
        super().__init__(
            root, settings or ImportSettings(), [name for name, t in steps.items() if t.is_picture], numeric, state,
            ["action"] if "action" in numeric else [],
        )  # fmt: skip
        described = {key: steps[key].description for key in self.action_keys if steps[key].description}
        self.convention = {
            "kind": "unknown", "frame": "unknown", "units": "unknown", "gripper": "unknown",
            "recorded": {f"{FEATURES}: description of {key}": text for key, text in described.items()},
        }  # fmt: skip
        self._indices: dict[Path, tuple[list[tuple[int, int]], str | None]] = {}
        self._last: tuple[int, dict[str, Any]] | None = None
        self._places, self.absent = self._listed()

    # ---- files ---------------------------------------------------------------------------------------------------

    @property
    def places(self) -> list[RldsPlace]:
        """The episodes of the splits whose files exist."""
        return self._places

    @property
    def recorded_rate(self) -> None:
        """RLDS does not record the rate."""
        return None

    def _listed(self) -> tuple[list[RldsPlace], list[str]]:
        """The episodes of all splits with files, and the names of the splits without."""
        places: list[RldsPlace] = []
        absent, count, where = [], 0, self.root / INFO
        try:
            for split in self.info["splits"]:
                lengths = [int(n) for n in split["shardLengths"]]
                if any(not 0 <= n < 10**8 for n in lengths):
                    raise ValueError(f"shardLengths are {lengths}")
                shards = [self._shard(split, i, len(lengths)) for i in range(len(lengths))]
                if not any(shard.exists() for shard in shards):
                    absent.append(str(split["name"]))
                    count += sum(lengths)
                    continue
                for shard, length in zip(shards, lengths, strict=True):
                    places += [RldsPlace(count + i, shard, i, str(split["name"])) for i in range(length)]
                    count += length
        except _MALFORMED as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{where} lists no splits that can be read ({type(error).__name__}: {error}); expected, for each "
                "split, its name and shardLengths: download it again"
            ) from error
        if not places:
            raise DatasetError(
                f"{self.root} has no files of the splits {', '.join(absent) or '(none listed)'}; expected files such "
                f"as {self.info.get('name', 'NAME')}-train.tfrecord-00000-of-00001: download them"
            )
        return places, absent

    def _shard(self, split: Mapping[str, Any], number: int, count: int) -> Path:
        file_format = str(self.info.get("fileFormat", "tfrecord"))
        if file_format != "tfrecord":
            raise DatasetError(
                f"{self.root / INFO} has fileFormat {file_format!r}, expected 'tfrecord'; convert the dataset with "
                "TensorFlow Datasets first"
            )
        name = str(split.get("filepathTemplate") or TEMPLATE)
        given = {"DATASET": self.info["name"], "SPLIT": split["name"], "FILEFORMAT": file_format}
        given |= {"SHARD_X_OF_Y": f"{number:05d}-of-{count:05d}"}
        for key, value in given.items():
            name = name.replace(f"{{{key}}}", str(value))
        path = self.root / name
        if "/" in name or "\\" in name or "\0" in name or "{" in name or not is_inside(path, self.root):
            raise DatasetError(
                f"{self.root / INFO} names the file {name!r}; expected a file of the folder, such as {TEMPLATE}: "
                "correct filepathTemplate"
            )
        return path

    def _features(self, place: RldsPlace) -> dict[str, Any]:
        """All features of an episode; the last one read is kept, because rows and pictures are in one record."""
        if self._last is not None and self._last[0] == place.index:
            return self._last[1]
        if not place.data.is_file():
            raise DatasetError(
                f"{place.data} is missing although {INFO} lists it; download it, or choose others with --episodes"
            )
        if place.data not in self._indices:
            self._indices[place.data] = record_index(place.data)
        index, problem = self._indices[place.data]
        if place.record >= len(index):
            reason = problem or f"{place.data} has {len(index)} records, but {INFO} lists more"
            raise DatasetError(f"{reason}; episode {place.index} is missing: download the file again")
        found = parse(read_record(place.data, *index[place.record]))
        self._last = (place.index, found)
        return found

    # ---- rows ----------------------------------------------------------------------------------------------------

    def length(self, place: RldsPlace) -> int:
        """Number of steps of an episode, from its chosen features."""
        name = next(iter([*self.action_keys, *self.state_keys, *self.chosen]))
        found, tensor = self._values(place, name), self.tensors[name]
        per_step = 1 if tensor.encoding != "none" else tensor.size
        if len(found) % per_step:
            raise DatasetError(
                f"{place.data}: {name} of episode {place.index} has {len(found)} values, expected a multiple of "
                f"{per_step}, as {FEATURES} says; the files do not belong together"
            )
        return len(found) // per_step

    def columns(self, place: RldsPlace, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of numeric features, each `(N, size)`."""
        return {key: self._numbers(place, key) for key in keys}

    def _values(self, place: RldsPlace, name: str) -> Any:
        features = self._features(place)
        key = name if name.startswith("episode_metadata/") else f"steps/{name}"
        if key not in features:
            raise DatasetError(
                f"{place.data}: episode {place.index} has no {key}, only {', '.join(sorted(features)) or 'nothing'}; "
                f"{FEATURES} and the shards do not belong together"
            )
        return features[key]

    def _numbers(self, place: RldsPlace, name: str) -> np.ndarray:
        """A numeric feature, `(N, ...)`, decoded."""
        values, tensor = self._values(place, name), self.tensors[name]
        where = f"{place.data}: {name} of episode {place.index}"
        check_size((len(values), 1 if tensor.encoding == "none" else tensor.size), where)
        try:
            if tensor.encoding == "none":
                return np.array(values).reshape(-1, *tensor.shape)
            return np.stack([_decoded(item, tensor) for item in values])
        except (ValueError, TypeError, zlib.error) as error:
            raise DatasetError(
                f"{where} does not have the shape {tensor.shape} and dtype {tensor.dtype} of {FEATURES}: {error}"
            ) from error

    def sentences(self, place: RldsPlace) -> list[str]:
        """The instruction of each step, or of the episode."""
        name = next((key for key in SENTENCES if key in self.tensors), None)
        values = () if name is None else self._values(place, name)
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else "" for item in values]

    def pictures(self, place: RldsPlace, camera: str, rows: np.ndarray) -> Iterator[np.ndarray | bytes]:
        """The pictures of the given rows: the stored image files, or the numbers of a tensor."""
        if self.tensors[camera].encoding != "image":
            yield from self._numbers(place, camera)[rows].astype(np.uint8)
            return
        stored = self._values(place, camera)
        for row in rows:
            if row >= len(stored) or not isinstance(stored[row], bytes):
                raise ValueError(f"{len(stored)} pictures are stored")
            yield stored[row]

    # ---- report --------------------------------------------------------------------------------------------------

    def facts(self) -> list[Any]:
        """The features, which say how the shards are read."""
        return [[name, tensor.shape, tensor.dtype, tensor.encoding] for name, tensor in self.tensors.items()]

    def origin(self, place: RldsPlace) -> dict[str, Any]:
        """Split, shard and number of the record."""
        return {"recorded_split": place.split, "file": place.data.name, "record": place.record}

    def notes(self, without: Any = ()) -> list[str]:
        """Which splits have no files."""
        absent = ", ".join(self.absent)
        return [f"splits that {INFO} lists and whose files are not in the folder: {absent}"] if absent else []


def _object(root: Path, name: str) -> dict[str, Any]:
    path = root / name
    if not path.is_file():
        inner = sorted(p.parent for p in root.glob(f"*/{name}")) if root.is_dir() else []
        hint = f"; give the folder of a version, {inner[-1]}" if inner else ""
        raise DatasetError(f"no RLDS dataset at {root}: {name} is missing{hint or '; check the path'}")
    if not is_inside(path, root):
        raise DatasetError(f"{path} is a link to a file outside {root}; copy the file into the folder")
    try:
        found = read_json(path, "Download it again")
    except CheckpointError as error:
        raise DatasetError(str(error)) from error
    if not isinstance(found, dict):
        raise DatasetError(f"{path}: got a {type(found).__name__}, expected an object; download it again")
    return found


def _tensors(root: Path) -> dict[str, Tensor]:
    """Features by name: those of steps without `steps/`, those of the episode with `episode_metadata/`."""
    path, found = root / FEATURES, _object(root, FEATURES)
    try:
        top = found["featuresDict"]["features"]
        steps = top["steps"]["sequence"]["feature"]
        out = dict(_walk(steps, ""))
        if "episode_metadata" in top:
            out |= dict(_walk(top["episode_metadata"], "episode_metadata"))
        return out
    except _MALFORMED as error:
        raise DatasetError(
            f"{path} does not describe episodes of steps ({type(error).__name__}: {error}); expected a FeaturesDict "
            "with a Dataset `steps`, as RLDS has it: check that this is an RLDS dataset"
        ) from error


def _walk(feature: Mapping[str, Any], name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors, images and texts below a feature; sequences within a step are left out."""
    if "featuresDict" in feature:
        for key, inner in feature["featuresDict"]["features"].items():
            yield from _walk(inner, f"{name}/{key}" if name else str(key))
        return
    description = str(feature.get("description") or "")
    if "text" in feature:
        yield name, Tensor((), "string", "none", description)
    for kind in ("tensor", "image"):
        if kind in feature:
            what = feature[kind]
            shape = tuple(int(side) for side in (what.get("shape") or {}).get("dimensions", []))
            encoding = "image" if kind == "image" else str(what.get("encoding") or "none").lower()
            yield name, Tensor(shape, str(what.get("dtype") or "uint8"), encoding, description)


def _decoded(item: bytes, tensor: Tensor) -> np.ndarray:
    """One step of a tensor that is stored as bytes."""
    dtype = np.dtype(tensor.dtype)
    if tensor.encoding == "zlib":
        opened = zlib.decompressobj()
        item = opened.decompress(item, dtype.itemsize * tensor.size + 1)
        if not opened.eof:
            raise ValueError("the compressed values are cut off, or more than expected")
    elif tensor.encoding != "bytes":
        raise ValueError(f"the encoding {tensor.encoding!r}, expected none, bytes or zlib")
    return np.frombuffer(item, dtype).reshape(tensor.shape)
