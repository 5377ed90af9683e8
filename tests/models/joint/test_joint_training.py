"""Training of joint models: what has a loss, noise levels, ten episodes learned by heart, resuming, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint_cases import config_of, episodes, model_of, specs

from agents.policies.joint import JointPolicy
from worldgym.errors import ConfigError
from worldgym.models.joint import FAMILIES
from worldgym.nn import Reuse, transformer
from worldgym.training.generic import PartTraining
from worldgym.training.joint import (
    JointEpisodes,
    JointTrainer,
    JointTraining,
    draw_batch,
    draw_levels,
    joint_loss,
    state_loss,
    window_odds,
)
from worldgym.training.loop import LoopConfig
from worldgym.training.tokenizer import train_tokenizer
from worldgym.utils.compiling import has_compiler


def terms(model, arrays, seed: int = 0, **settings):
    chosen = JointTraining(**settings)
    data = JointEpisodes.encode(model, arrays, chosen)
    batch = draw_batch(model, data, 16, torch.Generator().manual_seed(seed), chosen)
    return batch, joint_loss(model, model.network, batch, torch.Generator().manual_seed(1), chosen)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_end_with_the_frame_after_their_actions_and_shorter_ones_hide_the_rest(family):
    model = model_of(family, cut=0.5)
    arrays = episodes()
    batch, losses = terms(model, arrays)
    n, k = model.config.block_count, model.config.chunk
    assert batch.frames.shape[:2] == (16, n + 1) and batch.actions.shape[1:3] == (n, k)
    counts = batch.there[:, -1].sum(-1)
    assert {1, 2, 3} >= set(counts[batch.seen[:, -1]].tolist()) and len(set(counts.tolist())) > 1
    assert (batch.imitated <= batch.there).all()
    assert all(np.isfinite(float(value.detach())) for value in losses.values()) and set(losses) == {
        "video",
        "action",
    }


def test_failures_and_videos_without_actions_train_the_video_only():
    model = model_of("uwm", text_drop=0.0)
    arrays = episodes(successes=3)
    batch, _ = terms(model, arrays)
    data = JointEpisodes.encode(model, arrays, JointTraining())
    assert data.imitated.tolist() == [True] * 3 + [False] * 7 and data.acted.all()
    assert 0 < batch.imitated.any((1, 2)).sum() < 16 and batch.there.any((1, 2)).all()
    arrays = replace(arrays, behaviours=["expert"] * 2 + ["noisy"] * 8)
    assert JointEpisodes.encode(model, arrays, JointTraining()).imitated.sum() == 2
    assert JointEpisodes.encode(model, arrays, JointTraining("successful")).imitated.sum() == 3
    everyone = JointEpisodes.encode(model, arrays, JointTraining("all"))
    assert everyone.imitated.all()
    arrays.actions[arrays.offsets[0] : arrays.offsets[5]] = np.nan  # five videos
    arrays = replace(arrays, has_action=np.array([False] * 5 + [True] * 5))
    mixed, losses = terms(model, arrays, imitate="all")
    assert not mixed.imitated[~mixed.acted].any() and 0 < mixed.acted.sum() < 16
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.network.parameters())


def test_a_share_of_the_windows_begins_in_imitated_episodes():
    model = model_of("uwm", text_drop=0.0)
    counts = {}
    for share in (0.0, 0.5, 1.0):
        chosen = JointTraining(imitated_share=share)
        data = JointEpisodes.encode(model, episodes(successes=1), chosen)
        batch = draw_batch(model, data, 400, torch.Generator().manual_seed(0), chosen)
        counts[share] = batch.imitated.any((1, 2)).float().mean().item()
    assert counts[0.0] == pytest.approx(0.1, abs=0.05) and counts[0.5] == pytest.approx(0.5, abs=0.1)
    assert counts[1.0] == 1.0


@given(
    kinds=st.lists(st.sampled_from(["imitated", "other", "video"]), min_size=1, max_size=6),
    imitated=st.sampled_from([0.0, 0.3, 0.6]), video=st.sampled_from([None, 0.0, 0.3]), seed=st.integers(0, 9),
)  # fmt: skip
def test_windows_are_shared_between_demonstrations_video_and_the_rest(kinds, imitated, video, seed):
    frames = np.random.default_rng(seed).integers(1, 30, len(kinds))
    shown, acted = (np.array([kind in names for kind in kinds]) for names in (("imitated",), ("imitated", "other")))
    settings = JointTraining(imitated_share=imitated, video_share=video)
    mass = window_odds(shown, acted, frames, settings) * frames
    wanted = {"imitated": imitated or None, "video": video}
    fixed = {kind for kind in kinds if wanted.get(kind) is not None}
    for kind in fixed:
        assert mass[np.array(kinds) == kind].sum() == pytest.approx(wanted[kind])
    rest = ~np.isin(kinds, list(fixed))
    if rest.any():
        assert mass.sum() == pytest.approx(1)
        assert np.allclose(mass[rest] / frames[rest], mass[rest][0] / frames[rest][0]), "the rest is drawn alike"


def test_the_instruction_is_dropped_from_a_share_of_the_windows_which_are_not_imitated_then():
    model = model_of("uwm", text_drop=0.5)
    batch, _ = terms(model, episodes())
    none = (batch.words == 0).all(1)
    assert 0 < none.sum() < 16 and not batch.imitated[none].any()


@pytest.mark.parametrize("levels", ["coupled", "independent", "decoupled", "high_noise"])
def test_noise_levels_follow_the_published_distributions(levels):
    config = config_of("dreamzero", levels=levels)
    video, action = draw_levels(config, 4000, torch.Generator().manual_seed(0))
    assert (
        video.shape == (4000, 2)
        and 0 <= min(video.min(), action.min())
        and max(video.max(), action.max()) <= 1
    )
    means = {"coupled": None, "independent": None, "decoupled": (7 / 8, 1 / 2), "high_noise": (3 / 4, 3 / 4)}[
        levels
    ]
    if levels == "coupled":
        assert torch.equal(video, action)
    else:
        assert abs(float(torch.corrcoef(torch.stack([video.flatten(), action.flatten()]))[0, 1])) < 0.05
    if means is not None:
        assert float(video.mean()) == pytest.approx(means[0], abs=0.02)
        assert float(action.mean()) == pytest.approx(means[1], abs=0.02)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer that was trained on the frames of the episodes."""
    loop = LoopConfig(steps=150, lr=3e-3, ema=0.9, warmup=10)
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(episodes().frames, config_of("uwm").tokenizer, loop, folder)


