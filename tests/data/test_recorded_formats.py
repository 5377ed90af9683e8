"""RLDS, robomimic, Zarr and MCAP: the same recordings give the same dataset as through LeRobot, with all options."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import RATE, STATED, WORDLESS, WRITERS, imported, options, report, take, write_lerobot

from worldgym.data.formats.known import find_format
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import ConfigError, DatasetError, DependencyError
from worldgym.registry import DATASET_FORMATS


def assert_same(found, expected, words: bool = True) -> None:
    """Whether two datasets have the same episodes and the same meaning of their actions."""
    assert len(found) == len(expected)
    a, b = found.specs.action, expected.specs.action
    assert (a.low, a.high, a.bounds, a.hz) == (b.low, b.high, b.bounds, b.hz)
    assert [c.size for c in found.specs.observation.cameras] == [
        c.size for c in expected.specs.observation.cameras
    ]
    for one, other in zip(found, expected, strict=True):
        for name in ("frames", "actions", "state"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert np.array_equal(one.views["wrist"], other.views["wrist"])
        assert (one.success is None) == (other.success is None)
        assert one.success is None or np.array_equal(one.success, other.success)
        assert not words or one.instruction == other.instruction


@pytest.mark.parametrize("kind", WRITERS)
@given(
    lengths=st.lists(st.integers(6, 9), min_size=2, max_size=3),
    bounds=st.sampled_from(["auto", "minmax", "quantiles"]),
    fps=st.sampled_from([None, 5.0, 10.0]),
    rule=st.sampled_from(["absolute", "delta", "rate"]),
    resize=st.sampled_from(["crop", "pad", "stretch"]),
    success=st.sampled_from(["auto", "next.reward", "all", "none"]),
    select=st.sampled_from([{}, {"episodes": "1"}, {"skip": "0"}, {"limit": 1}]),
)
@settings(max_examples=4, deadline=None)
def test_every_option_gives_what_it_gives_for_a_lerobot_folder(
    tmp_path_factory, kind, lengths, bounds, fps, rule, resize, success, select
):
    root = tmp_path_factory.mktemp("x")
    takes = [take(number, rows) for number, rows in enumerate(lengths)]
    chosen = {"bounds": bounds, "resize": resize, "success": success, **select}
    chosen |= {} if fps is None else {"fps": fps, "actions": (rule,)}
    expected = imported(
        write_lerobot(root / "lerobot", takes), root / "a", camera=("top", "wrist"), image_size=("16", "8"), **chosen
    )  # fmt: skip
    found = imported(WRITERS[kind](root, takes), root / "b", **options(kind), **chosen)
    assert_same(found, expected, words=kind not in WORDLESS)
    for name in ("rows_cut", "hz", "recorded_hz", "success_from", "successes", "state_dim", "image_size"):
        assert report(root / "b")[name] == report(root / "a")[name], name
    for mine, other in zip(report(root / "b")["actions"], report(root / "a")["actions"], strict=True):
        assert {**mine, "name": ""} == {**other, "name": ""}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_recorded_row_is_an_observation_and_the_action_that_followed(tmp_path, kind):
    takes = [take(0, 5), take(1, 6)]
    found = imported(WRITERS[kind](tmp_path, takes), tmp_path / "out", **options(kind), bounds="minmax")
    spec = found.specs.action
    for episode, one in zip(found, takes, strict=True):
        assert episode.length == len(one.actions) - 1
        assert np.allclose(spec.denormalise(episode.actions), one.actions[:-1], atol=1e-5)
        assert np.array_equal(episode.state, one.state)
        halved = one.wrist.reshape(-1, 8, 2, 8, 2, 3).mean((2, 4))  # every frame, at half the size
        assert np.abs(episode.views["wrist"] - halved).max() <= 1.0


@pytest.mark.parametrize("kind", WRITERS)
def test_the_meaning_of_actions_is_kept_with_every_episode_and_never_made_up(tmp_path, kind):
    found = imported(WRITERS[kind](tmp_path, [take(0, 4)]), tmp_path / "out", **options(kind))
    convention = found[0].provenance["action_convention"]
    assert {"kind", "frame", "units", "gripper"} <= set(convention)
    stated = {"robomimic": "delta", "mcap": "absolute"}
    assert convention["kind"] == stated.get(kind, "unknown")
    assert convention["frame"] == convention["gripper"] == "unknown"
    assert report(found)["action_convention"] == convention


@pytest.mark.parametrize("kind", WRITERS)
def test_several_cameras_need_a_choice_and_one_does_not_get_a_view(tmp_path, kind):
    source, given = WRITERS[kind](tmp_path, [take(0, 4)]), options(kind) | {"image_size": ("16",)}
    with pytest.raises(DatasetError, match=r"got --camera \(none\), expected one or more of .*top.*wrist"):
        imported(source, tmp_path / "a", **{**given, "camera": ()})
    with pytest.raises(DatasetError, match="got --camera elbow"):
        imported(source, tmp_path / "b", **{**given, "camera": ("elbow",)})
    alone = imported(source, tmp_path / "c", **{**given, "camera": ("wrist",)})
    assert not alone[0].views and np.array_equal(alone[0].frames, take(0, 4).wrist)


@pytest.mark.parametrize("kind", WRITERS)
def test_features_are_chosen_and_concatenated_and_unknown_ones_are_refused(tmp_path, kind):
    source, given = WRITERS[kind](tmp_path, [take(0, 5)]), options(kind)
    plain = imported(source, tmp_path / "a", **given)
    for key in ("state_key", "action_key"):
        with pytest.raises(DatasetError, match="no numeric feature 'elbow', only"):
            imported(source, tmp_path / "b", **{**given, key: ("elbow",)})
    state = {"mcap": "arm"}.get(kind, "state")
    action = {"robomimic": "actions", "mcap": "target"}.get(kind, "action")
    both = imported(source, tmp_path / "c", **{**given, "state_key": (action, state)})
    assert both[0].state.shape == (5, 7) and np.array_equal(both[0].state[:, 3:], plain[0].state)
    film = imported(source, tmp_path / "d", **{**given, "action_key": ("none",)})
    assert film[0].actions is None and film.specs.action is None
    assert "action_convention" not in film[0].provenance


@pytest.mark.parametrize("kind", WRITERS)
def test_a_recorded_rate_is_not_overruled_and_a_missing_one_not_guessed(tmp_path, kind):
    source, given = WRITERS[kind](tmp_path, [take(0, 5)]), options(kind)
    stated = {**given, "recorded_fps": None if kind in STATED else 4.0}
    with pytest.raises(ConfigError, match="--recorded-fps 10" if kind in STATED else "records its rate, 10"):
        imported(source, tmp_path / "a", **stated)
    with pytest.raises(DatasetError, match="--fps 30 is higher"):
        imported(source, tmp_path / "b", **given, fps=30.0, actions=("delta",))
    assert imported(source, tmp_path / "c", **given).specs.action.hz == RATE


@pytest.mark.parametrize("kind", WRITERS)
def test_an_import_continues_and_refuses_other_settings(tmp_path, kind, monkeypatch):
    from worldgym.data.writer import DatasetWriter

    source, given = WRITERS[kind](tmp_path, [take(n, 4) for n in range(3)]), options(kind)
    whole, append, written = imported(source, tmp_path / "a", **given), DatasetWriter.append, []

    def stop(self, episode):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(episode)
        append(self, episode)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            imported(source, tmp_path / "b", **given)
    with pytest.raises(ConfigError, match="other settings"):
        imported(source, tmp_path / "b", **{**given, "resize": "pad"})
    assert_same(imported(source, tmp_path / "b", **given), whole)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_found_by_its_files_and_by_its_name(tmp_path, kind):
    source, name = WRITERS[kind](tmp_path, [take(0, 4)]), kind.split()[0].split(".")[0]
    assert name in DATASET_FORMATS.names()
    assert find_format(source) is DATASET_FORMATS.get(name) is find_format(tmp_path, name)


@pytest.mark.parametrize("name", ["rlds", "robomimic", "zarr", "mcap"])
def test_an_empty_folder_and_a_missing_one_are_refused_with_what_is_expected(tmp_path, name):
    for source in (tmp_path, tmp_path / "nothing"):
        with pytest.raises((DatasetError, ConfigError)) as caught:
            imported(source, tmp_path / "out", format=name, recorded_fps=None)
        assert str(source) in str(caught.value) and len(str(caught.value)) > 40


@pytest.mark.parametrize(
    "kind, module",
    [
        ("rlds", "google_crc32c"),
        ("robomimic", "h5py"),
        ("zarr 2", "zarr"),
        ("mcap", "mcap"),
        ("mcap", "mcap_ros2"),
    ],
)
def test_a_missing_reader_names_the_extra_that_installs_it(tmp_path, kind, module, monkeypatch):
    source = WRITERS[kind](tmp_path, [take(0, 4)])
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=r'pip install "worldgym\[recordings\]"'):
        imported(source, tmp_path / "out", **options(kind))


def test_a_mapping_is_refused_where_there_are_no_topics(tmp_path):
    source = WRITERS["zarr 2"](tmp_path, [take(0, 4)])
    with pytest.raises(ConfigError, match="--mapping describes the topics of MCAP recordings"):
        imported(source, tmp_path / "out", **options("zarr 2"), mapping=tmp_path / "mapping.yaml")
    with pytest.raises(ConfigError, match="recorded_fps is 0"):
        ImportSettings(recorded_fps=0)
