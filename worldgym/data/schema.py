"""Columns of a dataset in LeRobot's layout: features for `meta/info.json`, and the Arrow schemas of its files.

A dataset without actions has no column `action`. If only some episodes lack actions, their rows hold NaN. Success is
null in episodes without success labels.

Example::

    data_schema(specs, "png").names        # ["observation.images.front", "observation.state", "action", ...]
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from worldgym.data.lerobot import IMAGE_PREFIX, STATE_KEY, Images
from worldgym.specs import Camera, ObservationSpec, Specs

_SCALARS: tuple[tuple[str, str], ...] = (
    ("next.reward", "float32"),
    ("next.done", "bool"),
    ("next.success", "bool"),
    ("success", "bool"),
    ("progress", "float32"),
    ("timestamp", "float32"),
    ("frame_index", "int64"),
    ("episode_index", "int64"),
    ("index", "int64"),
    ("task_index", "int64"),
)
_ARROW = {"float32": pa.float32(), "bool": pa.bool_(), "int64": pa.int64()}
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def camera_key(name: str) -> str:
    """LeRobot feature name of a camera."""
    return f"{IMAGE_PREFIX}{name}"


def camera_keys(spec: ObservationSpec) -> list[str]:
    """LeRobot feature names of all cameras, the main one first."""
    return [camera_key(camera.name) for camera in spec.cameras]


def features(specs: Specs, fps: float, images: Images) -> dict[str, Any]:
    """The `features` block of info.json."""
    spec = specs.observation
    out: dict[str, Any] = {camera_key(camera.name): _picture(camera, fps, images) for camera in spec.cameras}
    if spec.state_dim:
        names = [field.name for field in spec.state]
        out[STATE_KEY] = {"dtype": "float32", "shape": [spec.state_dim], "names": names}
    if specs.action is not None:
        action = specs.action
        out["action"] = {"dtype": "float32", "shape": [action.dim], "names": list(action.names)}
    for name, dtype in _SCALARS:
        out[name] = {"dtype": dtype, "shape": [1], "names": None}
    return out


def _picture(camera: Camera, fps: float, images: Images) -> dict[str, Any]:
    image: dict[str, Any] = {
        "dtype": "image" if images == "png" else "video",
        "shape": [camera.height, camera.width, 3],
        "names": ["height", "width", "channels"],
    }
    if images == "mp4":
        image["info"] = {
            "video.height": camera.height,
            "video.width": camera.width,
            "video.channels": 3,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.fps": fps,
            "video.is_depth_map": False,
            "has_audio": False,
        }
    return image


def final_schema(spec: ObservationSpec) -> pa.Schema:
    """Arrow schema of the file of last frames: one row per episode, images always as PNG."""
    state = [(STATE_KEY, pa.list_(pa.float32(), spec.state_dim))] if spec.state_dim else []
    pictures = [(key, PICTURE) for key in camera_keys(spec)]
    scalars = [("episode_index", pa.int64()), ("success", pa.bool_()), ("progress", pa.float32())]
    return pa.schema([*scalars, *state, *pictures])


def data_schema(specs: Specs, images: Images) -> pa.Schema:
    """Arrow schema of a data file; its metadata lets Hugging Face `datasets` decode the images."""
    hub: dict[str, Any] = {}
    columns: list[tuple[str, pa.DataType]] = []
    spec = specs.observation
    if images == "png":
        for key in camera_keys(spec):
            columns.append((key, PICTURE))
            hub[key] = {"_type": "Image"}
    vectors = [(STATE_KEY, spec.state_dim), ("action", 0 if specs.action is None else specs.action.dim)]
    for name, size in vectors:
        if size:
            columns.append((name, pa.list_(pa.float32(), size)))
            feature = {"feature": {"dtype": "float32", "_type": "Value"}, "length": size, "_type": "Sequence"}
            hub[name] = feature
    for name, dtype in _SCALARS:
        columns.append((name, _ARROW[dtype]))
        hub[name] = {"dtype": dtype, "_type": "Value"}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": hub}})})


def tasks_table(instructions: list[str]) -> pa.Table:
    """Table for `meta/tasks.parquet`, with the instruction as pandas index, as LeRobot expects."""
    table = pa.table(
        {
            "task_index": pa.array(range(len(instructions)), pa.int64()),
            "task": pa.array(instructions, pa.string()),
        }
    )
    column = {"metadata": None, "field_name": "task_index", "name": "task_index"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**column, "pandas_type": "int64", "numpy_type": "int64"},
            {
                "metadata": None,
                "field_name": "task",
                "name": "task",
                "pandas_type": "unicode",
                "numpy_type": "object",
            },
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