def trained(family, tokenizer, folder, steps: int, compiled: bool = False, **changes) -> JointPolicy:
    torch.manual_seed(0)
    model = JointPolicy(replace(config_of(family, **changes), tokenizer=tokenizer.config))
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    model.tokenizer.requires_grad_(False)
    loop = LoopConfig(steps=steps, lr=4e-3, warmup=10)
    JointTrainer.fit(model, episodes(), PartTraining(loop, 32, compile=compiled), folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_episodes_are_learned_by_heart(family, tokenizer, tmp_path):
    model, arrays = trained(family, tokenizer, tmp_path, 800), episodes()
    first = arrays.offsets[:-1]
    seen = {
        "image": arrays.frames[first], "state": arrays.states[first], "instruction": arrays.instructions,
    }  # fmt: skip
    wanted = torch.from_numpy(np.stack([arrays.actions[i : i + 3] for i in first]))
    off = (model.act(seen, temperature=0.0).actions - wanted).abs().mean()
    assert off < 0.3 * wanted.abs().mean()
    if family == "fastwam":
        return
    frames, states = (torch.from_numpy(x) for x in (arrays.frames, arrays.states))
    state = model.begin(frames[first][:, None], torch.zeros(10, 0, 3), states=states[first][:, None])
    imagined = model.step(state, wanted, decode="last")[1]
    true = frames[first + 3].float()
    error = (imagined.frames[:, 0].float() - true).square().mean()
    still = (frames[first].float() - true).square().mean()
    assert error < 0.5 * still
    assert (imagined.states[:, -1] - states[first + 3]).abs().mean() < 0.1


def test_training_resumes_with_the_same_result(tokenizer, tmp_path, monkeypatch):
    whole = trained("dreamzero", tokenizer, tmp_path / "whole", 6)
    from worldgym.training import joint

    calls, kept = [], joint.joint_loss

    def stopped(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return kept(*args)

    monkeypatch.setattr(joint, "joint_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained("dreamzero", tokenizer, tmp_path / "cut", 6)
    resumed = trained("dreamzero", tokenizer, tmp_path / "cut", 6)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_compiled_training_computes_the_same_numbers(tokenizer, tmp_path, monkeypatch):
    if not has_compiler():
        pytest.skip("torch.compile needs a C++ compiler on a CPU; install g++")
    calls, original = [], transformer.compiled_layers
    monkeypatch.setattr(transformer, "compiled_layers", lambda *args: (calls.append(1), original(*args))[1])
    plain, compiled = (
        trained("dreamzero", tokenizer, tmp_path / str(on), 3, compiled=on) for on in (False, True)
    )
    assert len(calls) == 3
    for a, b in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_without_the_video_loss_the_frame_is_not_trained(tokenizer, tmp_path):
    model = trained("fastwam", tokenizer, tmp_path, 3, video_coef=0.0)
    assert (model.network.video_out.weight == 0).all() and (model.network.action_out.weight != 0).any()


def test_a_velocity_cache_of_a_trained_model_changes_actions_a_little(tokenizer, tmp_path):
    model = trained("uwm", tokenizer, tmp_path, 20).with_sampling(steps=16)
    seen = {"image": episodes().frames[:4], "state": episodes().states[:4], "instruction": ["go"] * 4}
    exact = model.act(seen, temperature=0.0).actions
    reused = model.with_sampling(reuse=Reuse("static", 8)).act(seen, temperature=0.0).actions
    assert 0 < (exact - reused).abs().max() < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "dreamone"}, "unknown family"),
        ({"imitate": "nobody"}, "imitate"),
        ({"context_noise": -1.0}, "must not be negative"),
        ({"colour": 1}, "colour"),
        ({"action_dim": 7}, "action_dim can't be set"),
    ],
)
def test_settings_that_do_not_exist_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        JointTrainer.for_data(specs(), "tiny", episodes(), initial="tabletop-small", settings=settings)


