"""RLDS folders: real episodes, checksums, splits and shards, encodings, refusals."""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recordings import imported, options, png, report, rlds_features, shared_data, take, write_rlds

from worldgym.data.formats.rlds import RldsFolder
from worldgym.data.formats.settings import ImportSettings
from worldgym.data.formats.tfrecords import parse, read_record, record_index
from worldgym.errors import DatasetError

GIVEN = options("rlds")
SHARD = "towels-train.tfrecord-00000-of-00001"


def test_real_episodes_of_bridge_data_are_read_without_tensorflow(tmp_path):
    source = shared_data("bridge_octo_debug")
    found = imported(
        source, tmp_path / "out", camera=("image_0", "image_1"), recorded_fps=5.0, bounds="minmax"
    )
    assert len(found) == 25 and all(episode.length == 9 for episode in found)
    assert "turn lever vertical to front" in {episode.instruction for episode in found}
    assert found.specs.action.dim == 7 and found.specs.action.hz == 5.0 and found[0].state.shape == (10, 7)
    assert report(found)["notes"] == [
        "splits that dataset_info.json lists and whose files are not in the folder: val"
    ]
    (shard,) = source.glob("*.tfrecord-*")
    index, problem = record_index(shard)
    raw = parse(read_record(shard, *index[7]))
    assert problem is None and len(index) == 25
    actions = np.array(raw["steps/action"], np.float32).reshape(10, 7)
    assert np.allclose(found.specs.action.denormalise(found[7].actions), actions[:-1], atol=1e-5)
    shown = Image.open(io.BytesIO(raw["steps/observation/image_0"][4]))
    assert np.array_equal(found[7].frames[4], np.asarray(shown))
    assert found[7].provenance["recorded_split"] == "train" and found[7].provenance["record"] == 7


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_every_changed_bit_of_a_shard_is_noticed(tmp_path_factory, at, bit):
    root = write_rlds(tmp_path_factory.mktemp("x") / "rlds", [take(0, 2)])
    data = bytearray((root / SHARD).read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    (root / SHARD).write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="checksum|ends within"):
        imported(root, root / "out", **GIVEN)


@given(at=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_shard_that_was_cut_off_loses_its_last_episodes_only_if_asked(tmp_path_factory, at):
    root = write_rlds(tmp_path_factory.mktemp("x") / "rlds", [take(n, 3) for n in range(3)])
    data = (root / SHARD).read_bytes()
    index, _ = record_index(root / SHARD)
    cut = int(at * len(data))
    (root / SHARD).write_bytes(data[:cut])
    whole = sum(offset + 16 + length <= cut for offset, length in index)
    with pytest.raises(DatasetError, match=r"download the file again|download it"):
        imported(root, root / "a", **GIVEN)
    if whole:
        found = imported(root, root / "b", **GIVEN, skip_bad=True)
        assert len(found) == whole and sorted(report(found)["skipped"]) == list(map(str, range(whole, 3)))
    else:
        with pytest.raises(DatasetError, match="no episode of .* is left"):
            imported(root, root / "b", **GIVEN, skip_bad=True)


def test_a_shard_that_is_not_downloaded_is_needed_only_for_its_episodes(tmp_path):
    root = write_rlds(tmp_path / "rlds", [take(n, 4) for n in range(4)], shards=2)
    (root / "towels-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(DatasetError, match=r"00001-of-00002 is missing .* --episodes"):
        imported(root, tmp_path / "a", **GIVEN)
    found = imported(root, tmp_path / "b", **GIVEN, episodes="0-1")
    assert [episode.instruction for episode in found] == ["fold towel 0", "fold towel 2"]


def _info(root, **changes):
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps({**info, **changes}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "../{SPLIT}"}]}, "names the file"),
        ({"name": "../other"}, "names the file '../other-train"),
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{X}"}]}, "names the file"),
        ({"fileFormat": "array_record"}, "fileFormat 'array_record', expected 'tfrecord'"),
        ({"splits": [{"name": "train", "shardLengths": ["many"]}]}, "lists no splits that can be read"),
        ({"splits": [{"name": "train", "shardLengths": ["-3"]}]}, "lists no splits that can be read"),
        ({"splits": 3}, "lists no splits that can be read"),
        ({"splits": []}, "has no files of the splits"),
        ({"splits": [{"name": "train", "shardLengths": ["5"]}]}, "has 1 records, but dataset_info.json lists more"),
    ],
)  # fmt: skip
def test_a_listing_that_does_not_fit_is_refused(tmp_path, changes, message):
    root = write_rlds(tmp_path / "rlds", [take(0, 3)])
    _info(root, **changes)
    with pytest.raises(DatasetError, match=message):
        imported(root, tmp_path / "out", **GIVEN)


def test_shards_behind_links_out_of_the_folder_are_refused(tmp_path):
    root = write_rlds(tmp_path / "rlds", [take(0, 3)])
    (root / SHARD).rename(tmp_path / "elsewhere")
    (root / SHARD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="expected a file of the folder"):
        imported(root, tmp_path / "out", **GIVEN)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"featuresDict": {"features": {"steps": 3}}}'])
