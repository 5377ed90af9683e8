"""`worldgym bench speed`: the cost of an imagined frame, compared with the simulator and with WorldGym's sampler.

Everything is timed alternately in one process. Ratios are reported first, because machines differ and timings are
noisy.

Example::

    worldgym bench speed --json runs/speed.json
    worldgym bench speed --checkpoint runs/world_model/export --seconds 2
    worldgym bench speed --against 88131a3 --json runs/speed.json
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import Bundle
from experiments.compute import DType, placing
from experiments.pipelines import speed, speed_against
from experiments.pipelines.held_out_episodes import TrueLogs, true_logs
from experiments.pipelines.run_folder import finite, versions
from experiments.suites import BundleName, chosen_suite
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.protocols import judged
from worldgym.utils.files import atomic_write_text

logger = logging.getLogger(__name__)
LOG_SEED0 = 11_700_000


@dataclass(frozen=True)
class BenchSpeedConfig:
    """Measure frames per second, ratios, stages, scaling, and quality against speed.

    Args:
        checkpoint: folder of a world model; the bundle's if None.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        against: earlier commit of this checkout whose build is measured in turns with this one: chunks of five steps
            with the last, every or no frame decoded, and rollouts of RL.
        suite: suite whose real domain gives the ground truth; that of the bundle if None.
        json: output file for the results.
        batches: batch sizes.
        seconds: minimum duration of each timing.
        rounds: number of alternations between the compared operations.
        threads: number of torch threads.
        processes: number of simulator processes.
        quality_episodes: held-out episodes on which samplers are compared; 0 skips this.
        compile: also time the denoising pass with torch.compile; takes a minute or two.
        uncached_rows: batch size, and maximum number of episodes, for WorldGym's sampler, which is hundreds of times
            slower.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    checkpoint: Path | None = None
    bundle: BundleName = DEFAULT
    against: str | None = None
    suite: str | None = None
    json: Path = Path("runs/speed.json")
    batches: tuple[int, ...] = (1, 8, 64)
    seconds: float = 2.0
    rounds: int = 3
    threads: int = 2
    processes: int = 2
    quality_episodes: int = 24
    uncached_rows: int = 8
    compile: bool = True
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.batches or min(self.batches) < 1 or self.seconds <= 0 or self.rounds < 1:
            raise ConfigError("batches and rounds must be at least 1, and seconds more than 0")
        if self.threads < 1 or self.processes < 1 or self.uncached_rows < 1 or self.quality_episodes < 0:
            raise ConfigError(
                "threads, processes and uncached_rows must be at least 1, and quality_episodes at least 0"
            )


def run(config: BenchSpeedConfig) -> int:
    """Measure, print the table, and write the JSON file."""
    import torch

    from worldgym.models import VideoWorldModel, load_world_model

    torch.set_num_threads(config.threads)
    here = placing(config)
    bundle = Bundle.find(config.bundle, here)
    model = here(load_world_model(config.checkpoint)) if config.checkpoint else bundle.world_model()
    biggest = max(config.batches)
    works = {f"imagined {b}": speed.imagining(model, b) for b in config.batches}
    works |= {f"last of five {b}": speed.imagining(model, b, decode="last") for b in config.batches}
    fps = speed.paired(works, config.rounds, config.seconds)
    suite = chosen_suite(config.suite, config.bundle)
    drawing = {every: [speed.simulator_fps(config.processes, 2 * config.seconds, suite.name, every)
                       for _ in range(config.rounds)] for every in (1, 5)}  # fmt: skip
    simulator = {every: float(np.median(rates)) for every, rates in drawing.items()}
    imagined = fps[f"imagined {biggest}"]
    facts: dict[str, Any] = {
        "imagined_fps": {str(b): fps[f"imagined {b}"] for b in config.batches},
        "last_of_five_steps_per_second": {str(b): fps[f"last of five {b}"] for b in config.batches},
        "simulator_fps": simulator[1],
        "simulator_last_of_five_steps_per_second": simulator[5],
        "imagined_over_simulator": imagined / simulator[1],
        "over_simulator_same_rule": {
            "every_frame": imagined / simulator[1], "one_in_five": fps[f"last of five {biggest}"] / simulator[5],
        },
        "memory_bytes_per_environment": memory(model),
        "threads": config.threads,
    }  # fmt: skip
    if hasattr(suite, "stock"):
        rates = [speed.stock_fps(suite.name, config.processes, 2 * config.seconds) for _ in range(config.rounds)]
        facts["stock_fps"] = float(np.median(rates))
        facts["imagined_over_stock"] = imagined / facts["stock_fps"]
    if isinstance(model, VideoWorldModel):
        facts |= of_frame_model(model, bundle, imagined, config)
    if config.against:
        facts["against"] = speed_against.against(
            config.against, config.bundle, threads=config.threads, rounds=config.rounds, seconds=config.seconds
        )
    facts["versions"] = versions()
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    sys.stdout.write(table(facts) + f"\nwritten to {config.json}\n")
    return 0


