"""Timings of imagination and of the simulator, measured in turns so that load on the machine affects all alike.

Example::

    imagined_fps(model, batch=64, steps=20)      # decoded frames per second
    simulator_fps(processes=2, seconds=10)       # rendered steps per second
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from worldgym.specs import specs_of


def rate(work: Callable[[], int], seconds: float = 2.0, warmup: int = 1) -> float:
    """Units per second of `work`, which returns how many units it did and is repeated for at least `seconds`."""
    for _ in range(warmup):
        work()
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        done += work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # waits for queued GPU work
    return done / passed


def paired(works: dict[str, Callable[[], int]], rounds: int = 3, seconds: float = 1.0) -> dict[str, float]:
    """Median rate of each function, measured in turns."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds):
        for name, work in works.items():
            rates[name].append(rate(work, seconds, warmup=int(i == 0)))
    return {name: float(np.median(values)) for name, values in rates.items()}


def start(model: Any, batch: int, seed: int = 0) -> Any:
    """Imagined state of `batch` rows that starts from noise images; the speed does not depend on their content."""
    generator = torch.Generator().manual_seed(seed)
    spec = specs_of(model).observation
    frames = torch.randint(0, 256, (batch, 1, *spec.main.size, 3), generator=generator, dtype=torch.uint8)
    states = torch.zeros(batch, 1, spec.state_dim)
    return model.begin(frames, torch.zeros(batch, 0, model.action_dim), generator, states=states)


def imagining(model: Any, batch: int, chunk: int = 5, decode: str = "all") -> Callable[[], int]:
    """Function that imagines the next `chunk` frames in `batch` rows."""
    latest = {"state": start(model, batch)}
    actions = torch.rand(batch, chunk, model.action_dim) * 2 - 1

    def work() -> int:
        latest["state"], _ = model.step(latest["state"], actions, decode=decode)
        return batch * chunk

    return work


def matmul_gflops(size: int = 2048, device: torch.device | str = "cpu") -> Callable[[], int]:
    """Function that multiplies bfloat16 matrices; one unit is a million floating-point operations."""
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16).to(device)

    def work() -> int:
        a @ b
        return 2 * size**3 // 1_000_000

    return work


def transformer_flops(config: Any) -> int:
    """Useful floating-point operations of the transformer layers per frame and row."""
    d, n = config.width, config.tokens
    return config.depth * n * (2 * 12 * d * d + 2 * 2 * d * n * config.window)


def denoising(model: Any, batch: int, step: Callable[..., Any] | None = None) -> Callable[[], int]:
    """Function that runs the network alone: one frame's tokens through `Dynamics.step`, cache commit included.

    Args:
        model: world model of the network.
        batch: rows.
        step: replaces the network's own step, e.g. by a compiled one.
    """
    net = model.inference_network()
    step = net.step if step is None else step
    dtype = next(net.parameters()).dtype
    state = start(model, batch)
    latent = state.latent.to(dtype)
    level, proprio = torch.ones(batch, device=latent.device), model.normalise_state(state.states)
    actions = (torch.rand(batch, model.action_dim) * 2 - 1).to(latent.device)

    def work() -> int:
        with torch.inference_mode():
            step(torch.zeros_like(latent), latent, level, actions, proprio, state.cache)
            state.cache.ring.advance()
        return batch

    return work


def flops_per_frame(model: Any) -> dict[str, float]:
    """Useful floating-point operations per imagined frame (matrix products and convolutions), by stage."""
    from torch.utils.flop_counter import FlopCounterMode

    latent = start(model, 1).latent
    works = {"denoise and commit": denoising(model, 1), "decode": lambda: model.tokenizer.decode(latent)}
    counts = {}
    for name, work in works.items():
        with FlopCounterMode(display=False) as counter:
            work()
        counts[name] = float(counter.get_total_flops())
    return counts


