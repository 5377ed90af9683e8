"""Compiled gradients are those of the plain function."""

from __future__ import annotations

import pytest
import torch

from worldgym.nn.attention import Rotary, attend
from worldgym.utils.compiling import compiled, has_compiler


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_gradients_of_rotary_attention_in_bfloat16_are_those_without_compiling():
    torch.manual_seed(0)
    heads, length, dim = 2, 64, 64
    rotary = Rotary.of(torch.arange(length), dim).to(torch.bfloat16)
    qkv = torch.nn.Linear(heads * dim, 3 * heads * dim)
    x = torch.randn(2, length, heads * dim)

    def output(x):
        q, k, v = (part.unflatten(-1, (heads, dim)).transpose(1, 2) for part in qkv(x).chunk(3, -1))
        return attend(rotary.turn(q), rotary.turn(k), v)

    def gradient(function):
        qkv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(x).float().square().mean()
        loss.backward()
        return qkv.weight.grad.clone()

    torch.testing.assert_close(gradient(compiled(output)), gradient(output), rtol=0.05, atol=2e-5)
