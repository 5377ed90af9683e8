"""Arms of the claims on joint world-action models (C8, C9, C10, C14, C25): each trained from random weights.

All arms of a claim have the same number of logged episodes, tokenizer, number of steps and batch size; those without
the video have the same network and a video loss of weight 0. The averaged weights of the end are measured, never a
chosen checkpoint. DreamZero has one block, because a policy's context is one frame.

Example::

    Arm("fastwam", "FastWAM", trained("fastwam"), measure=measure)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Trained
from experiments.claims.c24 import built, plain, shared_logs
from experiments.claims.context import ClaimContext
from experiments.claims.records import Records, pack
from experiments.pipelines.recipe import Stage, arguments_of
from worldgym.evaluation.statistics import Interval, seeds_bootstrap
from worldgym.utils.compiling import has_compiler

SHARES = ("imitated_share=0.9",)
"""Nine of ten windows begin in demonstrations, because policies are compared."""
WATCHING = ("imitated_share=0.6", "video_share=0.3")
"""The same for all arms of a claim on video without actions; without such video its share goes to the other logs."""
SPLITS = ("seen", "unseen_object", "unseen_scene")
FORWARD_SEED0 = 700_000
"""First seed of the held-out episodes on which imagined frames are compared."""
SURPRISE, EARLY_CHUNKS = "surprise", 2
"""Name of the evaluation of predicted frames in Real, and the chunks whose errors count."""


def recorded(lab: ClaimContext, name: str, **options: Any) -> Path:
    """A dataset of `worldgym collect` with these options; collected once."""

    def make() -> Path:
        folder = lab.folder(name, 0)
        values = {"out": folder / "data", "suite": lab.suite.name, "tasks": list(lab.tasks), "workers": lab.workers}
        stage = Stage(name, ("collect",), tuple(arguments_of(plain({**values, **options}))))
        built(name, (stage,), folder)
        return folder / "data"

    made: Path = lab.once(name, make)
    return made


def trained(
    family: str,
    settings: tuple[str, ...] = (),
    shares: tuple[str, ...] = SHARES,
    logs: Callable[[ClaimContext], Path] = shared_logs,
    video: Callable[[ClaimContext], Path] | None = None,
) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: a joint model of a family.

    Args:
        family: name of the family.
        settings: `name=value` pairs of its config and training.
        shares: `name=value` pairs of the shares of the windows.
        logs: returns the logs; those of the demonstrators by default.
        video: returns a dataset of which the video alone is learned.
    """
    chosen = (*shares, *(("blocks=1",) if family == "dreamzero" else ()), *settings)

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        preset = lab.preset
        compiled = preset.name != "tiny" and has_compiler()
        data = lab.once("logs", lambda: shared_logs(lab)) if logs is shared_logs else logs(lab)
        options = {
            "family": family, "data": data, "initial": lab.bundle.folder, "out": folder / "wam", "seed": seed,
            "preset": "tiny" if preset.name == "tiny" else "small", "steps": preset.wam_steps,
            "batch_size": preset.wam_batch, "settings": list(chosen),
            **({} if video is None else {"video": video(lab)}),
            **({"compile": True} if compiled else {}),
        }  # fmt: skip
        stage = Stage("wam", ("train", "wam"), tuple(arguments_of(plain(options))))
        built(family, (stage,), folder)
        export = folder / "wam/export"
        budget = {"real_episodes": float(preset.logs), "updates": float(preset.wam_steps)}
        found = {"family": family, "settings": list(chosen), "compiled": compiled}
        found["latency_ms"] = round(latency(lab, export), 2)
        return Trained(lab.ref(export), budget, settings=found, parts={"world_model": str(export)})

    return train


def latency(lab: ClaimContext, folder: Path, repeats: int = 20) -> float:
    """Median time of one greedy chunk for one observation, in milliseconds, on this machine."""
    policy, frames = lab.policy(folder), lab.first_frames(lab.starts()[:1])
    seen = {name: frames[name][:1] for name in frames}
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        policy.act(seen, temperature=0.0)
        taken.append(time.perf_counter() - began)
    return 1000 * float(np.median(taken))


