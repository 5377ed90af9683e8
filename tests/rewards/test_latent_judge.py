"""The success head on latents: it learns what is fulfilled, reads what is imagined, and keeps to its tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from judged_world import Reddish, logs

from rewards import (
    JudgeTrainConfig,
    LatentJudge,
    LatentJudgeConfig,
    encode_logs,
    imagine_training_latents,
    load_judge,
    train_latent_judge,
)
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Imagined, judged

WORDS = ["push the red cube to the left", "push the red cube to the right"]


class Pooled(torch.nn.Module):
    """A tokenizer for the judged world: 16 x 16 pixels to 8 x 8 latents, colours kept."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    @torch.no_grad()
    def encode(self, frames):
        seen = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.gain * torch.nn.functional.avg_pool2d(seen, 2)


class Frozen:
    """A world model in which nothing ever moves."""

    def __init__(self) -> None:
        self.tokenizer = Pooled()

    def begin(self, frames, actions, generator=None, *, states=None):
        return frames[:, -1], states[:, -1]

    def step(self, state, actions, *, decode="all"):
        assert decode == "all", "latents of every frame are needed"
        frame, proprio = state
        steps = actions.shape[1]
        return state, Imagined(
            frames=torch.empty(len(frame), 0, 16, 16, 3, dtype=torch.uint8),
            latents=self.tokenizer.encode(frame)[:, None].expand(-1, steps, -1, -1, -1),
            states=proprio[:, None].expand(-1, steps, -1) + 0.25,
            uncertainty=torch.zeros(len(frame)),
        )


def test_every_imagined_frame_of_a_chunk_model_has_its_own_latent():
    from worldgym.models.chunk.config import ChunkConfig
    from worldgym.models.chunk.world_model import ChunkWorldModel
    from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

    arrays = logs(6)
    fields = tuple(StateField(f"q{i}", "joint", "rad") for i in range(4))
    specs = Specs(
        ObservationSpec((Camera("front", 16, 16),), fields),
        ActionSpec(("x", "y", "z", "g"), ("m",) * 4, 5.0, (-1.0,) * 4, (1.0,) * 4),
    )
    torch.manual_seed(0)
    model = ChunkWorldModel(ChunkConfig.preset("tiny").for_data(np.random.randn(20, 4).astype(np.float32), specs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.refresh()
    _, latents = imagine_training_latents(model.eval(), arrays, np.arange(3))
    frames = latents[:6].float().flatten(1)
    assert min((frames[i] - frames[j]).abs().max() for i in range(6) for j in range(i)) > 1e-3


def test_a_world_model_without_the_latents_of_all_frames_is_refused():
    class Last(Frozen):
        def step(self, state, actions, *, decode="all"):
            after, imagined = super().step(state, actions, decode=decode)
            imagined.latents = imagined.latents[:, -1:]
            return after, imagined

    with pytest.raises(ConfigError, match="gave latents of 1 of 5 frames"):
        imagine_training_latents(Last(), logs(6), np.arange(3))


@pytest.fixture(scope="module")
def trained():
    arrays, tokenizer = logs(90), Pooled()
    settings = JudgeTrainConfig(
        steps=160, batch_size=48, lr=3e-3, val_fraction=0.2, val_pairs=200, latent_noise=0.05
    )
    return train_latent_judge(
        arrays,
        encode_logs(tokenizer, arrays),
        tokenizer,
        settings,
        model=LatentJudgeConfig(width=32, asked=8),
    )


def test_it_tells_fulfilled_from_near_and_one_place_from_another(trained):
    _, report = trained
    assert report["balanced_accuracy"] > 0.9 and report["fpr/wrong_place"] < 0.15


def test_latents_and_the_frames_they_come_from_are_judged_alike(trained):
    judge, _ = trained
    arrays = logs(8, seed=5)
    frames = torch.from_numpy(arrays.frames[::6])[:, None]
    words, states = [arrays.instructions[0]] * len(frames), torch.zeros(len(frames), 4)
    of_frames = judge.score(frames, words, states)
    of_latents = judge.score(frames, words, states, latents=Pooled().encode(frames[:, 0]))
    assert torch.equal(of_frames.p_success, of_latents.p_success) and bool(of_frames.valid.all())
    through = judged(judge, torch.zeros_like(frames), words, states, Pooled().encode(frames[:, 0]))
    assert torch.equal(through.p_success, of_latents.p_success), "judged() hands the latents on"


def test_it_comes_back_from_disk_and_refuses_another_tokenizer(trained, tmp_path):
    judge, _ = trained
    judge.save_pretrained(tmp_path / "latent")
    again = load_judge(tmp_path / "latent", tokenizer=Pooled())
    latents = torch.randn(2, 3, 8, 8)
    told = {"states": torch.zeros(2, 4), "latents": latents}
    assert torch.equal(
        again.score(latents, WORDS, **told).p_success, judge.score(latents, WORDS, **told).p_success
    )
    assert again.threshold == judge.threshold and isinstance(again, LatentJudge)
    with pytest.raises(CheckpointError, match="train judge --type latent"):
        load_judge(tmp_path / "latent", tokenizer=Pooled(gain=2.0))


def test_what_it_needs_is_said():
    judge = LatentJudge(LatentJudgeConfig(channels=3, width=8, asked=2))
    with pytest.raises(ConfigError, match="attach"):
        judge.score(torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8), WORDS, torch.zeros(2, 4))
    with pytest.raises(ConfigError, match=r"expected \(2, 3, 8, 8\)"):
        judge.score(None, WORDS, torch.zeros(2, 4), latents=torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigError, match="reads proprioception"):
        judge.score(None, WORDS, latents=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        LatentJudgeConfig.from_dict({"widht": 8})


def test_dreamt_logs_keep_labels_and_take_over_what_was_imagined():
    arrays = logs(6)
    dreamt, latents = imagine_training_latents(Frozen(), arrays, np.array([1, 4]), batch=1)
    assert len(dreamt) == 2 and len(latents) == len(dreamt.frames) and dreamt.indices.tolist() == [1, 4]
    assert np.array_equal(dreamt.success[dreamt.rows(0)], arrays.success[arrays.rows(1)])
    still = latents[dreamt.rows(1)].float()
    assert torch.allclose(still, still[:1].expand_as(still)), "in this world model nothing moves"
    assert (dreamt.states[dreamt.rows(0)][1:] == 0.25).all() and (dreamt.states[dreamt.rows(0)][0] == 0).all()
    assert (arrays.states == 0).all(), "Real's own logs stay as they were"


def test_a_teacher_hands_on_what_it_sees():
    arrays, tokenizer = logs(60), Pooled()
    settings = JudgeTrainConfig(
        steps=120, batch_size=32, lr=3e-3, val_fraction=0.2, val_pairs=100, latent_noise=0.0
    )
    sizes = LatentJudgeConfig(width=32, asked=8, state_dim=0)
    latents = encode_logs(tokenizer, arrays)
    rows = np.flatnonzero(~arrays.success)[:60]
    red = Reddish().score(torch.from_numpy(arrays.frames[rows])[:, None], [""] * 60).p_success.bool()
    words = ["push the green cube to the left"] * 60
    said = {}
    for teacher in (None, Reddish()):
        judge, _ = train_latent_judge(arrays, latents, tokenizer, settings, model=sizes, teacher=teacher)
        p = judge.score(None, words, latents=latents[rows].float()).p_success
        said[teacher is None] = float(p[red].mean() - p[~red].mean())
    assert said[False] > said[True] + 0.1