def of_frame_model(model: Any, bundle: Bundle, imagined: float, config: BenchSpeedConfig) -> dict[str, Any]:
    """What is measured of the model that predicts frame by frame: stages, WorldGym's sampler, growth, samplers."""
    style = worldgym_style(model, config)
    stages = stage_rates(model, bundle.judge(), max(config.batches), config)
    peak, layers = stages.pop("matmul_gflops"), stages.pop("layers_only")
    flops = speed.flops_per_frame(model)
    facts: dict[str, Any] = {
        "worldgym_style_fps": style,
        "speedup_over_worldgym_style": imagined / style,
        "gemm_fraction": speed.transformer_flops(model.config.dynamics) * layers / 1e9 / peak,
        "peak_gflops": peak,
        "gflop_per_frame": {name: count / 1e9 for name, count in flops.items()},
        "fps_at_peak": peak * 1e9 / sum(flops.values()),
        "stages": {name: {"frames_per_second": r, "ms_per_frame": 1000 / r} for name, r in stages.items()},
        "growth": growth(model, config),
    }
    if config.quality_episodes:
        facts["quality"] = quality(model, bundle.probe(), config)
    facts["alternatives"] = alternatives(model, max(config.batches), config)
    return facts


def worldgym_style(model: Any, config: BenchSpeedConfig, frames: int = 3) -> float:
    """Frames per second of WorldGym's sampler with a full window: no cache, 10 passes, guidance 3, float32.

    WorldGym imagines one episode at a time on an accelerator. Here a small batch is used, which is enough to occupy the
    CPU, because its window has more than a thousand tokens.
    """
    import torch

    from worldgym.models.video.uncached import imagine_uncached
    from worldgym.specs import specs_of

    batch = config.uncached_rows
    size, window = specs_of(model).observation.main.size, model.config.dynamics.window
    first = torch.randint(0, 256, (batch, 1, *size, 3), dtype=torch.uint8)
    states = torch.zeros(batch, 1, model.state_dim)
    generator = torch.Generator().manual_seed(0)
    spent = []
    for count in (window, window + frames):
        actions = torch.rand(batch, count, model.action_dim) * 2 - 1
        began = time.perf_counter()
        imagine_uncached(model, first, actions, states, generator, passes=10, guidance=3.0)
        spent.append(time.perf_counter() - began)
    return batch * frames / max(spent[1] - spent[0], 1e-9)


def stage_rates(model: Any, judge: Any, batch: int, config: BenchSpeedConfig) -> dict[str, float]:
    """Frames per second of each stage alone."""
    import torch

    tokenizer = model.tokenizer
    latents = torch.randn(batch, model.config.dynamics.latent_channels, *tokenizer.grid)
    frames = tokenizer.decode(latents)
    texts, states = ["put the red cube in the tray"] * batch, torch.zeros(batch, model.state_dim)
    net = model.inference_network()
    dtype = next(net.parameters()).dtype
    latents, cells = latents.to(model.device), torch.rand(batch, 2).to(model.device)

    def count(work: Any) -> Any:
        def counted() -> int:
            with torch.inference_mode():
                work()
            return batch

        return counted

    works = {
        "denoise and commit": speed.denoising(model, batch),
        "decode": count(lambda: tokenizer.decode(latents)),
        "encode": count(lambda: tokenizer.encode(frames)),
        "judge": count(lambda: judged(judge, frames[:, None], texts, states)),
        "layers_only": speed.layers_only(model, batch),
        "matmul_gflops": speed.matmul_gflops(device=model.device),
    }
    if net.objects is not None:
        works["move latents"] = count(lambda: net.objects.shift(latents.to(dtype), cells))
    rates = speed.paired(works, config.rounds, config.seconds / 2)
    return {**rates, "matmul_gflops": rates["matmul_gflops"] / 1000}


