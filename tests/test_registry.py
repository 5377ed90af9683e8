"""Parts are found by name, wherever they were registered; an unknown name lists the known ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worldgym.errors import CheckpointError, ConfigError
from worldgym.registry import REGISTRIES, Registry, _entry_points


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


# -- entry points of other packages ------------------------------------------------------------------------------------
@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put a distribution on the path: `install("name", {"module.py": text}, entry="module:Attribute")`."""

    def add(package: str, files: dict[str, str], **points: str) -> None:
        site = tmp_path / package
        info = site / f"{package}-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[worldgym.parts]\n{lines}\n")
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        monkeypatch.syspath_prepend(str(site))
        _entry_points.cache_clear()

    before = set(sys.modules)
    yield add
    for name in set(sys.modules) - before:
        if name.startswith("other_"):
            del sys.modules[name]
    _entry_points.cache_clear()


GOOD = "class A:\n    pass\nclass B:\n    pass\n"


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("def (", "other_bad:A", r"SyntaxError: invalid syntax .*pip uninstall other"),
        ("raise RuntimeError('no licence')", "other_bad:A", "RuntimeError: no licence"),
        ("import sys\nsys.exit('bye')", "other_bad:A", "SystemExit: bye"),
        (GOOD, "other_bad:Nope", "AttributeError: .*'other_bad' has no attribute 'Nope'"),
        (
            "import no_such_lib",
            "other_bad:A",
            "the package 'no_such_lib' is missing.*pip install no_such_lib",
        ),
        (
            "import json.no_such",
            "other_bad:A",
            "'json.no_such' is missing, but its package 'json' is installed",
        ),
        (GOOD, "other_gone:A", "the module 'other_gone' is missing; correct that package"),
        (GOOD, "not a module", "'not a module', expected MODULE:CLASS"),
    ],
)
def test_a_broken_entry_point_is_an_error_of_its_own_name_alone(install, caplog, text, value, said) -> None:  # type: ignore[no-untyped-def]
    install("other", {"other_bad.py": text, "other_good.py": GOOD}, bad=value, good="other_good:B")
    registry = Registry("part", "worldgym.parts")
    with pytest.raises(
        ConfigError, match=f"part type 'bad'.*of the package other 0.1, which failed: .*{said}"
    ) as got:
        registry.get("bad")
    assert got.value.__cause__ is not None
    assert [name for name, _ in registry.available()] == ["good"]
    assert [name for name, _ in registry.available()] == ["good"]
    assert sum("skipped" in record.message for record in caplog.records) == 1
    assert registry.names() == ["bad", "good"] and registry.sources()["bad"] == value
    assert registry.name_of(type("A", (), {})) is None
    assert registry.name_of(registry.get("good")) == "good"


def test_a_missing_submodule_is_named_and_not_its_package(install) -> None:  # type: ignore[no-untyped-def]
    install("other", {"other_parts/__init__.py": ""}, bad="other_parts.judges:A")
    with pytest.raises(
        ConfigError, match=r"the module 'other_parts\.judges' is missing; .*pip uninstall other"
    ):
        Registry("part", "worldgym.parts").get("bad")


def test_two_packages_of_one_name_clash_unless_they_mean_the_same_class(install) -> None:  # type: ignore[no-untyped-def]
    install("other_1", {"other_a.py": GOOD}, part="other_a:A", shared="other_a:B", own="other_a:A")
    install("other_2", {"other_b.py": GOOD}, part="other_b:A", shared="other_a:B", own="other_b:A")
    registry = Registry("part", "worldgym.parts")
    registry.register_lazily(own="worldgym.errors:ConfigError")
    with pytest.raises(ConfigError, match="2 packages register the part type 'part'") as got:
        registry.get("part")
    assert "other_a:A of the package other_1 0.1" in str(got.value)
    assert "other_b:A of the package other_2 0.1" in str(got.value)
    assert registry.get("shared").__name__ == "B" and registry.get("own") is ConfigError
    sources = registry.sources()
    assert "other_1" in sources["part"] and "other_2" in sources["part"] and "clash" in sources["part"]
    assert sources["own"].startswith("worldgym.errors:ConfigError (built in; it hides ")
    assert [name for name, _ in registry.available()] == ["own", "shared"]


def test_malformed_metadata_of_one_package_leave_the_others(install, tmp_path) -> None:  # type: ignore[no-untyped-def]
    install("other", {"other_good.py": GOOD}, good="other_good:A")
    install("other_broken", {}, bad="other_good:A")
    (tmp_path / "other_broken/other_broken-0.1.dist-info/entry_points.txt").write_text(
        "[worldgym.parts]\nno sign\n"
    )
    registry = Registry("part", "worldgym.parts")
    assert registry.names() == ["good"] and registry.get("good").__name__ == "A"


def test_a_name_that_is_built_in_or_installed_is_taken(install) -> None:  # type: ignore[no-untyped-def]
    install("other", {"other_good.py": GOOD}, theirs="other_good:A")
    registry = Registry("part", "worldgym.parts")
    registry.register_lazily(own="worldgym.errors:ConfigError", short="worldgym.registry:ConfigError")
    for name, said in (
        ("own", "worldgym.errors:ConfigError, which is built in"),
        ("theirs", "of the package other 0.1"),
    ):
        with pytest.raises(ConfigError, match=f"part type {name!r} is already .*{said}.* by another name"):
            registry.register(name)(Part)
    for name in ("own", "short"):  # the same class again, also by a module that only imports it
        assert registry.register(name)(ConfigError) is registry.get(name)
    loaded = registry.get("theirs")
    assert registry.register("theirs")(loaded) is loaded
    with pytest.raises(ConfigError, match="already other_good:A"):
        registry.register("theirs")(Part)


def test_built_in_types_of_every_kind_are_taken() -> None:
    for registry in REGISTRIES:
        for name in registry.names():
            if name in registry._lazy:
                with pytest.raises(ConfigError, match="built in|already"):
                    registry.register(name)(Part)