def compiling(model: Any, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Compare the denoising pass with and without `torch.compile`: rates measured in turns, and the compile time.

    Returns:
        `speedup` and `compile_seconds`, or `failed` with the reason, e.g. on a machine without a C++ compiler.
    """
    try:
        compiled = denoising(model, batch, torch.compile(model.inference_network().step, dynamic=False))
        began = time.perf_counter()
        compiled()
        spent = time.perf_counter() - began
        rates = paired({"plain": denoising(model, batch), "compiled": compiled}, rounds, seconds)
    except Exception as error:  # compilers raise many types of errors; the benchmark continues without them
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {"speedup": rates["compiled"] / rates["plain"], "compile_seconds": spent}


def int8_linear(width: int, rows: int, rounds: int, seconds: float) -> dict[str, float]:
    """Speed of int8 relative to bfloat16, for a layer of size `width` to `4 width` on `rows` tokens.

    `product` is the int8 product alone. `layer` adds the operations that a network needs: input scales per row,
    rounding, and rescaling. Both use PyTorch's own kernels.
    """
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(4 * width, width)
    low, scale = weight.bfloat16(), weight.abs().amax(1) / 127
    whole = (weight / scale[:, None]).round().to(torch.int8).t()
    ready = torch.randint(-127, 128, (rows, width), dtype=torch.int8)

    def plain() -> int:
        torch.nn.functional.linear(x, low)
        return 1

    def product() -> int:
        torch._int_mm(ready, whole)
        return 1

    def layer() -> int:
        by_row = x.abs().amax(1, keepdim=True).float() / 127
        answer = torch._int_mm((x / by_row).round().to(torch.int8), whole)
        (answer * by_row * scale).bfloat16()
        return 1

    rates = paired({"bfloat16": plain, "product": product, "layer": layer}, rounds, seconds)
    return {name: rates[name] / rates["bfloat16"] for name in ("product", "layer")}


def layers_only(model: Any, batch: int) -> Callable[[], int]:
    """Function that runs only the transformer layers, without their convolutions (for the matmul fraction)."""
    net = model.inference_network()
    dtype, c = next(net.parameters()).dtype, model.config.dynamics
    x0 = torch.randn(batch, c.tokens, c.width).to(model.device, dtype)
    past = torch.randn(batch, c.heads, c.window * c.tokens, c.width // c.heads).to(model.device, dtype)
    six = torch.zeros(batch, 1, 6, c.width, dtype=dtype, device=model.device)

    def work() -> int:
        with torch.inference_mode():
            x = x0
            for layer in net.layers:
                x = layer(x, modulation=layer.modulation(six), update=lambda keys, values: (past, past))
        return batch

    return work


def _simulate(suite: str | None, seconds: float, every: int, queue: Any) -> None:
    from experiments.suites import chosen_suite

    env = chosen_suite(suite).make(1, horizon=40, chunk=None if every == 1 else every)
    rng = np.random.default_rng()
    env.reset(seed=0)
    for measured in (False, True):
        steps, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < (seconds if measured else 0.5):
            _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            steps += every
            if terminated.any() or truncated.any():
                env.reset()
        if measured:
            queue.put(steps / passed)


def simulator_fps(
    processes: int = 2, seconds: float = 8.0, suite: str | None = None, every: int = 1
) -> float:
    """Steps per second of Real, resets included, in `processes` processes at once; one in `every` frames is drawn."""
    return _added(_simulate, [(suite, seconds, every)] * processes)


def _added(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]], timeout: float = 300.0) -> float:
    """Sum of the rates that `work(*arguments, queue)` puts into a queue, in one process for each of `arguments`."""
    context = get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=work, args=(*given, queue)) for given in arguments]
    for worker in workers:
        worker.start()
    total = sum(queue.get(timeout=timeout) for _ in workers)
    for worker in workers:
        worker.join()
    return float(total)


def _stock(suite: str, seconds: float, seed: int, queue: Any) -> None:
    from experiments.suites import chosen_suite

    queue.put(rate(chosen_suite(suite).stock(seed), seconds))  # type: ignore[attr-defined]


def stock_fps(suite: str, processes: int = 2, seconds: float = 8.0) -> float:
    """Steps per second of a suite as its own package makes and draws it, in several processes at once."""
    return _added(_stock, [(suite, seconds, seed) for seed in range(processes)])


def exponent(x: list[float], seconds: list[float]) -> float:
    """Slope of log time over log x: 1 is linear, 0 is constant."""
    return float(np.polyfit(np.log(x), np.log(seconds), 1)[0])
