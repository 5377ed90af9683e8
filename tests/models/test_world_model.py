"""Tokenizer, dynamics and world model: shapes, causality, caching, copies, disk."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.errors import CheckpointError
from worldgym.models import (
    Dynamics,
    DynamicsConfig,
    FrameTokenizer,
    ImaginedState,
    SamplerConfig,
    TokenizerConfig,
    VideoWorldModel,
    WorldModelConfig,
)
from worldgym.models.video.world_model import EXACT
from worldgym.protocols import WorldModel

TINY = WorldModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def model() -> VideoWorldModel:
    torch.manual_seed(0)
    model = VideoWorldModel(TINY)
    for p in model.dynamics.parameters():  # zero-initialised gates would hide mistakes
        p.data.add_(0.05 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


def _frames(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8))


def _begin(model: VideoWorldModel, n: int, seed: int = 0):
    return model.begin(_frames(n)[:, None], torch.zeros(n, 0, 4), torch.Generator().manual_seed(seed))


def _actions(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, k, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_tokenizer_latents_have_unit_rms_and_decode_to_frames():
    tokenizer = FrameTokenizer(TINY.tokenizer)
    z = tokenizer.encode(_frames(3))
    assert z.shape == (3, TINY.tokenizer.latent_channels, 8, 8)
    assert torch.allclose(z.square().mean(1), torch.ones(3, 8, 8), atol=1e-2)
    assert tokenizer.decode(z).shape == (3, 64, 64, 3) and tokenizer.decode(z).dtype == torch.uint8


def test_cached_steps_equal_the_parallel_pass_beyond_the_ring_buffer(model):
    net, b, t = model.dynamics, 2, 7  # window is 4: slots are overwritten
    torch.manual_seed(1)
    noisy, previous = torch.randn(b, t, 8, 8, 8), torch.randn(b, t, 8, 8, 8)
    level, actions, states = torch.rand(b, t), torch.randn(b, t, 4), torch.randn(b, t, 4)
    whole = net(noisy, previous, level, actions, states)
    cache = net.empty_cache(previous[:, 0], states[:, 0], torch.float32)
    for i in range(t):
        one = net.step(noisy[:, i], previous[:, i], level[:, i], actions[:, i], states[:, i], cache)
        cache.ring.advance()
        assert torch.allclose(one.latents, whole.latents[:, i], atol=1e-5)
        assert torch.allclose(one.states, whole.states[:, i], atol=1e-5)


def test_half_precision_stays_within_a_bound_of_full_for_five_frames():
    from worldgym.models import load_world_model
    from worldgym.pretrained import path

    with np.load(path("tabletop-small") / "starts.npz") as starts:
        frames, states = (torch.from_numpy(starts[name][:4])[:, None] for name in ("images", "states"))
    bundled, dreams = load_world_model("tabletop-small"), []
    for dtype in ("float32", "bfloat16"):
        bundled.with_dtype(dtype)
        state = bundled.begin(frames, torch.zeros(4, 0, 4), torch.Generator().manual_seed(0), states=states)
        dreams.append(bundled.step(state, _actions(4, 5))[1])
    full, half = dreams
    assert (full.latents - half.latents).square().mean().sqrt() < 0.03  # of latents with unit RMS
    assert (full.frames.float() - half.frames.float()).abs().mean() < 0.5  # of 255
    assert (full.states - half.states).abs().max() < 0.005  # metres


@given(n=st.integers(1, 3), c=st.integers(1, 4), side=st.integers(1, 4), by=st.sampled_from([1, 2, 4]))
@settings(max_examples=30, deadline=None)
def test_patches_are_folded_as_torch_does_it(n, c, side, by):
    from torch.nn.functional import pixel_unshuffle

    from worldgym.models.video.latent_shift import unshuffle
    from worldgym.nn import from_tokens, to_tokens

    grid = torch.randn(n, c, side * by, side * by)
    expected = pixel_unshuffle(grid, by)
    assert torch.equal(unshuffle(grid, by), expected)
    assert torch.equal(to_tokens(grid, by), expected.flatten(2).transpose(1, 2))
    assert torch.equal(from_tokens(to_tokens(grid, by), by), grid)


def test_the_future_does_not_reach_the_past(model):
    torch.manual_seed(1)
    args = [
        torch.randn(1, 5, 8, 8, 8),
        torch.randn(1, 5, 8, 8, 8),
        torch.rand(1, 5),
        torch.randn(1, 5, 4),
        torch.randn(1, 5, 4),
    ]
    before = model.dynamics(*args).latents
    changed = [a.clone() for a in args]
    for a in changed:
        a[:, 3:] += 1
    after = model.dynamics(*changed).latents
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3], after[:, 3])


def test_the_anchor_is_remembered_beyond_the_window_and_travels_with_forks(model):
    state = _begin(model, 2)
    other = state.replace(cache=state.cache.replace(anchor=state.cache.anchor.flip(0)))
    seven = _actions(2, 7)  # the window is 4
    frames, changed = (model.step(s, seven)[1].latents[:, -1] for s in (state, other))
    assert not torch.allclose(frames, changed, atol=1e-3)
    swapped = model.fork(state, torch.tensor([1, 0]))
    assert torch.equal(swapped.cache.anchor, state.cache.anchor.flip(0))
    merged = model.merge(state, torch.tensor([0]), model.fork(state, torch.tensor([1])))
    assert torch.equal(merged.cache.anchor, state.cache.anchor[[1, 1]])


def test_pure_noise_says_nothing(model):
    net, shape = model.dynamics, (3, 2, 8, 8, 8)
    torch.manual_seed(1)
    rest = (torch.randn(shape), torch.ones(3, 2), torch.randn(3, 2, 4), torch.randn(3, 2, 4))
    assert torch.equal(net(torch.randn(shape), *rest).latents, net(torch.zeros(shape), *rest).latents)


def test_what_was_carried_travels_with_forks_and_merges(model):
    state = _begin(model, 3)
    state.cache.motion.displacement.copy_(torch.arange(6.0).view(3, 2))
    forked = model.fork(state, torch.tensor([2, 0]))
    assert forked.cache.motion.displacement.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    merged = model.merge(state, torch.tensor([1]), model.fork(state, torch.tensor([2])))
    assert merged.cache.motion.displacement.tolist() == [[0.0, 1.0], [4.0, 5.0], [4.0, 5.0]]
    model.step(forked, _actions(2, 2))
    assert forked.cache.motion.displacement.tolist() == [
        [4.0, 5.0],
        [0.0, 1.0],
    ]  # a step leaves its argument alone


def test_a_grown_model_at_first_imagines_what_the_old_one_did():
    from worldgym.models.video.growth import grown

    torch.manual_seed(0)
    bare_motion = replace(TINY.dynamics.motion, warp_anchor=False)
    old = VideoWorldModel(replace(TINY, dynamics=replace(TINY.dynamics, motion=bare_motion))).eval()
    states = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    new = grown(old, states).eval()
    assert new.config.dynamics.motion.warp_anchor and grown(new, states) is new
    before, after = (m.step(_begin(m, 2), _actions(2, 3))[1].latents for m in (old, new))
    assert 0 < float((before - after).square().mean()) < 0.01  # latents have unit mean square
    bare = VideoWorldModel(replace(TINY, dynamics=replace(TINY.dynamics, motion=None)))
    with pytest.raises(ValueError, match="from scratch"):
        grown(bare, states)


def test_checkpoints_from_before_the_anchor_still_load(tmp_path):
    torch.manual_seed(0)
    config = replace(TINY, dynamics=replace(TINY.dynamics, anchor=False, motion=None))
    old = VideoWorldModel(config).eval()
    file = old.save_pretrained(tmp_path) / "config.json"
    (tmp_path / "manifest.json").unlink()  # such checkpoints had none
    saved = json.loads(file.read_text())
    for name in ("anchor", "motion"):
        del saved["dynamics"][name]
    del saved["specs"], saved["type"], saved["tokenizer"]["background"]
    saved["class"] = "VideoWorldModel"
    file.write_text(json.dumps(saved))
    again = VideoWorldModel.from_pretrained(tmp_path)
    shape = again.config.dynamics
    assert not shape.anchor and shape.motion is None
    assert [field.role for field in again.specs.observation.state] == ["other"] * 4
    assert _begin(again, 2).batch_size == 2


def test_checkpoints_that_moved_frames_through_pixels_say_what_to_do(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dynamics"]["motion"]
    config["dynamics"] |= {"moved": True, "held": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "manifest.json").unlink()  # such checkpoints had none
    with pytest.raises(CheckpointError, match="through pixels.*worldgym train world-model"):
        VideoWorldModel.from_pretrained(tmp_path)


def test_world_model_obeys_the_protocol_and_shapes(model):
    assert isinstance(model, WorldModel)
    state = _begin(model, 3)
    for decode, shown in (("all", 2), ("last", 1), ("none", 0)):
        after, imagined = model.step(state, _actions(3, 2), decode=decode)
        assert imagined.frames.shape == (3, shown, 64, 64, 3) and imagined.frames.dtype == torch.uint8
        assert imagined.latents.shape == (3, 2, 8, 8, 8) and imagined.states.shape == (3, 2, 4)
        assert imagined.uncertainty.shape == (3,) and (imagined.uncertainty >= 0).all()
        assert after.batch_size == 3


def test_steps_are_deterministic_and_leave_their_input_alone(model):
    state = _begin(model, 2)
    saved = state.cache.ring.keys.clone()
    first = model.step(state, _actions(2, 3))[1].latents
    assert torch.equal(state.cache.ring.keys, saved)
    assert torch.equal(first, model.step(state, _actions(2, 3))[1].latents)


def test_two_calls_equal_one_long_call(model):
    state, actions = _begin(model, 2), _actions(2, 6)
    whole = model.step(state, actions)[1].latents
    middle, first = model.step(state, actions[:, :2])
    second = model.step(middle, actions[:, 2:])[1]
    assert torch.equal(whole, torch.cat([first.latents, second.latents], 1))


def test_actions_and_noise_matter(model):
    state = _begin(model, 2)
    base = model.step(state, _actions(2, 2))[1].latents
    assert not torch.equal(base, model.step(state, _actions(2, 2, seed=1))[1].latents)
    assert not torch.equal(base, model.step(_begin(model, 2, seed=5), _actions(2, 2))[1].latents)


def test_forks_share_nothing_that_a_later_step_changes(model):
    state = _begin(model, 3)
    state, _ = model.step(state, _actions(3, 2))
    forked = model.fork(state, torch.tensor([2, 2, 0]))
    kept = forked.cache.ring.keys.clone()
    model.step(state, _actions(3, 2, seed=3))
    model.step(forked, _actions(3, 2, seed=4))
    assert torch.equal(forked.cache.ring.keys, kept)
    fresh = model.fork(state, torch.tensor([2, 2]), torch.Generator().manual_seed(0))
    assert fresh.keys[0] != fresh.keys[1]


def test_merge_replaces_rows(model):
    state, other = _begin(model, 3), _begin(model, 1, seed=9)
    state, _ = model.step(state, _actions(3, 2))
    merged = model.merge(state, torch.tensor([1]), other)
    assert torch.equal(merged.latent[1], other.latent[0]) and torch.equal(merged.latent[0], state.latent[0])
    assert merged.cache.count.tolist() == [2, 0, 2]
    alone = model.step(other, _actions(3, 2)[1:2])[1].latents[0]
    together = model.step(merged, _actions(3, 2))[1].latents[1]
    assert torch.allclose(alone, together, atol=0.05)  # bf16 rounds by batch size


def test_observe_overwrites_the_last_frame(model):
    state = _begin(model, 2)
    seen = _frames(2, seed=8)
    assert torch.equal(model.observe(state, seen).latent, model.tokenizer.encode(seen))


def test_a_masked_pass_costs_no_run_of_the_network_and_uses_the_last_answer(model):
    ran = []
    hook = model.dynamics.final.register_forward_hook(lambda *_: ran.append(1))
    usual = model.sampler
    try:
        dreams = {}
        for mask in ((), (True, False, True, False), (True, True, True, True)):
            model.with_sampler(steps=4, mask=mask)
            ran.clear()
            dreams[mask] = model.step(_begin(model, 2), _actions(2, 3))[1].latents
            assert len(ran) == 3 * (sum(mask) or 4)
    finally:
        hook.remove()
        model.sampler = usual
    assert torch.equal(dreams[()], dreams[(True,) * 4])
    assert not torch.equal(dreams[()], dreams[(True, False, True, False)])
    for bad in ((True,), (False, True)):
        with pytest.raises(ValueError, match="mask"):
            SamplerConfig(steps=2, mask=bad)
    assert SamplerConfig(**json.loads(json.dumps({"steps": 2, "mask": [True, False]}))).mask == (True, False)


def test_context_frames_are_remembered(model):
    frames = _frames(4).reshape(1, 4, 64, 64, 3)
    actions = torch.zeros(1, 3, 4)
    state = model.begin(frames, actions, torch.Generator().manual_seed(0))
    assert state.cache.count.tolist() == [3]


def test_save_and_load_give_the_same_dreams(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = VideoWorldModel.from_pretrained(tmp_path)
    rounded = copy.deepcopy(model)  # saved weights are rounded to bfloat16
    rounded.load_state_dict(
        {k: v if k.endswith(EXACT) else v.bfloat16().to(v.dtype) for k, v in model.state_dict().items()}
    )
    a = rounded.step(_begin(rounded, 2), _actions(2, 3))[1].latents
    assert torch.equal(a, again.step(_begin(again, 2), _actions(2, 3))[1].latents)


def test_missing_and_damaged_checkpoints_are_named(model, tmp_path):
    with pytest.raises(CheckpointError, match="holds no config.json"):
        VideoWorldModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        VideoWorldModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("frames", "actions", "words"),
    [
        (torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 0, 4), "resize"),
        (torch.zeros(1, 1, 64, 64, 3), torch.zeros(1, 0, 4), "uint8"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, 0, 4), "Tc"),
        (torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, 1, 4), "actions"),
    ],
)
def test_bad_starts_say_what_is_wrong(model, frames, actions, words):
    with pytest.raises(ValueError, match=words):
        model.begin(frames, actions)


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="patch"):
        DynamicsConfig(patch=3)
    with pytest.raises(ValueError, match="multiple of 8"):
        TokenizerConfig(image_size=60)
    with pytest.raises(ValueError, match="known"):
        WorldModelConfig.preset("huge")
    assert Dynamics(TINY.dynamics).config.tokens == 16


def test_rows_imagined_in_pieces_are_those_imagined_at_once(model, monkeypatch):
    """Several threads, each with its rows; their results keep the order, and the setting of threads is as before."""
    actions = _actions(7, 3)
    state = _begin(model, 7)
    monkeypatch.setattr("worldgym.models.latent_model.ROWS_PER_THREAD", 99)
    whole_state, whole = model.step(state, actions)
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr("worldgym.models.latent_model.ROWS_PER_THREAD", 2)
        after, pieces = model.step(state, actions, decode="all")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)
    assert torch.allclose(pieces.latents, whole.latents, atol=0.05)  # bf16: other sizes, other rounding
    assert torch.equal(after.cache.count, whole_state.cache.count)
    assert torch.equal(after.keys, state.keys) and pieces.frames.shape == whole.frames.shape
    again, _ = model.step(after, actions[:, :1], decode="none")  # what was joined can be gone on from
    assert (again.cache.count == 4).all()


def test_states_are_split_and_joined_without_loss(model):
    state, _ = model.step(_begin(model, 5), _actions(5, 2))
    again = ImaginedState.cat(state.split(2))
    for a, b in zip(again.tensors(), state.tensors(), strict=True):
        assert torch.equal(a, b)