def alternatives(model: Any, batch: int, config: BenchSpeedConfig) -> dict[str, Any]:
    """Time alternatives that are not used but may be faster elsewhere: torch.compile and int8 matrix products."""
    d, few = model.config.dynamics, config.seconds / 2
    facts: dict[str, Any] = {"int8": speed.int8_linear(d.width, batch * d.tokens, config.rounds, few)}
    if config.compile:
        facts["compiled"] = speed.compiling(model, batch, config.rounds, few)
    return facts


def growth(model: Any, config: BenchSpeedConfig) -> dict[str, float]:
    """Exponents with which the time of a step grows with batch size, episode length and tokens per frame."""
    import torch

    from worldgym.models import Dynamics, VideoWorldModel

    batches = [8, 16, 32, 64]
    rates = speed.paired(
        {str(b): speed.imagining(model, b, decode="none") for b in batches}, 2, config.seconds / 2
    )
    in_batch = speed.exponent(batches, [b / rates[str(b)] for b in batches])
    state, actions = speed.start(model, 8), torch.zeros(8, 5, model.action_dim)
    spent = []
    for _ in range(24):  # 120 steps
        began = time.perf_counter()
        state, _ = model.step(state, actions, decode="none")
        spent.append(time.perf_counter() - began)
    # Only steps with a full ring buffer; before, masked slots cost the same and the time does not grow.
    steps = [5.0 * (i + 1) for i in range(len(spent))]
    in_horizon = speed.exponent(steps[3:], spent[3:])
    c = model.config
    seconds, tokens = [], []
    for patch in (4, 2, 1):
        if any(side % patch for side in c.dynamics.cells):
            continue
        other = VideoWorldModel(replace(c, dynamics=replace(c.dynamics, patch=patch))).eval().to(model.device)
        assert isinstance(other.dynamics, Dynamics)
        seconds.append(16 / speed.rate(speed.denoising(other, 16), config.seconds / 2))
        tokens.append(float(other.config.dynamics.tokens))
    return {"batch": in_batch, "horizon": in_horizon, "tokens": speed.exponent(tokens, seconds)}


def memory(model: Any) -> int:
    """Bytes of state that one imagined environment keeps between steps."""
    state = speed.start(model, 1)
    return int(sum(part.numel() * part.element_size() for part in state.tensors()))


def quality(model: Any, probe: Any, config: BenchSpeedConfig) -> list[dict[str, Any]]:
    """Compare samplers: frames per second and accuracy after 40 steps."""
    import torch

    from worldgym.evaluation import fidelity
    from worldgym.models.video.uncached import imagine_uncached

    suite = chosen_suite(config.suite, config.bundle)
    logs = true_logs(suite.default_tasks, config.quality_episodes, seed=LOG_SEED0, suite=suite)
    rows = []
    usual = model.sampler
    half = (True, False)
    for steps, dtype, mask in (
        (1, "bfloat16", ()), (2, "bfloat16", ()), (4, "bfloat16", ()), (8, "bfloat16", ()),
        (4, "bfloat16", half * 2), (8, "bfloat16", (half + (False, False)) * 2), (1, "float32", ()),
    ):  # fmt: skip
        model.with_sampler(steps=steps, dtype=dtype, mask=mask)
        began = time.perf_counter()
        predicted, _ = fidelity.imagine_logs(
            model, logs.frames, logs.actions, logs.states, torch.Generator().manual_seed(0)
        )
        spent = time.perf_counter() - began
        name = f"{steps} pass{'es' * (steps > 1)}, {dtype}"
        name += f", network evaluated at {sum(mask)}" if mask else ""
        rows.append({"sampler": name, **_accuracy(probe, logs, predicted, spent)})
    model.with_sampler(steps=usual.steps, dtype=usual.dtype, mask=usual.mask)
    logs = logs.head(config.uncached_rows)
    first, states = torch.from_numpy(logs.frames[:, :1]), torch.from_numpy(logs.states[:, :1])
    began = time.perf_counter()
    frames = imagine_uncached(
        model, first, torch.from_numpy(logs.actions), states, torch.Generator().manual_seed(0), passes=10,
        guidance=3.0,
    )  # fmt: skip
    spent = time.perf_counter() - began
    rows.append(
        {
            "sampler": "WorldGym's: no cache, 10 passes, guidance 3, float32",
            **_accuracy(probe, logs, frames.cpu().numpy(), spent),
        }
    )
    return rows