def test_damaged_descriptions_are_refused(tmp_path, name, text):
    root = write_rlds(tmp_path / "rlds", [take(0, 3)])
    (root / name).write_text(text)
    with pytest.raises(DatasetError, match=name):
        imported(root, tmp_path / "out", format="rlds", **GIVEN)


def test_the_folder_above_the_version_is_named_with_the_one_to_give(tmp_path):
    write_rlds(tmp_path / "towels/1.0.0", [take(0, 3)])
    with pytest.raises(DatasetError, match="give the folder of a version, .*1.0.0"):
        imported(tmp_path / "towels", tmp_path / "out", format="rlds", **GIVEN)


def _rewrite(root, record, features=None, lengths=1):
    from tfrecord.writer import TFRecordWriter

    if features is not None:
        (root / "features.json").write_text(json.dumps(features))
    _info(root, splits=[{"name": "train", "shardLengths": [lengths]}])
    writer = TFRecordWriter(str(root / SHARD))
    writer.write(record)
    writer.close()


def _record(one, **changes):
    record = {
        "steps/action": (one.actions.ravel().tolist(), "float"),
        "steps/language_instruction": ([one.sentence.encode()] * len(one.actions), "byte"),
        "steps/observation/top": ([png(p) for p in one.top], "byte"),
        "steps/observation/wrist": ([png(p) for p in one.wrist], "byte"),
        "steps/observation/state": (one.state.ravel().tolist(), "float"),
        **changes,
    }
    return {key: value for key, value in record.items() if value is not None}


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_tensors_that_are_stored_as_bytes_are_read(tmp_path, encoding):
    one, root = take(0, 4), write_rlds(tmp_path / "rlds", [take(0, 4)])
    pack = zlib.compress if encoding == "zlib" else bytes
    record = _record(one) | {
        "steps/action": ([pack(row.tobytes()) for row in one.actions], "byte"),
        "steps/observation/state": ([pack(row.tobytes()) for row in one.state], "byte"),
    }
    _rewrite(root, record, rlds_features(encoding))
    assert np.array_equal(imported(root, tmp_path / "out", **GIVEN)[0].state, one.state)
    record["steps/observation/state"] = ([pack(row.tobytes())[:-3] for row in one.state], "byte")
    _rewrite(root, record)
    with pytest.raises(DatasetError, match=r"does not have the shape \(4,\) and dtype float32"):
        imported(root, tmp_path / "b", **GIVEN)


def test_an_episode_whose_sentence_changes_is_divided(tmp_path):
    one, root = take(0, 6), write_rlds(tmp_path / "rlds", [take(0, 6)])
    said = [b"open it"] * 3 + [b"close it"] * 3
    _rewrite(root, _record(one, **{"steps/language_instruction": (said, "byte")}))
    found = imported(root, tmp_path / "out", **GIVEN)
    assert [(e.instruction, e.length) for e in found] == [("open it", 3), ("close it", 2)]
    assert found[1].provenance["rows"] == [3, 5]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps/action": None}, "has no steps/action, only steps/language"),
        ({"steps/action": ([1.0] * 7, "float")}, "has 7 values, expected a multiple of 3"),
        ({"steps/observation/state": ([1.0] * 8, "float")}, "has 4 rows, but observation/state has 2"),
        ({"steps/observation/state": ([1.0] * 15 + [float("nan")], "float")}, "row 3 of episode 0 holds NaN"),
        ({"steps/observation/top": ([b"no picture"] * 4, "byte")}, "row 0: not a readable image"),
        ({"steps/observation/top": ([png(take(0, 4).top[0])] * 3, "byte")}, "3 pictures are stored"),
        ({"steps/language_instruction": ([b"a", b"b"], "byte")}, "4 rows and 2 instructions"),
        ({"steps/action": ([1.0] * 3, "float"), "steps/observation/state": ([1.0] * 4, "float")}, "at least 2 are"),
    ],
)  # fmt: skip
def test_episodes_that_do_not_fit_their_description_are_refused(tmp_path, changes, message):
    root = write_rlds(tmp_path / "rlds", [take(0, 4)])
    _rewrite(root, _record(take(0, 4), **changes))
    with pytest.raises(DatasetError, match=message):
        imported(root, tmp_path / "out", **GIVEN)


def test_pictures_that_are_tensors_and_files_that_end_in_zeros_keep_their_bytes(tmp_path):
    one, features = take(0, 3), rlds_features()
    seen = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    what = {"shape": {"dimensions": ["16", "16", "3"]}, "dtype": "uint8", "encoding": "none"}
    seen["observation"]["featuresDict"]["features"]["wrist"] = {"tensor": what}
    root = write_rlds(tmp_path / "rlds", [one])
    record = _record(one, **{"steps/observation/wrist": (one.wrist.ravel().tolist(), "int")})
    record["steps/observation/top"] = ([png(p) + b"\0\0" for p in one.top], "byte")
    _rewrite(root, record, features)
    folder = RldsFolder(root, ImportSettings(cameras=("wrist", "top"), image_size=16, recorded_fps=5.0))
    (episode,) = folder.episodes()
    assert np.array_equal(episode.frames, one.wrist)
    assert all(
        data.endswith(b"\0\0") for data in folder.pictures(folder.places[0], "observation/top", np.arange(3))
    )
