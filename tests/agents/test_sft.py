from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from line_world import SIZE, tiny_policy

from agents import SFT, ChunkDataset, SFTConfig, chunk_dataset
from agents.algorithms.sft import demonstrations
from worldgym.utils.train_state import TrainState


def demo(seed: int, steps: int = 12, success_at: int | None = 10) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    success = np.zeros(steps + 1, bool)
    if success_at is not None:
        success[success_at:] = True
    words = "push the red cube to the left" if seed % 2 else "push the red cube to the right"
    actions = rng.uniform(-0.1, 0.1, (steps, 4)).astype(np.float32)
    actions[:, 0] = -1 if seed % 2 else 1  # only the instruction determines the action
    actions[:, 3] = -1
    return SimpleNamespace(
        frames=rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8),
        state=rng.normal(size=(steps + 1, 4)).astype(np.float32),
        actions=actions,
        success=success,
        instruction=words,
    )


def test_chunks_hold_the_next_actions_and_then_stand_still():
    episode = demo(0, steps=7, success_at=None)
    episode.state[:, 2] = 0.1  # no descent, hence no intermediate keyframe
    data = chunk_dataset([episode])
    assert len(data) == 7 and data.actions.shape == (7, 5, 4)
    assert np.array_equal(data.actions[1], episode.actions[1:6])
    assert np.array_equal(data.actions[6, 0], episode.actions[6])
    assert np.array_equal(data.goals, np.repeat(episode.state[7:8], 7, 0))
    assert np.allclose(data.actions[6, 1:, :3], 0) and np.allclose(data.actions[6, 1:, 3], -1)


def test_frames_after_success_are_left_out_but_their_actions_are_targets():
    episode = demo(0, steps=12, success_at=10)
    data = chunk_dataset([episode, demo(1, success_at=0), demo(2)])
    assert len(data) == 20 and set(data.episode) == {0, 2}
    assert np.array_equal(data.actions[9, :3], episode.actions[9:12])


def test_no_demonstration_is_an_error():
    with pytest.raises(ValueError, match="worldgym collect"):
        chunk_dataset([demo(0, success_at=0)])
    one = chunk_dataset([demo(0)])
    with pytest.raises(ValueError, match="at least 2 episodes"):
        one.split(0.1, 0)


def test_the_split_is_by_episode():
    data = chunk_dataset([demo(i) for i in range(10)])
    train, val = data.split(0.2, seed=0)
    assert len(set(val.episode)) == 2 and not set(train.episode) & set(val.episode)
    assert len(train) + len(val) == len(data)


def fitted(data: ChunkDataset, epochs: int = 4, changes: dict | None = None, **kwargs) -> tuple:
    policy = tiny_policy()
    values = {"lr": 3e-3, "val_fraction": 0.2, "state_noise": 0.0, **(changes or {})}
    config = SFTConfig(**{"epochs": epochs, "batch_size": 32, **values})
    history = SFT(config).fit(policy, data, **kwargs)
    return policy, history


def test_it_learns_what_the_words_say_and_keeps_the_best():
    data = chunk_dataset([demo(i) for i in range(24)])
    seen: list[dict] = []
    policy, history = fitted(data, epochs=15, on_epoch=seen.append)
    assert history["best_score"] == min(s["val_goal_error"] for s in seen)
    observation, _ = data.batch(np.arange(0, len(data), 3))
    actions = policy.act(observation, temperature=0).actions
    wanted = torch.tensor([-1.0 if "left" in text else 1.0 for text in observation["instruction"]])
    assert float((actions[:, 0, 0].sign() == wanted).float().mean()) > 0.95
    # The same images with shuffled instructions: a policy that ignores the instruction would not change.
    observation["instruction"] = [
        t.replace("left", "?").replace("right", "left").replace("?", "right")
        for t in observation["instruction"]
    ]
    flipped = policy.act(observation, temperature=0).actions
    assert float((flipped[:, 0, 0].sign() == -wanted).float().mean()) > 0.95


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    data = chunk_dataset([demo(i) for i in range(6)])
    whole, _ = fitted(data)

    class Killed(Exception):
        pass

    def kill(scalars):
        if scalars["epoch"] == 1:
            raise Killed

    with pytest.raises(Killed):
        fitted(data, on_epoch=kill, checkpoint=TrainState(tmp_path / "c"))
    resumed, _ = fitted(data, checkpoint=TrainState(tmp_path / "c"))
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("changes", [{"finish_steps": 2}, {"epochs": 6, "patience": 1, "lr": 0.5}])
def test_a_run_killed_after_its_last_epoch_finishes_with_the_same_weights(tmp_path, changes):
    """Dropout of the finishing steps, and early stopping, are the same as in an uninterrupted run."""
    data, last = chunk_dataset([demo(i) for i in range(6)]), []
    whole, history = fitted(data, on_epoch=lambda scalars: last.append(scalars["epoch"]), changes=changes)

    class Killed(TrainState):
        def save(self, module, optimizer, meta, **extra):
            super().save(module, optimizer, meta, **extra)
            if meta["epoch"] == last[-1]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(data, checkpoint=Killed(tmp_path / "c"), changes=changes)
    torch.manual_seed(77)
    resumed, again = fitted(data, checkpoint=TrainState(tmp_path / "c"), changes=changes)
    assert again == history
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_update_takes_cloning_steps():
    data = chunk_dataset([demo(i) for i in range(4)])
    policy, trainer = tiny_policy(), SFT(SFTConfig(lr=1e-3))
    everything = data.chunk_batch(np.arange(len(data)))
    before = float(policy.loss(everything)["action"].detach())
    trainer.update(policy, data, steps=5)
    assert float(policy.loss(everything)["action"].detach()) < before


