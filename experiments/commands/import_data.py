"""`worldgym import`: converts recorded episodes in other formats to a dataset for every trainer.

Reads LeRobotDataset folders, v2.0 to v3.0, RLDS folders, robomimic's HDF5 files, Zarr replay buffers, MCAP recordings,
folders of BridgeData V2 samples (mp4 + npz) or of plain videos, and formats that other packages register
(`worldgym list`, `worldgym.data.formats.known`). The source is not changed. Instructions and success
that were not recorded stay empty. The same command resumes an interrupted import.

Example::

    worldgym import --source data/pusht --out data/mine --camera observation.image --success all
    worldgym data check data/mine
    worldgym train tokenizer --data data/mine --out runs/tokenizer
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from worldgym.data.formats.lerobot_import import ImportSettings


@dataclass(frozen=True)
class ImportConfig:
    """Convert a folder of recordings; the same command resumes an interrupted import.

    Args:
        source: folder or file of recordings in one of the formats that `worldgym list` names.
        out: folder of the new dataset.
        format: format of the source, as named by `worldgym list`; `auto` detects it.
        image_size: side of the frames in pixels such as 64, or height x width such as 48x80; one value for all cameras,
            or one for each.
        camera: features with images, the main camera first; needed if there are several.
        state_key: features with proprioception, concatenated; by default `observation.state`, if present.
        action_key: features with actions, concatenated; by default `action`; `none` for video without actions.
        state_roles: roles of state fields as NAME=ROLE, e.g. `x=ee_position` or `grip=gripper`. Without a role, the
            functions that need it are switched off.
        episodes: numbers of the episodes to read, such as `0-9,12`; all if None.
        skip: numbers of episodes to skip.
        skip_bad: skip episodes that cannot be read, and list them.
        limit: maximum number of episodes; the first ones are read.
        success: source of success labels: `next.success` (auto, if recorded), `next.reward`, `all` or `none`.
        reward: minimum reward that counts as success with `--success next.reward`.
        bounds: action values that are mapped to -1 and 1: `quantiles` (1 % and 99 %), `minmax`, or `auto`: quantiles,
            but minmax for dimensions with rare large values, such as a gripper that rarely closes.
        fps: resample to this number of rows per second; needs `--actions`.
        actions: how actions of joined rows are combined: `absolute`, `delta` or `rate`, and `NAME=RULE` for single
            dimensions.
        resize: `crop` the centre at the target aspect ratio, `pad` with black, or `stretch`.
        frames: `timestamp` takes the frame nearest in time, `index` takes the k-th frame for the k-th row; `auto` uses
            `index` if there are as many frames as rows.
        recorded_fps: rows per second of the recordings, for formats that do not record it.
        action_shift: row t gets the action of row t - N (N may be negative), for actions that are logged too early or
            too late; `worldgym data check` says which N. The rows left over are cut.
        picture_shift: row t gets the pictures of row t - N (N may be negative).
        cut: rows to cut at the start and at the end of each episode.
        mapping: YAML file that says which topics and fields of MCAP recordings are pictures, state and actions; by
            default `mapping.yaml` beside the recordings.
    """

    source: Path
    out: Path
    format: str = "auto"
    image_size: tuple[str, ...] = ("64",)
    camera: tuple[str, ...] = ()
    state_key: tuple[str, ...] = ()
    action_key: tuple[str, ...] = ()
    state_roles: tuple[str, ...] = ()
    episodes: str | None = None
    skip: str | None = None
    skip_bad: bool = False
    limit: int | None = None
    success: Literal["auto", "next.success", "next.reward", "all", "none"] = "auto"
    reward: float = 1.0
    bounds: Literal["auto", "quantiles", "minmax"] = "auto"
    fps: float | None = None
    actions: tuple[str, ...] = ()
    resize: Literal["crop", "pad", "stretch"] = "crop"
    frames: Literal["auto", "timestamp", "index"] = "auto"
    recorded_fps: float | None = None
    mapping: Path | None = None
    action_shift: int = 0
    picture_shift: int = 0
    cut: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Validate the settings."""
        self.settings()

    def settings(self) -> ImportSettings:
        """Return the import settings without the folders."""
        from worldgym.data.formats.lerobot_import import ImportSettings

        return ImportSettings(
            image_size=_words(self.image_size), cameras=_words(self.camera), state_keys=_words(self.state_key),
            action_keys=_words(self.action_key), state_roles=_words(self.state_roles),
            episodes=self.episodes, skip=self.skip, skip_bad=self.skip_bad,
            limit=self.limit, success=self.success, reward=self.reward, bounds=self.bounds, fps=self.fps,
            actions=_words(self.actions), resize=self.resize, frames=self.frames, recorded_fps=self.recorded_fps,
            mapping=None if self.mapping is None else str(self.mapping),
            action_shift=self.action_shift, picture_shift=self.picture_shift, cut=self.cut,
        )  # fmt: skip


