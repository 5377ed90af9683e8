from __future__ import annotations

import numpy as np
import pytest
import torch
from line_world import SIZE, BrightJudge, LineWorld, starts, tiny_policy
from test_sft import made_up_arrays

from agents import Rollouts, StartBank, collect
from worldgym.protocols import Reads


def run(judge=None, world=None, seed=0, others=None, **kwargs):
    values = {"group_size": 6, "horizon": 12, "generator": torch.Generator().manual_seed(seed), **kwargs}
    begun = starts(3)
    begun.other_instructions = others
    return collect(world or LineWorld(), judge or BrightJudge(), tiny_policy(), begun, **values)


def test_shapes_order_and_groups():
    r = run()
    assert (
        r.images.shape == (18, 3, SIZE, SIZE, 3) and r.images.dtype == torch.uint8
    )  # 12 steps: 3 chunks of 5
    assert r.actions.shape == (18, 3, 5, 4) and r.groups.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.equal(r.images[:6, 0], starts(3).images[:1].expand(6, -1, -1, -1))
    assert bool(r.mask[:, 0].all()) and set(r.seconds) == {"imagine", "policy", "judge"}


def test_the_mask_ends_with_the_chunk_of_success():
    r = run()
    won = r.reward > 0
    assert bool(won.any()) and not bool(won.all())
    for i in range(len(r)):
        length = int(r.lengths[i])
        assert r.mask[i].tolist() == [True] * length + [False] * (3 - length)
        p = r.p_success[i]
        assert bool(torch.isnan(p[length:]).all()) and (p[length - 1] >= 0.5) == won[i]
        assert not bool((p[: length - 1] >= 0.5).any())
        assert bool(won[i]) or length == 3
    assert bool((r.actions[~r.mask] == 0).all())


def test_replaying_the_actions_explains_the_frames():
    r = run()
    for i in range(len(r)):
        total = 0.1 * float(r.actions[i].sum(0).sum(0)[0])
        expected = int((min(max(total, -1), 1) + 1) * 127.5)
        assert abs(int(r.final_images[i, 0, 0, 0]) - expected) <= 1


@pytest.mark.parametrize("compact_below", [0.0, 0.95, 1.1])
def test_dropping_finished_rows_saves_steps_and_loses_nothing(compact_below):
    world = LineWorld()
    r = run(world=world, compact_below=compact_below)
    assert sum(world.rows_stepped) * 5 == r.frames_used
    assert (r.frames_used < 18 * 15) == (compact_below > 0)
    again = run(compact_below=compact_below)
    assert torch.equal(r.trace["tokens"], again.trace["tokens"]) and torch.equal(r.reward, again.reward)


def test_log_probs_are_those_of_the_policy_that_acted():
    r, policy = run(temperature=1.3), tiny_policy()
    where = r.mask.nonzero()
    rows, chunks = where[:, 0], where[:, 1]
    again = policy.evaluate(r.observation(rows, chunks), r.trace_at(rows, chunks)).log_probs
    assert set(again) == {"action", "goal"}
    for name, value in again.items():
        assert torch.allclose(value, r.log_probs[name][rows, chunks], atol=1e-4), name


def test_a_failing_judge_makes_a_trajectory_invalid_not_unsuccessful():
    r = run(judge=BrightJudge(broken=2))
    assert int((~r.valid).sum()) == 1
    bad = int((~r.valid).nonzero())
    assert r.reward[bad] == 0 and int(r.lengths[bad]) == 2
    assert r.success_rate() == pytest.approx(float(r.reward.sum() / 17))


def test_an_unsure_world_model_makes_trajectories_invalid():
    r = run(max_uncertainty=-1.0)
    assert not bool(r.valid.any()) and np.isnan(r.success_rate())


def test_confirmation_wants_success_twice():
    once, twice = run(), run(confirm=2)
    assert int((twice.reward > 0).sum()) < int((once.reward > 0).sum())


def test_every_frame_is_kept_on_request():
    r = run(keep_frames=True)
    assert r.frames is not None and r.frames.shape == (18, 16, SIZE, SIZE, 3)
    for i in range(len(r)):
        assert torch.equal(r.frames[i, 0], r.images[i, 0])
        assert torch.equal(r.frames[i, int(r.lengths[i]) * 5], r.final_images[i])
        assert torch.equal(r.frames[i, -1], r.final_images[i])


def test_selection_and_concatenation():
    a, b = run(seed=0), run(seed=1)
    both = Rollouts.concatenate([a, b])
    assert len(both) == 36 and len(torch.unique(both.groups)) == 6
    assert len(both.instructions) == 36 and both.frames_used == a.frames_used + b.frames_used
    won = both.select(both.reward > 0)
    assert bool((won.reward > 0).all()) and len(won.instructions) == len(won)


def test_other_instructions_go_from_the_logs_to_the_attempts():
    arrays = made_up_arrays()
    others = [(f"other {i}",) for i in range(len(arrays))]
    bank = StartBank.from_arrays(arrays, stride=1, other_instructions=others)
    assert bank.starts.other_instructions == [others[i] for i in range(len(arrays)) for _ in range(3)]
    chosen = bank.starts.select([7, 0])
    assert chosen.other_instructions == [others[2], others[0]]
    assert chosen.start_set().other_instructions == chosen.other_instructions
    assert type(chosen).of(chosen.start_set()).other_instructions == chosen.other_instructions


