"""One pass per chunk: what it shares with the protocol, and what positions do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models import load_world_model
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.protocols import WorldModel
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

PARTS = ("hand", "red", "blue")


def specs(height: int = 32, width: int = 32, state: int = 4, cameras: int = 1) -> Specs:
    more = (Camera("wrist", 16, 16),) if cameras == 2 else ()
    fields = tuple(StateField(f"q{i}", "joint", "rad") for i in range(state))
    action = ActionSpec(("a", "b", "c"), ("m",) * 3, 5.0, (-1.0,) * 3, (1.0,) * 3)
    return Specs(ObservationSpec((Camera("front", height, width), *more), fields), action)


def model_of(
    parts: tuple[str, ...] = PARTS, chunk: int = 5, between: int | None = 16, **shape
) -> ChunkWorldModel:
    torch.manual_seed(0)
    given = specs(**shape)
    states = np.random.default_rng(0).normal(size=(20, given.observation.state_dim)).astype(np.float32)
    config = replace(ChunkConfig.preset("tiny"), chunk=chunk, dtype="float32", between_width=between)
    config = config.for_data(states, given, parts)
    model = ChunkWorldModel(config).eval().requires_grad_(False)
    for parameter in model.picture.parameters():  # weights that begin at zero would hide mistakes
        parameter.add_(0.05 * torch.randn_like(parameter))
    for part in (model.motion, model.kinematics, model.between):
        for parameter in part.parameters() if part is not None else ():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def start(model: ChunkWorldModel, rows: int = 3, seed: int = 1):
    rng = torch.Generator().manual_seed(seed)
    cameras = model.specs.observation.cameras
    frames = [
        torch.randint(0, 256, (rows, 1, *camera.size, 3), generator=rng, dtype=torch.uint8) for camera in cameras
    ]
    views = {camera.name: view for camera, view in zip(cameras[1:], frames[1:], strict=True)}
    states = torch.randn(rows, 1, model.state_dim, generator=rng)
    none = torch.zeros(rows, 0, model.action_dim)
    return model.begin(frames[0], none, states=states, **({"views": views} if views else {}))


def actions_of(model: ChunkWorldModel, rows: int = 3, steps: int = 5) -> torch.Tensor:
    return torch.rand(rows, steps, model.action_dim, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize(
    "model",
    [
        model_of(), model_of(()), model_of((), height=24, width=40), model_of((), state=0),
        model_of((), cameras=2), model_of(chunk=1), model_of(("red",)), model_of(between=None), model_of(("hand",)),
    ],
    ids=["parts", "plain", "not square", "no state", "two cameras", "chunks of one", "no hand", "a pass per frame",
         "no objects"],
)  # fmt: skip
def test_it_predicts_every_camera_state_and_frame_that_is_asked_for(model):
    assert isinstance(model, WorldModel)
    state, actions = start(model), actions_of(model, steps=7)
    observation = model.specs.observation
    for decode, frames in (("all", 7), ("last", 1), ("none", 0)):
        after, imagined = model.step(state, actions, decode=decode)
        assert imagined.frames.shape == (3, frames, *observation.main.size, 3)
        assert imagined.frames.dtype == torch.uint8
        assert imagined.states.shape == (3, 7, model.state_dim)
        assert imagined.uncertainty.shape == (3,)
        assert {name: tuple(view.shape[1:4]) for name, view in imagined.views.items()} == {
            camera.name: (frames, *camera.size) for camera in observation.views
        }
        assert after.latent.shape == state.latent.shape


def test_looking_at_every_frame_changes_nothing_afterwards():
    model = model_of()
    state, actions = start(model), actions_of(model, steps=10)
    one, every = model.step(state, actions, decode="last"), model.step(state, actions, decode="all")
    torch.testing.assert_close(one[0].latent, every[0].latent)
    torch.testing.assert_close(one[1].frames[:, -1], every[1].frames[:, -1])
    torch.testing.assert_close(one[1].states, every[1].states)


def test_without_a_network_between_its_frames_are_those_of_chunks_that_end_there():
    model = model_of(between=None)
    state, actions = start(model), actions_of(model)
    _, every = model.step(state, actions, decode="all")
    for k in range(1, 6):
        _, short = model.step(state, actions[:, :k], decode="last")
        torch.testing.assert_close(short.frames[:, 0], every.frames[:, k - 1])
        torch.testing.assert_close(short.states, every.states[:, :k])


@pytest.mark.parametrize("parts", [PARTS, ("red",), ()])
def test_frames_within_a_chunk_begin_as_its_nearer_end_before_training(parts):
    model = model_of(parts)
    for parameter in model.between.out.parameters():
        parameter.zero_()
    state = start(model)
    after, every = model.step(state, actions_of(model), decode="all")
    ends = [state.latent, every.latents[:, -1]]
    torch.testing.assert_close(after.latent, ends[1])
    away = [[(every.latents[:, i] - end).square().mean() for end in ends] for i in (0, 3)]
    assert away[0][0] < 0.1 * away[0][1]
    assert away[1][1] < 0.1 * away[1][0]


def test_frames_within_a_chunk_follow_the_hand():
    model = model_of(("hand",))
    before = after = torch.zeros(1, 8, 4, 4)
    path, present = torch.zeros(1, 6, 4), torch.ones(1, 1)
    at = torch.full((1, 6, 2), 0.3)
    ends = (before, after, path, at[:, :1], at[:, :1], present)
    moved = at.clone()
    moved[:, 2] = 0.7
    change = (model.between(*ends, moved) - model.between(*ends, at)).abs().amax((0, 2, 3, 4))
    assert change[1] > 1e-3
    assert change[[0, 2, 3]].max() == 0


def test_a_row_does_not_depend_on_its_neighbours():
    model = model_of()
    state, actions = start(model, 4), actions_of(model, 4)
    _, batch = model.step(state, actions)
    alone = model.fork(state, torch.tensor([2]))
    _, one = model.step(alone, actions[2:3])
    torch.testing.assert_close(one.latents[0], batch.latents[2], atol=1e-4, rtol=1e-4)


def test_fork_and_merge_copy_rows():
    model = model_of()
    state, other = start(model, 4), start(model, 1, seed=9)
    merged = model.merge(state, torch.tensor([1]), other)
    torch.testing.assert_close(merged.latent[1], other.latent[0])
    torch.testing.assert_close(merged.slots.positions[1], other.slots.positions[0])
    torch.testing.assert_close(merged.latent[[0, 2, 3]], state.latent[[0, 2, 3]])
    before = state.latent.clone()
    model.step(state, actions_of(model, 4))
    torch.testing.assert_close(state.latent, before)


def test_an_observation_replaces_the_picture_and_the_positions_that_are_seen():
    model = model_of()
    state = start(model)
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    seen = model.observe(state, frames, states=torch.zeros(3, 4))
    torch.testing.assert_close(seen.latent, model.tokenizer.encode(frames))
    assert (seen.states == 0).all()
    where, present = model.locate(frames)
    known = model.objects_of(present) > 0.5
    torch.testing.assert_close(seen.slots.positions[known], model.objects_of(where)[known])


def test_a_moved_part_is_drawn_where_it_went_by_the_flow():
    """Features with one bright cell, and a part that moves by a quarter of the image."""
    model = model_of(("red",))
    features = torch.zeros(1, 16, 16, 16)
    features[0, :, 8, 4] = 1.0
    first = torch.tensor([[[4.5 / 16, 8.5 / 16]]])
    moved = model.picture.warp(features, first, first + torch.tensor([0.25, 0.0]), torch.ones(1, 1))
    assert moved[0, 0, 8, 8] > 0.99  # and what it left behind is for the network to fill
    still = model.picture.warp(features, first, first, torch.ones(1, 1))
    torch.testing.assert_close(still, features)


def test_another_precision_is_used_but_not_saved(tmp_path):
    from worldgym.utils.devices import place

    model = model_of()
    half = place(model_of(), torch.device("cpu"), "bfloat16")
    one, other = (x.step(start(x), actions_of(x))[1].latents for x in (model, half))
    assert half.inference_network().embed.weight.dtype == torch.bfloat16
    assert 0 < float((one - other).abs().max()) < 0.2
    half.save_pretrained(tmp_path / "half")
    assert load_world_model(tmp_path / "half").dtype == "float32"
    with pytest.raises(ConfigError, match="float16"):
        model.with_dtype("float16")


def test_a_saved_model_predicts_the_same(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path)
    loaded = load_world_model(tmp_path)
    assert isinstance(loaded, ChunkWorldModel)
    assert loaded.specs == model.specs
    state, actions = start(loaded), actions_of(model)
    _, one = loaded.step(state, actions)
    loaded.save_pretrained(tmp_path / "again")
    _, two = load_world_model(tmp_path / "again").step(state, actions)
    torch.testing.assert_close(one.frames, two.frames)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        load_world_model(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: m.step(s, torch.zeros(3, 5, 2)), r"expected \(3, K, 3\)"),
        (lambda m, s: m.step(s, torch.zeros(3, 5, 3), decode="some"), "decode must be"),
        (lambda m, s: m.begin(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 0, 3)), "adds Tc"),
        (
            lambda m, s: m.begin(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 0, 3)),
            "needs the proprioception",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    model = model_of()
    with pytest.raises(ConfigError, match=message):
        call(model, start(model))


def test_a_model_of_other_parts_takes_over_all_weights_that_fit():
    from worldgym.models.chunk.building import _warm_elsewhere

    old, new = model_of(PARTS), model_of(("hand", "drawer"))
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    _warm_elsewhere(new, old)
    theirs, mine = old.state_dict(), new.state_dict()
    fitting = [name for name in mine if mine[name].shape == theirs[name].shape]
    other = sorted(set(mine) - set(fitting))
    assert all(torch.equal(mine[name], theirs[name]) for name in fitting)
    assert "picture.stem.weight" in other and "motion.name" in other
    pictures = old.picture.stem.weight.shape[1] - 2 * len(PARTS)
    assert torch.equal(new.picture.stem.weight[:, :pictures], old.picture.stem.weight[:, :pictures])
    assert not new.picture.stem.weight[:, pictures:].any(), "maps of other parts mean something else"


@pytest.mark.parametrize(
    "model", [model_of(), model_of(()), model_of((), cameras=2)], ids=["parts", "plain", "two cameras"]
)
@pytest.mark.parametrize("rows", [1, 30])
def test_one_frame_begins_an_episode_like_the_same_frame_twice(model, rows):
    rng = torch.Generator().manual_seed(3)
    first, *others = (
        torch.randint(0, 256, (rows, 1, *camera.size, 3), generator=rng, dtype=torch.uint8)
        for camera in model.specs.observation.cameras
    )
    states = torch.randn(rows, 1, model.state_dim, generator=rng)

    def begun(times: int):
        names = [camera.name for camera in model.specs.observation.cameras[1:]]
        views = {name: view.repeat_interleave(times, 1) for name, view in zip(names, others, strict=True)}
        none = torch.zeros(rows, times - 1, model.action_dim)
        return model.begin(
            first.repeat_interleave(times, 1), none, states=states.repeat_interleave(times, 1),
            **({"views": views} if views else {}),
        )  # fmt: skip

    actions = actions_of(model, rows)
    once, twice = (model.step(begun(times), actions, decode="last")[1] for times in (1, 2))
    assert torch.allclose(once.latents, twice.latents, atol=1e-4)
    assert torch.allclose(once.states, twice.states, atol=1e-5)
