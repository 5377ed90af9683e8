"""The same small recordings in every format, each written by the library that writes the format in practice."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.commands.import_data import ImportConfig, run
from worldgym.data import EpisodeDataset

RATE = 10.0
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
FLOATS = "float64[] data"
STAMP = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec"""
IMAGE = (
    """std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data"""
    + STAMP
)
COMPRESSED = "std_msgs/Header header\nstring format\nuint8[] data" + STAMP
JOINTS = (
    "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort" + STAMP
)


@dataclass
class Take:
    """One recorded episode: two cameras, actions (N, 3), state (N, 4), rewards (N,), and a sentence."""

    top: np.ndarray
    wrist: np.ndarray
    actions: np.ndarray
    state: np.ndarray
    rewards: np.ndarray
    sentence: str


def take(number: int, rows: int) -> Take:
    """A made-up episode; all numbers are exact in float32."""
    rng = np.random.default_rng(number)
    return Take(
        rng.integers(0, 256, (rows, 24, 40, 3), dtype=np.uint8),
        rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8),
        rng.normal(size=(rows, 3)).astype(np.float32),
        rng.normal(size=(rows, 4)).astype(np.float32),
        (np.arange(rows) >= rows - 1 - number % 2).astype(np.float32),
        f"fold towel {number}",
    )


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_lerobot(root: Path, takes: list[Take]) -> Path:
    names = {"top": (24, 40, 3), "wrist": (16, 16, 3)}
    features: dict[str, Any] = {name: {"dtype": "image", "shape": shape} for name, shape in names.items()}
    for name, size in (("observation.state", 4), ("action", 3), ("next.reward", 1)):
        features[name] = {"dtype": "float32", "shape": [size]}
    info = {"codebase_version": "v2.1", "fps": RATE, "features": features}
    info["data_path"] = "data/episode_{episode_index:06d}.parquet"
    (root / "meta").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    listed = []
    for n, one in enumerate(takes):
        rows = len(one.actions)
        table = {
            "action": one.actions.tolist(), "observation.state": one.state.tolist(),
            "next.reward": one.rewards.tolist(), "episode_index": [n] * rows,
            "top": [{"bytes": png(p), "path": None} for p in one.top],
            "wrist": [{"bytes": png(p), "path": None} for p in one.wrist],
        }  # fmt: skip
        pq.write_table(pa.table(table), root / f"data/episode_{n:06d}.parquet")
        listed.append({"episode_index": n, "length": rows, "tasks": [one.sentence]})
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return root


def rlds_features(encoding: str = "none") -> dict[str, Any]:
    def tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
        sides = {"dimensions": list(map(str, shape))} if shape else {}
        what = {"shape": sides, "dtype": dtype, "encoding": encoding if shape else "none"}
        return {"tensor": what, "description": "end-effector motion in metres"}

    def picture(*shape: int) -> dict[str, Any]:
        sides = {"dimensions": list(map(str, shape))}
        return {"image": {"shape": sides, "dtype": "uint8", "encodingFormat": "png"}}

    seen = {"top": picture(24, 40, 3), "wrist": picture(16, 16, 3), "state": tensor(4)}
    steps = {
        "action": tensor(3), "reward": tensor(), "is_last": tensor(dtype="bool"), "language_instruction": {"text": {}},
        "observation": {"featuresDict": {"features": seen}},
    }  # fmt: skip
    inner = {"sequence": {"feature": {"featuresDict": {"features": steps}}, "length": "-1"}}
    meta = {"featuresDict": {"features": {"file_path": {"text": {}}}}}
    return {"featuresDict": {"features": {"steps": inner, "episode_metadata": meta}}}


