"""Training an ensemble of one trunk: every member on its own sample of episodes, in the same steps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import main
from worldgym.data import EpisodeDataset
from worldgym.models import load_world_model
from worldgym.models.tokenizers.saved import write_tokenizer
from worldgym.training.chunk import ChunkTraining, picture_loss
from worldgym.training.chunk_data import ChunkEpisodes, labels
from worldgym.training.chunk_positions import position_loss
from worldgym.training.world_model import LatentEpisodes

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from test_chunk_members import ensemble  # noqa: E402
from test_chunk_world_model import PARTS  # noqa: E402


def logs(model, counts: list[list[float]]) -> ChunkEpisodes:
    """Random logs of as many episodes of 20 actions as a row of `counts` has."""
    rng = torch.Generator().manual_seed(0)
    episodes, frames = len(counts[0]), 21 * len(counts[0])
    grid, channels = model.config.cells, model.config.tokenizer.latent_channels
    latents = torch.randn(frames, channels, *grid, generator=rng).bfloat16()
    actions = torch.rand(frames, model.action_dim, generator=rng) * 2 - 1
    states = torch.randn(frames, model.state_dim, generator=rng)
    data = LatentEpisodes(latents, actions, states, np.arange(episodes + 1) * 21)
    where = torch.rand(frames, len(PARTS), 2, generator=rng)
    return ChunkEpisodes(data, where, torch.ones(frames, len(PARTS)), torch.tensor(counts))


def without_counts(data: ChunkEpisodes) -> ChunkEpisodes:
    return replace(data, counts=None)


def moves(part: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


@pytest.mark.parametrize("rollout", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_member_learns_from_its_own_episodes_only(rollout, seed):
    model = ensemble().requires_grad_(True)
    model.tokenizer.requires_grad_(False)
    data = logs(model, [[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    generator = torch.Generator().manual_seed(seed)
    loss, facts = picture_loss(model, data, ChunkTraining(batch=8, chunks=2), None, rollout, generator)
    loss.backward()
    first, none, some = model.picture, *model.picture.others
    assert moves(first.final) and moves(first.stem) and moves(some) and not moves(none)
    assert all(np.isfinite(value) for value in facts.values())


def test_the_motion_of_objects_is_learned_from_the_same_samples():
    model = ensemble().requires_grad_(True)
    data = logs(model, [[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    index, mask, _, _ = data.episodes.draw(8, 10, torch.Generator().manual_seed(0))
    given = labels(model, data, index, mask, 5)
    assert given.counts.shape == (3, 8) and float(given.counts[1].abs().max()) == 0.0
    position_loss(model, given, 5, True)[0].backward()
    first, none, some = model.motions
    assert moves(first) and moves(some) and not moves(none) and moves(model.kinematics)


def test_without_samples_all_members_learn_from_everything():
    model = ensemble().requires_grad_(True)
    model.tokenizer.requires_grad_(False)
    data, generator = without_counts(logs(model, [[1.0, 1.0]])), torch.Generator().manual_seed(0)
    picture_loss(model, data, ChunkTraining(batch=8, chunks=2), None, False, generator)[0].backward()
    index, mask, _, _ = data.episodes.draw(8, 10, generator)
    position_loss(model, labels(model, data, index, mask, 5), 5, True)[0].backward()
    assert all(moves(part) for part in (model.picture, *model.picture.others, *model.motions))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Logs, and an ensemble that was trained on them from the bundled world model."""
    folder = tmp_path_factory.mktemp("ensemble")
    collect = ["--episodes", "6", "--tasks", "reach", "--mix", "expert=1", "--workers", "0"]
    assert main(["collect", "--out", str(folder / "data"), *collect]) == 0
    assert main([*line(folder), "--settings", "members=3", "--out", str(folder / "three")]) == 0
    return folder


def line(folder: Path, initial: str = "tabletop-small") -> list[str]:
    common = ["train", "world-model", "--type", "chunk", "--data", str(folder / "data"), "--initial", initial]
    return [*common, "--steps", "5", "--batch-size", "2"]


def test_the_command_trains_members_that_differ(run):
    model = load_world_model(run / "three" / "export")
    assert model.config.members == 3
    a, b = (ending.state_dict() for ending in model.picture.others)
    assert any(not torch.equal(a[name], b[name]) for name in a)
    frames, none = torch.zeros(6, 1, 64, 64, 3, dtype=torch.uint8), torch.zeros(6, 0, 4)
    state = model.begin(frames, none, torch.Generator().manual_seed(0), states=torch.zeros(6, 1, 4))
    imagined = model.step(state, torch.ones(6, 5, 4), decode="last")[1]
    assert bool((imagined.uncertainty > 0).all())


def test_an_ensemble_is_trained_further_with_its_members(run):
    initial = str(run / "three" / "export")
    assert main([*line(run, initial), "--out", str(run / "further")]) == 0
    assert load_world_model(run / "further" / "export").config.members == 3


def test_an_ensemble_of_another_tokenizer_keeps_its_members(run):
    from worldgym.models.chunk.building import for_data

    first = load_world_model(run / "three" / "export")
    write_tokenizer(first.tokenizer, run / "tokenizer", {})
    dataset = EpisodeDataset(run / "data")
    more = {"initial": run / "three" / "export", "tokenizer": run / "tokenizer"}
    model = for_data(dataset.specs, "small", dataset.load_arrays(), **more)
    assert model.config.members == 3
    a, b = (ending.state_dict() for ending in model.picture.others)
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("initial", "settings", "said"), [
    ("three/export", "members=2", "leave out --settings to train it further"),
    ("", "membres=3", "did you mean 'members'"), ("", "members=many", "members"), ("", "members=0", "at least 1"),
    ("", "own_layers=9", "own_layers is 9"),
])  # fmt: skip
def test_other_settings_are_refused_and_the_folder_is_given_back(run, capsys, initial, settings, said):
    where = str(run / initial) if initial else "tabletop-small"
    out = run / "refused"
    assert main([*line(run, where), "--settings", settings, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err and not (out / "run.json").exists()
