"""Which passes of a sampler run the network, and which reuse its last velocity."""

from __future__ import annotations

import pytest
import torch

from worldgym.errors import ConfigError
from worldgym.nn import Euler, Reuse, Reused
from worldgym.nn.reuse import STATIC


def velocities(reuse: Reuse, outputs: list[torch.Tensor]):
    """Passes that ran the network, and the velocity of every pass, for a network that would give `outputs`."""
    reused, ran = Reused(reuse, len(outputs)), []

    def compute(i: int):
        ran.append(i)
        return (outputs[i],)

    found = [reused(i, lambda i=i: compute(i))[0] for i in range(len(outputs))]
    assert reused.computed == len(ran)
    return ran, found


def turning(angles: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([torch.cos(torch.tensor(a)), torch.sin(torch.tensor(a))]) for a in angles]


def test_without_a_plan_every_pass_runs_and_the_sample_is_the_same_bit_for_bit():
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plain = Euler(6).sample(lambda x, t: x * t[:, None], noise)
    for reuse in (Reuse(), Reuse("static", 6)):
        reused, i = Reused(reuse, 6), iter(range(6))
        assert torch.equal(
            Euler(6).sample(lambda x, t, i=i, r=reused: r(next(i), lambda: (x * t[:, None],))[0], noise),
            plain,
        )
        assert reused.computed == 6


@pytest.mark.parametrize("passes", sorted(STATIC))
def test_sixteen_steps_run_the_published_passes(passes):
    ran, found = velocities(Reuse("static", passes), [torch.tensor([float(i)]) for i in range(16)])
    assert tuple(ran) == STATIC[passes]
    for i, value in enumerate(found):
        assert float(value) == max(j for j in ran if j <= i)


def test_other_numbers_of_steps_spread_the_passes_from_the_first_one():
    ran, _ = velocities(Reuse("static", 2), turning([0.0] * 8))
    assert ran == [0, 4]


def test_adaptive_skips_four_passes_for_a_straight_path_and_none_for_a_turning_one():
    assert velocities(Reuse("adaptive"), turning([0.0] * 16))[0] == [0, 1, 6, 11]
    assert velocities(Reuse("adaptive"), turning([i * 1.0 for i in range(16)]))[0] == [*range(16)]
    some = turning([i * 0.35 for i in range(16)])  # cosine .94: two skips
    assert velocities(Reuse("adaptive"), some)[0][:3] == [0, 1, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reuse("odd"), "plan is 'odd'"),  # type: ignore[arg-type]
        (lambda: Reuse(passes=0), "try passes=6"),
        (lambda: Reuse(similar=(0.9, 0.95)), "the larger first"),
        (lambda: Reuse("static", 8).fixed(4), "do not fit into 4 steps"),
    ],
)
def test_plans_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
