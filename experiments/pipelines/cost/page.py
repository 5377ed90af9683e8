"""The page docs/cost.md, from the results of `worldgym cost` and `worldgym bench gpu`.

Example::

    Path("docs/cost.md").write_text(markdown(results, gpu=None))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.pipelines.cost.table import Row, count, size

HEAD = """# Cost

<!-- written by `worldgym cost --report docs/cost.md --json docs/results/data/cost.json`; a test compares the two -->

What training and imagining need, computed from shapes. `worldgym cost` prints these figures for any preset and batch,
on any machine and without weights:

```bash
worldgym cost --preset base --batch-size 64
worldgym cost --preset smolvlm-256m --tuning lora --tflops 100 --utilisation 0.3   # times, for a given throughput
worldgym bench gpu                                                                 # measures on one GPU
```

Sizes are in powers of ten: 1 GB is 10^9 bytes. One multiply-add is two operations (FLOP).
"""

HOW = """## How it is computed

- The trainers' own losses run forward and backward on tensors of the `meta` device, which have shapes and no values.
  (They are torch's fake tensors, which say that they are on the CPU: precision under `torch.autocast` then follows,
  and attention is the fused kernel where torch would choose it.) Code that asks for a value gets a fixed answer: all
  frames of a batch are real, all rows are known.
- *Memory of training* is the largest sum of the bytes of live tensors during one step, from the forward pass to the
  update, and the copies of weights that the trainer keeps. *Activations* is what remains of it after weights,
  gradients and AdamW's state: the tensors saved for the backward pass, the batch, and temporary values. Where weights
  outweigh activations, the update may be the fullest moment. What is not in it: memory of the CUDA context, scratch
  memory inside kernels, and the waste of an allocator.
- AdamW keeps two moments, 8 bytes for a trained parameter in float32. `worldgym train world-model` uses Muon by
  default for the matrices of linear layers, which keeps one: half of that column. Copies are the averaged weights,
  and the best so far (SFT) or a bfloat16 copy for inference (world models).
- *Checkpointing* recomputes the layers of a transformer in the backward pass. `hf_vla` has it as
  `gradient_checkpointing=true`. The trainers of world models do not have it; the column says what it would save.
- Operations are those of matrix products, convolutions and attention, counted by `torch.utils.flop_counter`.
- A world model's batch is windows of 20 frames (`video`) or chunks of 5 actions (`chunk`, its picture network, which
  takes three fifths of the training). From a third of a run on, three quarters of the batches of `video` first
  predict their contexts frame by frame: one more forward pass without gradients, about a third more operations, and
  no more memory.
- A policy's batch is decisions (chunks of actions) in one pass. GRPO uses passes of at most 256 decisions. `hf_vla`
  gets one 128-pixel frame, 8 numbers of proprioception and a prompt of 75 bytes, each a token; its head is
  `parallel`, and for `openvla-7b` `tokens`. With `lora` (rank 32) the weights are in bfloat16.
"""

CHECKED = """## Checked on a CPU

Each step ran in a process of its own, on one thread. Measured is the growth of its resident memory from before the
model was built to the fullest moment of the step, so allocator and scratch memory are in it. Estimated is the largest
sum of live tensors. `worldgym cost --check` repeats this.
"""

FOUND = """
The check corrected the estimate three times: torch's counter of operations keeps the activations of checkpointed
layers while it is on, so memory and operations are counted in separate passes; the number of frames that a loss
decodes is bounded by the batch; and the episodes of the batch must be longer than its windows, or fewer of them
count.
"""

NO_GPU = """## On a GPU

