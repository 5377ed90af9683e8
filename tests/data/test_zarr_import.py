"""Zarr replay buffers: pictures, chunks that are missing, ends of episodes, objects, damaged stores."""

from __future__ import annotations

import json
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recordings import imported, options, report, take, write_zarr

from worldgym.data.formats.zarr_buffer import ZarrFormat
from worldgym.errors import DatasetError

GIVEN = options("zarr 2")
TAKES = [take(0, 5), take(1, 6)]


@pytest.mark.parametrize("version", [2, 3])
def test_numbered_float_pictures_are_read_as_they_are_and_other_scales_refused(tmp_path, version):
    found = imported(write_zarr(tmp_path / "a.zarr", TAKES, version), tmp_path / "a",
                     **{**GIVEN, "camera": ("wrist",), "image_size": ("16",)})  # fmt: skip
    assert np.array_equal(found[1].frames, TAKES[1].wrist)
    assert report(found)["layout"] == f"Zarr {version} replay buffer"
    wrist = np.concatenate([one.wrist for one in TAKES]).astype(np.float32)
    scales = [
        (wrist / 255, "not whole numbers, so their scale is unknown"),
        (wrist - 9, "outside 0 to 255"),
        (np.where(wrist == 7, np.nan, wrist), "outside 0 to 255"),
    ]
    for number, (values, message) in enumerate(scales):
        source = write_zarr(tmp_path / f"{number}.zarr", TAKES, version, **{"data/wrist": values})
        with pytest.raises(DatasetError, match=message):
            imported(source, tmp_path / f"out_{number}", **GIVEN)


