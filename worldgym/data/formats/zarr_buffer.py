"""Reads replay buffers of Diffusion Policy: Zarr groups `data` (all rows of all episodes) and `meta/episode_ends`.

A store is a folder `NAME.zarr` or a file `NAME.zarr.zip`, in the formats 2 and 3 of Zarr. `episode_ends` holds the
number of rows up to the end of each episode. Row t holds an observation and the action that followed. The store records
neither the rate nor what the numbers mean.

Example::

    folder = ZarrFolder("pusht_cchi_v7_replay.zarr", ImportSettings(recorded_fps=10.0))
    folder.cameras, list(folder.features)     # ["img"], ["action", "keypoint", "n_contacts", "state"]
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.choices import is_inside
from worldgym.data.formats.importing import import_recorded
from worldgym.data.formats.recording import REWARD_KEY, SUCCESS_KEY
from worldgym.data.formats.rows import Feature, PicturedRows, RowPlace, blocks, check_size
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import DatasetError, DependencyError
from worldgym.utils.optional import require

ZIPPED = ".zarr.zip"
META = (".zgroup", "zarr.json")
STATE = ("state", "agent_pos")


class ZarrFormat:
    """Replay buffers of Diffusion Policy; see `worldgym.data.formats.zarr_buffer`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` is a `.zarr.zip` file, or a Zarr group with `data` and `meta/episode_ends`."""
        if source.is_file():
            return source.name.lower().endswith(ZIPPED)
        has = [any((source / part / name).is_file() for name in META) for part in (".", "data", "meta")]
        return has[0] and (all(has) or (source / "meta" / "episode_ends").is_dir())

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return the report of `import_recorded`."""
        return import_recorded(ZarrFolder(source, settings), out, command=command)


class ZarrFolder(PicturedRows):
    """A replay buffer of Diffusion Policy, read as episodes.

    Args:
        path: the folder `NAME.zarr` or the file `NAME.zarr.zip`.
        settings: import settings.

    Raises:
        DatasetError: the store is missing or damaged or has other groups, or see `RowFolder`.
    """

    def __init__(self, path: str | os.PathLike[str], settings: ImportSettings | None = None) -> None:
        root = Path(path).expanduser()
        self._stored = _stored_files(root)
        self._arrays: dict[str, Any] = {}
        with _reading(root):
            group = _open(root)
            self.layout = f"Zarr {group.metadata.zarr_format} replay buffer"
            ends = _array(root, group, "meta/episode_ends")
            data = group.get("data")
            for name in sorted(data.array_keys()) if hasattr(data, "array_keys") else ():
                self._arrays[name] = _array(root, group, f"data/{name}")
            check_size(ends.shape, f"{root}: meta/episode_ends")
            self._places = _places(root, np.asarray(ends[:]))
        self._firsts = np.cumsum([0, *(place.length for place in self._places)])
        rows = int(self._firsts[-1])
        cameras, features = [], {}
        for name, array in self._arrays.items():
            if not array.shape or array.dtype.kind not in "biuf":
                continue
            if array.shape[0] != rows:
                raise DatasetError(
                    f"{root}: data/{name} has {array.shape[0]} rows, but meta/episode_ends ends at {rows}; the store "
                    "is cut off or damaged: copy or download it again"
                )
            if array.ndim == 4 and array.shape[3] == 3 and array.dtype.kind in "uf":
                cameras.append(name)
            elif array.ndim <= 3 and 0 < (size := int(np.prod(array.shape[1:]))) < 100_000:
                features[name] = Feature(size)
        names = {REWARD_KEY: ("reward", "rewards"), SUCCESS_KEY: ("success",)}
        self.labels = {key: name for key, known in names.items() for name in known if name in features}
        super().__init__(
            root, settings or ImportSettings(), cameras, features, [key for key in STATE if key in features][:1],
            ["action"] if "action" in features else [],
        )  # fmt: skip
        self.convention = dict.fromkeys(("kind", "frame", "units", "gripper"), "unknown")
        self._absent = {
            name: self._chunks_absent(name) for name in (*self.chosen, *self.action_keys, *self.state_keys)
        }
        for camera in self.chosen:
            if self._absent[camera]:
                raise DatasetError(
                    f"{root}: {self._absent[camera]} chunks of data/{camera} are not in the store, and Zarr reads them "
                    "as the fill value, one colour; copy or download the store again, or choose another --camera"
                )

    @property
    def places(self) -> list[RowPlace]:
        """The episodes between the ends."""
        return self._places

    @property
    def recorded_rate(self) -> None:
        """Replay buffers do not record the rate."""
        return None

    def files(self, places: Sequence[Any]) -> set[Path]:
        """All files of the store."""
        return self._stored

    def notes(self, without: Any = ()) -> list[str]:
        """Features with chunks that the store does not have."""
        return [
            f"{count} chunks of {name} are not in the store; they are read as Zarr's fill value"
            for name, count in self._absent.items()
            if count
        ]

    def _chunks_absent(self, name: str) -> int:
        with _reading(self.root):
            array = self._arrays[name]
            return int(array.nchunks - array.nchunks_initialized)

    # ---- rows ----------------------------------------------------------------------------------------------------

    def columns(self, place: RowPlace, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of numeric features, each `(N, ...)`."""
        first, out = int(self._firsts[place.index]), {}
        for key in keys:
            array = self._arrays[key]
            check_size((place.length, *array.shape[1:]), f"{self.root}: data/{key} of episode {place.index}")
            with _reading(self.root, f"data/{key}, rows {first} to {first + place.length - 1}"):
                out[key] = np.asarray(array[first : first + place.length])
        return out

    def pictures(self, place: RowPlace, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The pictures of the given rows, `(H, W, 3)` uint8; floats must be whole numbers from 0 to 255."""
        array, first = self._arrays[camera], int(self._firsts[place.index])
        check_size(array.shape[1:], f"{self.root}: data/{camera}")
        for start, end, kept in blocks(rows, int(np.prod(array.shape[1:])) * array.dtype.itemsize):
            with _reading(self.root, f"data/{camera}, rows {first + start} to {first + end - 1}"):
                found = np.asarray(array[first + start : first + end])[kept]
            yield from _bytes(found)


def _bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures as uint8; the scale of other floats than whole numbers from 0 to 255 is unknown."""
    if pictures.dtype == np.uint8:
        return pictures
    if not np.isfinite(pictures).all() or pictures.min() < 0 or pictures.max() > 255:
        raise ValueError("the pictures have values outside 0 to 255; expected uint8, or floats from 0 to 255")
    whole = np.rint(pictures)
    if np.abs(pictures - whole).max() > 1e-3:
        raise ValueError(
            f"the pictures are {pictures.dtype} from {pictures.min():.3g} to {pictures.max():.3g} and not whole "
            "numbers, so their scale is unknown; expected values 0 to 255: multiply them if they are 0 to 1, and "
            "store uint8"
        )
    return whole.astype(np.uint8)


def _places(root: Path, ends: np.ndarray) -> list[RowPlace]:
    if ends.ndim != 1 or not len(ends) or ends.dtype.kind not in "iu":
        raise DatasetError(
            f"{root}: meta/episode_ends is {ends.shape} {ends.dtype}, expected one whole number for each episode, at "
            "least one"
        )
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (lengths <= 0).any():
        bad = int(np.argmax(lengths <= 0))
        raise DatasetError(
            f"{root}: meta/episode_ends is not increasing: episode {bad} would have {lengths[bad]} rows; correct it"
        )
    return [RowPlace(i, root, f"episode {i}", int(length)) for i, length in enumerate(lengths)]


@contextmanager
def _reading(root: Path, what: str = "") -> Iterator[None]:
    """Turn the errors of Zarr and its codecs into a `DatasetError`; they have no common class."""
    try:
        yield
    except (DatasetError, DependencyError, MemoryError):
        raise
    except Exception as error:
        raise DatasetError(
            f"{root}{f': {what}' if what else ''} can't be read by zarr ({type(error).__name__}: {error}); the store "
            "is cut off or damaged, or needs a codec that is not installed: copy or download it again"
        ) from error


UNREADABLE_ZIP = (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)
"""What zipfile raises for a damaged file; RuntimeError for a flag of encryption, and for a version that it lacks."""


def _stored_files(root: Path) -> set[Path]:
    """All files of a store.

    Raises:
        DatasetError: there is none, the zip file is damaged, or a file is a link out of the folder.
    """
    if root.is_file():
        try:
            with zipfile.ZipFile(root) as file:
                for entry in file.infolist():  # a chunk under a damaged name would be read as zeros
                    file.open(entry).close()
        except UNREADABLE_ZIP as error:
            raise DatasetError(f"{root} is not a readable zip file ({error}); download it again") from error
        return {root}
    if not root.is_dir():
        raise DatasetError(f"there is no file or folder {root}; give the folder NAME.zarr, or NAME{ZIPPED}")
    files = {Path(folder) / name for folder, _, names in os.walk(root) for name in names}
    links = {path for path in files if path.is_symlink()}
    links |= {
        Path(top) / name
        for top, names, _ in os.walk(root)
        for name in names
        if (Path(top) / name).is_symlink()
    }
    for path in sorted(links):
        if not is_inside(path, root):
            raise DatasetError(
                f"{path} is a link out of {root}; nothing outside the source folder is read: copy what it names"
            )
    return files


def _open(root: Path) -> Any:
    """The group at the root of a store."""
    zarr = require("zarr", extra="recordings")
    store = (
        zarr.storage.ZipStore(root, mode="r")
        if root.is_file()
        else zarr.storage.LocalStore(root, read_only=True)
    )
    return zarr.open_group(store, mode="r", use_consolidated=False)


def _array(root: Path, group: Any, name: str) -> Any:
    """An array of numbers of a store.

    Raises:
        DatasetError: there is none, it holds objects, or it is stored as Python pickles.
    """
    zarr = require("zarr", extra="recordings")
    found = group.get(name)
    if not isinstance(found, zarr.Array):
        raise DatasetError(
            f"{root} has no array {name}; expected a replay buffer of Diffusion Policy, with the groups data and "
            "meta/episode_ends"
        )
    described = json.dumps(found.metadata.to_dict(), default=str).lower()
    if found.dtype.kind == "O" or "pickle" in described:
        raise DatasetError(
            f"{root}: {name} is an array of Python objects, and those are not read, because reading them executes "
            "code; store numbers instead"
        )
    return found
