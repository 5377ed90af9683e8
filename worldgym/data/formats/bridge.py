"""Reads BridgeData V2 episodes in the format of WorldGym's samples (mp4 + npz).

A folder has `NAME.mp4`, one frame per action, and `NAME.npz` with `arr_0 (T, 10)`: translation, rotation, gripper
(+1 closed, -1 open), each component rescaled to roughly unit size, then three zeros of padding. There are no
instructions and no proprioception. The cumulative sum of the actions replaces proprioception: it is the pose of the
gripper relative to its first pose.

Example::

    episodes = bridge_episodes("shared/data/bridge_v2", image_size=64)
    write_bridge("shared/data/bridge_v2", "data/bridge", image_size=128)
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from worldgym.data.episode import Episode
from worldgym.data.formats.frames import decode_video
from worldgym.data.splits import SplitManifest
from worldgym.data.writer import DatasetWriter
from worldgym.errors import CheckpointError, DatasetError
from worldgym.specs import ActionSpec, Camera, GripperRule, ObservationSpec, Specs, StateField
from worldgym.utils.arrays import Field, read_arrays
from worldgym.utils.files import file_sha256, read_sealed, write_sealed
from worldgym.utils.sizes import size_of

PADDED_DIM, ACTION_DIM = 10, 7
# In six episodes no component exceeds 1.7; the gripper action is binary.
BRIDGE_ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    units=("scaled",) * 6 + ("open=-1/close=+1",),
    hz=5.0,
    low=(-2.0,) * 6 + (-1.0,),
    high=(2.0,) * 6 + (1.0,),
    gripper=GripperRule(index=6, open=-1.0, closed=1.0),
)
STATE_SCALE = 0.1  # scale of the cumulative motion, so that states are of order one


def bridge_specs(image_size: int | tuple[int, int] = 64) -> Specs:
    """Specs with one camera; proprioception is the cumulative motion and the last gripper command."""
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    roles = ("ee_position",) * 3 + ("ee_rotation",) * 3 + ("gripper",)
    state = tuple(StateField(name, role, "scaled") for name, role in zip(names, roles, strict=True))
    return Specs(ObservationSpec((Camera("front", *size_of(image_size)),), state), BRIDGE_ACTION_SPEC)


def bridge_actions(rows: np.ndarray) -> np.ndarray:
    """Convert `rows (T, 10)` of an npz file to actions `(T, 7)` float32 in [-1, 1], where +1 opens the gripper.

    Raises:
        DatasetError: the shape differs, the padding is not zero, or a value is not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != PADDED_DIM:
        raise DatasetError(
            f"got actions of shape {rows.shape}, expected (T, {PADDED_DIM}) as in BridgeData V2 samples"
        )
    if not np.isfinite(rows).all() or rows[:, ACTION_DIM:].any():
        raise DatasetError(
            "the last three action columns must be zeros and all values finite; these samples may come from another "
            "conversion"
        )
    return BRIDGE_ACTION_SPEC.normalise(rows[:, :ACTION_DIM])


def bridge_states(actions: np.ndarray) -> np.ndarray:
    """States `(T+1, 7)` float32 from normalised actions `(T, 7)`: cumulative motion and last gripper command."""
    moved = np.zeros((len(actions) + 1, ACTION_DIM), np.float32)
    moved[1:, :6] = STATE_SCALE * np.cumsum(actions[:, :6], 0)
    moved[1:, 6] = actions[:, 6]
    moved[0, 6] = actions[0, 6]
    return moved


def read_video(path: Path, image_size: int | tuple[int, int]) -> np.ndarray:
    """Read all frames of an mp4 file, area-averaged to `(T, H, W, 3)` uint8.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    return decode_video(path, image_size, "stretch").frames


def bridge_episodes(
    folder: str | os.PathLike[str], image_size: int | tuple[int, int] = 64, limit: int | None = None
) -> list[Episode]:
    """Read all episodes of a folder, sorted by name.

    Args:
        folder: folder of `NAME.mp4` and `NAME.npz` pairs.
        image_size: size of the frames in pixels.
        limit: maximum number of episodes.

    Raises:
        DatasetError: there are no pairs, or a file is damaged.
    """
    root = Path(folder)
    names = sorted(path.stem for path in root.glob("*.npz") if path.with_suffix(".mp4").is_file())
    if not names:
        raise DatasetError(
            f"{root} holds no NAME.mp4 + NAME.npz pairs; give the folder of BridgeData V2 samples"
        )
    episodes = []
    for name in names[:limit]:
        file = root / f"{name}.npz"
        try:
            found = read_arrays(
                file, {"arr_0": Field("float", ("T", "C"), finite=False)}, "Restore that file"
            )
        except CheckpointError as error:
            raise DatasetError(str(error)) from error
        rows = np.asarray(found["arr_0"], np.float32)
        frames = read_video(root / f"{name}.mp4", image_size)
        if len(frames) < 2 or len(frames) != len(rows):
            raise DatasetError(
                f"{file}: {len(frames)} frames and {len(rows)} actions; expected equal numbers, at least two of each"
            )
        try:
            actions = bridge_actions(rows)[:-1]  # there is no frame after the last action
        except DatasetError as error:
            raise DatasetError(f"{file}: {error}") from error
        episodes.append(
            Episode(
                frames=frames,
                actions=actions,
                state=bridge_states(actions),
                instruction="no instruction recorded",
                success=None,
                progress=None,
                domain="real",
                split="seen",
                task="bridge",
                provenance={"behaviour": "teleoperation", "source": "BridgeData V2", "episode": name},
            )
        )
    return episodes


def write_bridge(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 64,
    limit: int | None = None,
    *,
    command: str = "worldgym import with the same options",
) -> int:
    """Convert `folder` to a dataset at `out`, with frames as PNG; the same call resumes an interrupted import.

    Returns:
        The number of episodes.

    Raises:
        DatasetError: see `bridge_episodes`; also if `out` holds other data.
    """
    episodes = bridge_episodes(folder, image_size, limit)
    names = [str(episode.provenance["episode"]) for episode in episodes]
    manifest = SplitManifest(name="bridge_v2", rules={})
    files = [Path(folder) / f"{name}.{end}" for name in names for end in ("npz", "mp4")]
    key = hashlib.sha256("".join(f"{file.name} {file_sha256(file)}" for file in files).encode()).hexdigest()
    notes = Path(out) / "meta/import.json"
    if notes.is_file():
        noted = read_sealed(notes, f"Remove the folder {out} to import again")
        if not isinstance(noted, dict) or noted.get("key") != key:
            raise DatasetError(f"{out} holds an import of other recordings; give another --out")
    with DatasetWriter(
        out, bridge_specs(image_size), manifest, robot_type="widowx", partial=command
    ) as writer:
        done = [record.provenance.get("episode") for record in writer.records]
        if done != names[: len(done)]:
            raise DatasetError(f"{out} holds {len(done)} episodes of other recordings; give another --out")
        write_sealed(notes, {"key": key})
        for episode in episodes[len(done) :]:
            writer.append(episode)
        writer.finish()
    return len(episodes)