def test_each_attempt_has_the_other_instructions_of_its_start():
    known, unknown = run(seed=0, others=[(f"other {i}",) for i in range(3)]), run(seed=1)
    assert known.other_instructions == [(f"other {i // 6}",) for i in range(len(known))]
    assert known.select(torch.tensor([7, 0])).other_instructions == [("other 1",), ("other 0",)]
    assert Rollouts.concatenate([known, known]).other_instructions == 2 * known.other_instructions
    assert Rollouts.concatenate([known, unknown]).other_instructions is None


def test_the_start_bank_holds_unsolved_frames_of_all_depths():
    bank = StartBank.from_arrays(made_up_arrays(), stride=1)
    assert len(bank) == 15 and set(bank.starts.steps.tolist()) == {0, 1, 2}
    chosen = bank.sample(20, np.random.default_rng(0), middle_fraction=0.0)
    assert chosen.steps.tolist() == [0] * 20 and chosen.tasks.count("push") == 10
    assert min(bank.sample(20, np.random.default_rng(0), middle_fraction=1.0).steps.tolist()) > 0
    with pytest.raises(ValueError, match="empty"):
        StartBank.from_arrays(made_up_arrays(), tasks=["juggle"])


def test_a_simulator_gives_the_same_kind_of_rollouts():
    from simulated_line import SHARED

    from agents import collect_simulated

    policy = tiny_policy(image_size=SIZE)
    r = collect_simulated(
        policy, range(4), ["reach"] * 4, env="simulated_line:LineEnv", processes=0, group_size=4, horizon=10,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert r.images.shape == (16, 2, SIZE, SIZE, 3) and r.groups.tolist() == sorted(list(range(4)) * 4)
    starts_of = r.states[:, 0, 1].view(4, 4)
    assert bool((starts_of == starts_of[:, :1]).all()), "one seed, one start"
    assert SHARED["steps"] >= r.frames_used - 80
    way = 0.1 * r.actions[..., 0].flatten(1).cumsum(1)
    assert torch.equal(r.reward > 0, way.amax(1) >= 0.105)
    assert r.path is not None
    for i in range(16):  # the path has every step of the simulator and is constant after a success
        steps = int((way[i] >= 0.105).int().argmax()) if r.reward[i] else 9
        assert torch.allclose(r.path[i, : steps + 1, 0], way[i, : steps + 1], atol=1e-5)
    part = collect_simulated(
        policy, range(4), ["reach"] * 4, env="simulated_line:LineEnv", processes=0, group_size=4, horizon=10,
        generator=torch.Generator().manual_seed(0), partial=True,
    )  # fmt: skip
    for i in range(16):  # partial reward: progress of every step, 1 from success on
        gone = way[i].div(0.105).clamp(0, 1)
        gone[int((way[i] >= 0.105).int().argmax()) if r.reward[i] else 10 :] = 1
        assert float(part.reward[i]) == pytest.approx(float(gone.mean()), abs=1e-5)

    class Early:
        """Judges success after half of the path, and gives no answer for the last start."""

        threshold, reads = 0.5, Reads(state=True)

        def score(self, frames, instructions, states):
            from worldgym.protocols import Judgement

            return Judgement((states[:, 0] > 0.05).float(), None, states[:, 1] < 3, [])

    judged = collect_simulated(
        policy, range(4), ["reach"] * 4, env="simulated_line:LineEnv", processes=0, group_size=4, horizon=10,
        generator=torch.Generator().manual_seed(0), judge=Early(),
    )  # fmt: skip
    assert judged.valid.tolist() == [True] * 12 + [False] * 4, "a missing answer does not count as failure"
    for i in range(12):  # judged at the end of each chunk; a true success does not stop the episode
        at_ends = judged.actions[i, :, :, 0].cumsum(1)[:, -1].cumsum(0) * 0.1
        assert bool(judged.reward[i]) == bool((at_ends[: int(judged.lengths[i])] > 0.05).any())

    class Never(Early):
        """Never judges success."""

        def score(self, frames, instructions, states):
            from worldgym.protocols import Judgement

            return Judgement(torch.zeros(len(states)), None, torch.ones(len(states), dtype=torch.bool), [])

    never = collect_simulated(
        policy, range(4), ["reach"] * 4, env="simulated_line:LineEnv", processes=0, group_size=4, horizon=10,
        generator=torch.Generator().manual_seed(0), judge=Never(),
    )  # fmt: skip
    gone = 0.1 * never.actions[..., 0].flatten(1).cumsum(1)
    assert bool((gone[:, :9] >= 0.105).any()), "some episodes continue after a true success"
    assert torch.allclose(never.path[..., 0], gone, atol=1e-5) and not never.reward.any()
    with pytest.raises(ValueError, match="one task for each seed"):
        collect_simulated(policy, [1, 2], ["reach"], env="simulated_line:LineEnv", processes=0)
