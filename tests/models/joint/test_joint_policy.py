"""Joint models as policies: densities, sampling options, SFT and GRPO, and the LeRobot interface."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from joint_cases import ACTIONS, STATE, model_of, observation

from agents.loading import load_policy
from agents.policies.joint import JointPolicy
from worldgym.errors import ConfigError
from worldgym.models.joint import FAMILIES
from worldgym.models.joint.sampling import Stream
from worldgym.nn import Reuse, transformer
from worldgym.protocols import TrainablePolicy
from worldgym.utils.compiling import has_compiler


@pytest.fixture(params=FAMILIES)
def policy(request):
    return model_of(request.param)


def sampled(policy, temperature=1.0, rows: int = 3, **more):
    return policy.act(
        observation(rows, **more), temperature=temperature, generator=torch.Generator().manual_seed(0)
    )


def test_densities_of_a_sample_are_exact_under_the_weights_that_drew_it(policy):
    assert isinstance(policy, TrainablePolicy)
    for temperature in (1.0, 0.5, 0.0):
        out = sampled(policy, temperature)
        assert out.actions.shape == (3, 3, ACTIONS) and (out.actions.abs() <= 1).all()
        again = policy.evaluate(observation(), out.trace)
        torch.testing.assert_close(again.log_probs["action"], out.log_probs["action"], rtol=1e-5, atol=1e-5)
        assert again.entropies["action"].shape == out.log_probs["action"].shape


def test_densities_change_with_the_weights_and_have_a_gradient(policy):
    out = sampled(policy)
    now = policy.log_prob_of(observation(), out)
    now.sum().backward()
    touched = sum(p.grad is not None and bool(p.grad.any()) for p in policy.network.parameters())
    assert touched > 20 and all(p.grad is None for p in policy.tokenizer.parameters())
    with torch.no_grad():
        policy.network.action_out.weight.mul_(0.9)
        policy.network.video_out.weight.mul_(0.9)
    assert (policy.log_prob_of(observation(), out) - now).abs().max() > 1e-3


def test_the_gradient_predicts_how_much_likelier_a_small_step_makes_a_sample(policy):
    out = sampled(policy)
    before = policy.log_prob_of(observation(), out).sum()
    before.backward()
    grads = [(p, p.grad) for p in policy.network.parameters() if p.grad is not None]
    square = float(sum(g.square().sum() for _, g in grads))
    with torch.no_grad():
        for p, g in grads:
            p += 0.01 / square * g  # to first order, a gain of 0.01 nats
        gain = float(policy.log_prob_of(observation(), out).sum() - before)
    assert gain == pytest.approx(0.01, rel=0.3)


def test_rows_do_not_depend_on_the_batch_and_greedy_actions_do_not_vary(policy):
    whole = sampled(policy, 0.0).actions
    part = observation()
    part = {"image": part["image"][1:2], "state": part["state"][1:2], "instruction": part["instruction"][1:2]}
    one = policy.act(part, temperature=0.0).actions
    torch.testing.assert_close(one, whole[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(whole, policy.act(observation(), temperature=0.0).actions)


@pytest.mark.parametrize("changed", ["image", "state", "instruction"])
def test_every_part_of_the_observation_counts(policy, changed):
    before, other = observation(), observation(seed=7)
    other["instruction"] = ["open the drawer"] * 3
    actions = [policy.act(o, temperature=0.0).actions for o in (before, {**before, changed: other[changed]})]
    assert (actions[0] - actions[1]).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["dreamzero", "fastwam", "gigaworld"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_cached_and_uncached_actions_agree(family, guidance):
    policy = model_of(family)
    cached = policy.with_sampling(cache=True, guidance=guidance).act(observation(), temperature=0.0).actions
    plain = policy.with_sampling(cache=False).act(observation(), temperature=0.0).actions
    torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-5)


def test_guidance_changes_the_actions_only_through_the_video():
    for family, moved in (("dreamzero", True), ("fastwam", False)):
        policy = model_of(family)
        plain = policy.act(observation(), temperature=0.0).actions
        guided = policy.with_sampling(guidance=5.0).act(observation(), temperature=0.0).actions
        assert ((plain - guided).abs().max() > 1e-5) == moved


def test_uwm_samples_actions_alone_or_with_the_frame():
    policy = model_of("uwm")
    alone = sampled(policy)
    assert not policy.config.samples_video
    together = sampled(policy.with_sampling(joint=True))
    assert policy.config.samples_video and (alone.actions - together.actions).abs().max() > 1e-5
    assert (
        model_of("dreamzero").config.samples_video
        and not model_of("fastwam").with_sampling(joint=True).config.samples_video
    )


def test_reused_velocities_save_passes_and_keep_exact_densities(policy, monkeypatch):
    passes = []
    forward = policy.network.forward
    monkeypatch.setattr(policy.network, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    policy.with_sampling(steps=8)
    sampled(policy)
    full = len(passes)
    passes.clear()
    policy.with_sampling(reuse=Reuse("static", 2))
    out = sampled(policy)
    assert full - len(passes) == 6
    again = policy.evaluate(observation(), out.trace)
    torch.testing.assert_close(again.log_probs["action"], out.log_probs["action"], rtol=1e-5, atol=1e-5)


def test_an_adaptive_plan_applies_to_greedy_actions_only():
    policy = model_of("dreamzero").with_sampling(steps=16, reuse=Reuse("adaptive", similar=(0.2, 0.1)))
    greedy = policy.act(observation(), temperature=0.0).actions
    assert (
        greedy - policy.with_sampling(reuse=Reuse()).act(observation(), temperature=0.0).actions
    ).abs().max() > 0
    policy.with_sampling(reuse=Reuse("adaptive", similar=(0.2, 0.1)))
    out = sampled(policy)
    again = policy.evaluate(
        {k: v[:1] for k, v in observation().items()}, {k: v[:1] for k, v in out.trace.items()}
    )
    torch.testing.assert_close(again.log_probs["action"], out.log_probs["action"][:1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32(policy):
    exact = policy.act(observation(), temperature=0.0).actions
    rounded = policy.with_sampling(dtype="bfloat16").act(observation(), temperature=0.0).actions
    assert 0 < (exact - rounded).abs().max() < 0.2


def test_compiled_actions_of_one_observation_are_those_of_the_plain_network(monkeypatch):
    if not has_compiler():
        pytest.skip("torch.compile needs a C++ compiler on a CPU; install g++")
    plain, compiled = (model_of("dreamzero").with_sampling(compile=on, steps=2) for on in (False, True))
    calls = []
    original = transformer.compiled_layers
    monkeypatch.setattr(transformer, "compiled_layers", lambda *args: (calls.append(1), original(*args))[1])
    for rows, passes in ((1, 2), (3, 0)):  # a batch is not what a robot waits for
        calls.clear()
        expected, found = (
            p.act(observation(rows), temperature=0.0).actions for p in (plain, compiled)
        )
        assert torch.allclose(expected, found, atol=1e-4) and len(calls) == passes


def test_a_compilation_that_fails_says_what_is_missing(monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fails(*args):
        raise InvalidCxxCompiler

    monkeypatch.setattr(transformer, "_compiled", lambda: fails)
    with pytest.raises(ConfigError, match=r"CXX names.*; or leave out --compile, or set compile=False"):
        model_of("gigaworld").with_sampling(compile=True).act(observation(1), temperature=0.0)


def test_supervised_training_lowers_the_error_of_demonstrated_chunks(policy):
    batch = {"observation": observation(), "actions": np.full((3, 3, ACTIONS), 0.5, np.float32)}
    batch["actions"][0, 2] = np.nan  # unknown
    before = policy.metrics(batch)
    optimizer = torch.optim.Adam(policy.parameters_of("all"), 2e-3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        policy.loss(batch)["action"].backward()
        optimizer.step()
    after = policy.metrics(batch)
    assert after["val_loss"] < 0.5 * before["val_loss"] and after["val_error"] < before["val_error"]


def test_hidden_tokens_can_be_read_and_trained(policy):
    hidden = policy.features(observation(), layer=0)
    assert hidden.shape[0] == 3 and hidden.shape[2] == policy.config.width and hidden.requires_grad
    with pytest.raises(ConfigError, match="has 2 layers"):
        policy.features(observation(), layer=2)


def test_one_folder_is_a_policy_and_a_world_model(tmp_path, policy):
    folder = policy.save_pretrained(tmp_path / "export")
    loaded = load_policy(folder)
    assert isinstance(loaded, JointPolicy) and all(p.requires_grad for p in loaded.network.parameters())
    assert torch.equal(loaded.act(observation(), temperature=0.0).actions, sampled(policy, 0.0).actions)


def test_actions_know_where_in_the_picture_something_is(tmp_path):
    """Attention alone is blind to where it found a value: without places, patches may be permuted with their angles."""
    from safetensors.torch import load_file, save_file

    policy = model_of("gigaworld")
    folder = policy.save_pretrained(tmp_path / "wam")
    seen = observation(2)
    before = policy.act(seen, temperature=0).actions
    tensors = load_file(folder / "model.safetensors")
    places = tensors.pop("network.frame_place")
    assert places.shape == (policy.config.patches, policy.config.width) and places.std() > 0
    save_file(tensors, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    older = JointPolicy.from_pretrained(folder)  # of a version without places
    assert not older.network.frame_place.any()
    assert not torch.equal(older.act(seen, temperature=0).actions, before)


def test_lerobots_interface_gives_one_action_after_another(policy):
    batch = {
        "observation.images.front": torch.from_numpy(observation()["image"]).movedim(-1, 1).float() / 255,
        "observation.state": torch.from_numpy(observation()["state"]), "task": observation()["instruction"],
    }  # fmt: skip
    chunk = policy.predict_action_chunk(batch)
    policy.reset()
    assert torch.equal(torch.stack([policy.select_action(batch) for _ in range(3)], 1), chunk)


def test_observations_that_do_not_fit_are_refused(policy):
    good = observation()
    with pytest.raises(ConfigError, match=r"state must be \(3, 4\)"):
        policy.act({**good, "state": np.zeros((3, STATE + 1), np.float32)})
    with pytest.raises(ConfigError, match="give one for each"):
        policy.act({**good, "instruction": ["one"]})
    with pytest.raises(ConfigError, match="temperature must be >= 0"):
        policy.act(good, temperature=-1.0)
    with pytest.raises(ConfigError, match="expected uint8"):
        policy.act({**good, "image": good["image"].astype(np.float32)})
    with pytest.raises(ConfigError, match="lacks 'state'"):
        policy.act({"image": good["image"], "instruction": good["instruction"]})
    with pytest.raises(ConfigError, match="learn='all'"):
        list(policy.parameters_of("goal"))
    with pytest.raises(ConfigError, match="lacks 'image_wrist'"):
        model_of(policy.config.family, cameras=2).act(good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stps": 2}, "sampling has no stps; it has steps"),
        ({"steps": 2.5}, "steps"),
        ({"guidance": float("nan")}, "NaN or infinity"),
        ({"reuse": "static"}, "try reuse="),
        ({"reuse": {"plan": "static", "passes": 6}}, "do not fit into 4 steps"),
        ({"video_end": -0.1}, "try video_end=0.8"),
    ],
)
def test_samplers_that_cannot_be_are_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of("uwm").with_sampling(**changes)


def levels_of(policy, monkeypatch, work) -> set[tuple[float, float]]:
    """Noise levels of frame and actions in all passes of the network."""
    found, forward = set(), policy.network.forward

    def watched(layout, rule, inputs, **more):
        found.update(zip(inputs.video_levels[:, -1].tolist(), inputs.action_levels[:, -1].tolist(), strict=True))
        return forward(layout, rule, inputs, **more)

    monkeypatch.setattr(policy.network, "forward", watched)
    work()
    return {(round(a, 3), round(b, 3)) for a, b in found}


@pytest.mark.parametrize(
    ("family", "changes", "frame"),
    [
        ("uwm", {}, lambda t: 1.0), ("uwm", {"levels": "coupled"}, lambda t: t), ("dreamzero", {}, lambda t: t),
        ("dreamzero", {"levels": "decoupled"}, lambda t: 0.5 + 0.5 * t), ("motus", {}, lambda t: 1.0),
    ],
)  # fmt: skip
def test_acting_and_its_loss_use_the_noise_levels_of_training(family, changes, frame, monkeypatch):
    policy = model_of(family, **changes).with_sampling(cache=False)
    acted = levels_of(policy, monkeypatch, lambda: policy.act(observation(), temperature=0.0))
    assert acted == {(round(frame(t), 3), t) for t in (1.0, 0.75, 0.5, 0.25)}
    batch = {"observation": observation(), "actions": np.full((3, 3, ACTIONS), 0.5, np.float32)}
    drawn = levels_of(policy, monkeypatch, lambda: policy.loss(batch))
    assert any(a == pytest.approx(frame(b), abs=2e-3) and b not in (1.0, 0.75, 0.5, 0.25, 0.0) for a, b in drawn)


def test_an_unused_velocity_of_the_video_does_not_decide_what_is_reused(monkeypatch):
    policy = model_of("uwm").with_sampling(steps=16, reuse=Reuse("adaptive"))
    asked = []
    kept = Stream.velocity
    monkeypatch.setattr(Stream, "velocity", lambda self, x, t: asked.append(len(self._velocity)) or kept(self, x, t))
    policy.act(observation(), temperature=0.0)
    assert set(asked) == {0, 1}  # before the first pass, and the actions alone


@pytest.mark.parametrize(("family", "passes"), [("uwm", 4), ("gigaworld", 4), ("dreamzero", 8)])
def test_guidance_costs_a_second_pass_only_where_video_is_sampled(family, passes, monkeypatch):
    policy, count = model_of(family).with_sampling(guidance=5.0, cache=False), []
    forward = policy.network.forward
    monkeypatch.setattr(policy.network, "forward", lambda *a, **k: count.append(1) or forward(*a, **k))
    policy.act(observation(), temperature=0.0)
    assert len(count) == passes