def measure(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Success in Real on seen and unseen splits."""
    return lab.evaluate(made.policy, SPLITS, evaluators=False)


def surprised(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Success in Real, and the errors of the frames that the model predicts for its own first chunks there.

    Returns:
        beside `measure`, the evaluation `surprise` with `errors` and `changes` by episode, None where it ended earlier.
    """
    from experiments.suites import real_env
    from worldgym.evaluation.surprise import watch
    from worldgym.models import load_world_model

    horizon = lab.preset.measured
    env, model = real_env(lab.suite, horizon=horizon), load_world_model(made.parts["world_model"])
    found = watch(made.policy.load(), model, env, lab.starts(), horizon=horizon)
    env.close()
    open_ = found.running(EARLY_CHUNKS)
    values = {
        name: [
            round(float(x), 7) if kept else None
            for x, kept in zip(found.scores(EARLY_CHUNKS, control), open_, strict=True)
        ]
        for name, control in (("errors", False), ("changes", True))
    }
    return measure(lab, made) | {SURPRISE: {"success": pack(found.success), **values}}


def held_out(lab: ClaimContext) -> Any:
    """Episodes of the demonstrators that no model was trained on."""
    from worldgym.data import EpisodeDataset

    folder = recorded(lab, "wam_held_out", seed=FORWARD_SEED0, episodes=lab.preset.looked)
    return lab.once("wam_held_out_arrays", EpisodeDataset(folder).load_arrays)


def forward(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Error of imagined frames with the logged actions and with those of another episode, one chunk ahead.

    Returns:
        evaluation `forward` with `gains`, the PSNR in dB with the logged actions minus that with the others, by window;
        `success` says where it is above 0.
    """
    import torch

    from worldgym.models import load_world_model

    model, arrays = load_world_model(made.parts["world_model"]), held_out(lab)
    k = model.config.chunk
    lengths = np.diff(arrays.offsets)
    rows = [int(o + (n - 1 - k) // 2) for o, n in zip(arrays.offsets[:-1], lengths, strict=True) if n > k]
    frames, states, actions = (
        torch.from_numpy(getattr(arrays, name)) for name in ("frames", "states", "actions")
    )
    at = torch.tensor(rows)
    chunks = torch.stack([actions[i : i + k] for i in rows])
    others = chunks.roll(1, 0)
    errors = []
    for given in (chunks, others):
        state = model.begin(
            frames[at][:, None], chunks[:, :0], torch.Generator().manual_seed(0), states=states[at][:, None]
        )
        shown = model.step(state, given, decode="last")[1].frames[:, -1]
        errors.append(
            ((shown.float() - frames[at + k].float()) / 255).square().mean((1, 2, 3)).clamp_min(1e-8)
        )
    gains = 10 * torch.log10(errors[1] / errors[0]).numpy()
    return {
        "forward": {
            "success": pack(gains > 0), "gains": [round(float(x), 3) for x in gains],
            "psnr": round(float(-10 * torch.log10(errors[0].mean())), 2),
            "psnr_others": round(float(-10 * torch.log10(errors[1].mean())), 2),
        }
    }  # fmt: skip


def progress(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: list[int], what: str
) -> Interval:
    """Task progress of arm `a` minus that of arm `b`, paired by start."""
    return seeds_bootstrap(*(by_start(records, arm, what, seeds) for arm in (a, b)))


def by_start(records: Records, arm: tuple[str, str], what: str, seeds: list[int]) -> np.ndarray:
    """Task progress in [0, 1] as `(seeds, starts)`."""
    return np.array([records.read(*arm, seed)["evaluations"][what]["progress"] for seed in seeds])


def success_table(records: Records, arms: list[tuple[str, str]], seeds: list[int]) -> str:
    """Success and progress by arm, split and seed, and the time of a chunk."""
    lines = [
        "| arm | " + " | ".join(f"{split}: success, progress" for split in SPLITS) + " | ms a chunk |",
        "|---" * (len(SPLITS) + 2) + "|",
    ]
    for arm in arms:
        if not set(seeds) <= set(records.seeds(*arm)):
            continue
        facts = [records.read(*arm, seed) for seed in seeds]
        cells = []
        for split in SPLITS:
            rates = " / ".join(
                f"{row.mean():.3f}" for row in records.outcomes(*arm, f"{split}/greedy", seeds)
            )
            paths = " / ".join(
                f"{row.mean():.2f}" for row in by_start(records, arm, f"{split}/greedy", seeds)
            )
            cells.append(f"{rates}, {paths}")
        times = " / ".join(f"{row['settings']['latency_ms']:.0f}" for row in facts)
        lines.append(f"| {facts[0]['label']} | {' | '.join(cells)} | {times} |")
    note = "By seed. Times: median of a greedy chunk at batch 1 with the default sampling, on the CPU of the run."
    return "\n".join([*lines, "", note]) + "\n"