def test_a_tokenizer_is_needed_and_must_fit_the_frames():
    with pytest.raises(ConfigError, match="--initial"):
        JointTrainer.for_data(specs(), "tiny", episodes())
    with pytest.raises(ConfigError, match="pictures of"):
        JointTrainer.for_data(specs(), "tiny", episodes(), initial="tabletop-small")
    with pytest.raises(ConfigError, match="leave one out"):
        JointTrainer.for_data(specs(), "tiny", episodes(), initial="tabletop-small", tokenizer="runs/tokenizer")
    with pytest.raises(ConfigError, match="imitate=all"):
        JointEpisodes.encode(model_of("uwm"), episodes(successes=0), JointTraining())


def test_logs_that_cannot_teach_say_why():
    model, nobody = model_of("uwm"), np.zeros(10, bool)
    with pytest.raises(ConfigError, match="none of the 10 episodes has actions"):
        JointEpisodes.encode(model, replace(episodes(), has_action=nobody), JointTraining("all"))
    with pytest.raises(ConfigError, match="try --settings chunk=5"):
        JointEpisodes.encode(model_of("uwm", chunk=12), episodes(), JointTraining())
    half = np.arange(10) < 5  # the experts' actions are missing
    arrays = replace(episodes(), has_action=half, behaviours=["noisy"] * 5 + ["expert"] * 5)
    assert JointEpisodes.encode(model, arrays, JointTraining()).imitated.sum() == 5


def test_the_residual_starts_from_the_frame_that_the_network_gets(monkeypatch):
    from worldgym.training import joint

    seen = {}
    kept = joint.residual_velocity
    monkeypatch.setattr(joint, "residual_velocity", lambda o, x, b, *more: seen.update(b=b) or kept(o, x, b, *more))
    model = model_of("uwm")
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda s, r, i, **k: seen.update(n=i.before) or forward(s, r, i, **k))
    batch, _ = terms(model, episodes(), context_noise=0.5)
    assert torch.equal(seen["b"], seen["n"]) and not torch.equal(seen["b"], batch.frames[:, :-1])


def test_proprioception_may_be_missing():
    model = model_of("uwm")
    assert float(joint_state_loss(model, 4)) > 0
    model.config = replace(model.config, state_mean=(), state_std=())
    assert float(joint_state_loss(model, 0)) == 0.0


def joint_state_loss(model, columns: int) -> torch.Tensor:
    arrays = replace(episodes(), states=episodes().states[:, :columns])
    data = JointEpisodes.encode(model, arrays, JointTraining())
    return state_loss(model, data, 8, torch.Generator().manual_seed(0)).detach()
