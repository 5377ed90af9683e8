from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judged_world import SIZE, draw, logs

from rewards import JudgeTrainConfig, LearnedJudge, LearnedJudgeConfig, train_judge
from rewards.training.learned import calibrate, reconstruct
from worldgym.errors import CheckpointError
from worldgym.protocols import RewardModel
from worldgym.utils.train_state import TrainState

TINY = LearnedJudgeConfig.preset("tiny", image_size=SIZE, dropout=0.0)
SETTINGS = JudgeTrainConfig(
    steps=400, batch_size=48, lr=2e-3, max_fpr=0.02, val_fraction=0.2, val_pairs=300, checkpoint_every=20
)


@pytest.fixture(scope="module")
def trained():
    return train_judge(logs(), config=SETTINGS, model=TINY)


def test_it_reads_the_frame_and_the_words(trained):
    judge, report = trained
    assert isinstance(judge, RewardModel) and judge.name == "learned"
    assert report["fpr"] <= 0.05 and report["tpr"] > 0.9 and report["accuracy"] > 0.9, report
    assert list(report)[0] == "fpr"  # false positives first
    rng = np.random.default_rng(5)
    frames = np.stack([draw("red", side, rng) for side in ("left", "right", None)] * 4)[:, None]
    said = judge.score(frames, ["push the red cube to the left"] * 12).p_success >= judge.threshold
    assert said.tolist() == [True, False, False] * 4


def test_a_judge_that_ignores_the_words_would_fail(trained):
    judge, report = trained
    assert report["fpr/wrong_object"] < 0.1 and report["fpr/wrong_place"] < 0.1
    rng = np.random.default_rng(6)
    frames = np.stack([draw("green", "left", rng) for _ in range(8)])[:, None]
    words = [
        "push the green cube to the left",
        "push the green cube to the right",
        "push the blue cube to the left",
    ]
    right, place, thing = (
        float((judge.score(frames, [t] * 8).p_success >= judge.threshold).float().mean()) for t in words
    )
    assert right > 0.8 and place < 0.2 and thing < 0.2


def test_only_the_last_frame_counts(trained):
    judge, _ = trained
    rng = np.random.default_rng(7)
    video = np.stack([draw("red", None, rng), draw("red", "left", rng)])
    words = ["push the red cube to the left"]
    forth, back = (float(judge.score(v[None], words).p_success[0]) for v in (video, video[::-1].copy()))
    assert forth > 0.5 > back


def test_verdicts_do_not_depend_on_the_batch(trained):
    judge, _ = trained
    frames = torch.from_numpy(logs(4, seed=9).frames[:, None])
    words = ["push the red cube to the left", "slide the blue cube to the right zone"] * 12
    together = judge.score(frames, words)
    alone = torch.cat([judge.score(frames[i : i + 1], words[i : i + 1]).p_success for i in range(24)])
    assert torch.allclose(together.p_success, alone, atol=1e-5)
    assert bool(together.valid.all()) and len(together.raw) == 24
    assert len(judge.score(frames[:0], []).p_success) == 0


def test_save_and_load_keep_the_threshold(trained, tmp_path):
    judge, _ = trained
    judge.save_pretrained(tmp_path / "j")
    again = LearnedJudge.from_pretrained(tmp_path / "j")
    assert again.threshold == judge.threshold and again.config == judge.config
    frames = torch.from_numpy(logs(2).frames[:, None])
    words = ["push the red cube to the left"] * 12
    assert torch.equal(again.score(frames, words).p_success, judge.score(frames, words).p_success)
    (tmp_path / "j" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="damaged"):
        LearnedJudge.from_pretrained(tmp_path / "j")


def test_half_of_the_frames_go_through_the_tokenizer():
    passed = []

    class Blur:
        def encode(self, frames):
            passed.append(len(frames))
            return frames.permute(0, 3, 1, 2).float() / 255 + 0.1

        def decode(self, latents):
            return ((latents - 0.1).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    _, report = train_judge(logs(12), Blur(), SETTINGS, model=TINY, steps=2, val_pairs=20)
    assert passed[:2] == [24, 24] and "imagined/fpr" in report
    frames = torch.from_numpy(logs(2).frames)
    same = reconstruct(Blur(), frames, 0.0, torch.Generator())
    assert int((same.int() - frames.int()).abs().max()) <= 1
    noisy = reconstruct(Blur(), frames, 0.3, torch.Generator().manual_seed(0))
    assert not torch.equal(noisy, same)


def test_a_killed_training_resumes_to_the_same_judge(tmp_path):
    arrays, short = logs(12), {"steps": 45, "val_pairs": 20}

    class Killed(Exception):
        pass

    def kill(step, _scalars):
        raise Killed

    whole, _ = train_judge(arrays, config=SETTINGS, model=TINY, **short)
    state = TrainState(tmp_path / "c")
    with pytest.raises(Killed):
        train_judge(arrays, config=SETTINGS, model=TINY, on_step=kill, checkpoint=state, **short)
    assert state.meta() == {"step": 19}
    again, _ = train_judge(arrays, config=SETTINGS, model=TINY, checkpoint=state, **short)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("max_fpr", [0.01, 0.1, 0.5])
def test_the_threshold_bounds_false_positives(max_fpr):
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.5).astype(np.float32)
    logits = rng.normal(2.0 * labels, 1.5).astype(np.float32)
    cut = calibrate(logits, labels, max_fpr)
    said = 1 / (1 + np.exp(-logits)) >= cut
    assert said[labels < 0.5].mean() <= max_fpr and cut >= 0.5


def test_bad_input_says_what_was_expected(trained):
    judge, _ = trained
    good = torch.zeros(1, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match="uint8"):
        judge.score(good.float(), ["x"])
    with pytest.raises(ValueError, match="frames must be"):
        judge.score(good[:, 0], ["x"])
    with pytest.raises(ValueError, match="one for each"):
        judge.score(good, ["x", "y"])
    with pytest.raises(ValueError, match="at least 2 episodes"):
        train_judge(SimpleNamespace(__len__=lambda: 1) and logs(1), config=SETTINGS, model=TINY)
    never = logs(6)
    never.success[:] = False
    with pytest.raises(ValueError, match="solved and unsolved"):
        train_judge(never, config=SETTINGS, model=TINY)
    with pytest.raises(ValueError, match="threshold"):
        judge.set_threshold(1.5)
