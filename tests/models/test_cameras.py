"""Frames that are not square and several cameras: packing, imagining, training, disk; and specs in config.json."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models import Canvas, EnsembleWorldModel, TokenizerConfig, VideoWorldModel, WorldModelConfig
from worldgym.models.video.world_model import EXACT
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField, specs_of, state_fields
from worldgym.training.loop import LoopConfig
from worldgym.training.pictures import Pictures
from worldgym.training.tokenizer import reconstruction_psnr, train_tokenizer
from worldgym.training.world_model import LatentEpisodes, WorldModelTraining, train_world_model

TINY = WorldModelConfig.preset("tiny")
ACTION = ActionSpec(tuple(f"a{i}" for i in range(7)), ("rad",) * 7, 10.0, (-1.0,) * 7, (1.0,) * 7)
TWO = (Camera("front", 48, 80), Camera("wrist", 40, 56, static=False))
SPECS = Specs(ObservationSpec(TWO, state_fields([f"q{i}" for i in range(9)], dict.fromkeys(["q0"], "joint"))), ACTION)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def arrays(episodes: int = 3, length: int = 6) -> SimpleNamespace:
    count, rng = episodes * length, np.random.default_rng(0)
    return SimpleNamespace(
        frames=pixels(count, 48, 80).numpy(),
        views={"wrist": pixels(count, 40, 56, seed=1).numpy(), "unused": np.zeros((count, 2, 2, 3), np.uint8)},
        actions=rng.uniform(-1, 1, (count, 7)).astype(np.float32),
        states=rng.normal(size=(count, 9)).astype(np.float32),
        offsets=np.arange(0, count + 1, length),
    )


@pytest.fixture(scope="module")
def model() -> VideoWorldModel:
    torch.manual_seed(0)
    model = VideoWorldModel(TINY.for_data(arrays().states, specs=SPECS))
    for p in model.dynamics.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


def begin(model: VideoWorldModel, n: int, seed: int = 0):
    return model.begin(
        pixels(n, 2, 48, 80, seed=seed), torch.zeros(n, 1, 7), torch.Generator().manual_seed(seed),
        states=torch.zeros(n, 2, 9), views={"wrist": pixels(n, 2, 40, 56, seed=seed + 1)},
    )  # fmt: skip


# -- the canvas ---------------------------------------------------------------------------------------------------
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    multiple=st.sampled_from([8, 16, 32]),
    lead=st.lists(st.integers(1, 2), max_size=2),
)
@settings(max_examples=40, deadline=None)
def test_what_is_packed_is_unpacked_and_edges_are_repeated(sizes, multiple, lead):
    canvas = Canvas(tuple(Camera(f"c{i}", h, w) for i, (h, w) in enumerate(sizes)), multiple)
    frames = [pixels(*lead, h, w, seed=i) for i, (h, w) in enumerate(sizes)]
    picture = canvas.pack(frames[0], {f"c{i}": x for i, x in enumerate(frames) if i})
    assert picture.shape == (*lead, *canvas.size, 3) and picture.dtype == torch.uint8
    assert all(side % multiple == 0 for side in canvas.size)
    main, views = canvas.unpack(picture)
    assert torch.equal(main, frames[0])
    assert all(torch.equal(views[f"c{i}"], x) for i, x in enumerate(frames) if i)
    h, w = sizes[-1]
    assert torch.equal(picture[..., -1, -1, :], frames[-1][..., h - 1, w - 1, :])


def test_one_camera_that_fits_is_not_copied():
    canvas, frames = Canvas((Camera("front", 64, 64),), 16), pixels(2, 64, 64)
    assert canvas.plain and canvas.pack(frames) is frames and canvas.unpack(frames)[0] is frames


def test_views_that_do_not_fit_are_named():
    canvas, front = Canvas(TWO, 16), pixels(2, 48, 80)
    assert canvas.size == (96, 80)
    with pytest.raises(ConfigError, match="wrist"):
        canvas.pack(front)
    with pytest.raises(ConfigError, match="got the views .*side"):
        canvas.pack(front, {"side": front, "wrist": front})
    with pytest.raises(ConfigError, match="frames of wrist are uint8 of shape .*40, 56"):
        canvas.pack(front, {"wrist": front})
    with pytest.raises(ConfigError, match="leading axes"):
        canvas.pack(front, {"wrist": pixels(3, 40, 56)})
    for bad in (lambda: Canvas(()), lambda: Canvas(TWO, 12)):
        with pytest.raises(ConfigError):
            bad()
    with pytest.raises(ConfigError, match="no camera wrist"):
        Pictures.of(SimpleNamespace(frames=front.numpy()), canvas)
    with pytest.raises(ConfigError, match="equal numbers"):
        Pictures(front.numpy(), {"wrist": front.numpy()[:1]}, canvas)


# -- the model ----------------------------------------------------------------------------------------------------
def test_two_cameras_of_different_sizes_are_imagined(model):
    assert model.config.dynamics.motion is None and not model.config.tokenizer.background
    assert model.image_size == (48, 80) and model.tokenizer.grid == (12, 10)
    assert specs_of(model) == SPECS
    state, actions = begin(model, 3), torch.rand(3, 2, 7) * 2 - 1
    for decode, shown in (("all", 2), ("last", 1), ("none", 0)):
        after, imagined = model.step(state, actions, decode=decode)
        assert imagined.frames.shape == (3, shown, 48, 80, 3)
        assert {k: tuple(v.shape) for k, v in imagined.views.items()} == {"wrist": (3, shown, 40, 56, 3)}
        assert imagined.states.shape == (3, 2, 9)
    assert model.render(after).shape == (3, 48, 80, 3)
    assert model.render_views(after)["wrist"].shape == (3, 40, 56, 3)


def test_copies_merges_and_observations_carry_all_cameras(model):
    state, _ = model.step(begin(model, 3), torch.rand(3, 2, 7))
    forked = model.fork(state, torch.tensor([2, 2, 0]))
    assert torch.equal(forked.latent[0], state.latent[2])
    merged = model.merge(state, torch.tensor([1]), begin(model, 1, seed=5))
    assert merged.cache.count.tolist() == [3, 1, 3]
    front, wrist = pixels(3, 48, 80, seed=7), pixels(3, 40, 56, seed=8)
    seen = model.observe(state, front, torch.zeros(3, 9), views={"wrist": wrist})
    assert torch.equal(seen.latent, model.tokenizer.encode(model.canvas.pack(front, {"wrist": wrist})))
    other = model.observe(state, front, torch.zeros(3, 9), views={"wrist": 255 - wrist})
    assert not torch.equal(seen.latent, other.latent)
    with pytest.raises(ConfigError, match="wrist"):
        model.observe(state, front, torch.zeros(3, 9))
    with pytest.raises(ConfigError, match="wrist"):
        model.begin(front[:, None], torch.zeros(3, 0, 7))


def test_a_cached_step_is_the_parallel_pass_on_a_grid_that_is_not_square(model):
    net, b, t = model.dynamics, 2, 6
    torch.manual_seed(1)
    noisy, previous = torch.randn(2, b, t, 8, 12, 10)
    level, actions, states = torch.rand(b, t), torch.randn(b, t, 7), torch.randn(b, t, 9)
    whole = net(noisy, previous, level, actions, states)
    cache = net.empty_cache(previous[:, 0], states[:, 0], torch.float32)
    for i in range(t):
        one = net.step(noisy[:, i], previous[:, i], level[:, i], actions[:, i], states[:, i], cache)
        cache.ring.advance()
        assert torch.allclose(one.latents, whole.latents[:, i], atol=1e-5)


def test_two_cameras_survive_disk(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["type"] == "video" and Specs.from_dict(saved["specs"]) == SPECS
    again = VideoWorldModel.from_pretrained(tmp_path)
    assert again.specs == SPECS and again.canvas == model.canvas
    actions = torch.rand(2, 2, 7)
    rounded = copy.deepcopy(model)  # saved weights are rounded to bfloat16
    rounded.load_state_dict(
        {k: v if k.endswith(EXACT) else v.bfloat16().to(v.dtype) for k, v in model.state_dict().items()}
    )
    one, other = (m.step(begin(m, 2), actions)[1] for m in (rounded, again))
    assert torch.equal(one.frames, other.frames) and torch.equal(one.views["wrist"], other.views["wrist"])


def test_an_ensemble_shows_the_leaders_cameras(model):
    second = VideoWorldModel(model.config).eval()
    second.tokenizer.load_state_dict(model.tokenizer.state_dict())
    both = EnsembleWorldModel([model, second])
    state, imagined = both.step(begin(both, 2), torch.rand(2, 2, 7))
    assert imagined.views["wrist"].shape == (2, 2, 40, 56, 3) and both.specs == SPECS
    assert both.render_views(state)["wrist"].shape == (2, 40, 56, 3)


def test_a_few_training_steps_on_two_cameras(tmp_path):
    data = arrays()
    shape = TINY.for_data(data.states, specs=SPECS)
    pictures = Pictures.of(data, shape.canvas)
    loop = LoopConfig(steps=2, warmup=1)
    tokenizer = train_tokenizer(pictures, shape.tokenizer, loop, tmp_path / "t", 4, pictures.select(slice(4)))
    assert set(reconstruction_psnr(tokenizer, pictures.select(slice(4)))) == {"psnr"}
    torch.manual_seed(0)
    model = VideoWorldModel(shape)
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    episodes = LatentEpisodes.encode(model.tokenizer, data, model.canvas)
    assert episodes.latents.shape == (18, 8, 12, 10)
    for share in (0.0, 1.0):  # true contexts, and imagined ones
        training = WorldModelTraining(loop=loop, batch=2, window=3, rollout_from=0.0, rollout_share=share)
        trained = train_world_model(model, episodes, training, tmp_path / f"w{share}")
        assert all(torch.isfinite(p).all() for p in trained.parameters())
    with pytest.raises(ConfigError, match="this tokenizer takes"):
        LatentEpisodes.encode(model.tokenizer, data)


# -- shapes for data ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "picture", "patch"),
    [((64, 64), 64, 2), ((40, 40), 40, 1), ((40, 56), (48, 64), 2), ((48, 80), (48, 80), 2), ((60, 60), 64, 2)],
)
def test_sizes_are_padded_to_whole_tokens_except_old_squares(size, picture, patch):
    specs = Specs(ObservationSpec((Camera("front", *size),)), ACTION)
    shape = TINY.for_data(np.zeros((5, 0), np.float32), specs=specs)
    assert (shape.tokenizer.image_size, shape.dynamics.patch) == (picture, patch)
    model = VideoWorldModel(shape)
    state, imagined = model.step(
        model.begin(pixels(1, 1, *size), torch.zeros(1, 0, 7)), torch.zeros(1, 1, 7)
    )
    assert imagined.frames.shape == (1, 1, *size, 3)


def hand_spec(*cameras: Camera) -> Specs:
    state = (StateField("open", "gripper"), *state_fields("xyz", dict.fromkeys("xyz", "ee_position"), "m"))
    return Specs(ObservationSpec(cameras or (Camera("front", 64, 64),), state), ACTION)


def test_objects_move_with_the_hand_only_where_there_is_one_and_one_static_camera():
    states = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    motion = TINY.for_data(states, specs=hand_spec()).dynamics.motion
    assert motion is not None and motion.hand.position == (1, 2, 3) and motion.hand.gripper == 0
    assert TINY.for_data(states, specs=hand_spec(), hand=False).dynamics.motion is None
    assert TINY.for_data(states, specs=hand_spec(Camera("f", 64, 64, static=False))).dynamics.motion is None
    assert TINY.for_data(states, specs=hand_spec(*TWO)).dynamics.motion is None
    with pytest.raises(ConfigError, match="no hand"):
        TINY.for_data(np.zeros((5, 9), np.float32), specs=SPECS, hand=True)
    with pytest.raises(ConfigError, match="action_dim"):
        TINY.for_data(states, specs=Specs(hand_spec().observation))


def test_a_preset_without_object_motion_assumes_nothing():
    assert WorldModelConfig().dynamics.motion is None
    plain = VideoWorldModel(replace(TINY, dynamics=replace(TINY.dynamics, motion=None)))
    assert [f.role for f in plain.specs.observation.state] == ["other"] * 4
    roles = [f.role for f in VideoWorldModel(TINY).specs.observation.state]
    assert roles == ["ee_position"] * 3 + ["gripper"]


def test_specs_that_do_not_fit_the_shape_are_refused(model, tmp_path):
    own = model.config
    with pytest.raises(ConfigError, match="9 state fields and 7 actions"):
        replace(TINY, specs=SPECS)
    with pytest.raises(ConfigError, match="make a picture of"):
        replace(own, specs=Specs(replace(SPECS.observation, cameras=TWO[:1]), ACTION))
    with pytest.raises(ConfigError, match="by the specs the hand is None"):
        states = state_fields([f"s{i}" for i in range(4)])
        replace(TINY, specs=Specs(ObservationSpec((Camera("front", 64, 64),), states)))
    with pytest.raises(ConfigError, match="do not fit"):
        replace(own, tokenizer=TokenizerConfig(latent_channels=8))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**saved, "type": "points"}))
    with pytest.raises(CheckpointError, match="'points', not 'video'"):
        VideoWorldModel.from_pretrained(tmp_path)


def test_configs_of_earlier_versions_become_todays():
    data = json.loads(json.dumps(TINY.to_dict()))
    motion = data["dynamics"].pop("motion")
    old = {
        "moved": True, "held": True, "holding": motion["grasp_range"], "low": motion["contact_height"],
        "moved_width": motion["width"], "shift": motion["projection"],
    }  # fmt: skip
    del data["specs"], data["tokenizer"]["background"]
    data["dynamics"] |= old
    assert WorldModelConfig.from_dict(data) == TINY
    data["dynamics"]["held"] = False
    assert WorldModelConfig.from_dict(data).dynamics.motion == replace(
        TINY.dynamics.motion, warp_anchor=False, contact_height=None
    )
    data["dynamics"]["moved"] = False
    assert WorldModelConfig.from_dict(data).dynamics.motion is None
    with pytest.raises(ConfigError, match="did you mean 'dynamics.window'|did you mean 'window'"):
        WorldModelConfig.from_dict({**data, "dynamics": {**data["dynamics"], "windows": 3}})


def test_weights_of_earlier_versions_have_names_of_today():
    from worldgym.models import load_world_model
    from worldgym.models.video.compat import renamed
    from worldgym.pretrained import path
    from worldgym.utils.tensors import load_tensors

    old = load_tensors(path("tabletop-small") / "world_model" / "model.safetensors")
    model = load_world_model("tabletop-small")
    names = {k: "dynamics." + renamed(k.removeprefix("dynamics.")) for k in old if k.startswith("dynamics.")}
    today = model.state_dict()
    assert {*names.values()} == {k for k in today if k.startswith("dynamics.")}
    assert all(torch.equal(today[new], old[k].float()) for k, new in names.items())
    assert all(renamed(k.removeprefix("dynamics.")) == k.removeprefix("dynamics.") for k in names.values())
