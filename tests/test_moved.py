"""Modules of earlier versions are importable under their earlier names, with a warning, and are the same modules."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

from worldgym.moved import MOVED, NAMES


@pytest.mark.parametrize("new", sorted(set(MOVED.values())))
def test_every_new_name_is_a_module(new: str) -> None:
    assert importlib.util.find_spec(new) is not None


@pytest.mark.parametrize(
    "old", ["agents.grpo", "agents.heads.bins", "rewards.http", "experiments.collecting", "worldgym.imagination.sb3"]
)
def test_an_earlier_name_gives_the_same_module_and_warns(old: str) -> None:
    code = (
        "import warnings, importlib, sys\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    earlier = importlib.import_module({old!r})\n"
        "assert any(issubclass(w.category, DeprecationWarning) and 'is now' in str(w.message) for w in caught)\n"
        "assert sys.modules[earlier.__spec__.name] is earlier, earlier.__spec__.name\n"
        f"assert earlier.__name__ != {old!r}\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_earlier_attributes_warn_and_unknown_ones_are_errors() -> None:
    import worldgym.data

    with pytest.warns(DeprecationWarning, match="is now"):
        spec = worldgym.data.TABLETOP_ACTION_SPEC
    assert spec.dim == 4 and NAMES
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        worldgym.data.Nothing  # noqa: B018


def test_renamed_keyword_arguments_work_with_a_warning():
    from rewards import JudgeTrainConfig
    from worldgym.moved import renamed_arguments

    with pytest.warns(DeprecationWarning, match="imagined_share"):
        assert JudgeTrainConfig(dream_share=0.25).imagined_share == 0.25

    @renamed_arguments(dreams="imagined")
    def train(arrays, *, imagined=None):
        return arrays, imagined

    with pytest.warns(DeprecationWarning, match="train.imagined="):
        assert train(1, dreams=2) == (1, 2)
    assert train(1, imagined=2) == (1, 2)
