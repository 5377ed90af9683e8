"""Parts are found by name, wherever they were registered; an unknown name lists the known ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldgym.errors import CheckpointError, ConfigError
from worldgym.registry import Registry


class Part:
    @classmethod
    def from_pretrained(cls, folder: str, **kwargs: object) -> tuple[str, object]:
        return Path(folder).name, kwargs


def test_a_saved_part_is_loaded_by_its_type(tmp_path: Path) -> None:
    registry = Registry("part", "worldgym.parts")
    registry.register("mine")(Part)
    (tmp_path / "config.json").write_text(json.dumps({"type": "mine"}))
    assert registry.load(tmp_path, cache=3) == (tmp_path.name, {"cache": 3})
    assert registry.name_of(Part) == "mine"


def test_lazy_names_are_imported_when_asked_for() -> None:
    registry = Registry("part", "worldgym.parts")
    registry.register_lazily(error="worldgym.errors:ConfigError", broken="no.such.module:X")
    assert registry.names() == ["broken", "error"]
    assert registry.get("error") is ConfigError
    with pytest.raises(ModuleNotFoundError):
        registry.get("broken")


def test_an_unknown_type_lists_what_is_known() -> None:
    registry = Registry("part", "worldgym.parts")
    registry.register("alpha")(Part)
    with pytest.raises(ConfigError, match="did you mean 'alpha'.*known types are alpha.*worldgym.parts"):
        registry.get("alpah")


def test_a_name_is_taken_once() -> None:
    registry = Registry("part", "worldgym.parts")
    registry.register("alpha")(Part)
    registry.register("alpha")(Part)  # the same class again, as a reloaded notebook cell does
    with pytest.raises(ConfigError, match="already"):
        registry.register("alpha")(ConfigError)


@pytest.mark.parametrize("config", [None, "[]", "{}", '{"type": 3}'])
def test_a_folder_without_a_type_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="part"):
        Registry("part", "worldgym.parts").load(tmp_path)


def test_a_folder_of_an_earlier_version_is_recognised(tmp_path: Path) -> None:
    registry = Registry("part", "worldgym.parts")
    registry.register("old")(Part)
    registry.legacy(lambda folder, config: "old" if "grid" in config else None)
    (tmp_path / "config.json").write_text('{"grid": 8}')
    assert registry.type_of(tmp_path) == "old"
