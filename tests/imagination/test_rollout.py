"""One closed loop: what a judge is shown, what a missing verdict means, and what ends are the same wherever it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import LEFT, STEP, DeadJudge, DotJudge, DotWorldModel, find, make_starts
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.evaluation.judge_audit import watch
from worldgym.evaluation.rollouts import make_starts as evaluation_starts
from worldgym.imagination import WorldModelVectorEnv
from worldgym.imagination.episodes import ImaginedEpisodes
from worldgym.imagination.frame_buffer import FrameBuffer
from worldgym.imagination.rollout import FrameRecorder, rollout, run_policy
from worldgym.imagination.rules import Rules
from worldgym.protocols import Judgement, PolicyOutput, Reads, judged, reads_of

KINDS = ["last", 1, 3, 8, "episode"]


class Watching(DotJudge):
    """Keeps what it was shown, and is never content."""

    def __init__(self, frames):
        super().__init__()
        self.reads, self.shown = Reads(frames=frames, state=True), []

    def score(self, frames, instructions, states):
        self.shown.append((frames.clone(), list(instructions), states.clone()))
        return Judgement(torch.zeros(len(frames)), None, torch.ones(len(frames), dtype=torch.bool))


class Silent(DotJudge):
    """Gives no verdict of the first row: `nan` does not apply, `invalid` failed."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def score(self, frames, instructions):
        p = torch.full((len(frames),), 0.1)
        valid = torch.ones(len(frames), dtype=torch.bool)
        left = torch.tensor([text == LEFT for text in instructions])
        if self.how == "nan":
            p[left] = torch.nan
        else:
            p[left], valid[left] = 1.0, False
        return Judgement(p, None, valid)


class Mover:
    """Moves left, whatever it sees."""

    chunk = 5

    def __init__(self, speed=0.5):
        self.speed = speed

    def act(self, observation, *, temperature=1.0, generator=None):
        actions = torch.zeros(len(observation["instruction"]), self.chunk, 4)
        actions[..., 0] = -self.speed
        return PolicyOutput(actions, torch.zeros(len(actions)))


def observation(count=4):
    starts = make_starts(count)
    rows = [starts.get(i) for i in range(count)]
    return {
        "image": np.stack([row.frames[-1] for row in rows]),
        "state": np.stack([row.states[-1] for row in rows]),
        "instruction": [row.instruction for row in rows],
    }


def expected(history, frames):
    """What a judge that reads `frames` is shown of a list of pictures."""
    depth = Reads(frames).depth
    if depth is None:
        return np.stack(history)
    return np.stack(([history[0]] * depth + history)[-depth:])


# -- the frame buffer ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), frames=st.sampled_from(KINDS))
def test_a_buffer_shows_what_a_list_of_all_frames_would(data, frames):
    count, number = 3, 0
    first = torch.arange(count).view(-1, 1, 1, 1).to(torch.uint8).expand(-1, 2, 2, 3)
    buffer, lists = FrameBuffer(first, frames), [[first[i].numpy()] for i in range(count)]
    for _ in range(data.draw(st.integers(0, 6))):
        number += 10
        what = data.draw(st.sampled_from(["append", "take", "put"]))
        if what == "append":
            k = data.draw(st.integers(1, 4))
            new = (number + torch.arange(k)).to(torch.uint8).view(1, k, 1, 1, 1).expand(len(lists), -1, 2, 2, 3)
            buffer.append(new if buffer.decode == "all" else new[:, -1:])
            lists = [past + list(new[i].numpy()) for i, past in enumerate(lists)]
        elif what == "take":
            rows = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=4))
            buffer, lists = buffer.take(np.array(rows)), [list(lists[i]) for i in rows]
        else:
            row = data.draw(st.integers(0, len(lists) - 1))
            fresh = torch.full((1, 2, 2, 3), number, dtype=torch.uint8)
            buffer.put(np.array([row]), FrameBuffer(fresh, frames))
            lists[row] = [fresh[0].numpy()]
    seen = {}
    for rows, clips in buffer.clips(np.arange(len(lists))):
        seen |= {int(i): clip.numpy() for i, clip in zip(rows, clips, strict=True)}
    assert sorted(seen) == list(range(len(lists)))
    for i, past in enumerate(lists):
        assert np.array_equal(seen[i], expected(past, frames))
        assert np.array_equal(buffer.last[i].numpy(), past[-1])


@pytest.mark.parametrize("frames", [0, -1, True, "all", 2.5, None])
def test_what_no_judge_can_read_is_refused(frames):
    with pytest.raises(ValueError, match="expected 'last', 'episode' or a whole number"):
        Reads(frames=frames)


