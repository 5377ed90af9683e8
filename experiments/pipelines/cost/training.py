"""One training step as the trainers take it, and what it needs: memory by kind, and operations.

Example::

    with on_meta():
        training = world_training("video", "base", batch=64)
        cost = step_cost(training)
    cost["activation_bytes"], cost["step_flops"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.pipelines.cost.counting import Live, bytes_of, flops_of, weights_of

MOMENT_BYTES = 8
"""AdamW's state for a trained parameter in float32: two moments."""


@dataclass(frozen=True)
class Training:
    """A training step.

    Args:
        module: all that is held in memory: weights and buffers.
        trained: the trained parameters.
        inputs: tensors of the batch.
        forward: computes the loss.
        copies: bytes of the copies of weights that the trainer keeps: averages, the best so far, one for inference.
        keeps_gradients: the gradients of the step before are alive during the forward pass.
        rows: rows of a batch.
        unit: what a row is.
    """

    module: nn.Module
    trained: tuple[nn.Parameter, ...]
    inputs: tuple[Tensor, ...]
    forward: Callable[[], Tensor]
    copies: int
    keeps_gradients: bool
    rows: int
    unit: str

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with a state, made by a first step with gradients that stay."""
        optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        for weight in self.trained:
            weight.grad = torch.ones_like(weight)  # pages of zeros might not be resident
        optimizer.step()
        return optimizer

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step, in the order of the trainers."""
        if not self.keeps_gradients:
            optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        del loss
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        optimizer.step()

    def held(self) -> list[Tensor]:
        """Weights, buffers and inputs."""
        return [*weights_of(self.module), *self.inputs]


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Tensors of an optimizer's state."""
    return [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    ]


def step_cost(training: Training) -> dict[str, int]:
    """Memory and operations of one training step.

    Returns:
        `parameters`, `trained`, `weight_bytes` (buffers too), `gradient_bytes`, `optimizer_bytes`, `copy_bytes`,
        `activation_bytes` (what the step needs at its fullest beyond these: activations, the batch, temporary values;
        in the backward pass, gradients that replace freed activations), `training_bytes` (the sum) and `step_flops`.
    """
    module, trained = training.module, training.trained
    weights, gradients = bytes_of(weights_of(module)), sum(p.numel() * p.element_size() for p in trained)
    optimizer = training.optimizer()
    state = optimizer_state(optimizer)
    grads = [p.grad for p in trained if p.grad is not None]
    moments = bytes_of(state)
    with Live([*training.held(), *state, *grads]) as live:
        del grads, state
        training.step(optimizer)
    activations = live.peak - weights - gradients - moments
    for weight in trained:
        weight.grad = None
    # on its own: the hooks by which the counter follows modules keep the activations of checkpointed layers
    flops = flops_of(lambda: training.forward().backward())
    for weight in trained:
        weight.grad = None
    return {
        "parameters": sum(p.numel() for p in module.parameters()), "trained": sum(p.numel() for p in trained),
        "weight_bytes": weights, "gradient_bytes": gradients, "optimizer_bytes": moments, "copy_bytes": training.copies,
        "activation_bytes": activations, "training_bytes": live.peak + training.copies, "step_flops": flops,
    }  # fmt: skip


def checkpointed(layers: Iterable[nn.Module]) -> None:
    """Make `layers` recompute their activations in the backward pass; their inputs alone are kept."""
    from torch.utils.checkpoint import checkpoint

    for layer in layers:
        inner: Any = layer.forward

        def forward(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
            return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        layer.forward = forward  # type: ignore[method-assign]