def write_rlds(root: Path, takes: list[Take], shards: int = 1) -> Path:
    from tfrecord.writer import TFRecordWriter

    root.mkdir(parents=True)
    (root / "features.json").write_text(json.dumps(rlds_features()))
    parts = [takes[i::shards] for i in range(shards)]
    splits = [{"name": "train", "shardLengths": [str(len(part)) for part in parts]}]
    info = {"name": "towels", "version": "1.0.0", "fileFormat": "tfrecord", "splits": splits}
    (root / "dataset_info.json").write_text(json.dumps(info))
    for number, part in enumerate(parts):
        writer = TFRecordWriter(str(root / f"towels-train.tfrecord-{number:05d}-of-{shards:05d}"))
        for one in part:
            rows = len(one.actions)
            writer.write({
                "steps/action": (one.actions.ravel().tolist(), "float"),
                "steps/reward": (one.rewards.tolist(), "float"),
                "steps/is_last": ([int(i == rows - 1) for i in range(rows)], "int"),
                "steps/language_instruction": ([one.sentence.encode()] * rows, "byte"),
                "steps/observation/top": ([png(p) for p in one.top], "byte"),
                "steps/observation/wrist": ([png(p) for p in one.wrist], "byte"),
                "steps/observation/state": (one.state.ravel().tolist(), "float"),
                "episode_metadata/file_path": (b"a.npy", "byte"),
            })  # fmt: skip
        writer.close()
    return root


CONTROLLER = {
    "type": "OSC_POSE",
    "control_delta": True,
    "output_max": [0.05, 0.05, 0.05],
    "output_min": -0.05,
}


def write_robomimic(path: Path, takes: list[Take], **kwargs: Any) -> Path:
    import h5py

    given = {"control_freq": RATE, "robots": ["Panda"], "controller_configs": CONTROLLER, **kwargs}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": given})
        for n, one in enumerate(takes):
            demo = data.create_group(f"demo_{n}")
            demo.attrs["num_samples"] = len(one.actions)
            demo.attrs["ep_meta"] = json.dumps({"lang": one.sentence})
            demo["actions"], demo["rewards"] = one.actions.astype(np.float64), one.rewards
            demo["dones"] = (one.rewards > 0).astype(np.int64)
            demo.create_dataset("obs/top", data=one.top, compression="gzip")
            demo["obs/wrist"], demo["obs/state"] = one.wrist, one.state
        file["mask/train"] = np.array([b"demo_0"])
    return path


def write_zarr(path: Path, takes: list[Take], version: int = 2, **changes: Any) -> Path:
    import zarr

    store = zarr.storage.ZipStore(path, mode="w") if path.name.endswith(".zip") else str(path)
    group = zarr.open_group(store, mode="w", zarr_format=version)  # type: ignore[arg-type]
    arrays = {
        "data/top": np.concatenate([one.top for one in takes]),
        "data/wrist": np.concatenate([one.wrist for one in takes]).astype(np.float32),  # as in Push-T
        "data/action": np.concatenate([one.actions for one in takes]),
        "data/state": np.concatenate([one.state for one in takes]),
        "data/reward": np.concatenate([one.rewards for one in takes]),
        "meta/episode_ends": np.cumsum([len(one.actions) for one in takes]).astype(np.int64),
        **changes,
    }
    for name, values in arrays.items():
        if values is not None:
            chunks = (min(4, len(values)), *values.shape[1:])
            array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)
            array[:] = values
    if not isinstance(store, str):
        store.close()
    return path


MAPPING = """
rate: 10
cameras:
  top: {topic: /top}
  wrist: {topic: /wrist}
state:
  arm: {topic: /state, field: data}
actions:
  target: {topic: /action, field: data}
reward: {topic: /reward, field: data}
instruction: {topic: /say, field: data}
action_convention: {kind: absolute, units: m}
"""