def test_judges_together_read_the_most_and_each_is_shown_its_own_part():
    assert Reads(3) | Reads("last", state=True) == Reads(3, state=True)
    assert Reads(3) | Reads("episode", latents=True) == Reads("episode", latents=True)
    assert Reads() | Reads(1) == Reads()
    judge, frames = Watching(2), torch.arange(4).view(1, 4, 1, 1, 1).to(torch.uint8).expand(1, 4, 2, 2, 3)
    judged(judge, frames, ["x"], torch.zeros(1, 4))
    judged(judge, frames[:, :1], ["x"], torch.zeros(1, 4))
    assert [shown[0, :, 0, 0, 0].tolist() for shown, *_ in judge.shown] == [[2, 3], [0, 0]]


def test_a_judge_that_declares_nothing_is_shown_the_last_frame_and_old_flags_still_count():
    assert reads_of(DotJudge()) == Reads()
    judge = DotJudge()
    judge.reads_state = True
    with pytest.warns(DeprecationWarning, match=r"Reads\(state=True"):
        assert reads_of(judge) == Reads(state=True)
    judge.reads = "episode"
    with pytest.raises(TypeError, match="expected worldgym.protocols.Reads"):
        reads_of(judge)


# -- what judges are shown, in each loop ---------------------------------------------------------------------------


@pytest.mark.parametrize("frames", KINDS)
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_environment_shows_each_slot_its_own_episode(frames, mode):
    judge = Watching(frames)
    envs = WorldModelVectorEnv(
        DotWorldModel(0.01), judge, make_starts(), num_envs=3, horizon=8, chunk=2, judge_every=2, autoreset_mode=mode,
        info_frames=True,
    )  # fmt: skip
    seen, _ = envs.reset(seed=0)
    lists = [[image] for image in seen["image"]]
    rng = np.random.default_rng(0)
    for step in range(14):
        if step == 3:  # one slot begins anew in the middle of the others' episodes
            seen, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
            lists[1] = [seen["image"][1]]
        judge.shown.clear()
        seen, _, terminated, truncated, info = envs.step(rng.uniform(-1, 1, (3, 2, 4)).astype(np.float32))
        ended = terminated | truncated
        fresh = np.array([len(past) == 9 for past in lists]) if mode == "NextStep" else np.zeros(3, bool)
        path = [
            (info["final_info"] if mode == "SameStep" and ended[i] else info)["frames"][i] for i in range(3)
        ]
        lists = [[seen["image"][i]] if fresh[i] else lists[i] + list(path[i]) for i in range(3)]
        wanted = {i: expected(lists[i], frames) for i in range(3) if not fresh[i]}
        got = [clip.numpy() for clips, *_ in judge.shown for clip in clips]
        assert len(got) == len(wanted)
        for clip in wanted.values():
            assert any(np.array_equal(clip, other) for other in got)
        if mode == "SameStep":
            lists = [[seen["image"][i]] if ended[i] else lists[i] for i in range(3)]


@pytest.mark.parametrize("frames", KINDS)
def test_a_rollout_shows_the_same_frames_as_it_records(frames):
    judge, seen = Watching(frames), observation()
    result = run_policy(Mover(), DotWorldModel(), judge, seen, horizon=12, record=True)
    assert result.steps == 4 * 12 and [len(film) for film in result.frames] == [13] * 4
    assert [len(actions) for actions in result.actions] == [12] * 4, "the last chunk is cut at the horizon"
    for (shown, texts, states), end in zip(judge.shown, (5, 10, 12), strict=True):
        assert texts == seen["instruction"]
        for i, film in enumerate(result.frames):
            assert np.array_equal(shown[i].numpy(), expected(list(film[: end + 1]), frames))
        assert torch.allclose(states[:, :2], find(shown[:, -1]), atol=0.02)


class DotEnv:
    """Real, of one dot that moves as the world model says."""

    def reset(self, *, seed=None, options=None):
        self.world, seen = DotWorldModel(), observation(8)
        self.row = int(seed) % 8
        none = torch.zeros(1, 0, 4)
        image, state = (torch.as_tensor(seen[key][self.row])[None, None] for key in ("image", "state"))
        self.state = self.world.begin(image, none, states=state)
        self.seen = {"image": image[0, 0].numpy(), "state": state[0, 0].numpy(), "instruction": LEFT}
        return self.seen, {"success": False, "instruction_text": LEFT}

    def step(self, action):
        self.state, made = self.world.step(self.state, torch.as_tensor(action)[None, None])
        self.seen = {**self.seen, "image": made.frames[0, 0].numpy(), "state": made.states[0, 0].numpy()}
        return self.seen, 0.0, False, False, {"success": False, "instruction_text": LEFT}