def test_demonstrations_are_successful_episodes_of_one_behaviour():
    arrays = made_up_arrays()
    chosen = demonstrations(arrays, per_task=1)
    assert [(d.task, d.behaviour) for d in chosen] == [("push", "expert"), ("reach", "expert")]
    assert all(d.success.any() and len(d.frames) == len(d.actions) + 1 for d in chosen)
    with pytest.raises(ValueError, match="behaviour 'wizard'"):
        demonstrations(arrays, behaviour="wizard")


def made_up_arrays():
    from worldgym.data.reader import EpisodeArrays

    tasks = ["reach", "push", "reach", "push", "reach"]
    count, steps = len(tasks), 4
    success = np.zeros((count, steps), bool)
    success[:4, 3] = True
    return EpisodeArrays(
        frames=np.zeros((count * steps, SIZE, SIZE, 3), np.uint8),
        states=np.zeros((count * steps, 4), np.float32),
        actions=np.zeros((count * steps, 4), np.float32),
        success=success.reshape(-1),
        progress=np.zeros(count * steps, np.float32),
        is_last=np.tile([False, False, False, True], count),
        offsets=np.arange(0, count * steps + 1, steps),
        instructions=[f"{task} the red cube" for task in tasks],
        tasks=tasks,
        behaviours=["expert", "expert", "noisy", "expert", "expert"],
        provenance=[{}] * count,
        indices=np.arange(count),
    )


def test_the_goal_of_a_frame_is_the_next_turn_of_the_gripper_or_the_success():
    episode = demo(0, steps=12, success_at=10)
    episode.actions[:4, 3] = 1.0
    episode.state[:, 2] = 0.1
    data = chunk_dataset([episode])
    assert np.array_equal(data.goals[:4], np.repeat(episode.state[4:5], 4, 0))
    assert np.array_equal(data.goals[4:], np.repeat(episode.state[10:11], 6, 0))


def test_the_finish_goes_on_from_the_best_weights_and_averages():
    data = chunk_dataset([demo(i) for i in range(8)])
    plain, history = fitted(data)
    policy = tiny_policy()
    config = SFTConfig(
        epochs=4, batch_size=32, lr=3e-3, val_fraction=0.2, state_noise=0.0, finish_steps=12, finish_lr=1e-4
    )
    finished = SFT(config).fit(policy, data)
    assert finished["best_score"] == history["best_score"]
    gap = [float((a - b).abs().max()) for a, b in zip(plain.parameters(), policy.parameters(), strict=True)]
    assert 0 < max(gap) < 12 * 1e-4 * 2  # Adam changes a weight by about the learning rate per step


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="must be"):
        SFTConfig(select="val_accuracy")
    with pytest.raises(ValueError, match="has no 'eyes' that can be trained alone"):
        SFT(SFTConfig(learn="eyes")).optimizer(tiny_policy())


def test_learning_the_pointer_leaves_acting_and_statistics_alone():
    data = chunk_dataset([demo(i) for i in range(6)])
    policy = tiny_policy()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    SFT(SFTConfig(epochs=2, batch_size=32, val_fraction=0.2, learn="pointer", finish_steps=2)).fit(
        policy, data
    )
    changed = {k for k, v in policy.state_dict().items() if not torch.equal(before[k], v)}
    assert changed and all(k.startswith("pointer.") for k in changed)
