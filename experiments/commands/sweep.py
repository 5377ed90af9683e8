"""`worldgym sweep`: fine-tuning runs over a search space of settings, with Ray Tune, on this machine or a cluster.

Trials are compared by mean imagined success over their last five rounds, and the worse half is stopped early (ASHA, Li
et al. 2020). Each trial has a run folder, so an interrupted sweep resumes every trial. Imagined success can be
exploited, so evaluate the best trials in Real with `worldgym eval`.

Example::

    worldgym sweep --space lr=1e-5,2e-5,4e-5 temperature=1,2 --out runs/sweep
    worldgym sweep --space "lr=loguniform(5e-6,1e-4)" --samples 16 --address auto --gpus 0.25
    worldgym sweep --resume --out runs/sweep
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import shlex
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bundle import Bundle
from experiments.compute import DType, placing
from experiments.pipelines.settings import FineTuneSettings
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text, read_sealed, write_sealed
from worldgym.utils.typed import changes

logger = logging.getLogger(__name__)
METRIC = "imagined_success"
FILES = ("sweep.json", "tune", "trials")
FIXED = {"out", "bundle", "quick", "fresh", "device", "dtype"}
DRAWN = re.compile(r"(uniform|loguniform)\(([^,]+),([^,]+)\)")


@dataclass(frozen=True)
class SweepConfig:
    """Fine-tune a policy with every setting of a search space.

    Args:
        space: `name=a,b,c` tries each value; `name=uniform(a,b)` and `name=loguniform(a,b)` draw values. The names are
            settings of `worldgym rl`; all other settings keep their defaults. May be omitted with `--resume`.
        out: folder of the sweep, with the run folders of the trials and the table.
        bundle: name of a bundled checkpoint, or a folder with the same parts; tabletop-small if None.
        samples: number of draws from the space; each draw runs all combinations of listed values; 1 if None.
        iterations: maximum number of rounds per trial; 20 if None.
        grace: rounds before a trial can be stopped early; 5 if None.
        concurrent: maximum number of trials at once; limited only by resources if None.
        cpus: CPU cores and torch threads per trial; 1 if None.
        gpus: share of a GPU per trial. If it is not 0, `--device auto` is that GPU, otherwise the CPU.
        address: address of a running Ray cluster, `auto` for the one on this machine; None starts one.
        resume: resume the sweep in `out` with its settings; settings that are given must be equal to them.
        quick: run every trial as `worldgym rl --quick`.
        seed: seed of the draws; 0 if None.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    space: tuple[str, ...] = ()
    out: Path = Path("runs/sweep")
    bundle: str | None = None
    samples: int | None = None
    iterations: int | None = None
    grace: int | None = None
    concurrent: int | None = None
    cpus: int | None = None
    gpus: float = 0.0
    address: str | None = None
    resume: bool = False
    quick: bool = False
    seed: int | None = None
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings and the space."""
        counts = (self.samples, self.iterations, self.grace, self.cpus, self.concurrent)
        if min((n for n in counts if n is not None), default=1) < 1 or self.gpus < 0 or (self.seed or 0) < 0:
            raise ConfigError(
                "samples, iterations, grace, cpus and concurrent must be at least 1, and gpus and seed at least 0"
            )
        if self.space or not self.resume:
            parse_space(self.space)


DEFAULTS = {"bundle": DEFAULT, "samples": 1, "iterations": 20, "grace": 5, "cpus": 1, "seed": 0}
"""Default values of settings that a resumed sweep takes from the earlier one."""
SETTINGS = "sweep_settings.json"


def whole_settings(config: SweepConfig) -> SweepConfig:
    """Complete the settings with the defaults, or with those of the sweep that is resumed.

    Raises:
        ConfigError: `out` contains a sweep and `--resume` is not given, or the reverse; or given settings differ from
            it.
        CheckpointError: the file with the earlier settings is damaged.
    """
    found = [name for name in FILES if (config.out / name).exists()]
    if not config.resume:
        if found:
            raise ConfigError(
                f"{config.out} contains {', '.join(found)} of a sweep, which would be overwritten. Add --resume to "
                "continue it, or give another --out"
            )
        return dataclasses.replace(config, **{**DEFAULTS, **_typed(config)})
    if not (config.out / SETTINGS).is_file():
        reason = f"no {SETTINGS}, so its sweep is from an earlier version" if found else "no sweep to resume"
        raise ConfigError(f"{config.out} contains {reason}; leave out --resume and give a new --out")
    before = read_sealed(config.out / SETTINGS, "Leave out --resume and give a new --out.")
    whole = dataclasses.replace(
        config,
        **{**{name: before[name] for name in DEFAULTS}, **_typed(config)},
        quick=config.quick or before["quick"],
        space=config.space or tuple(before["space"]),
    )
    if differences := changes(before, plain_settings(whole)):
        raise ConfigError(
            f"the sweep in {config.out} has other settings ({differences}). Type only --resume --out {config.out} to "
            "continue it, or give another --out for another sweep"
        )
    return whole


def _typed(config: SweepConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in DEFAULTS if getattr(config, name) is not None}


def plain_settings(config: SweepConfig) -> dict[str, Any]:
    """The settings and inputs that determine the results of a sweep, as JSON data."""
    facts = {name: getattr(config, name) for name in (*DEFAULTS, "quick", "space")}
    facts |= {"bundle": bundle_name(config), "parts": Bundle.find(str(config.bundle)).fingerprint()}
    return dict(json.loads(json.dumps({**facts, "tried": parse_space(config.space)})))


def bundle_name(config: SweepConfig) -> str:
    """Name of a bundled checkpoint, or the absolute path of a folder, so that trials on other nodes find it."""
    folder = Path(str(config.bundle)).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(config.bundle)


def parse_space(texts: tuple[str, ...]) -> dict[str, list[Any] | tuple[str, float, float]]:
    """Parse the space: for each setting a list of values, or `(distribution, low, high)`.

    Raises:
        ConfigError: wrong syntax, an unknown setting, or a value of the wrong type.
    """
    kinds = typing.get_type_hints(FineTuneSettings)
    known = [f.name for f in dataclasses.fields(FineTuneSettings) if f.name not in FIXED]
    space: dict[str, list[Any] | tuple[str, float, float]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"space {text!r}; expected name=value,value or name=loguniform(low,high)")
        if name not in known:
            raise ConfigError(f"unknown setting {name!r} in the space; the settings are {', '.join(known)}")
        drawn = DRAWN.fullmatch(values.replace(" ", ""))
        try:
            if drawn:
                low, high = float(drawn[2]), float(drawn[3])
                if not low < high or (drawn[1] == "loguniform" and low <= 0):
                    raise ValueError("expected low < high, and more than 0 for loguniform")
                space[name] = (drawn[1], low, high)
            else:
                space[name] = [convert(value, kinds[name]) for value in values.split(",")]
        except ValueError as error:
            raise ConfigError(f"space {text!r}: {error}") from error
    if not space:
        raise ConfigError("the space is empty; give settings to try, such as --space lr=1e-5,2e-5")
    return space


def convert(text: str, kind: Any) -> Any:
    """Convert `text` to the type of a setting; `none` is None for optional settings.

    Raises:
        ValueError: `text` is not a value of this type.
    """
    choices = typing.get_args(kind)
    if type(None) in choices:
        if text.lower() == "none":
            return None
        (kind,) = (choice for choice in choices if choice is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text
    if typing.get_origin(kind) is tuple:
        return tuple(text.split("+"))
    return kind(text)


def run(config: SweepConfig) -> int:
    """Run the trials, print them sorted by imagined success, and write `sweep.json`."""
    from agents.rollouts.ray_pool import check_resources, connect, disconnect
    from worldgym.utils.optional import require

    ray = require("ray", extra="rllib")
    tune = require("ray.tune", extra="rllib")
    config = whole_settings(config)
    settings = plain_settings(config)
    started = connect(ray, config.address, None)
    try:
        check_resources(ray, {"CPU": float(config.cpus or 1), "GPU": config.gpus})
        write_sealed(config.out / SETTINGS, settings, indent=1)
        results = tuner(tune, config).fit()
    finally:
        if started:
            disconnect(ray)
    rows = table_rows(results)
    atomic_write_text(config.out / "sweep.json", json.dumps(rows, indent=1, default=str) + "\n")
    sys.stdout.write(table(rows, config.bundle or DEFAULT) + f"\nwritten to {config.out / 'sweep.json'}\n")
    return 1 if any(row["error"] for row in rows) else 0


def table_rows(results: Any) -> list[dict[str, Any]]:
    """Return the results of the trials, best first; `policy` is None if the trial saved no policy."""
    rows = []
    for result in results:
        metrics = result.metrics or {}
        success, policy = metrics.get(METRIC), metrics.get("policy")
        rows.append(
            {
                "setting": result.config,
                METRIC: success if success is not None and math.isfinite(success) else None,
                "rounds": metrics.get("iteration"),
                "policy": policy if policy and (Path(policy) / "config.json").is_file() else None,
                "error": str(result.error) if result.error else None,
            }
        )
    # The setting breaks ties, so that the order is deterministic.
    return sorted(rows, key=lambda row: (1.0 if row[METRIC] is None else -row[METRIC], str(row["setting"])))


def table(rows: list[dict[str, Any]], bundle: str = DEFAULT) -> str:
    """Return the printed table; `bundle` is that of the sweep."""
    lines = [f"{'imagined':>9}{'rounds':>8}  setting"]
    for row in rows:
        success = "-" if row[METRIC] is None else f"{row[METRIC]:.3f}"
        setting = ", ".join(f"{k}={v}" for k, v in row["setting"].items())
        lines.append(f"{success:>9}{row['rounds'] or 0:>8.0f}  {setting}{'  FAILED' if row['error'] else ''}")
    if best := next((row for row in rows if row["policy"]), None):
        which = "the best trial" if best is rows[0] else "the best trial with a saved policy"
        other = "" if bundle == DEFAULT else f" --bundle {shlex.quote(bundle)}"
        lines.append(f"evaluate {which} in Real: worldgym eval --policy sft {best['policy']}{other}")
    return "\n".join(lines)


def tuner(tune: Any, config: SweepConfig) -> Any:
    """Create a Ray Tuner, or restore it from an earlier sweep."""
    out = config.out.resolve()
    fixed = {
        "bundle": bundle_name(config),
        "iterations": config.iterations,
        "quick": config.quick,
        "threads": config.cpus,
        "sweep": str(out),
        "device": ("cuda" if config.gpus else "cpu") if config.device == "auto" else config.device,
        "dtype": config.dtype,
    }
    trainable = tune.with_resources(
        tune.with_parameters(trial, fixed=fixed), {"cpu": config.cpus, "gpu": config.gpus}
    )
    if config.resume and tune.Tuner.can_restore(str(out / "tune")):
        return tune.Tuner.restore(
            str(out / "tune"), trainable=trainable, resume_unfinished=True, restart_errored=True
        )
    space = {
        name: tune.grid_search(values) if isinstance(values, list) else getattr(tune, values[0])(*values[1:])
        for name, values in parse_space(config.space).items()
    }
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", num_samples=config.samples,
            scheduler=ASHAScheduler(max_t=config.iterations, grace_period=min(config.grace, config.iterations)),
            search_alg=BasicVariantGenerator(random_state=config.seed, max_concurrent=config.concurrent or 0),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(out), verbose=0),
    )  # fmt: skip


def trial(setting: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Run one fine-tuning on a worker and report each round to Tune."""
    import numpy as np
    import torch
    from ray import tune

    from experiments.pipelines.finetune import FineTuning
    from experiments.pipelines.run_folder import RunFolder

    torch.set_num_threads(fixed["threads"])
    out = Path(fixed["sweep"]) / "trials" / tune.get_context().get_trial_id()
    settings = FineTuneSettings(
        out=out,
        bundle=fixed["bundle"],
        quick=fixed["quick"],
        device=fixed["device"],
        dtype=fixed["dtype"],
        **{"iterations": fixed["iterations"], **setting},
    )
    bundle = Bundle.find(settings.bundle, placing(settings))
    folder = RunFolder(out, {**settings.key(), "parts": bundle.fingerprint()})
    tuning = FineTuning(settings, bundle, folder)
    # A resumed trial includes its earlier rounds, so that its mean equals that of an uninterrupted trial.
    before = tuning.remembered()
    recent = [row["success_rate"] for row in before]

    def report(row: dict[str, float]) -> None:
        recent.append(row["success_rate"])
        values = {k: v for k, v in row.items() if np.isfinite(v)}
        valid = [x for x in recent[-5:] if np.isfinite(x)]
        success = float(np.mean(valid)) if valid else float("nan")
        tune.report({**values, METRIC: success, "policy": str(out / "policy")})

    with folder.board() as board:
        history = tuning.run(board, report)
    if len(before) == len(history):  # the trial ended before Ray recorded its last round
        recent.pop()
        report(history[-1])
    folder.finish()
