"""Held-out splits: the split names, and a manifest whose hash is stored with every dataset and model.

A result on `unseen_object` is invalid if the object occurs in the training data. The manifest records which colours,
shapes, sentences, scenes and tasks belong to which split. The dataset writer stores its SHA-256, so datasets with
different rules cannot be mixed unnoticed.

Example::

    from worldgym.data import SplitManifest
    manifest = SplitManifest(name="kitchen", rules={"unseen_object": {"shapes": ["ball"]}})
    manifest.save("manifest.json")
    assert SplitManifest.load("manifest.json").hash == manifest.hash
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldgym.errors import DatasetError

SPLITS: tuple[str, ...] = (
    "seen",
    "unseen_combination",
    "unseen_object",
    "unseen_instruction",
    "unseen_scene",
    "unseen_task",
)
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class SplitManifest:
    """Rules that assign episodes to splits.

    Args:
        name: owner of the rules, e.g. the name of a suite.
        version: increased whenever the rules change.
        rules: JSON data, usually one entry per split; copied, so later changes of the argument have no effect.
        names: the splits in use, all from `SPLITS`.

    Raises:
        ValueError: a split name is unknown, or the rules cannot be written as JSON.

    Example:
        >>> SplitManifest(rules={"seen": ["red"]}).hash == SplitManifest(rules={"seen": ["red"]}).hash
        True
    """

    name: str = "unnamed"
    version: int = 1
    rules: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = SPLITS

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in SPLITS]
        if unknown:
            raise ValueError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
        try:
            rules = json.loads(json.dumps(self.rules, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the rules of a split manifest must be plain JSON (dicts, lists, strings, numbers): {error}"
            ) from error
        object.__setattr__(self, "rules", rules)
        object.__setattr__(self, "names", tuple(self.names))

    @property
    def hash(self) -> str:
        """SHA-256 of the content as canonical JSON, 64 hex digits."""
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def _content(self) -> dict[str, Any]:
        return {
            "format": MANIFEST_FORMAT,
            "name": self.name,
            "version": self.version,
            "names": list(self.names),
            "rules": self.rules,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the content and its hash, ready for JSON."""
        return {**self._content(), "sha256": self.hash}

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "split manifest") -> SplitManifest:
        """Rebuild a manifest and verify its hash.

        Raises:
            DatasetError: fields are missing, the format is unknown, or the hash does not match the content.
        """
        if not isinstance(data, dict) or not {"format", "name", "version", "names", "rules", "sha256"} <= set(
            data
        ):
            raise DatasetError(
                f"{source} is not a split manifest; write one with SplitManifest(...).save(path)"
            )
        if data["format"] != MANIFEST_FORMAT:
            raise DatasetError(
                f"{source} has manifest format {data['format']!r}, but this version of worldgym reads format "
                f"{MANIFEST_FORMAT}; upgrade worldgym"
            )
        try:
            manifest = cls(data["name"], data["version"], data["rules"], tuple(data["names"]))
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{source}: {error}") from error
        if manifest.hash != data["sha256"]:
            raise DatasetError(
                f"{source} was changed after it was frozen: its content hashes to {manifest.hash[:12]}..., "
                f"the file lists {str(data['sha256'])[:12]}...; restore the file, or make a new version with "
                "SplitManifest(version=..., rules=...).save(path)"
            )
        return manifest

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the manifest as JSON, atomically."""
        from worldgym.data.files import write_json

        target = Path(path)
        write_json(target, self.to_dict())
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SplitManifest:
        """Read a manifest and verify its hash.

        Raises:
            DatasetError: the file is missing, not JSON, or does not match its hash.
        """
        source = Path(path)
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DatasetError(f"no split manifest at {source}; check the path") from error
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{source} can't be read as a split manifest: {error}") from error
        return cls.from_dict(data, str(source))
