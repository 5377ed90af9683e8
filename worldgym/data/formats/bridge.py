"""BridgeData V2 episodes as WorldGym's samples hold them (mp4 + npz): real robot video for the same trainer.

A folder has `NAME.mp4`, one frame an action, and `NAME.npz` with `arr_0 (T, 10)`: translation, rotation, gripper
(+1 closed, -1 open), each component rescaled to roughly unit size, then three zeros of padding. There are no words and
no proprioception. What the actions add up to stands in for the latter: where the hand is relative to its first place.

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
# Within six episodes no component exceeds 1.7; the gripper is a switch.
BRIDGE_ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    units=("scaled",) * 6 + ("open=-1/close=+1",),
    hz=5.0,
    low=(-2.0,) * 6 + (-1.0,),
    high=(2.0,) * 6 + (1.0,),
    gripper=GripperRule(index=6, open=-1.0, closed=1.0),
)
STATE_SCALE = 0.1  # of the added-up motion, so that states are of the order of one


def bridge_specs(image_size: int | tuple[int, int] = 64) -> Specs:
    """One camera; proprioception is the added-up motion and the last gripper command."""
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    roles = ("ee_position",) * 3 + ("ee_rotation",) * 3 + ("gripper",)
    state = tuple(StateField(name, role, "scaled") for name, role in zip(names, roles, strict=True))
    return Specs(ObservationSpec((Camera("front", *size_of(image_size)),), state), BRIDGE_ACTION_SPEC)


def bridge_actions(rows: np.ndarray) -> np.ndarray:
    """`(T, 10)` rows of an npz to `(T, 7)` float32 in [-1, 1], +1 is an open gripper.

    Raises:
        DatasetError: another shape, padding that is not zero, or not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != PADDED_DIM:
        raise DatasetError(
            f"got actions of shape {rows.shape}, expected (T, {PADDED_DIM}) as BridgeData V2 samples have"
        )
    if not np.isfinite(rows).all() or rows[:, ACTION_DIM:].any():
        raise DatasetError(
            "the last three action columns must be zeros and all values finite; is this another conversion?"
        )
    return BRIDGE_ACTION_SPEC.normalise(rows[:, :ACTION_DIM])


def bridge_states(actions: np.ndarray) -> np.ndarray:
    """`(T, 7)` normalised actions to `(T+1, 7)` float32: motion added up, and the gripper as it was last told."""
    moved = np.zeros((len(actions) + 1, ACTION_DIM), np.float32)
    moved[1:, :6] = STATE_SCALE * np.cumsum(actions[:, :6], 0)
    moved[1:, 6] = actions[:, 6]
    moved[0, 6] = actions[0, 6]
    return moved


def read_video(path: Path, image_size: int | tuple[int, int]) -> np.ndarray:
    """All frames of an mp4, area-averaged to `(T, H, W, 3)` uint8.

    Raises:
        DatasetError: the file can't be decoded.
    """
    return decode_video(path, image_size, "stretch").frames


def bridge_episodes(
    folder: str | os.PathLike[str], image_size: int | tuple[int, int] = 64, limit: int | None = None
) -> list[Episode]:
    """Every episode of a folder, in the order of their names.

    Args:
        folder: holds `NAME.mp4` and `NAME.npz` pairs.
        image_size: pixels of the frames.
        limit: at most so many episodes.

    Raises:
        DatasetError: no pairs, or a damaged file.
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
                f"{file}: {len(frames)} frames and {len(rows)} actions; expected as many, and at least two"
            )
        try:
            actions = bridge_actions(rows)[:-1]  # the last one's outcome was not filmed
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
    """Write the episodes of `folder` as a dataset at `out`, frames as PNG; the same call resumes. Returns how many.

    Raises:
        DatasetError: as `bridge_episodes`; also where `out` holds something else.
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
            raise DatasetError(f"{out} holds an import of something else; give another --out")
    with DatasetWriter(
        out, bridge_specs(image_size), manifest, robot_type="widowx", partial=command
    ) as writer:
        done = [record.provenance.get("episode") for record in writer.records]
        if done != names[: len(done)]:
            raise DatasetError(f"{out} holds {len(done)} episodes of something else; give another --out")
        write_sealed(notes, {"key": key})
        for episode in episodes[len(done) :]:
            writer.append(episode)
        writer.finish()
    return len(episodes)