def test_pictures_that_are_missing_from_the_store_are_refused_and_missing_numbers_reported(tmp_path):
    source = write_zarr(tmp_path / "a.zarr", TAKES)
    (source / "data/state/1.0").unlink()
    found = imported(source, tmp_path / "a", **GIVEN)
    assert report(found)["notes"] == [
        "1 chunks of state are not in the store; they are read as Zarr's fill value"
    ]
    assert not found[0].state[4].any() and found[0].state[3].any()
    (source / "data/top/2.0.0.0").unlink()
    with pytest.raises(DatasetError, match="1 chunks of data/top are not in the store"):
        imported(source, tmp_path / "b", **GIVEN)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"meta/episode_ends": np.array([5, 5, 11])}, "not increasing: episode 1 would have 0 rows"),
        ({"meta/episode_ends": np.array([5, 3])}, "not increasing: episode 1 would have -2 rows"),
        ({"meta/episode_ends": np.array([5, 12])}, "has 11 rows, but meta/episode_ends ends at 12"),
        ({"meta/episode_ends": np.array([[5, 11]])}, r"meta/episode_ends is \(1, 2\) int64"),
        ({"meta/episode_ends": np.array([5.0, 11.0])}, "meta/episode_ends is .* float64"),
        ({"meta/episode_ends": None}, "has no array meta/episode_ends"),
        ({"data/action": np.zeros((10, 3), np.float32)}, "data/action has 10 rows"),
        ({"data/action": None}, "--action-key"),
        ({"data/action": np.full((11, 3), np.inf)}, "holds NaN or infinity in action"),
        ({"data/action": np.array(["a"] * 11)}, "--action-key"),
        ({"data/top": None, "data/wrist": None}, "has no image features, only"),
        ({"meta/episode_ends": np.array([1, 11])}, "episode 0 has 1 rows; at least 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [2, 3])
def test_stores_that_do_not_fit_together_are_refused(tmp_path, changes, message, version):
    source = write_zarr(tmp_path / "a.zarr", TAKES, version, **changes)
    with pytest.raises(DatasetError, match=message):
        imported(source, tmp_path / "out", **GIVEN, format="zarr")


def test_arrays_of_python_objects_are_refused_unread(tmp_path):
    source = write_zarr(tmp_path / "a.zarr", TAKES, **{"data/action": None})
    (source / "data/action").mkdir()
    described = {
        "zarr_format": 2, "shape": [11], "chunks": [11], "dtype": "|O", "compressor": None, "fill_value": None,
        "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (source / "data/action/.zarray").write_text(json.dumps(described))
    (source / "data/action/0").write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR."
    )
    with pytest.raises(DatasetError, match="array of Python objects|can't be read by zarr"):
        imported(source, tmp_path / "out", **GIVEN)
    assert not (tmp_path / "run").exists()


def test_links_out_of_the_folder_are_refused(tmp_path):
    source = write_zarr(tmp_path / "a.zarr", TAKES)
    (source / "data/state/0.0").rename(tmp_path / "chunk")
    (source / "data/state/0.0").symlink_to(tmp_path / "chunk")
    with pytest.raises(DatasetError, match="is a link out of"):
        imported(source, tmp_path / "out", **GIVEN)


def test_a_codec_that_is_not_installed_is_named(tmp_path):
    source = write_zarr(tmp_path / "a.zarr", TAKES)
    path = source / "data/top/.zarray"
    described = json.loads(path.read_text()) | {"compressor": {"id": "imagecodecs_jpegxl"}}
    path.write_text(json.dumps(described))
    with pytest.raises(DatasetError, match="imagecodecs_jpegxl.*codec that is not installed"):
        imported(source, tmp_path / "out", **GIVEN)


def test_stores_of_earlier_zarr_with_blosc_and_nested_keys_are_read(tmp_path):
    source = write_zarr(tmp_path / "a.zarr", TAKES, **{"data/state": None})
    group = zarr.open_group(str(source), mode="r+")
    state = np.concatenate([one.state for one in TAKES])
    array = group.create_array(
        "data/state", shape=state.shape, dtype="f4", chunks=(4, 4), compressors=numcodecs.Blosc("lz4"),
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )  # fmt: skip
    array[:] = state
    assert np.array_equal(imported(source, tmp_path / "out", **GIVEN)[1].state, TAKES[1].state)


@pytest.mark.parametrize("version", [2, 3])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@example(at=0.9836509087717732, value=0)  # the name of an array in the directory at the end of the file
@example(at=0.98054147321148, value=64)  # the version that is needed to read an entry
@settings(max_examples=20, deadline=None)
def test_a_damaged_zip_file_is_refused_by_its_checksums(tmp_path_factory, version, at, value):
    root = tmp_path_factory.mktemp("x")
    source = write_zarr(root / "a.zarr.zip", TAKES, version)
    good = imported(source, root / "good", **GIVEN)
    data = bytearray(source.read_bytes())
    data[int(at * len(data))] = value
    source.write_bytes(bytes(data))
    try:
        found = imported(source, root / "out", **GIVEN)
    except DatasetError:
        return
    assert all(np.array_equal(a.state, b.state) and np.array_equal(a.frames, b.frames)
               for a, b in zip(found, good, strict=True))  # fmt: skip


@given(at=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_a_zip_file_that_was_cut_off_is_refused(tmp_path_factory, at):
    source = write_zarr(tmp_path_factory.mktemp("x") / "a.zarr.zip", TAKES)
    data = source.read_bytes()
    source.write_bytes(data[: int(at * len(data))])
    assert ZarrFormat.detects(source)
    with pytest.raises(DatasetError, match="is not a readable zip file"):
        imported(source, source.parent / "out", **GIVEN)


@pytest.mark.parametrize("name", [".zgroup", "data/.zgroup", "data/top/.zarray", "meta/episode_ends/.zarray"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"zarr_format": 9, "shape": [-1]}'])
def test_damaged_descriptions_are_refused(tmp_path, name, text):
    source = write_zarr(tmp_path / "a.zarr", TAKES)
    (source / name).write_text(text)
    with pytest.raises(DatasetError):
        imported(source, tmp_path / "out", **GIVEN, format="zarr")


def test_a_damaged_chunk_names_its_rows(tmp_path):
    source = write_zarr(tmp_path / "a.zarr", TAKES)
    chunk = source / "data/action/1.0"
    chunk.write_bytes(chunk.read_bytes()[:7])
    with pytest.raises(DatasetError, match="data/action, rows 0 to 4 can't be read by zarr"):
        imported(source, tmp_path / "out", **GIVEN)


def test_a_zip_file_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as file:
        file.writestr("readme.txt", "x")
    with pytest.raises(DatasetError, match="can't be read by zarr"):
        imported(tmp_path / "a.zarr.zip", tmp_path / "out", **GIVEN)
