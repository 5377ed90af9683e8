"""The transformer: a cache gives what the masked pass gives, experts, conditioning, taps, rows."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.layouts import ROLES, cases
from worldgym.errors import ConfigError
from worldgym.nn import (
    Expert,
    KVCache,
    Rotary,
    Segment,
    SequenceLayout,
    Transformer,
    TransformerConfig,
    block_causal,
    full,
)

SHAPES = {
    "plain": TransformerConfig((Expert("all", 16),), depth=2, heads=2),
    "zero": TransformerConfig((Expert("all", 16),), 2, 2, modulation="zero", condition_dim=5, activation="silu"),
    "axes": TransformerConfig((Expert("all", 16),), 2, 2, 12, "single", 5, axes=(4, 4, 4)),
    "experts": TransformerConfig(
        (Expert("video", 16, context_dim=6), Expert("action", 8), Expert("state", 12)), 2, 2, 8, "zero", 5
    ),
}  # fmt: skip


@cache
def network(name: str) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(SHAPES[name]).eval().requires_grad_(False)
    for p in net.parameters():  # weights that begin at zero would hide mistakes
        p.add_(0.2 * torch.randn_like(p))
    return net


def tokens_for(net: Transformer, layout: SequenceLayout, batch: int) -> dict[str, torch.Tensor]:
    experts = net.config.experts
    if len(experts) == 1:
        return {experts[0].name: torch.randn(batch, layout.length, experts[0].width)}
    counts = {e.name: len(layout.indices(e.serves)) for e in experts}
    return {e.name: torch.randn(batch, counts[e.name], e.width) for e in experts if counts[e.name]}


def part_of(net: Transformer, x, layout: SequenceLayout, group: list[int]):
    """The tokens of some segments, by expert."""
    slices, out = layout.slices(), {}
    for e in net.config.experts:
        one = len(net.config.experts) == 1
        mine = torch.arange(layout.length) if one else layout.indices(e.serves)
        wanted = [t for i in group for t in range(slices[i].start, slices[i].stop)]
        places = [int((mine == t).nonzero()) for t in wanted if (mine == t).any()]
        if places:
            out[e.name] = x[e.name][:, places]
    return out


@given(case=cases(), name=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_feeding_a_cache_equals_the_masked_pass_for_any_layout_and_rule(case, name, seed):
    layout, rule = case
    net = network(name)
    torch.manual_seed(seed)
    x = tokens_for(net, layout, 2)
    condition = torch.randn(2, layout.length, 5) if net.config.condition_dim else None
    context = torch.randn(2, 3, 6) if name == "experts" else None
    positions = layout.positions()
    chosen = positions[:, 0] if net.config.axes is None else positions
    whole = net(x, layout, rule, condition=condition, positions=chosen, context=context, taps={0})
    cache = net.empty_cache(2, layout.length, layout.kinds)
    for group in layout.order(rule):
        where = torch.cat([torch.arange(layout.length)[layout.slices()[i]] for i in group])
        said = net(
            part_of(net, x, layout, group), layout.select(group), rule,
            condition=None if condition is None else condition[:, where], positions=chosen[where],
            context=context, cache=cache, taps={0},
        )  # fmt: skip
        for got, expected in ((said.tokens, whole.tokens), (said.taps[0], whole.taps[0])):
            wanted = part_of(net, expected, layout, group)
            assert got.keys() == wanted.keys()
            for key, value in wanted.items():
                assert torch.allclose(got[key], value, atol=1e-4)


@given(window=st.integers(1, 3), length=st.integers(1, 3), blocks=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_a_ring_of_the_windows_length_forgets_only_what_nobody_sees(window, length, blocks):
    net, rule = network("zero"), block_causal(window)
    layout = SequenceLayout(tuple(Segment("video", b, length) for b in range(blocks)))
    torch.manual_seed(0)
    x, condition = torch.randn(2, layout.length, 16), torch.randn(2, layout.length, 5)
    whole = net(x, layout, rule, condition=condition).tokens["all"]
    cache = net.empty_cache(2, window * length, layout.kinds)
    for i, where in enumerate(layout.slices()):
        said = net(x[:, where], layout.select([i]), rule, condition=condition[:, where], cache=cache)
        assert torch.allclose(said.tokens["all"], whole[:, where], atol=1e-4)


def test_rows_of_different_age_share_a_batch():
    net, rule = network("plain"), block_causal()
    torch.manual_seed(0)
    segments = [SequenceLayout.of(Segment("video", b, 2)) for b in range(3)]
    x = torch.randn(1, 6, 16)
    old, young = (net.empty_cache(1, 8, segments[0].kinds) for _ in range(2))
    for b in range(2):
        net(x[:, 2 * b : 2 * b + 2], segments[b], rule, cache=old)
    both = KVCache.cat([old, young])
    last = x[:, 4:].expand(2, -1, -1)
    said = net(last, segments[2], rule, cache=both).tokens["all"]
    assert both.count.tolist() == [6, 2]
    assert torch.allclose(said[0], net(x[:, 4:], segments[2], rule, cache=old).tokens["all"][0], atol=1e-5)
    assert torch.allclose(said[1], net(x[:, 4:], segments[2], rule, cache=young).tokens["all"][0], atol=1e-5)


def test_a_modulated_network_begins_as_the_identity_under_its_norm():
    torch.manual_seed(0)
    net = Transformer(SHAPES["zero"])
    x = torch.randn(2, 4, 16)
    layout = SequenceLayout.of(Segment("video", 0, 4))
    said = net(x, layout, full(), condition=torch.randn(2, 1, 5)).tokens["all"]
    assert torch.allclose(said, torch.nn.functional.layer_norm(x, (16,)), atol=1e-5)


def test_rotary_scores_depend_on_differences_of_positions_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 12)

    def score(a: list[int], b: list[int]) -> float:
        turned = [Rotary.of(torch.tensor([place]), 12, (4, 4, 4)).turn(x) for place, x in ((a, q), (b, k))]
        return float((turned[0] * turned[1]).sum())

    assert score([1, 2, 3], [2, 4, 3]) == pytest.approx(score([5, 0, 1], [6, 2, 1]), abs=1e-4)
    assert score([1, 2, 3], [2, 4, 3]) != pytest.approx(score([1, 2, 3], [3, 4, 3]), abs=1e-4)


def test_mistakes_are_named():
    net = network("experts")
    layout = SequenceLayout.of(Segment("video", 0, 2), Segment("action", 0, 1))
    x = {"video": torch.randn(1, 2, 16), "action": torch.randn(1, 1, 8)}
    with pytest.raises(ConfigError, match="condition is missing"):
        net(x, layout, full())
    with pytest.raises(ConfigError, match="2 tokens for 'video', got 3"):
        net({**x, "video": torch.randn(1, 3, 16)}, layout, full(), condition=torch.randn(1, 1, 5))
    with pytest.raises(ConfigError, match="no expert serves"):
        net(x, SequenceLayout.of(Segment("text", 0, 2)), full(), condition=torch.randn(1, 1, 5))
    with pytest.raises(ConfigError, match="this cache is for"):
        cache = net.empty_cache(1, 4, (("video", False),))
        net(x, layout, full(), condition=torch.randn(1, 1, 5), cache=cache)
    with pytest.raises(ConfigError, match="do not fit into a ring"):
        cache = net.empty_cache(1, 2, layout.kinds)
        net(x, layout, full(), condition=torch.randn(1, 1, 5), cache=cache)
    for bad in ({"depth": 0}, {"modulation": "zero"}, {"heads": 3}, {"head_dim": 5}):
        with pytest.raises(ConfigError):
            TransformerConfig((Expert("a", 16),), **bad)
    assert set(ROLES) == {e.name for e in net.config.experts}


@pytest.mark.parametrize("rule", [block_causal(2), block_causal()])
def test_a_ring_too_short_for_the_rule_is_an_error_and_no_wrong_answer(rule):
    net = network("plain")
    segments = [Segment("video", t, 2) for t in range(4)]
    ring = net.empty_cache(1, 3, SequenceLayout.of(*segments).kinds)
    tokens = torch.randn(1, 2, net.config.experts[0].width)
    net(tokens, SequenceLayout.of(segments[0]), rule, cache=ring)
    with pytest.raises(ConfigError, match="a ring of 3 slots is too short"):
        net(tokens, SequenceLayout.of(segments[1]), rule, cache=ring)
