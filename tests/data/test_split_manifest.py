"""The manifest can't change unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldgym.data import SPLITS, SplitManifest
from worldgym.errors import DatasetError


def test_saved_and_loaded_alike(tmp_path: Path) -> None:
    manifest = SplitManifest(name="t", version=2, rules={"unseen_scene": {"slots": [1, 2]}})
    loaded = SplitManifest.load(manifest.save(tmp_path / "manifest.json"))
    assert loaded == manifest
    assert loaded.hash == manifest.hash
    assert loaded.names == SPLITS


def test_hash_ignores_order_but_not_content() -> None:
    assert SplitManifest(rules={"a": 1, "b": 2}).hash == SplitManifest(rules={"b": 2, "a": 1}).hash
    assert SplitManifest(rules={"a": 1}).hash != SplitManifest(rules={"a": 2}).hash


def test_rules_are_copied() -> None:
    rules = {"seen": ["red"]}
    manifest = SplitManifest(rules=rules)
    before = manifest.hash
    rules["seen"].append("blue")
    assert manifest.hash == before


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = SplitManifest(rules={"seen": ["red"]}).save(tmp_path / "manifest.json")
    data = json.loads(path.read_text())
    data["rules"]["seen"] = ["red", "blue"]
    path.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match="changed after it was frozen"):
        SplitManifest.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(DatasetError, match=r"m\.json"):
        SplitManifest.load(tmp_path / "m.json")


def test_missing_file_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split manifest"):
        SplitManifest.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="unknown split 'train'"):
        SplitManifest(names=("train",))