def _words(value: int | str | tuple[str, ...]) -> tuple[str, ...]:
    return (str(value),) if isinstance(value, (int, str)) else tuple(value)


def run(config: ImportConfig) -> int:
    """Convert the folder and print a report."""
    from worldgym.data.formats.known import convert, find_format

    settings, command = config.settings(), shlex.join(["worldgym", *sys.argv[1:]])
    source, out = config.source.expanduser(), config.out.expanduser()
    report = convert(find_format(source, config.format), source, out, settings, command)
    if "layout" in report:
        sys.stdout.write("\n".join(lines(report)) + "\n")
    sys.stdout.write(f"{report['episodes']} episodes imported to {out}\n")
    return 0


def lines(report: dict[str, Any]) -> list[str]:
    """Return the lines of the printed report."""
    unknown = report["success_from"] in ("none", "none recorded")
    out = [
        f"source        {report['source']} ({report['layout']}), {report['recorded_episodes']} recorded episodes",
        f"rate          {report['hz']:g} rows per second (recorded {report['recorded_hz']:g})",
        f"cameras       {', '.join(report['cameras'])}",
        f"state         {', '.join(report['state']) or 'none'}, {report['state_dim']} dimensions",
        f"frames        {' '.join(report['image_size'])} px, matched to rows by "
        + ", ".join(f"{rule} ({count})" for rule, count in report["frames_by"].items()),
        f"success       {'unknown' if unknown else report['successes']} of {report['episodes']} episodes, from "
        f"{report['success_from']}",
        f"instructions  {len(report['instructions'])}",
    ]
    shown = list(report["instructions"].items())[:5]
    out += [f"  {count:>6}  {text}" for text, count in shown]
    out += (
        [f"          and {len(report['instructions']) - 5} more"] if len(report["instructions"]) > 5 else []
    )
    out.append(
        f"actions       {report['rows_cut']:.2%} of all rows have a dimension outside its bounds, which is clipped"
    )
    for dim in report["actions"]:
        bounds = f"{dim['low']:.4g} to {dim['high']:.4g}"
        out.append(f"  {dim['name']:<24} {bounds:<24} {dim['bounds']:<10} {dim['cut']:.2%} clipped")
    if report["split_episodes"]:
        numbers = ", ".join(list(report["split_episodes"])[:10])
        out.append(
            f"split         {len(report['split_episodes'])} recorded episodes, whose instruction changes: {numbers}"
        )
    if report["rows_lost"]:
        out.append(
            f"rows lost     {sum(report['rows_lost'].values())}, single rows with their instruction, in episodes "
            f"{', '.join(list(report['rows_lost'])[:10])}"
        )
    if "action_convention" in report:
        known = ("kind", "frame", "units", "gripper")
        out.append("action is     " + ", ".join(f"{k} {report['action_convention'].get(k, 'unknown')}" for k in known))
    out += [f"note: {note}" for note in report.get("notes", ())]
    if report["success_from"] == "none recorded":
        more = ", --success next.reward counts rewards of at least --reward" if report["reward_recorded"] else ""
        out.append(f"no success is recorded: --success all counts every episode as successful at its end{more}")
    out += [f"skipped: episode {number}: {why}" for number, why in report["skipped"].items()]
    return out
