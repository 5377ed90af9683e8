"""Choice of cameras and features, and the check that files lie in the folder that was given; the same for all formats.

Example::

    choose_cameras(["top", "wrist"], ("wrist",), "data/x")                  # ("wrist",)
    choose_keys(["action", "done"], None, ["action"], "--action-key", "x")  # ("action",)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from worldgym.errors import DatasetError


def choose_cameras(
    cameras: Sequence[str], given: str | Sequence[str] | None, where: object, others: Collection[str] = ()
) -> tuple[str, ...]:
    """Names of the chosen cameras, the main camera first; the only camera if none was given.

    Args:
        cameras: names of all cameras.
        given: names given by the user.
        where: description of the recordings for messages.
        others: names of the other features, for messages.

    Raises:
        DatasetError: there is no camera, a name is unknown or repeated, or there are several and none was given.
    """
    chosen = (given,) if isinstance(given, str) else tuple(given or ())
    if not chosen and len(cameras) == 1:
        return (cameras[0],)
    unknown = [name for name in chosen if name not in cameras]
    if not cameras:
        raise DatasetError(f"{where} has no image features, only {sorted(others)}")
    if not chosen or unknown or len(set(chosen)) != len(chosen):
        raise DatasetError(
            f"{where}: got --camera {' '.join(chosen) or '(none)'}, expected one or more of {list(cameras)}, "
            "each once; the first one is the main camera"
        )
    return chosen


def choose_keys(
    known: Collection[str],
    given: Sequence[str] | None,
    default: Sequence[str],
    option: str,
    where: object,
    numeric: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Names of the chosen numeric features, in the given order.

    Args:
        known: names that may be chosen.
        given: names given by the user; None or empty for `default`.
        default: names if none was given.
        option: `--action-key`, of which at least one is needed, or `--state-key`.
        where: description of the list of features for messages.
        numeric: names to propose in messages, if they are not all of `known`.

    Raises:
        DatasetError: a name is unknown, or an action is needed and there is none.
    """
    keys = tuple(given or default)
    missing = [key for key in keys if key not in known]
    if missing or (not keys and option == "--action-key"):
        raise DatasetError(
            f"{where} lists no numeric feature {', '.join(map(repr, missing))}, only "
            f"{list(known if numeric is None else numeric)}; "
            f"choose with {option}; several features are concatenated"
            + ("; --action-key none imports only the video" if option == "--action-key" else "")
        )
    return keys


def is_inside(path: Path, root: Path) -> bool:
    """Whether `path` lies in `root` after links are followed.

    Links into the `blobs` folder of a Hugging Face cache are allowed, because its snapshots consist of such links.
    """
    base, resolved = root.resolve(), path.resolve()
    allowed = [base]
    if base.parent.name == "snapshots":
        allowed.append(base.parent.parent / "blobs")
    return any(resolved == place or place in resolved.parents for place in allowed)


def files_in(source: Path, endings: Sequence[str], kind: str) -> list[Path]:
    """The file `source`, or the files with these endings in the folder `source`, sorted by name.

    Raises:
        DatasetError: `source` is missing or holds no such file, or a file is a link out of the folder.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DatasetError(f"there is no file or folder {source}; give the {kind}")
    found = sorted(path for path in source.iterdir() if path.name.lower().endswith(tuple(endings)))
    if not found:
        raise DatasetError(
            f"{source} holds no file {' or '.join('*' + end for end in endings)}; give the {kind}"
        )
    for path in found:
        if not is_inside(path, source):
            raise DatasetError(
                f"{path} is a link to a file outside {source}; nothing outside the source folder is read: copy the "
                "file into the folder"
            )
    return found
