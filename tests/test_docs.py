"""The documentation site builds without a warning, and the example package in its guides works with every command."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType

import pytest

from experiments.cli import main
from worldgym import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "examples"]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]
THREE = ["--steps", "3", "--batch-size", "4"]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # CI builds the site by `make docs`
def test_the_site_builds_strictly(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install -e '.[docs]' -c constraints.txt")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'id="agents.' in (site / "api/agents.html").read_text(encoding="utf-8")
    assert "--rollout-horizon" in (site / "commands_options.html").read_text(encoding="utf-8")
    assert not (site / "examples").exists() and not (site / "hooks.py").exists()
    for page in [site / "index.html", site / "concepts/overview.html"]:
        assert not re.search(r"(?:src|href)=\"https?://[^\"]*\\.(?:css|js|woff2?)", page.read_text(encoding="utf-8"))


def test_every_page_is_in_the_navigation(hooks):
    listed = re.findall(r"[\w/.]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted([*(page.relative_to(DOCS).as_posix() for page in PAGES), *hooks.MADE]) == sorted(listed)


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_compiles(code):
    compile(code, "<guide>", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_page_loads_anything_from_elsewhere(page):
    assert not re.search(r"(!\[[^]]*\]\(|src=\")https?://", page.read_text(encoding="utf-8"))


def test_the_guides_show_the_files_of_the_example(hooks):
    shown = set()
    for page in (DOCS / "guides").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert hooks.with_examples(text) == text, f"{page.name} shows an old file; type: python docs/hooks.py"
        shown |= set(hooks.EXAMPLE.findall(text))
    files = {f"my_robot/{file.name}" for file in (DOCS / "examples/my_robot").glob("*.py")}
    assert shown == files - {"my_robot/__init__.py"}


def test_the_table_of_the_readme_is_the_generated_one():
    generated = (DOCS / "results/README.md").read_text(encoding="utf-8")
    table = re.sub(r"\]\((\w+\.md)\)", r"](docs/results/\1)", generated[generated.index("| claim |") :]).strip()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- results -->\n{table}\n<!-- /results -->" in readme
    assert len(readme.splitlines()) <= 150


# -- the example package, as its guides use it ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def my_robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package on the path with its entry points, as `pip install` leaves it; yields a folder for runs."""
    place, runs = tmp_path_factory.mktemp("site_packages"), tmp_path_factory.mktemp("my_robot_runs")
    shutil.copytree(DOCS / "examples/my_robot", place / "my_robot", ignore=shutil.ignore_patterns("__pycache__"))
    setup = configparser.ConfigParser(delimiters="=")
    setup.read(DOCS / "examples/setup.cfg", encoding="utf-8")
    info = place / "my_robot-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-robot\nVersion: 0.1\n")
    groups = setup["options.entry_points"].items()
    (info / "entry_points.txt").write_text("\n".join(f"[{group}]{points}\n" for group, points in groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setenv("PYTHONPATH", str(place), prepend=":")
        invalidate_caches()
        registry._entry_points.cache_clear()
        yield runs
    registry._entry_points.cache_clear()


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


@pytest.fixture(scope="module")
def bundle(my_robot: Path) -> Path:
    """The commands of the guides, small: from a suite to a checkpoint of own parts."""
    data, out = my_robot / "data", my_robot / "bundle"
    run("collect", "--suite", "my_robot", "--out", data, "--episodes", 12, "--workers", 0)
    for part, name in (("world-model", "my_world_model"), ("judge", "my_judge")):
        run("train", part, "--type", name, "--data", data, "--out", my_robot / name, *THREE)
    run(
        "train", "policy", "--type", "my_policy", "--data", data, "--out", my_robot / "my_policy", "--epochs", 1,
        "--finish-steps", 1, "--batch-size", 8,
    )  # fmt: skip
    run(
        "bundle", "--data", data, "--world-model", my_robot / "my_world_model/export", "--judge", my_robot / "my_judge",
        "--policy", my_robot / "my_policy", "--out", out, "--starts", 20,
    )  # fmt: skip
    return out


def test_the_parts_of_the_example_are_listed(my_robot, capsys):
    run("list")
    shown = capsys.readouterr().out
    for name in ("my_robot", "my_logs", "my_world_model", "my_judge", "my_policy"):
        assert f"  {name} " in shown


def test_the_example_suite_is_a_suite(my_robot):
    from worldgym.suite import load_suite

    env = load_suite("my_robot").make(3, chunk=5)
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (3, 32, 48, 3) and observation["state"].shape == (3, 2)
    env.step(env.action_space.sample())


def test_the_example_format_is_imported(my_robot, tmp_path):
    import numpy as np

    from worldgym.data import EpisodeDataset

    source = tmp_path / "recordings"
    source.mkdir()
    np.savez(
        source / "a.log.npz", frames=np.zeros((4, 32, 48, 3), np.uint8), metres=np.full((3, 2), 0.1, np.float32),
        positions=np.zeros((4, 2), np.float32), sentence="drive to the left lamp",
    )  # fmt: skip
    run("import", "--source", source, "--out", tmp_path / "mine")
    run("data", "check", tmp_path / "mine")
    episode = EpisodeDataset(tmp_path / "mine")[0]
    assert episode.success is None and np.allclose(episode.actions, 0.5)


def test_the_example_parts_are_fine_tuned_and_evaluated(bundle, tmp_path):
    run(
        "rl", "--bundle", bundle, "--learn", "all", "--out", tmp_path / "rl", "--iterations", 1, "--starts", 2,
        "--group", 2, "--rollout-horizon", 5, "--imitation-steps", 1, "--bc-batch", 4, "--threads", 1,
    )  # fmt: skip
    run(
        "eval", "--bundle", bundle, "--policy", "sft", tmp_path / "rl/policy", "--episodes", 2, "--horizon", 10,
        "--workers", 0, "--out", tmp_path / "eval.json",
    )  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_checkpoint_is_an_environment(bundle):
    import gymnasium as gym
    from gymnasium.utils.env_checker import check_env

    import worldgym  # noqa: F401

    env = gym.make("worldgym/Imagined-v0", checkpoint=str(bundle), horizon=10)
    check_env(env.unwrapped, skip_render_check=True)


def test_the_example_judge_rewards_the_bundled_world_model(my_robot, tmp_path):
    """From logs of the tabletop to `env.step`, as the guide to judges says."""
    import gymnasium as gym

    import worldgym  # noqa: F401

    run("collect", "--out", tmp_path / "data", "--episodes", 2, "--tasks", "reach", "--workers", 0)
    run("train", "judge", "--type", "my_judge", "--data", tmp_path / "data", "--out", tmp_path / "judge", *THREE)
    env = gym.make("worldgym/ImaginedTabletop-v0", reward=str(tmp_path / "judge"), chunk=5)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    assert info["judge_valid"] and 0 <= info["p_success"] <= 1