def stamped(time: int) -> dict[str, Any]:
    return {"stamp": {"sec": time // SECOND, "nanosec": time % SECOND}, "frame_id": ""}


def image(pixels: np.ndarray, time: int = START, encoding: str = "rgb8", padding: int = 0) -> dict[str, Any]:
    """A message sensor_msgs/Image; `padding` bytes are added to every line."""
    height, width = pixels.shape[:2]
    lines = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=7)
    return {
        "header": stamped(time), "height": height, "width": width, "encoding": encoding, "is_bigendian": 0,
        "step": lines.shape[1], "data": lines.tobytes(),
    }  # fmt: skip


def write_ros(path: Path, logged: list[tuple[str, int, str, str, dict[str, Any]]]) -> Path:
    """An MCAP file of messages (topic, log time in ns, type, definition, content)."""
    from mcap_ros2.writer import Writer

    with path.open("wb") as file:
        writer, schemas = Writer(file, chunk_size=20_000), {}
        for topic, time, kind, definition, content in sorted(logged, key=lambda entry: entry[1]):
            if kind not in schemas:
                schemas[kind] = writer.register_msgdef(kind, definition)
            writer.write_message(topic, schemas[kind], content, log_time=time, publish_time=time)
        writer.finish()
    return path


def write_mcap(root: Path, takes: list[Take]) -> Path:
    root.mkdir(parents=True)
    (root / "mapping.yaml").write_text(MAPPING)
    array, step = ("std_msgs/msg/Float64MultiArray", FLOATS), int(SECOND / RATE)
    for n, one in enumerate(takes):
        logged: list[Any] = [
            ("/say", START - 5, "std_msgs/msg/String", "string data", {"data": one.sentence})
        ]
        for row in range(len(one.actions)):
            time = START + row * step
            for topic, pictures in (("/top", one.top), ("/wrist", one.wrist)):
                logged.append((topic, time, "sensor_msgs/msg/Image", IMAGE, image(pictures[row], time)))
            logged.append(("/action", time, *array, {"data": one.actions[row].astype(float).tolist()}))
            logged.append(("/state", time, *array, {"data": one.state[row].astype(float).tolist()}))
            # the reward of an action is known at the next row
            logged.append(("/reward", time + step, *array, {"data": [float(one.rewards[row])]}))
        write_ros(root / f"take_{n:02d}.mcap", logged)
    return root


WRITERS = {
    "rlds": lambda root, takes: write_rlds(root / "rlds", takes),
    "rlds in shards": lambda root, takes: write_rlds(root / "sharded", takes, shards=len(takes)),
    "robomimic": lambda root, takes: write_robomimic(root / "demos.hdf5", takes),
    "zarr 2": lambda root, takes: write_zarr(root / "buffer.zarr", takes),
    "zarr 3": lambda root, takes: write_zarr(root / "buffer3.zarr", takes, 3),
    "zarr.zip": lambda root, takes: write_zarr(root / "buffer.zarr.zip", takes),
    "mcap": lambda root, takes: write_mcap(root / "logs", takes),
}
STATED = ("rlds", "rlds in shards", "zarr 2", "zarr 3", "zarr.zip")  # without a recorded rate
WORDLESS = ("zarr 2", "zarr 3", "zarr.zip")  # without instructions


def options(kind: str) -> dict[str, Any]:
    """What has to be said about the recordings of `WRITERS` because they do not say it."""
    found: dict[str, Any] = {"camera": ("top", "wrist"), "image_size": ("16", "8")}
    if kind in STATED:
        found["recorded_fps"] = RATE
    if kind == "robomimic":
        found["state_key"] = ("state",)
    return found


def imported(source: Path, out: Path, **given: Any) -> EpisodeDataset:
    """Import with the function of the command, and open the dataset."""
    assert run(ImportConfig(source=source, out=out, **given)) == 0
    return EpisodeDataset(out)


def report(out: Path | EpisodeDataset) -> dict[str, Any]:
    """The report that the import stored."""
    from worldgym.utils.files import read_sealed

    root = out if isinstance(out, Path) else Path(out.root)
    found = read_sealed(root / "meta/import.json", "")
    return dict(found["report"])


def shared_data(name: str) -> Path:
    """A folder of real recordings; the test is skipped without it."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("WORLDGYM_SHARED_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"set WORLDGYM_SHARED_DATA to the folder that holds {name} to run this test")
    return folder
