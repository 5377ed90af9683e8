"""A success head that is trained with the dynamics: its loss, what reaches the dynamics, and the judge it becomes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from judged_world import logs
from test_latent_judge import Frozen

from rewards import JudgeTrainConfig, LatentJudge, load_judge
from rewards.training.negatives import PairSampler
from rewards.training.success_head import SuccessHead, balanced, split_by_outcome
from worldgym.errors import ConfigError, DatasetError


@pytest.fixture
def arrays():
    return logs(60)


def head_of(arrays, **changes) -> SuccessHead:
    world_model = Frozen()
    world_model.device = torch.device("cpu")
    return SuccessHead.for_data(world_model, arrays, **{"coef": 0.05, **changes})


def test_words_of_a_frame_have_the_label_of_its_episode_or_are_false(arrays):
    pairs = PairSampler(arrays, np.arange(len(arrays)))
    rows = np.repeat(np.flatnonzero(arrays.success), 10)
    texts, labels = pairs.words_for(rows, np.random.default_rng(0))
    owner = np.repeat(np.arange(len(arrays)), 6)[rows]
    own = {"red", "green", "blue", "left", "right"}
    for text, label, episode in zip(texts, labels, owner, strict=True):
        same = own & set(text.split()) == own & set(arrays.instructions[episode].split())
        assert same == bool(label), (text, arrays.instructions[episode])
    assert 0.2 < 1 - labels.mean() < 0.5
    unsolved = np.flatnonzero(~arrays.success)
    assert not pairs.words_for(unsolved, np.random.default_rng(0))[1].any()


def test_the_loss_reaches_predicted_latents_of_training_episodes_and_no_others(arrays):
    head = head_of(arrays)
    held_out = set(np.unique(head.source.held.owner[head.source.held.every]).tolist())
    rows = torch.arange(len(arrays.frames))
    predicted = head.source.latents.float().clone().requires_grad_()
    weight = torch.ones(len(rows))
    weight[5] = 0  # padding
    loss, facts = head.loss(predicted, rows, weight, torch.Generator().manual_seed(0))
    loss.backward()
    reached = predicted.grad.abs().sum((1, 2, 3)) > 0
    wanted = torch.tensor([int(row) // 6 not in held_out for row in rows])
    wanted[5] = False
    assert 1 <= len(held_out) < len(arrays) and torch.equal(reached, wanted)
    assert loss.item() == pytest.approx(0.05 * facts["success_loss"], rel=1e-5)


def test_true_and_false_pairs_have_equal_weight_whatever_the_frames_weigh():
    weight, labels = torch.tensor([0.3, 0.3, 1.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    found = balanced(weight, labels)
    assert found[:2].sum().item() == pytest.approx(0.5) and found.sum().item() == pytest.approx(1)
    assert found[4] == 0 and balanced(weight[2:], labels[2:]).sum().item() == pytest.approx(1)
    assert balanced(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_a_step_depends_on_its_generator_alone(arrays):
    head = head_of(arrays)
    head.judge.train()
    rows = torch.arange(40)
    given = (head.source.latents[rows].float(), rows, torch.ones(40))
    first = head.loss(*given, torch.Generator().manual_seed(3))[0].item()
    torch.randn(100)
    assert head.loss(*given, torch.Generator().manual_seed(3))[0].item() == first
    assert head.loss(*given, torch.Generator().manual_seed(4))[0].item() != first


def test_copies_of_an_episode_are_held_out_together(arrays):
    from worldgym.data.augment import augmented

    more = augmented(arrays, 2, 0)
    assert len(more) == 3 * len(arrays)
    train, held_out = split_by_outcome(more, JudgeTrainConfig())
    assert len(held_out) >= 6 and not set(more.indices[train]) & set(more.indices[held_out])
    solved = [bool(more.success[more.rows(i)].any()) for i in held_out]
    assert any(solved) and not all(solved)


@pytest.mark.parametrize("dims", [0, 7])
def test_a_new_head_reads_the_proprioception_there_is(arrays, dims):
    changed = dataclasses.replace(arrays, states=np.zeros((len(arrays.frames), dims), np.float32))
    assert head_of(changed).judge.config.state_dim == dims


def test_a_head_trained_on_predictions_becomes_a_judge_with_its_threshold(arrays, tmp_path):
    torch.manual_seed(0)
    head = head_of(arrays, coef=1.0)
    optimizer = torch.optim.AdamW(head.module.parameters(), lr=3e-3)
    true = head.source.latents.float()
    for step in range(120):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(true), (48,), generator=generator)
        loss, _ = head.loss(true[rows], rows, torch.ones(48), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    world_model = Frozen()
    judge, report = head.finished(world_model)
    assert report["balanced_accuracy"] > 0.85 and report["threshold"] == judge.threshold
    assert {name for name in report if name.startswith("imagined_episodes/")}
    judge.save_pretrained(tmp_path / "judge")
    again = load_judge(tmp_path / "judge", tokenizer=world_model.tokenizer)
    frames = torch.from_numpy(arrays.frames[:8])[:, None]
    torch.testing.assert_close(
        again.score(frames, arrays.instructions[:8], np.zeros((8, 4), np.float32)).p_success,
        judge.score(frames, arrays.instructions[:8], np.zeros((8, 4), np.float32)).p_success,
        atol=0.02, rtol=0.02,
    )  # fmt: skip
    more = head_of(arrays, initial=tmp_path / "judge")
    assert more.judge.threshold == pytest.approx(judge.threshold, abs=1e-3)


def test_what_a_head_cannot_be_trained_on_is_refused(arrays, tmp_path):
    with pytest.raises(ConfigError, match="expected more than 0"):
        head_of(arrays, coef=0.0)
    with pytest.raises(ConfigError, match="needs one camera whose frames fill"):
        head_of(dataclasses.replace(arrays, views={"wrist": arrays.frames}))
    unlabelled = dataclasses.replace(arrays, has_success=np.zeros(len(arrays), bool))
    with pytest.raises(DatasetError, match="0 of 60 episodes have a frame that is labelled.*leave out --success-head"):
        head_of(unlabelled)
    LatentJudge({"channels": 3, "state_dim": 7}).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="7 dimensions of proprioception, but the dataset has 4"):
        head_of(arrays, initial=tmp_path / "other")