There is no figure here, because none was measured. `worldgym bench gpu` (`make gpu-check`) measures imagined frames
per second of `small` and `base`, with and without `torch.compile` and CUDA graphs, a training step of `base`, and
GRPO steps of `hf_vla` at the shapes of SmolVLM-256M and 500M, in eight minutes on one GPU; this section is then
written from its file. The script was tested on a CPU at toy size only.
"""


def markdown(results: dict[str, Any], gpu: dict[str, Any] | None = None) -> str:
    """The page.

    Args:
        results: file of `worldgym cost`: `rows` and `checks`.
        gpu: file of `worldgym bench gpu`; figures of toy size or of a CPU are not shown.
    """
    rows = results["rows"]
    worlds = [row for row in rows if row["part"] == "world model"]
    policies = [row for row in rows if row["part"] == "policy"]
    parts = [
        HEAD,
        "## World models: training",
        _training(worlds),
        "## World models: imagining",
        _imagining(worlds),
    ]
    parts += ["## Policies", _policies(policies), HOW, CHECKED, _checks(results["checks"]) + FOUND]
    measured = gpu is not None and not gpu["toy"] and gpu["device"] != "cpu"
    parts.append(_gpu(gpu) if measured and gpu is not None else NO_GPU)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _training(rows: Sequence[Row]) -> str:
    head = (
        "model", "batch", "parameters (trained)", "weights", "gradients", "AdamW", "copies", "activations",
        "memory of training", "with checkpointing", "FLOP a step",
    )  # fmt: skip
    return _table(head, [
        (f"`{r['type']}` {r['preset']}", f"{r['batch']} {r['unit']}",
         f"{count(r['parameters'])} ({count(r['trained'])})",
         size(r["weight_bytes"]), size(r["gradient_bytes"]), size(r["optimizer_bytes"]), size(r["copy_bytes"]),
         size(r["activation_bytes"]), f"**{size(r['training_bytes'])}**", size(r["training_bytes_checkpointed"]),
         count(r["step_flops"]))
        for r in rows
    ])  # fmt: skip


def _imagining(rows: Sequence[Row]) -> str:
    head = (
        "model", "FLOP a frame, every frame decoded", "FLOP a step, one frame in five decoded",
        "kept for each environment", "memory of imagining",
    )  # fmt: skip
    return _table(head, [
        (f"`{r['type']}` {r['preset']}", count(r["frame_flops"]), count(r["frame_flops_last"]), size(r["env_bytes"]),
         f"{size(r['imagining_bytes'])} for {r['batch']}")
        for r in rows
    ])  # fmt: skip


def _policies(rows: Sequence[Row]) -> str:
    head = (
        "policy", "trained", "step", "parameters (trained)", "weights", "gradients", "AdamW", "copies", "activations",
        "memory", "with checkpointing", "FLOP a step", "FLOP to act",
    )  # fmt: skip
    return _table(head, [
        (f"`{r['type']}` {r['preset']}", r["tuning"].replace("_", " "), r["step"].upper(),
         f"{count(r['parameters'])} ({count(r['trained'])})", size(r["weight_bytes"]), size(r["gradient_bytes"]),
         size(r["optimizer_bytes"]), size(r["copy_bytes"]), size(r["activation_bytes"]),
         f"**{size(r['training_bytes'])}**",
         size(r.get("training_bytes_checkpointed")), count(r["step_flops"]), count(r["acting_flops"]))
        for r in rows
    ]) + f"\n\nA batch is {rows[0]['batch'] if rows else 64} decisions."  # fmt: skip


def _checks(checks: Sequence[Row]) -> str:
    head = ("step", "batch", "estimated", "measured", "difference")
    lines = []
    for r in checks:
        what = f"`{r['type']}` {r['preset']}, {'training' if r['step'] == 'world' else r['step'].upper()}"
        what += f", {r['tuning'].replace('_', ' ')}" if "tuning" in r else ""
        what += ", checkpointing" if r.get("checkpointing") else ""
        sizes = (size(r["estimated_bytes"]), size(r["measured_bytes"]), f"{100 * r['difference']:+.1f} %")
        lines.append((what, str(r["batch"]), *sizes))
    return _table(head, lines)


def _gpu(gpu: dict[str, Any]) -> str:
    head = ("what", "batch", "decoded frames/s", "s a step", "peak memory", "estimate", "remark")
    lines = []
    for e in gpu["entries"]:
        what = " ".join(str(e[name]) for name in ("what", "type", "preset", "tuning", "mode") if name in e)
        rate = f"{e['frames_per_second']:,.0f}" if "frames_per_second" in e else ""
        seconds = f"{e['seconds_per_step']:.3g}" if "seconds_per_step" in e else ""
        peak = size(e["peak_bytes"]) if e.get("peak_bytes") else ""
        estimated = f"{100 * e['difference']:+.1f} %" if "difference" in e else ""
        remark = e.get("failed", e.get("skipped", "")).replace("|", "/")
        if e.get("graphs_skipped"):
            remark = f"torch recorded no CUDA graph for {e['graphs_skipped']} of the compiled functions"
        lines.append((what, str(e.get("batch", "")), rate, seconds, peak, estimated, remark))
    made = f"Measured by `worldgym bench gpu` on one {gpu['device']}, torch {gpu['versions']['torch']}, {gpu['dtype']}."
    return f"## On a GPU\n\n{made}\n\n{_table(head, lines)}"
