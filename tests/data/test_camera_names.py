"""Every camera name that an `ObservationSpec` accepts can be stored, for the main camera and for any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MANIFEST, episode, same, specs
from test_import_fields import change_info, change_rows
from test_imports import CAMERA, _frame, _png, make

from worldgym.data import DatasetWriter, EpisodeDataset
from worldgym.data.check import check
from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder, import_lerobot
from worldgym.errors import DatasetError
from worldgym.specs import Camera, ObservationSpec, Specs

NAMES = st.lists(
    st.sampled_from(["front", "main", "image", "_", "__", "0", "wrist", "Wrist", "frames", "a_b"]),
    min_size=1,
    max_size=4,
    unique=True,
)


def write(folder: Path, names: list[str], count: int = 2) -> list[dict[str, np.ndarray]]:
    """A dataset whose cameras have sizes of their own; returns the frames of each episode by camera."""
    cameras = tuple(Camera(name, 4 + i, 6) for i, name in enumerate(names))
    shot = [
        {c.name: np.random.default_rng(n).integers(0, 255, (5, *c.size, 3), dtype=np.uint8) for c in cameras}
        for n in range(count)
    ]
    of = Specs(ObservationSpec(cameras, specs().observation.state), specs().action)
    with DatasetWriter(folder, of, MANIFEST) as writer:
        for n, frames in enumerate(shot):
            views = {name: frames[name] for name in names[1:]}
            writer.append(episode(n, frames=frames[names[0]], views=views))
    return shot


@settings(max_examples=15, deadline=None)
@given(names=NAMES)
def test_any_names_in_any_order_come_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("cameras") / "data"
    shot = write(folder, names)
    dataset = EpisodeDataset(folder)
    assert dataset.cameras == tuple(names)
    for frames, read in zip(shot, dataset, strict=True):
        assert np.array_equal(read.frames, frames[names[0]])
        assert list(read.views) == names[1:]
        assert all(np.array_equal(read.views[name], frames[name]) for name in names[1:])
    for name in names:
        loaded = dataset.load_arrays(camera=name).frames
        assert np.array_equal(loaded, np.concatenate([frames[name] for frames in shot]))
    assert not check(folder).problems


def test_the_main_camera_is_no_view_of_the_same_episode(tmp_path: Path) -> None:
    made = episode(0)
    with DatasetWriter(tmp_path / "data", specs(), MANIFEST) as writer:
        with pytest.raises(ValueError, match=r"main camera 'front'; it is Episode\.frames"):
            writer.append(episode(0, views={"front": made.frames}))
        writer.append(made)
    assert same(EpisodeDataset(tmp_path / "data")[0], made)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "é", 3])
def test_a_name_that_no_camera_can_have_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="views: got the name .* expected letters, digits and _"):
        episode(0, views={name: episode(0).frames})


def test_a_second_camera_front_of_a_lerobot_folder_is_imported(tmp_path: Path) -> None:
    root, front = make(tmp_path / "x", "v2.1", filmed=False), "observation.images.front"
    info = json.loads((root / "meta/info.json").read_text())
    change_info(root, features={**info["features"], front: info["features"][CAMERA]})
    for e, n in ((0, 4), (1, 6)):
        change_rows(root, e, **{front: [{"bytes": _png(255 - _frame(e, t)), "path": None} for t in range(n)]})
    import_lerobot(root, tmp_path / "out", ImportSettings(image_size=16, cameras=(CAMERA, front)))
    ours = EpisodeDataset(tmp_path / "out")
    assert ours.cameras == (CAMERA.rpartition(".")[2], "front")
    assert np.array_equal(255 - ours.load_arrays().frames, ours.load_arrays(camera="front").frames)
    change_info(
        root, features={**info["features"], front: info["features"][CAMERA], "b.front": {"dtype": "image"}}
    )
    with pytest.raises(DatasetError, match="expected different names.*--camera"):
        LeRobotFolder(root, settings=ImportSettings(cameras=(CAMERA, front, "b.front")))
