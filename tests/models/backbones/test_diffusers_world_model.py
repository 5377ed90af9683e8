"""The protocol over latent frames of four frames: chunks of any length, causality, copies, corrections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from backbone_cases import actions_of, config_of, model_of, specs, start

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models import load_world_model
from worldgym.models.backbones.config import BackboneConfig
from worldgym.models.backbones.world_model import DiffusersWorldModel
from worldgym.protocols import WorldModel

MODELS = [("tiny-wan", "causal"), ("tiny-wan", "full"), ("tiny-cosmos", "causal"), ("tiny-cosmos", "full")]


@pytest.fixture(scope="module", params=MODELS, ids=[" ".join(kind) for kind in MODELS])
def model(request) -> DiffusersWorldModel:
    return model_of(*request.param)


def same(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def alike(one, other) -> None:
    """Pictures that differ by rounding at most."""
    assert (one.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize(
    "given", [specs(), specs(24, 40), specs(state=0), specs(cameras=2)],
    ids=["plain", "not square", "no state", "two cameras"],
)  # fmt: skip
def test_it_predicts_every_camera_state_and_frame_that_is_asked_for(given):
    model = model_of(given=given)
    assert isinstance(model, WorldModel)
    state, actions, observation = start(model), actions_of(model, steps=5), given.observation
    for decode, frames in (("all", 5), ("last", 1), ("none", 0)):
        after, imagined = model.step(state, actions, decode=decode)
        assert imagined.frames.shape == (3, frames, *observation.main.size, 3)
        assert imagined.frames.dtype == torch.uint8
        assert imagined.latents.shape == (3, 5 if decode == "all" else 1, 48, *model.config.grid)
        assert imagined.states.shape == (3, 5, observation.state_dim)
        assert imagined.uncertainty.shape == (3,) and (imagined.uncertainty > 0).all()
        assert {name: tuple(view.shape[1:4]) for name, view in imagined.views.items()} == {
            camera.name: (frames, *camera.size) for camera in observation.views
        }


def test_a_tiny_decoder_takes_the_place_of_the_one_of_the_vae(tmp_path, monkeypatch):
    model = model_of(given=specs(cameras=2), tiny_decoder=16)
    monkeypatch.setattr(model.vae, "decode", None)  # not called
    state, actions = start(model), actions_of(model, steps=9)
    after, whole = model.step(state, actions)
    assert whole.frames.shape == (3, 9, 16, 16, 3) and whole.views["wrist"].shape == (3, 9, 16, 16, 3)
    cut, frames = state, []
    for part in actions.split([3, 6], 1):
        cut, imagined = model.step(cut, part)
        frames.append(imagined.frames)
    alike(torch.cat(frames, 1), whole.frames)
    alike(model.render(after), whole.frames[:, -1])
    assert len(model.render(state)) == 3
    again = load_world_model(model.save_pretrained(tmp_path / "export"))
    alike(again.render(after), whole.frames[:, -1])
    with pytest.raises(ConfigError, match="try tiny_decoder=64"):
        config_of(tiny_decoder=-1)


def test_how_actions_are_cut_into_chunks_changes_nothing(model):
    state, actions = start(model), actions_of(model, steps=14)  # more than the window holds
    whole_state, whole = model.step(state, actions)
    cut, frames, states = state, [], []
    for part in actions.split([5, 1, 2, 6], 1):
        cut, imagined = model.step(cut, part)
        frames.append(imagined.latents)
        states.append(imagined.states)
    same(torch.cat(frames, 1), whole.latents)
    same(torch.cat(states, 1), whole.states)
    same(cut.latent, whole_state.latent)


def test_a_frame_depends_on_the_actions_up_to_it_only(model):
    state, actions = start(model), actions_of(model, steps=7)
    _, before = model.step(state, actions)
    for i in (2, 3, 5):
        changed = actions.clone()
        changed[:, i:] = -changed[:, i:]
        _, after = model.step(state, changed)
        same(after.latents[:, :i], before.latents[:, :i])
        alike(after.frames[:, :i], before.frames[:, :i])
        same(after.states[:, :i], before.states[:, :i])
        assert (after.latents[:, i] - before.latents[:, i]).abs().amax() > 1e-3


def test_looking_at_every_frame_changes_nothing_afterwards(model):
    state, actions = start(model), actions_of(model, steps=6)
    one, every = model.step(state, actions, decode="last"), model.step(state, actions, decode="all")
    same(one[0].latent, every[0].latent)
    alike(one[1].frames[:, -1], every[1].frames[:, -1])
    same(one[1].uncertainty, every[1].uncertainty)
    alike(model.render(every[0]), every[1].frames[:, -1])


def test_rows_in_different_places_of_a_latent_frame_do_not_disturb_one_another(model):
    state, actions = start(model), actions_of(model, steps=6)
    far, _ = model.step(state, actions[:, :3])
    farther, _ = model.step(far, actions)
    mixed = model.merge(farther, torch.tensor([2, 0]), model.fork(far, torch.tensor([1, 2])))
    _, together = model.step(mixed, actions)
    _, alone = model.step(model.fork(far, torch.tensor([1, 2])), actions[[2, 0]])
    same(together.latents[[2, 0]], alone.latents)
    same(together.latents[1], model.step(farther, actions)[1].latents[1])


def test_a_step_leaves_its_state_as_it_was_and_forks_share_their_source_noise(model):
    state, actions = start(model), actions_of(model, steps=5)
    first, _ = model.step(state, actions)
    kept = first.clone()
    model.step(first, actions)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), kept.tensors(), strict=True))
    same(
        model.step(model.fork(first, torch.tensor([1])), actions[1:2])[1].latents,
        model.step(first, actions)[1].latents[1:2],
    )
    other = model.fork(first, torch.tensor([1, 1]), torch.Generator().manual_seed(9))
    latents = model.step(other, actions[[1, 1]])[1].latents
    assert (latents[0, 0] - latents[1, 0]).abs().max() > 1e-3 or (
        latents[0, -1] - latents[1, -1]
    ).abs().max() > 1e-3


def test_recorded_frames_before_the_start_are_context(model):
    long = start(model, frames=7)
    assert long.count.tolist() == [2, 2, 2] and long.filled.tolist() == [0, 0, 0]
    short = start(model, frames=1)
    assert short.count.tolist() == [1, 1, 1]
    assert torch.equal(
        model.render(long), model.canvas.unpack(model.vae.decode(long.context[:, :2])[:, -1])[0]
    )


def test_an_observation_starts_again_with_new_noise(model):
    state, actions = start(model), actions_of(model, steps=6)
    after, _ = model.step(state, actions)
    real = torch.full((3, 16, 16, 3), 200, dtype=torch.uint8)
    seen = model.observe(after, real)
    assert seen.count.tolist() == [1, 1, 1] and (seen.keys != state.keys).all()
    same(seen.latent, model.vae.encode(real[:, None])[:, 0])
    told = model.observe(after, real, torch.ones(3, 4))
    same(told.states, torch.ones(3, 4))


def test_states_that_are_not_given_are_estimated():
    model = model_of()
    frames = torch.zeros(2, 5, 16, 16, 3, dtype=torch.uint8)
    state = model.begin(frames, torch.zeros(2, 4, 3), torch.Generator().manual_seed(0))
    assert state.states.shape == (2, 4) and state.states.isfinite().all()


def test_frames_at_once_cost_less_and_end_the_same():
    model = model_of()
    state, actions = start(model), actions_of(model, steps=4)
    _, strict = model.step(state, actions)
    model.config = replace(model.config, causal_frames=False)
    _, loose = model.step(state, actions)
    same(loose.latents[:, -1], strict.latents[:, -1])
    alike(loose.frames[:, -1], strict.frames[:, -1])
    assert torch.equal(loose.latents[:, 0], loose.latents[:, 3])


def test_changes_per_step_are_summed_within_a_latent_frame_and_the_gripper_is_not():
    model = model_of()
    moves = torch.ones(1, 4, 3)
    assert model.config.summed == (0, 1)
    assert model.rebased(moves)[0, :, 0].tolist() == [1, 2, 3, 4]
    assert model.rebased(moves)[0, :, 2].tolist() == [1, 1, 1, 1]


def test_it_is_saved_and_loaded(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path / "model")
    again = load_world_model(tmp_path / "model")
    state, actions = start(model), actions_of(model)
    assert torch.equal(model.step(state, actions)[1].frames, again.step(start(again), actions)[1].frames)
    with pytest.raises(CheckpointError, match="there is no folder.*--type diffusers"):
        DiffusersWorldModel.from_pretrained(tmp_path / "nothing")


def test_it_runs_in_bfloat16():
    model = model_of().with_dtype("bfloat16")
    after, imagined = model.step(start(model), actions_of(model))
    assert after.cache[0].dtype == torch.bfloat16 and imagined.latents.dtype == torch.float32
    assert imagined.states.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "both"}, "expected 'causal' or 'full'"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"sampler": "ddim"}, "expected one of unipc, flow_euler"),
        ({"image_size": 20}, "expected multiples of 16: 8 pixels of the VAE times the 2"),
        ({"summed": (3,)}, "summed is .3,., expected dimensions from 0 to 2"),
        ({"dtype": "float16"}, "'bfloat16' or 'float32'"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_possible(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(config_of(), **changes)


def test_networks_that_cannot_be_a_world_model_are_named():
    config = config_of()
    for name, changes, message in (
        (
            "transformer",
            {"_class_name": "UNet2DModel"},
            "is a UNet2DModel, expected a WanTransformer3DModel or a Cosmos",
        ),
        ("transformer", {"added_kv_proj_dim": 8}, "image encoder"),
        (
            "transformer",
            {"in_channels": 36},
            "reads 36 channels and writes 48, but its VAE has 48; expected 48 and 48",
        ),
        ("transformer", {"patch_size": [2, 2, 2]}, "patches of .2, 2, 2., expected .1, p, p"),
        ("vae", {"temperal_downsample": [True, False]}, "one latent frame of 2 frames, expected 4"),
        ("vae", {"z_dim": 8}, "its VAE has 8; expected 8 and 8"),
        ("vae", {"_class_name": "AutoencoderKL"}, "is a AutoencoderKL, expected an AutoencoderKLWan"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **{name: {**getattr(config, name), **changes}})
    learned = {**config_of("tiny-cosmos").transformer, "extra_pos_embed_type": "learnable"}
    with pytest.raises(ConfigError, match="attention='full'"):
        replace(config_of("tiny-cosmos"), transformer=learned)
    with pytest.raises(ConfigError, match="presets are tiny-wan.*--initial FOLDER"):
        BackboneConfig.preset("small")


def test_inputs_of_another_shape_are_refused():
    model = model_of()
    state = start(model)
    with pytest.raises(ConfigError, match=r"expected \(3, K, 3\)"):
        model.step(state, torch.zeros(3, 5, 7))
    frames = torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"actions have shape \(2, 1, 7\), expected \(2, 1, 3\)"):
        model.begin(frames, torch.zeros(2, 1, 7))
    with pytest.raises(ConfigError, match="adds Tc"):
        model.begin(frames[:, 0], torch.zeros(2, 0, 3))
    with pytest.raises(ConfigError, match=r"expected uint8 \(..., 16, 16, 3\)"):
        model.begin(frames[:, :, :8], torch.zeros(2, 1, 3))
