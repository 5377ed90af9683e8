"""MCAP recordings: rows on one clock, gaps, encodings of messages and pictures, the mapping file, damaged files."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recordings import (
    COMPRESSED,
    FLOATS,
    IMAGE,
    JOINTS,
    MAPPING,
    SECOND,
    START,
    image,
    imported,
    options,
    png,
    report,
    stamped,
    take,
    write_mcap,
    write_ros,
)

from worldgym.errors import ConfigError, DatasetError

GIVEN = options("mcap")
ONE = {"image_size": ("16",), "bounds": "minmax"}
ARRAY = ("std_msgs/msg/Float64MultiArray", FLOATS)
PLAIN = {
    "rate": 10,
    "cameras": {"front": {"topic": "/camera"}},
    "state": {"arm": {"topic": "/state", "field": "data"}},
    "actions": {"target": {"topic": "/action", "field": "data"}},
}  # fmt: skip


def shade(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def floats(topic: str, seconds: float, *values: float):
    return (topic, at(seconds), *ARRAY, {"data": [float(value) for value in values]})


def shown(seconds: float, pixels: np.ndarray, stamp: float | None = None, **how):
    content = image(pixels, at(seconds if stamp is None else stamp), **how)
    return ("/camera", at(seconds), "sensor_msgs/msg/Image", IMAGE, content)


def recorded(rows: int = 6) -> list:
    """A camera, a state and an action, ten times a second."""
    times = [row / 10 for row in range(rows)]
    return [
        entry
        for row, time in enumerate(times)
        for entry in (shown(time, shade(row)), floats("/state", time, row, -row), floats("/action", time, row * 2))
    ]  # fmt: skip


def write(root, logged, name="a.mcap", **changes):
    root.mkdir(exist_ok=True)
    (root / "mapping.yaml").write_text(yaml.safe_dump({**PLAIN, **changes}))
    return write_ros(root / name, logged)


@given(
    seed=st.integers(0, 10**6),
    camera=st.floats(20, 60),
    arm=st.floats(25, 200),
    rate=st.sampled_from([5, 10, 20]),
)
@settings(max_examples=15, deadline=None)
def test_a_row_has_the_nearest_picture_and_the_last_numbers_before_it(
    tmp_path_factory, seed, camera, arm, rate
):
    rng, root = np.random.default_rng(seed), tmp_path_factory.mktemp("x")
    pictures = np.sort(
        rng.uniform(0, 2 / camera)
        + np.arange(int(2 * camera)) / camera
        + rng.uniform(0, 3e-3, int(2 * camera))
    )
    states = rng.uniform(0, 2 / arm) + np.arange(int(2.5 * arm)) / arm
    actions = rng.uniform(0, 2 / arm) + np.arange(int(2.5 * arm)) / arm
    logged = [shown(t, shade(n)) for n, t in enumerate(pictures)]
    logged += [floats("/state", t, n) for n, t in enumerate(states)]
    logged += [floats("/action", t, n) for n, t in enumerate(actions)]
    source = write(root / "x", logged, rate=rate)
    found = imported(source, root / "out", **ONE)
    start = max(pictures[0], states[0], actions[0])
    grid = start + np.arange(found[0].length + 1) / rate
    assert grid[-1] <= pictures[-1] + 1e-6 < grid[-1] + 1 / rate + 2e-6
    for row, time in enumerate(grid):
        away = np.abs(pictures - time)
        assert away[int(found[0].frames[row, 0, 0, 0])] <= away.min() + 2e-9
        assert found[0].state[row, 0] == np.searchsorted(states, time + 2e-9, side="right") - 1
    spec = found.specs.action
    values = spec.denormalise(found[0].actions)[:, 0]
    wanted = [np.searchsorted(actions, time + 2e-9, side="right") - 1 for time in grid[:-1]]
    assert np.allclose(values, wanted, atol=1e-3)


def test_the_clock_of_the_headers_ignores_delays_of_the_recorder(tmp_path):
    late = [0.0, 0.9, 0.9, 0.9, 0.95, 1.0]  # the recorder was busy
    logged = [shown(late[row], shade(row), stamp=row / 10) for row in range(6)]
    for row in range(6):
        content = {"header": stamped(at(row / 10)), "name": ["b", "a"], "position": [row, -row]}
        logged.append(("/joints", at(late[row]), "sensor_msgs/msg/JointState", JOINTS,
                       {**content, "velocity": [], "effort": []}))  # fmt: skip
    joints = {"topic": "/joints", "field": "position", "joints": ["a", "b"]}
    changes = {"clock": "header", "state": {"arm": joints}, "actions": {"target": joints}}
    found = imported(write(tmp_path / "x", logged, **changes), tmp_path / "a", **ONE)
    assert found[0].state.tolist() == [[-row, row] for row in range(6)]
    assert found[0].frames[:, 0, 0, 0].tolist() == list(range(6)) and found.specs.action.names == ("a", "b")
    with pytest.raises(DatasetError, match=r"a gap: /camera \(front\)"):
        imported(write(tmp_path / "x", logged, **{**changes, "clock": "log"}), tmp_path / "b", **ONE)
    source = write(tmp_path / "y", recorded(), clock="header")
    with pytest.raises(DatasetError, match="have no header.stamp; write `clock: log`"):
        imported(source, tmp_path / "c", **ONE)


def test_gaps_are_refused_unless_the_mapping_allows_them_and_are_reported(tmp_path):
    logged = [
        entry for entry in recorded(12) if not (entry[0] == "/state" and 0 < entry[1] - START < 0.85 * SECOND)
    ]
    source = write(tmp_path / "x", logged)
    with pytest.raises(
        DatasetError, match=r"a gap: /state \(state/arm\) has no message within 0.5 s of row 6, at 0.600"
    ):
        imported(source, tmp_path / "a", **ONE)
    held = {"arm": {"topic": "/state", "field": "data", "max_gap": float("inf")}}
    found = imported(write(tmp_path / "x", logged, state=held), tmp_path / "b", **ONE)
    assert found[0].state[:, 0].tolist() == [0.0] * 9 + [9.0, 10.0, 11.0]
    assert "state/arm: rows lie at most 0.8 s from their message, in episode 0" in report(found)["notes"]
    assert not any("same picture" in note for note in report(found)["notes"])
    slow = [
        entry
        for entry in recorded(12)
        if entry[0] != "/camera" or round((entry[1] - START) / SECOND * 10) % 2 == 0
    ]
    found = imported(write(tmp_path / "y", slow), tmp_path / "c", **ONE)
    assert (
        "front: 5 rows have the same picture as the row before; the camera is slower"
        in report(found)["notes"]
    )


def test_a_bad_recording_of_several_can_be_skipped(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / "x", recorded(), f"{name}.mcap", instructions={"a": "open it", "c": "close it"})
    data = (tmp_path / "x/b.mcap").read_bytes()
    (tmp_path / "x/b.mcap").write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match="b.mcap can't be read as MCAP .*mcap recover.* --skip 1"):
        imported(tmp_path / "x", tmp_path / "a", **ONE)
    found = imported(tmp_path / "x", tmp_path / "b", **ONE, skip_bad=True)
    assert [(e.instruction, e.provenance["file"]) for e in found] == [
        ("open it", "a.mcap"),
        ("close it", "c.mcap"),
    ]


def test_success_and_reward_belong_to_the_frame_after_the_action(tmp_path):
    done = ("/done", at(0.45), "std_msgs/msg/Bool", "bool data", {"data": True})
    source = write(tmp_path / "x", [*recorded(), done], success={"topic": "/done", "field": "data"})
    found = imported(source, tmp_path / "a", **ONE)
    assert found[0].success.tolist() == [False] * 5 + [True]
    assert report(found)["success_from"] == "next.success"
    assert imported(source, tmp_path / "b", **ONE, success="none")[0].success is None
    with pytest.raises(DatasetError, match="no column for --success next.reward"):
        imported(source, tmp_path / "c", **ONE, success="next.reward")


COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "encoding, pixels, seen",
    [
        ("rgb8", COLOURS, COLOURS),
        ("bgr8", COLOURS, COLOURS[:, :, ::-1]),
        ("mono8", COLOURS[:, :, 0], np.repeat(COLOURS[:, :, :1], 3, 2)),
        ("rgba8", np.dstack([COLOURS, COLOURS[:, :, :1]]), COLOURS),
        ("bgra8", np.dstack([COLOURS, COLOURS[:, :, :1]]), COLOURS[:, :, ::-1]),
    ],
)
def test_raw_pictures_of_every_encoding_and_line_length_are_read(tmp_path, encoding, pixels, seen, padding):
    logged = [e for e in recorded(3) if e[0] != "/camera"]
    logged += [shown(row / 10, pixels, encoding=encoding, padding=padding) for row in range(3)]
    found = imported(write(tmp_path / "x", logged), tmp_path / "out", **ONE)
    assert np.array_equal(found[0].frames[1], seen)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_compressed_pictures_are_read(tmp_path, kind):
    out = io.BytesIO()
    Image.fromarray(COLOURS).save(out, kind)
    content = {"header": stamped(START), "format": f"rgb8; {kind} compressed bgr8", "data": out.getvalue()}
    logged = [e for e in recorded(3) if e[0] != "/camera"]
    logged += [
        ("/camera", at(n / 10), "sensor_msgs/msg/CompressedImage", COMPRESSED, content) for n in range(3)
    ]
    found = imported(write(tmp_path / "x", logged), tmp_path / "out", **ONE)
    assert np.array_equal(found[0].frames[2], np.asarray(Image.open(out)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"encoding": "16UC1"}, "the encoding '16UC1', expected one of rgb8"),
        ({"step": 99}, "expected 16 times 99"),
        ({"height": 0}, "0 x 16 pixels"),
        ({"data": b"123"}, "3 bytes for 16 x 16 pixels"),
    ],
)
def test_pictures_that_contradict_their_description_are_refused(tmp_path, change, message):
    logged = [e for e in recorded(3) if e[0] != "/camera"]
    for row in range(3):
        entry = shown(row / 10, COLOURS)
        logged.append((*entry[:4], {**entry[4], **(change if row == 1 else {})}))
    with pytest.raises(DatasetError, match=f"front of episode 0, row 1: .*{message}"):
        imported(write(tmp_path / "x", logged), tmp_path / "out", **ONE)


def _protobuf():
    """A message with an array, its class, and the set of files that describes it."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="arm.proto", package="arm", syntax="proto3")
    pose = file.message_type.add(name="Pose")
    for number, name in enumerate("xyz", 1):
        pose.field.add(name=name, number=number, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    arm = file.message_type.add(name="Arm")
    arm.field.add(name="joints", number=1, type=field.TYPE_DOUBLE, label=field.LABEL_REPEATED)
    arm.field.add(
        name="pose", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=".arm.Pose"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    make = message_factory.GetMessageClass(pool.FindMessageTypeByName("arm.Arm"))
    return make, descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()


def test_json_and_protobuf_topics_are_read_beside_each_other(tmp_path):
    from mcap.writer import Writer

    make, described = _protobuf()
    root = tmp_path / "x"
    root.mkdir()
    with (root / "a.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start()
        schemas = {
            "json": writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}"),
            "protobuf": writer.register_schema("arm.Arm", "protobuf", described),
        }
        kinds = {"/camera": "json", "/action": "json", "/state": "protobuf"}
        channels = {t: writer.register_channel(t, kind, schemas[kind]) for t, kind in kinds.items()}
        for row in range(4):
            picture = {"format": "png", "data": base64.b64encode(png(shade(row))).decode()}
            action = {"goal": {"position": {"x": row, "y": 2 * row}, "grip": [0.5, row]}}
            arm = make(joints=[row, 7.0])
            arm.pose.x = row + 0.5
            contents = {"/camera": json.dumps(picture).encode(), "/action": json.dumps(action).encode()}
            contents["/state"] = arm.SerializeToString()
            for topic, data in contents.items():
                writer.add_message(channels[topic], at(row / 10), data, at(row / 10))
        writer.finish()
    mapping = {
        **PLAIN,
        "state": {
            "joints": {"topic": "/state", "field": "joints"},
            "pose": {"topic": "/state", "field": "pose"},
        },
        "actions": {
            "goal": {"topic": "/action", "field": "goal.position", "names": ["gx", "gy"]},
            "grip": {"topic": "/action", "field": "goal.grip[1]"},
        },
    }
    (root / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    found = imported(root, tmp_path / "out", **ONE)
    assert found[0].state[2].tolist() == [2.0, 7.0, 2.5, 0.0, 0.0]
    assert found.specs.action.names == ("gx", "gy", "grip")
    assert np.allclose(found.specs.action.denormalise(found[0].actions)[:, 1], [0, 2, 4], atol=1e-6)
    assert found[0].frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"state": {"arm": {"topic": "/none", "field": "data"}}}, r"no topic /none, only /action \(std_msgs"),
        ({"state": {"arm": {"topic": "/state", "field": "date"}}}, "no field 'date', only data"),
        (
            {"state": {"arm": {"topic": "/state", "field": "data[7]"}}},
            r"position \[7\] of a list with 2 items",
        ),
        ({"state": {"arm": {"topic": "/camera", "field": "encoding"}}}, "'rgb8'|rgb8.*expected numbers"),
        ({"state": {"arm": {"topic": "/camera", "field": "data"}}}, "expected numbers"),
        ({"state": {"arm": {"topic": "/state", "field": "data", "names": ["a"]}}}, "2 values, expected 1"),
        (
            {"state": {"arm": {"topic": "/state", "field": "data", "joints": ["a"]}}},
            "no field 'name', only data",
        ),
        ({"cameras": {"front": {"topic": "/state"}}}, "expected an Image or CompressedImage"),
    ],
)
def test_a_mapping_that_does_not_fit_the_messages_is_refused(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        imported(write(tmp_path / "x", recorded(), **changes), tmp_path / "out", **ONE)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rate": 0}, "rate is 0, expected rows per second"),
        ({"rate": "fast"}, "rate is 'fast', expected a number"),
        ({"rate": None}, "rate is None"),
        ({"clock": "sun"}, "clock is 'sun', expected log or header"),
        ({"cameras": {}}, "cameras is empty"),
        ({"cameras": [1]}, "cameras is a list"),
        ({"cameras": {"a b": {"topic": "/x"}}}, "the name 'a b'"),
        (
            {"cameras": {"a": {"topic": "/x", "field": "data"}}},
            "unknown entry 'field', expected topic, max_gap",
        ),
        ({"states": {}}, "the file has the unknown entry 'states', expected rate"),
        ({"state": {"a": {"topic": "/x"}}}, "state.a has no field"),
        ({"state": {"a": {"field": "x"}}}, "state.a has the topic None"),
        (
            {"state": {"a": {"topic": "/x", "field": "__class__"}}},
            "the field '__class__', expected e.g. position",
        ),
        ({"state": {"a": {"topic": "/x", "field": "x", "max_gap": -1}}}, "max_gap is -1"),
        ({"state": {"a": {"topic": "/x", "field": "x", "joints": "ab"}}}, "joints is 'ab', expected a list"),
        ({"action_convention": {"sign": "up"}}, "action_convention has the unknown entry 'sign'"),
        ({"instruction": 3}, "instruction is 3"),
    ],
)
def test_a_mapping_file_with_mistakes_names_the_entry(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        imported(write(tmp_path / "x", recorded(), **changes), tmp_path / "out", **ONE)


def test_the_mapping_file_may_lie_elsewhere_and_is_part_of_the_import(tmp_path):
    source = write(tmp_path / "x", recorded())
    (tmp_path / "x/mapping.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="no mapping file .*mapping.yaml.* --mapping FILE"):
        imported(source, tmp_path / "a", **ONE)
    found = imported(source, tmp_path / "a", **ONE, mapping=tmp_path / "other.yaml")
    assert found[0].length == 5
    (tmp_path / "other.yaml").write_text((tmp_path / "other.yaml").read_text() + "robot: panda\n")
    with pytest.raises(ConfigError, match="other settings"):
        imported(source, tmp_path / "a", **ONE, mapping=tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("rate: [")
    with pytest.raises(ConfigError, match="can't be read as YAML"):
        imported(source, tmp_path / "b", **ONE, mapping=tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="can't be read as YAML"):
        imported(source, tmp_path / "b", **ONE, mapping=tmp_path / "other.yaml")


@given(where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_a_file_that_was_cut_off_is_refused(tmp_path_factory, where):
    source = write(tmp_path_factory.mktemp("x") / "x", recorded())
    data = source.read_bytes()
    source.write_bytes(data[: int(where * len(data))])
    with pytest.raises(DatasetError, match="can't be read as MCAP"):
        imported(source, source.parent / "out", **ONE)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_changed_bit_is_refused_or_harmless(tmp_path_factory, where, bit):
    source = write(tmp_path_factory.mktemp("x") / "x", recorded())
    good = imported(source, source.parent / "good", **ONE)
    data = bytearray(source.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    source.write_bytes(bytes(data))
    try:
        found = imported(source, source.parent / "out", **ONE)
    except DatasetError:
        return
    assert np.array_equal(found[0].frames, good[0].frames) and np.array_equal(found[0].state, good[0].state)


def test_recordings_too_short_for_two_rows_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="makes 1 rows at 10 per second"):
        imported(write(tmp_path / "x", recorded(1)), tmp_path / "out", **ONE)
    apart = [entry for entry in recorded(12) if (entry[0] == "/camera") == (entry[1] - START < 0.3 * SECOND)]
    with pytest.raises(DatasetError, match="which makes 0 rows"):
        imported(write(tmp_path / "x", apart), tmp_path / "out", **ONE)


def test_instructions_of_a_topic_divide_the_recording(tmp_path):
    words = [("/say", at(t), "std_msgs/msg/String", "string data", {"data": text})
             for t, text in ((-1.0, "open"), (0.25, "close"))]  # fmt: skip
    source = write(tmp_path / "x", [*recorded(), *words], instruction={"topic": "/say", "field": "data"})
    found = imported(source, tmp_path / "out", **ONE)
    assert [(e.instruction, e.length) for e in found] == [("open", 3), ("close", 2)]


def test_the_mapping_of_all_recordings_is_the_same_as_that_of_the_samples(tmp_path):
    assert imported(write_mcap(tmp_path / "x", [take(0, 4)]), tmp_path / "out", **GIVEN)[0].length == 3
    assert yaml.safe_load(MAPPING)["rate"] == 10
