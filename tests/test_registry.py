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


def test_a_class_is_given_those_offers_that_it_names(tmp_path: Path) -> None:
    class Named:
        @classmethod
        def from_pretrained(cls, folder: str, cache: object = None, **more: object) -> tuple[object, object]:
            return cache, more

    registry = Registry("part", "worldgym.parts")
    registry.register("named")(Named)
    (tmp_path / "config.json").write_text('{"type": "named"}')
    assert registry.load(tmp_path, offered={"cache": 1, "keys": 2}) == (1, {})
    assert registry.load(tmp_path, offered={"cache": 1}, other=3) == (1, {"other": 3})


def test_a_part_is_saved_only_so_that_it_can_be_loaded(tmp_path: Path) -> None:
    class Saved:
        def __init__(self, config: str) -> None:
            self.config = config

        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "config.json").write_text(self.config)

    registry = Registry("part", "worldgym.parts")
    registry.register("saved")(Saved)
    registry.save(Saved('{"type": "saved"}'), tmp_path)
    for config in ('{"type": "other"}', "{}"):
        with pytest.raises(ConfigError, match="registered as 'saved'"):
            registry.save(Saved(config), tmp_path)
    with pytest.raises(ConfigError, match="a Part cannot be saved"):
        registry.save(Part(), tmp_path)


def test_sources_are_told_without_importing_them() -> None:
    registry = Registry("part", "worldgym.parts")
    registry.register_lazily(broken="no.such.module:X")
    registry.register("alpha")(Part)
    assert registry.sources() == {"alpha": f"{__name__}:Part", "broken": "no.such.module:X"}