def _accuracy(probe: Any, logs: TrueLogs, predicted: np.ndarray, spent: float) -> dict[str, Any]:
    """Speed, PSNR and position errors of predicted frames."""
    from worldgym.evaluation import fidelity

    errors = fidelity.position_errors(probe, predicted, logs.positions)
    return {
        "episodes": len(predicted),
        "frames_per_second": predicted.shape[0] * predicted.shape[1] / spent,
        "psnr_40": float(fidelity.psnr(logs.frames[:, -1], predicted[:, -1]).mean()),
        "psnr": float(fidelity.psnr(logs.frames[:, 1:], predicted).mean()),
        "position_error_px": errors.median()["all"],
        "moved_objects_px": errors.median()["moved_objects"],
    }


def table(facts: dict[str, Any]) -> str:
    """Return the printed table."""
    fps = ", ".join(f"batch {b}: {r:,.0f}" for b, r in facts["imagined_fps"].items())
    last = ", ".join(f"batch {b}: {r:,.0f}" for b, r in facts["last_of_five_steps_per_second"].items())
    rule = facts["over_simulator_same_rule"]
    lines = [
        f"imagined / simulator   {rule['every_frame']:.2f} with every frame drawn, {rule['one_in_five']:.2f} with one "
        f"in five (simulator {facts['simulator_fps']:,.0f} and "
        f"{facts['simulator_last_of_five_steps_per_second']:,.0f} steps/s)",
        f"steps per second, every frame decoded   {fps}",
        f"steps per second, one in five decoded   {last}",
        f"memory of one environment: {facts['memory_bytes_per_environment'] / 1024:,.0f} KB",
    ]
    if "stock_fps" in facts:
        lines.append(
            f"imagined / simulator as its package draws it   {facts['imagined_over_stock']:.0f} "
            f"({facts['stock_fps']:,.1f} steps/s)"
        )
    if "stages" in facts:
        lines += _frame_model_lines(facts)
    if "against" in facts:
        rates = facts["against"]["steps_per_second"]
        lines += [f"against commit {facts['against']['commit']}, steps per second:"]
        lines += [
            f"  {job:<12}{pair['now']:>9,.0f}{pair['earlier']:>9,.0f}   {facts['against']['ratios'][job]:.2f}x"
            for job, pair in rates.items()
        ]
    return "\n".join(lines)


def _frame_model_lines(facts: dict[str, Any]) -> list[str]:
    style = facts["worldgym_style_fps"]
    lines = [
        f"imagined / WorldGym's  {facts['speedup_over_worldgym_style']:.1f}x  ({style:,.1f} frames/s)",
        f"share of GEMM peak     {facts['gemm_fraction']:.2f}   ({facts['peak_gflops']:,.0f} GFLOP/s)",
        f"  the same operations at the GEMM peak would give {facts['fps_at_peak']:,.0f}",
    ]
    lines += [f"  {name:<20}{row['ms_per_frame']:>8.3f} ms per frame" for name, row in facts["stages"].items()]
    lines.append("time per step grows as " + ", ".join(f"{k}^{v:.2f}" for k, v in facts["growth"].items()))
    int8 = facts["alternatives"]["int8"]
    lines.append(f"int8 against bfloat16: matrix product {int8['product']:.2f}x, whole layer {int8['layer']:.2f}x")
    compiled = facts["alternatives"].get("compiled")
    if compiled:
        lines.append(
            f"torch.compile: {compiled['speedup']:.2f}x, {compiled['compile_seconds']:.0f} s to compile"
            if "speedup" in compiled
            else f"torch.compile failed: {compiled['failed']}"
        )
    for row in facts.get("quality", []):
        lines.append(
            f"  {row['sampler']:<56}{row['episodes']:>3} episodes{row['frames_per_second']:>7,.0f}/s  "
            f"PSNR at 40 {row['psnr_40']:.1f}  "
            f"error {row['position_error_px']:.2f} px, moved {row['moved_objects_px']:.2f} px"
        )
    return lines
