"""What `worldgym bench gpu` measures, each part in a process of its own with a limit of time.

A part prints a line of JSON for each figure as soon as it has it, so that a part that is stopped loses only what it had
not measured yet. A figure that fails, because memory is too small or a compiler missing, is recorded with its reason.

Example::

    entries = run_part("training base", {"device": "cuda", "toy": False}, limit=60)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from worldgym.errors import ConfigError

Entry = dict[str, Any]
MODES = {"eager": None, "compiled": "default", "cuda graphs": "reduce-overhead"}
"""Modes of `torch.compile` that are measured; the last one replays CUDA graphs."""
ROW_LIMITS = (64, 32, 16, 8, 4, 2, 1)


class Settings:
    """Where and at which size a part measures.

    Args:
        device: `cuda`, `cuda:N`, or `cpu` for a test.
        dtype: precision in which world models imagine: `bfloat16` or `float32`.
        toy: tiny presets and batches, to test the script without a GPU.
        limit: seconds that the part may take.
    """

    def __init__(self, device: str, dtype: str, toy: bool, limit: float) -> None:
        import torch

        self.device, self.dtype, self.toy = torch.device(device), dtype, toy
        self.until = time.monotonic() + limit
        self.seconds = 0.05 if toy else 2.0

    def left(self) -> float:
        """Seconds before the part's limit."""
        return self.until - time.monotonic()

    def wait(self) -> None:
        """Wait until the device has done its work."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self) -> int | None:
        """Largest number of bytes of tensors since `fresh`; None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def fresh(self) -> None:
        """Free what nothing refers to, and count the largest memory from here on."""
        import gc

        import torch

        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def tried(settings: Settings, what: Entry, work: Callable[[], Entry]) -> Entry:
    """`what` and the figures of `work`, or the reason why there are none."""
    if settings.left() <= 0:
        return {**what, "skipped": "the part's time was used up"}
    settings.fresh()
    try:
        return {**what, **work()}
    except (
        Exception
    ) as error:  # drivers, compilers and allocators raise many types; the other figures are measured
        said = (str(error).strip().splitlines() or [""])[0]
        return {**what, "failed": f"{type(error).__name__}: {said[:300]}"}


# -- parts ----------------------------------------------------------------------------------------------------------
def imagining(settings: Settings, preset: str, modes: tuple[str, ...]) -> Iterator[Entry]:
    """Imagined, decoded frames per second of the world models of a preset, and peak memory."""
    from experiments.pipelines.cost.worlds import world_presets

    kinds = [kind for kind, name in world_presets() if name == preset][::-1]  # one pass a chunk comes first
    # the target's batch comes first: what does not fit into the time is left out
    batches = (1, 2) if settings.toy else (64, 1024, 256) if preset == "base" else (1024, 64, 256)
    for batch in batches:
        for kind in kinds:
            for mode in modes:
                what = {"what": "imagining", "type": kind, "preset": preset, "batch": batch, "mode": mode}
                yield tried(
                    settings, what, lambda k=kind, b=batch, m=mode: _imagined(settings, k, preset, b, m)
                )


def _imagined(settings: Settings, kind: str, preset: str, batch: int, mode: str) -> Entry:
    import torch

    from experiments.pipelines import speed
    from experiments.pipelines.cost.worlds import CHUNK, world_model
    from worldgym.utils.devices import place

    model = place(world_model(kind, preset, settings.device), settings.device, settings.dtype)
    began = time.perf_counter()
    with torch.no_grad():
        if mode != "eager":
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            compile_model(model, MODES[mode])
        work = speed.imagining(model, batch, CHUNK)
        work()
        work()
        settings.wait()
        first = time.perf_counter() - began
        rate = speed.rate(work, settings.seconds)
    found: Entry = {"frames_per_second": rate, "first_seconds": first, "peak_bytes": settings.peak()}
    if mode == "cuda graphs":  # torch runs without a graph where it cannot record one
        found["graphs_skipped"] = int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])
    return found


def compile_model(model: Any, mode: str | None) -> None:
    """Compile what takes most of the time of an imagined frame: the network, and the decoder, in place."""
    import torch

    net = model.inference_network()
    if hasattr(net, "step"):
        net.step = torch.compile(net.step, mode=mode, dynamic=False)
    else:
        net.compile(mode=mode, dynamic=False)
    decoder = getattr(model, "light", None) or getattr(model.tokenizer, "decoder", None)
    if decoder is not None:
        decoder.compile(mode=mode, dynamic=False)


def training(settings: Settings, preset: str) -> Iterator[Entry]:
    """Time and peak memory of a training step of the world models, at the largest of the batches that fits."""
    from experiments.pipelines.cost.worlds import world_presets

    for kind in [kind for kind, name in world_presets() if name == preset]:
        for batch in (2,) if settings.toy else ROW_LIMITS:
            what = {"type": kind, "preset": preset, "batch": batch, "step": "world"}
            entry = tried(settings, {"what": "training", **what}, lambda w=what: _stepped(settings, w))
            yield entry
            if "failed" not in entry:
                break


