"""Rows of the cost table: computed, merged with those of earlier runs, and written as text.

Example::

    rows = cost_rows(("base",), batch=64)
    sys.stdout.write(text(rows))
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from worldgym.errors import ConfigError

logger = logging.getLogger(__name__)
Row = dict[str, Any]
ALL = "all"


def preset_names() -> list[str]:
    """Names of all presets whose cost can be computed."""
    from experiments.pipelines.cost.policies import policy_presets
    from experiments.pipelines.cost.worlds import world_presets

    return list(dict.fromkeys([p for _, p in world_presets()] + [p for _, p, _ in policy_presets()]))


def chosen(presets: Sequence[str]) -> list[str]:
    """The presets that are meant; `all` means every one.

    Raises:
        ConfigError: an unknown name.
    """
    known = preset_names()
    if ALL in presets:
        return known
    if unknown := [name for name in presets if name not in known]:
        raise ConfigError(
            f"there is no preset {unknown[0]!r}; there are {', '.join(known)}. Type --preset base, or --preset all"
        )
    return [name for name in known if name in presets]


def cost_rows(presets: Sequence[str], batch: int, tunings: Sequence[str]) -> list[Row]:
    """Costs of the world models and policies of `presets`, computed from shapes.

    Args:
        presets: names, or `all`.
        batch: rows of a training step, and environments that are imagined at once.
        tunings: what is trained of policies: `full`, `lora`, `frozen_vision`.

    Returns:
        a row for each world model, and for each policy, tuning and kind of step.
    """
    from experiments.pipelines.cost.policies import STEPS, policy_presets
    from experiments.pipelines.cost.worlds import world_presets

    names, rows = chosen(presets), []
    for kind, preset in world_presets():
        if preset in names:
            logger.info("computing world model %s %s", kind, preset)
            rows.append(_world(kind, preset, batch))
    for kind, preset, tuning in policy_presets():
        if preset in names and tuning in tunings:
            logger.info("computing policy %s %s, %s", kind, preset, tuning)
            acting = _acting(kind, preset, tuning)
            rows += [_policy(kind, preset, tuning, step, batch) | acting for step in STEPS]
    return rows


def _world(kind: str, preset: str, batch: int) -> Row:
    from experiments.pipelines.cost.counting import on_meta
    from experiments.pipelines.cost.training import step_cost
    from experiments.pipelines.cost.worlds import imagining_cost, world_training

    with on_meta():
        training = world_training(kind, preset, batch)
        found, unit = step_cost(training), training.unit
    with on_meta():
        less = step_cost(world_training(kind, preset, batch, checkpointing=True))
    with on_meta():
        imagined = imagining_cost(kind, preset, batch)
    what = {
        "part": "world model",
        "type": kind,
        "preset": preset,
        "tuning": "full",
        "step": "train",
        "batch": batch,
    }
    return {**what, "unit": unit, **found, **_less(less), **imagined}


def _policy(kind: str, preset: str, tuning: str, step: str, batch: int) -> Row:
    from experiments.pipelines.cost.counting import on_meta
    from experiments.pipelines.cost.policies import can_checkpoint, policy_training
    from experiments.pipelines.cost.training import step_cost

    with on_meta():
        training = policy_training(kind, preset, batch, tuning, step)
        found, unit = step_cost(training), training.unit
    less: Row = {}
    if can_checkpoint(kind):
        with on_meta():
            less = _less(step_cost(policy_training(kind, preset, batch, tuning, step, checkpointing=True)))
    what = {"part": "policy", "type": kind, "preset": preset, "tuning": tuning, "step": step, "batch": batch}
    return {**what, "unit": unit, **found, **less}


def _acting(kind: str, preset: str, tuning: str) -> Row:
    from experiments.pipelines.cost.counting import on_meta
    from experiments.pipelines.cost.policies import acting_flops

    with on_meta():
        return {"acting_flops": acting_flops(kind, preset, tuning)}


def _less(found: Row) -> Row:
    """The fields that change with gradient checkpointing."""
    changed = ("activation_bytes", "training_bytes", "step_flops")
    return {f"{name}_checkpointed": found[name] for name in changed}


def key(row: Row) -> tuple[Any, ...]:
    """What a row is about; a later row replaces an earlier one with the same key."""
    return tuple(
        row.get(name) for name in ("part", "type", "preset", "tuning", "step", "batch", "checkpointing")
    )


def merged(earlier: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """All rows, the new ones in place of earlier ones about the same."""
    rows = {key(row): row for row in earlier}
    rows.update({key(row): row for row in new})
    return list(rows.values())


# -- text -----------------------------------------------------------------------------------------------------------
def count(value: float) -> str:
    """A number of parameters or operations, with three digits: `1.2 M`, `93 G`."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """A number of bytes: `1.2 MB`, `93 GB`, with a thousand for a kilo; `-` for None."""
    if value is None:
        return "-"
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * one:
            return f"{_three(value / one)} {unit}"
    return f"{value:.0f} B"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def speeds(row: Row, flops_per_second: float, steps: int) -> dict[str, float]:
    """Seconds of a step, hours of `steps` steps and imagined frames per second on a device of a given throughput.

    Args:
        row: a row of the table.
        flops_per_second: operations per second that the device reaches on this code.
        steps: optimizer steps of a run.
    """
    seconds = row["step_flops"] / flops_per_second
    found = {"seconds_per_step": seconds, "hours": seconds * steps / 3600}
    if "frame_flops" in row:
        found["frames_per_second"] = flops_per_second / row["frame_flops"]
    if "acting_flops" in row:
        found["chunks_per_second"] = flops_per_second / row["acting_flops"]
    return found


def text(rows: Sequence[Row], flops_per_second: float | None = None, steps: int = 10_000) -> str:
    """The rows for a terminal; times only for a given throughput."""
    lines = []
    for row in rows:
        tuning = "" if row["part"] == "world model" else f", {row['tuning']}, {row['step']}"
        lines.append(f"{row['type']} {row['preset']}{tuning}, batch {row['batch']} ({row['unit']})")
        values = [
            ("parameters", f"{count(row['parameters'])}, trained {count(row['trained'])}"),
            (
                "memory of training",
                f"{size(row['training_bytes'])} = weights {size(row['weight_bytes'])} + gradients "
                f"{size(row['gradient_bytes'])} + AdamW {size(row['optimizer_bytes'])} + copies of weights "
                f"{size(row['copy_bytes'])} + activations {size(row['activation_bytes'])}",
            ),
        ]
        if "activation_bytes_checkpointed" in row:
            less, all_ = row["activation_bytes_checkpointed"], row["training_bytes_checkpointed"]
            more = row["step_flops_checkpointed"] / row["step_flops"]
            values.append(
                (
                    "with checkpointing",
                    f"{size(all_)}, activations {size(less)}, {more:.2f} times the operations",
                )
            )
        values.append(("operations of a step", f"{count(row['step_flops'])}FLOP"))
        if "frame_flops" in row:
            values += [
                ("imagined frame", f"{count(row['frame_flops'])}FLOP decoded, {count(row['frame_flops_last'])}FLOP a "
                 "step with one frame in five decoded"),
                ("memory of imagining", f"{size(row['imagining_bytes'])}, of which {size(row['env_bytes'])} are kept "
                 "for each environment"),
            ]  # fmt: skip
        if "acting_flops" in row:
            values.append(("choosing a chunk", f"{count(row['acting_flops'])}FLOP"))
        if flops_per_second is not None:
            found = speeds(row, flops_per_second, steps)
            said = f"{found['seconds_per_step']:.3g} s a step, {found['hours']:.3g} h for {steps:,} steps"
            said += "".join(
                f", {found[name]:,.0f} {name.replace('_per_second', '')}/s"
                for name in ("frames_per_second", "chunks_per_second") if name in found
            )  # fmt: skip
            values.append(("time", said))
        lines += [f"  {name:<22}{value}" for name, value in values] + [""]
    return "\n".join(lines)