@pytest.mark.parametrize("frames", KINDS)
def test_an_audit_shows_judges_imagined_and_real_video_alike(frames):
    judge, plain = Watching(frames), Watching("last")
    starts = evaluation_starts(["left"], per_task=3)
    seen = watch(
        Mover(), DotWorldModel(), {"video": judge, "plain": plain}, DotEnv(), starts, horizon=12, real_frames=True
    )
    assert seen.scores["video"].shape == seen.real_scores["video"].shape == (3, 3)
    imagined, real = judge.shown[:3], judge.shown[3:]
    assert len(real) == 3
    for (one, *_), (other, *_) in zip(imagined, real, strict=True):
        assert torch.equal(one, other), "this world model is exact"
    lengths = [shown.shape[1] for shown, *_ in imagined]
    assert lengths == ([6, 11, 13] if frames == "episode" else [Reads(frames).depth] * 3)


# -- no verdict is no failure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nan", "invalid"])
def test_a_missing_verdict_is_invalid_in_every_loop(how):
    seen = observation()
    left = np.array([text == LEFT for text in seen["instruction"]])
    result = run_policy(Mover(), DotWorldModel(), Silent(how), seen, horizon=10)
    assert not result.success.any() and np.array_equal(result.invalid, left)
    assert [len(actions) for actions in result.actions] == [5 if out else 10 for out in left]
    envs = WorldModelVectorEnv(DotWorldModel(), Silent(how), None, num_envs=4, horizon=10, chunk=5)
    envs.reset(options={"initial_image": seen["image"], "instruction": seen["instruction"]})
    _, reward, terminated, truncated, info = envs.step(np.zeros((4, 5, 4), np.float32))
    assert not terminated.any() and np.array_equal(truncated, left) and not reward.any()
    assert np.array_equal(info["invalid"], left) and np.array_equal(np.isnan(info["p_success"]), left)


def test_a_judge_that_does_not_answer_makes_every_episode_invalid_and_ends_no_run():
    seen = observation()
    result = run_policy(Mover(), DotWorldModel(), DeadJudge(), seen, horizon=10)
    assert result.invalid.all() and not result.success.any()
    audited = watch(
        Mover(), DotWorldModel(), {"dead": DeadJudge()}, DotEnv(), evaluation_starts(["left"], 2), horizon=10
    )
    assert np.isnan(audited.scores["dead"]).all()


# -- the same ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confirm", [1, 2])
@pytest.mark.parametrize("compact_below", [0.0, 0.6, 1.0])
def test_the_environment_and_the_rollout_judge_and_end_alike(confirm, compact_below):
    seen, world = observation(8), DotWorldModel(uncertain_beyond=0.2)
    rules = Rules(20, None, 1, 0.7, uncertainty_bound=0.5, confirm=confirm)
    episodes = ImaginedEpisodes.begin(world, DotJudge(), rules, seen["image"], seen["state"], seen["instruction"])
    film = FrameRecorder(8)
    result = rollout(
        lambda look, rows: Mover(0.2).act(look), episodes, observers=[film], compact_below=compact_below
    )
    envs = WorldModelVectorEnv(
        world, DotJudge(), None, num_envs=8, horizon=20, chunk=5, judge_every=5, success_threshold=0.7,
        uncertainty_bound=0.5, confirm=confirm, autoreset_mode="Disabled",
    )  # fmt: skip
    envs.reset(options={"initial_image": seen["image"], "state": seen["state"], "instruction": seen["instruction"]})
    over, success, invalid = (np.zeros(8, bool) for _ in range(3))
    last = [None] * 8
    for _ in range(4):
        still = ~over
        envs._episodes.slots.over[:] = False  # episodes that are over go on here, unseen
        images, _, terminated, truncated, info = envs.step(
            np.tile([-0.2, 0, 0, 0], (8, 5, 1)).astype(np.float32)
        )
        success |= still & terminated
        invalid |= still & truncated & (info["invalid"] | info["hallucination"])
        over |= terminated | truncated
        last = [images["image"][i] if still[i] else last[i] for i in range(8)]
    assert success.any() and invalid.any() and not (success | invalid).all() and over.all()
    assert np.array_equal(result.success, success) and np.array_equal(result.invalid, invalid)
    for i in range(8):
        assert np.array_equal(film.frames[i][-1], last[i])


def test_actions_beyond_the_bounds_are_clipped():
    class Wild(Mover):
        def act(self, observation, **how):
            output = super().act(observation)
            output.actions[..., 0] = -7.0
            return output

    seen = observation()
    result = run_policy(Wild(), DotWorldModel(), None, seen, horizon=3)
    assert all((actions[:, 0] == -1).all() for actions in result.actions)
    assert result.steps == 4 * 3 and STEP > 0 and not result.success.any()