def policy(settings: Settings, preset: str) -> Iterator[Entry]:
    """Time and peak memory of a GRPO step of `hf_vla`, adapters and all weights."""
    for tuning in ("lora", "full"):
        for batch in (2,) if settings.toy else ROW_LIMITS:
            what = {"type": "hf_vla", "preset": preset, "batch": batch, "step": "grpo", "tuning": tuning}
            entry = tried(settings, {"what": "grpo", **what}, lambda w=what: _stepped(settings, w))
            yield entry
            if "failed" not in entry:
                break


def _stepped(settings: Settings, what: Entry) -> Entry:
    from experiments.pipelines.cost.measured import estimate, training_of

    step = training_of(what, settings.device)
    optimizer = step.optimizer()
    settings.fresh()
    step.step(optimizer)
    settings.wait()
    peak, done, began = settings.peak(), 0, time.perf_counter()
    while done < 1 or (time.perf_counter() - began < settings.seconds and done < 20):
        step.step(optimizer)
        settings.wait()
        done += 1
    found: Entry = {
        "seconds_per_step": (time.perf_counter() - began) / done,
        "peak_bytes": peak,
        "unit": step.unit,
    }
    del step, optimizer
    if peak is not None and settings.left() > 30:
        estimated = estimate(what)
        found |= {"estimated_bytes": estimated, "difference": estimated / peak - 1}
    return found


def backbone(settings: Settings) -> Iterator[Entry]:
    """Time of a block and peak memory of the registered world models with the preset `large`."""
    from experiments.pipelines.cost.worlds import world_presets

    kinds = [kind for kind, name in world_presets() if name == "large"]
    if not kinds:
        yield {"what": "backbone", "skipped": "no registered world model has the preset 'large'"}
    preset = "tiny-wan" if settings.toy else "large"
    for kind in kinds:
        what = {"what": "backbone", "type": kind, "preset": preset, "batch": 1, "mode": "eager"}
        yield tried(settings, what, lambda k=kind: _imagined(settings, k, preset, 1, "eager"))


PARTS: dict[str, tuple[float, Callable[[Settings], Iterator[Entry]]]] = {
    "imagining small": (45, lambda s: imagining(s, "tiny" if s.toy else "small", ("eager",))),
    "imagining base": (55, lambda s: imagining(s, "tiny" if s.toy else "base", ("eager",))),
    "training base": (75, lambda s: training(s, "tiny" if s.toy else "base")),
    "grpo smolvlm-256m": (55, lambda s: policy(s, "tiny" if s.toy else "smolvlm-256m")),
    "grpo smolvlm-500m": (60, lambda s: policy(s, "tiny" if s.toy else "smolvlm-500m")),
    "backbone": (50, backbone),
    "compiled base": (70, lambda s: imagining(s, "tiny" if s.toy else "base", ("compiled", "cuda graphs"))),
    "compiled small": (60, lambda s: imagining(s, "tiny" if s.toy else "small", ("compiled", "cuda graphs"))),
}
"""Seconds that each part may take, at most eight minutes together, and the function that measures it.

A part may also use what the parts before it left over, so what takes long to compile comes last.
"""


def run_part(name: str, device: str, dtype: str, toy: bool, limit: float) -> list[Entry]:
    """Run a part in a process of its own.

    Args:
        name: a key of `PARTS`.
        device: as in `Settings`.
        dtype: as in `Settings`.
        toy: as in `Settings`.
        limit: seconds after which the process is ended.

    Returns:
        its entries; the last one says why the part ended early, if it did.

    Raises:
        ConfigError: an unknown part.
    """
    if name not in PARTS:
        raise ConfigError(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    given = json.dumps({"name": name, "device": device, "dtype": dtype, "toy": toy, "limit": limit - 5})
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "experiments.pipelines.gpu_parts", given]
    began, reason = time.monotonic(), None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit, env={**os.environ, "PYTHONPATH": path}
        )  # fmt: skip
        printed = done.stdout
        if done.returncode:
            reason = f"the process ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:300]}"
    except subprocess.TimeoutExpired as stopped:
        out = stopped.stdout or b""
        printed = out.decode(errors="replace") if isinstance(out, bytes) else out
        reason = f"stopped after {limit:.0f} s"
    entries = [
        json.loads(line) for line in printed.splitlines() if line.startswith("{") and line.endswith("}")
    ]
    if reason is not None:
        entries.append({"what": name, "failed": reason})
    return [{"part": name, **entry, "at_seconds": round(time.monotonic() - began, 1)} for entry in entries]


def _main() -> None:
    import torch

    given = json.loads(sys.argv[1])
    settings = Settings(given["device"], given["dtype"], given["toy"], given["limit"])
    torch.backends.cuda.matmul.allow_tf32 = True
    for entry in PARTS[given["name"]][1](settings):
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
