"""Joint models as world models: the protocol, the environment, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from joint_cases import ACTIONS, SIDE, STATE, WORLDS, config_of, model_of

from worldgym.errors import CheckpointError, ConfigError
from worldgym.imagination import ArrayStarts, WorldModelVectorEnv
from worldgym.models import load_world_model
from worldgym.models.joint import JointConfig, JointSampling
from worldgym.nn import Reuse
from worldgym.protocols import Judgement, WorldModel


@pytest.fixture(scope="module", params=WORLDS)
def model(request):
    return model_of(request.param)


def start(model, rows: int = 3, frames: int = 1):
    g = torch.Generator().manual_seed(1)
    shown = torch.randint(0, 256, (rows, frames, SIDE, SIDE, 3), generator=g, dtype=torch.uint8)
    acted = 2 * torch.rand(rows, frames - 1, ACTIONS, generator=g) - 1
    states = torch.randn(rows, frames, STATE, generator=g)
    more = {}
    if len(model.specs.observation.cameras) == 2:
        more = {"views": {"wrist": shown.flip(0)}}
    return model.begin(shown, acted, torch.Generator().manual_seed(5), states=states, **more)


def actions_of(rows: int = 3, steps: int = 6, seed: int = 2) -> torch.Tensor:
    return 2 * torch.rand(rows, steps, ACTIONS, generator=torch.Generator().manual_seed(seed)) - 1


def same(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_it_predicts_what_is_asked_for(model):
    assert isinstance(model, WorldModel)
    state, actions = start(model), actions_of(steps=5)
    latents = {}
    for decode, frames in (("all", 5), ("last", 1), ("none", 0)):
        after, imagined = model.step(state, actions, decode=decode)
        assert imagined.frames.shape == (3, frames, SIDE, SIDE, 3) and imagined.frames.dtype == torch.uint8
        assert imagined.states.shape == (3, 5, STATE)
        assert imagined.uncertainty.shape == (3,) and (imagined.uncertainty > 0).all()
        latents[decode] = after.latent
    same(latents["all"], latents["last"])
    same(latents["none"], latents["last"])


def test_several_cameras_share_one_picture():
    model = model_of("gigaworld", cameras=2)
    state = start(model)
    after, imagined = model.step(state, actions_of(steps=3))
    assert imagined.views["wrist"].shape == (3, 3, SIDE, SIDE, 3)
    assert model.render_views(after)["wrist"].shape == (3, SIDE, SIDE, 3)


def test_the_next_frame_depends_on_the_actions(model):
    state, actions = start(model), actions_of(steps=3)
    one, other = model.step(state, actions)[0], model.step(state, -actions)[0]
    assert (one.latent - other.latent).abs().max() > 1e-3


def test_whole_chunks_may_be_stepped_together_or_apart(model):
    state, actions = start(model), actions_of(steps=9)
    together, whole = model.step(state, actions, decode="last")
    apart, states = state, []
    for part in actions.split([3, 6], 1):
        apart, imagined = model.step(apart, part, decode="last")
        states.append(imagined.states)
    same(together.latent, apart.latent)
    same(whole.states, torch.cat(states, 1))
    assert together.known.tolist() == apart.known.tolist()


def test_rows_do_not_disturb_one_another(model):
    state, actions = start(model), actions_of(steps=6)
    far, _ = model.step(state, actions[:, :3])
    mixed = model.merge(
        model.step(far, actions)[0], torch.tensor([2, 0]), model.fork(far, torch.tensor([1, 2]))
    )
    together, _ = model.step(mixed, actions)
    alone, _ = model.step(model.fork(far, torch.tensor([1, 2])), actions[[2, 0]])
    same(together.latent[[2, 0]], alone.latent)


def test_a_step_leaves_its_state_as_it_was_and_forks_share_their_source_noise(model):
    state, actions = start(model), actions_of(steps=3)
    first, _ = model.step(state, actions)
    kept = first.clone()
    again, _ = model.step(first, actions)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), kept.tensors(), strict=True))
    one, _ = model.step(model.fork(first, torch.tensor([1])), actions[1:2])
    same(one.latent, again.latent[1:2])
    copies = model.fork(first, torch.tensor([1, 1]), torch.Generator().manual_seed(9))
    latents = model.step(copies, actions[[1, 1]])[0].latent
    assert (latents[0] - latents[1]).abs().max() > 1e-3


def test_a_seen_frame_replaces_the_imagined_one_in_the_context(model):
    state, actions = start(model), actions_of(steps=3)
    first, _ = model.step(state, actions)
    seen = torch.full((3, SIDE, SIDE, 3), 200, dtype=torch.uint8)
    after = model.observe(first, seen, torch.zeros(3, STATE))
    known = int(after.known[0])
    assert torch.equal(after.context[:, known - 1], after.latent) and not torch.equal(
        after.latent, first.latent
    )
    assert torch.equal(after.context[:, : known - 1], first.context[:, : known - 1])
    assert (after.states == 0).all()


def test_dreamzero_remembers_as_many_chunks_as_it_has_blocks():
    model = model_of("dreamzero")
    state = start(model, frames=7)
    assert state.known.tolist() == [2, 2, 2]  # frames 3 and 6 of 0..6, one chunk apart
    after, _ = model.step(state, actions_of(steps=3))
    assert after.known.tolist() == [2, 2, 2] and torch.equal(after.context[:, 0], state.latent)
    short, _ = model.step(state, actions_of(steps=2))
    assert short.known.tolist() == [1, 1, 1]  # frames of a context are one chunk apart
    other = start(model, frames=4)
    assert (model.step(other, actions_of(steps=3))[0].latent - after.latent).abs().max() > 1e-4


def test_cached_and_uncached_imagination_agree():
    for family in ("dreamzero", "gigaworld"):
        model = model_of(family)
        state, actions = start(model, frames=4), actions_of(steps=3)
        for guidance in (1.0, 3.0):
            model.with_sampling(cache=True, guidance=guidance)
            cached, _ = model.step(state, actions)
            model.with_sampling(cache=False)
            uncached, _ = model.step(state, actions)
            same(cached.latent, uncached.latent)


def test_fastwam_is_no_world_model_and_names_the_family_that_is():
    with pytest.raises(ConfigError, match="does not attend to actions.*gigaworld"):
        start(model_of("fastwam"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": "decoupled"}, "policy only.*levels=auto"), ({"levels": "high_noise"}, "policy only"),
        ({"text_drop": 0.0}, "text_drop=0.15"),
    ],
)  # fmt: skip
def test_a_model_that_saw_no_clean_frames_or_no_missing_instruction_is_a_policy_only(changes, message, tmp_path):
    folder = model_of("dreamzero", **changes).save_pretrained(tmp_path / "export")
    with pytest.raises(ConfigError, match=message):
        load_world_model(folder)


def test_a_static_plan_saves_passes_of_imagination_too(monkeypatch):
    model, count = model_of("gigaworld").with_sampling(steps=8, cache=False), []
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda *a, **k: count.append(1) or forward(*a, **k))
    state, actions = start(model), actions_of(steps=3)
    model.step(state, actions, decode="last")
    model.with_sampling(reuse=Reuse("static", 2)).step(state, actions, decode="last")
    model.with_sampling(reuse=Reuse("adaptive"), guidance=5.0).step(state, actions, decode="last")
    assert len(count) == 8 + 2 + 8


class Never:
    name = "never"

    def score(self, frames, instructions):
        return Judgement(torch.zeros(len(frames)), None, torch.ones(len(frames), dtype=torch.bool))


def test_the_environment_runs_on_it_with_resets_of_single_slots(model):
    def envs():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
        states = rng.normal(size=(4, STATE)).astype(np.float32)
        return WorldModelVectorEnv(
            model, Never(), ArrayStarts(images, ["go"] * 4, states=states), num_envs=3, horizon=6, chunk=3,
            autoreset_mode=AutoresetMode.DISABLED,
        )  # fmt: skip

    one, plain = envs(), envs()
    one.reset(seed=3), plain.reset(seed=3)
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 3, 3, ACTIONS)).astype(np.float32)
    one.step(actions[0]), plain.step(actions[0])
    one.reset(seed=5, options={"reset_mask": np.array([False, True, False])})
    seen, _, _, truncated, info = one.step(actions[1])
    assert truncated.tolist() == [True, False, True] and np.isfinite(info["uncertainty"]).all()
    again = plain.step(actions[1])[0]["image"]
    assert np.abs(seen["image"][[0, 2]].astype(int) - again[[0, 2]]).max() <= 1


def test_it_is_saved_and_loaded_with_its_sampling(tmp_path, model):
    changed = model_of(model.config.family).with_sampling(steps=2, reuse=Reuse("static", 1))
    loaded = load_world_model(changed.save_pretrained(tmp_path / "export"))
    assert loaded.config == changed.config and loaded.config.sampling.reuse.passes == 1
    state, actions = start(changed), actions_of(steps=3)
    same(loaded.step(state, actions)[0].latent, changed.step(state, actions)[0].latent)
    (tmp_path / "export" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_world_model(tmp_path / "export")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "dreamone"}, "unknown family"),
        ({"head_dim": 24}, "multiple of 16"),
        ({"patch": 3}, "does not divide the latent grid"),
        ({"levels": "odd"}, "levels is 'odd'"),
        ({"blocks": 3}, "has one block"),
        ({"video_coef": -1.0}, "must not be negative"),
        ({"cut": 1.0}, "cut is 1.0"),
        ({"sampling": {"steps": 0}}, "try steps=4"),
        ({"sampling": {"guidance": 0.5}}, "at least 1"),
        ({"sampling": {"video_end": 1.0}}, "try video_end=0.8"),
        ({"sampling": {"reuse": {"plan": "odd"}}}, "plan"),
        ({"sampling": {"reuse": "static"}}, "try reuse="),
        ({"sampling": 3}, "try sampling={steps: 2}"),
        ({"sampling": {"reuse": {"plan": "static", "passes": 6}}}, "do not fit into 4 steps"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**{"family": "uwm", **changes})


def test_inputs_of_another_shape_are_refused(model):
    frames, none = torch.zeros(2, 1, SIDE, SIDE, 3, dtype=torch.uint8), torch.zeros(2, 0, ACTIONS)
    with pytest.raises(ConfigError, match=r"frames\[:, None\] adds Tc"):
        model.begin(frames[:, 0], none, states=torch.zeros(2, 1, STATE))
    with pytest.raises(ConfigError, match="needs the proprioception of its starts"):
        model.begin(frames, none)
    with pytest.raises(ConfigError, match="states have shape"):
        model.begin(frames, none, states=torch.zeros(2, 1, STATE + 1))
    with pytest.raises(ConfigError, match="actions have shape"):
        model.begin(frames, torch.zeros(2, 1, ACTIONS), states=torch.zeros(2, 1, STATE))
    with pytest.raises(ConfigError, match="actions have shape"):
        model.step(start(model), actions_of()[..., :2])


def test_presets_have_three_sizes_and_others_are_named():
    assert JointConfig.preset("base", "motus").depth > JointConfig.preset("small", "motus").depth
    with pytest.raises(ConfigError, match="presets are base, small, tiny"):
        JointConfig.preset("huge")
    with pytest.raises(ConfigError, match="expected 'float32' or 'bfloat16'"):
        JointSampling(dtype="float16")  # type: ignore[arg-type]
