"""One tiny bundle and one tiny demo run for all tests of this folder."""

from __future__ import annotations

import pytest
import torch
from tiny_bundle import make_tiny_bundle

from experiments.pipelines.demo import DemoSettings, run_demo


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    torch.set_num_threads(1)
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def demo(bundle, tmp_path_factory):
    """(folder, results) of a finished quick run."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(DemoSettings(out=out, bundle=str(bundle), quick=True))
