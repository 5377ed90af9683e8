"""`worldgym sweep`: many practices with other settings, on Ray Tune: this machine, or a cluster.

Trials are compared by imagined success over their last five rounds, the worse half is stopped early (ASHA, Li et al.
2020), and each keeps its run folder, so a sweep that was stopped goes on where every trial was. Imagined success can be
gamed: the table is where to look first, not what to believe. Measure the best ones in Real with `worldgym eval`.

Example::

    worldgym sweep --space lr=1e-5,2e-5,4e-5 temperature=1,2 --out runs/sweep
    worldgym sweep --space "lr=loguniform(5e-6,1e-4)" --samples 16 --address auto --gpus 0.25
    worldgym sweep --resume --space lr=1e-5,2e-5,4e-5 temperature=1,2 --out runs/sweep
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.demo_settings import PracticeSettings
from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text

logger = logging.getLogger(__name__)
METRIC = "imagined_success"
FIXED = {"out", "bundle", "quick", "fresh"}
DRAWN = re.compile(r"(uniform|loguniform)\(([^,]+),([^,]+)\)")


@dataclass(frozen=True)
class SweepConfig:
    """Practise with every setting of a search space.

    Args:
        space: `name=a,b,c` tries each, `name=uniform(a,b)` and `name=loguniform(a,b)` draw; names are those of
            `worldgym rl`. Everything else keeps its default.
        out: folder of the sweep; a trial's run folder and table lie in it.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        samples: draws of the whole space; each combination of listed values counts once a draw.
        iterations: rounds a trial, at most.
        grace: rounds before a trial may be stopped early.
        concurrent: trials at once; as many as fit when None.
        cpus: of each trial, and its torch threads.
        gpus: share of a GPU of each trial.
        address: of a running Ray cluster, `auto` for the one on this machine; None starts one.
        resume: go on with the sweep in `out`.
        quick: every trial as `worldgym rl --quick`.
        seed: of the draws.
    """

    space: tuple[str, ...]
    out: Path = Path("runs/sweep")
    bundle: str = "tabletop-small"
    samples: int = 1
    iterations: int = 20
    grace: int = 5
    concurrent: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None
    resume: bool = False
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate, the space included."""
        if min(self.samples, self.iterations, self.grace, self.cpus) < 1 or self.gpus < 0:
            raise ConfigError("samples, iterations, grace and cpus must be at least 1, gpus not negative")
        parse_space(self.space)


def parse_space(texts: tuple[str, ...]) -> dict[str, list[Any] | tuple[str, float, float]]:
    """Values to try, or `(how, low, high)` to draw from, of each setting named.

    Raises:
        ConfigError: not of the form, an unknown setting, or a value of another type.
    """
    kinds = typing.get_type_hints(PracticeSettings)
    known = [f.name for f in dataclasses.fields(PracticeSettings) if f.name not in FIXED]
    space: dict[str, list[Any] | tuple[str, float, float]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"space {text!r}; expected name=value,value or name=loguniform(low,high)")
        if name not in known:
            raise ConfigError(f"unknown setting {name!r} in the space; known: {', '.join(known)}")
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
        raise ConfigError("the space is empty; say what to try, such as --space lr=1e-5,2e-5")
    return space


def convert(text: str, kind: Any) -> Any:
    """`text` as the type of a setting; for optional ones `none` is None.

    Raises:
        ValueError: it is not one.
    """
    choices = typing.get_args(kind)
    if type(None) in choices:
        if text.lower() == "none":
            return None
        (kind,) = (choice for choice in choices if choice is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text
    if typing.get_origin(kind) is tuple:
        return tuple(text.split("+"))
    return kind(text)


def run(config: SweepConfig) -> int:
    """Run the trials, print them best first, write `sweep.json`."""
    from agents.rollout_pool import check_resources, connect
    from worldgym.utils.optional import require

    ray = require("ray", extra="rllib")
    tune = require("ray.tune", extra="rllib")
    started = connect(ray, config.address, None)
    check_resources(ray, {"CPU": config.cpus, "GPU": config.gpus})
    try:
        results = tuner(tune, config).fit()
    finally:
        if started:
            ray.shutdown()
    rows = [
        {
            "setting": result.config,
            METRIC: (result.metrics or {}).get(METRIC),
            "rounds": (result.metrics or {}).get("iteration"),
            "policy": (result.metrics or {}).get("policy"),
            "error": str(result.error) if result.error else None,
        }
        for result in results
    ]
    rows.sort(key=lambda row: (1.0 if row[METRIC] is None else -row[METRIC], str(row["setting"])))  # ties: one order
    atomic_write_text(config.out / "sweep.json", json.dumps(rows, indent=1, default=str) + "\n")
    lines = [f"{'imagined':>9}{'rounds':>8}  setting"]
    for row in rows:
        success = "-" if row[METRIC] is None else f"{row[METRIC]:.3f}"
        setting = ", ".join(f"{k}={v}" for k, v in row["setting"].items())
        lines.append(f"{success:>9}{row['rounds'] or 0:>8.0f}  {setting}{'  FAILED' if row['error'] else ''}")
    best = rows[0]["policy"] if rows else None
    if best:
        lines.append(f"measure the first one in Real: worldgym eval --policy sft {best}")
    sys.stdout.write("\n".join(lines) + f"\nwritten to {config.out / 'sweep.json'}\n")
    return 1 if any(row["error"] for row in rows) else 0


def tuner(tune: Any, config: SweepConfig) -> Any:
    """The Tuner, new or with what an earlier one has done."""
    out = config.out.resolve()
    fixed = {"bundle": str(Path(config.bundle).resolve()) if Path(config.bundle).is_dir() else config.bundle}
    fixed |= {
        "iterations": config.iterations,
        "quick": config.quick,
        "threads": config.cpus,
        "sweep": str(out),
    }
    trainable = tune.with_resources(
        tune.with_parameters(trial, fixed=fixed), {"cpu": config.cpus, "gpu": config.gpus}
    )
    if config.resume:
        if not (out / "tune").is_dir():
            raise ConfigError(f"{out} holds no sweep to go on with; leave out --resume")
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
            metric=METRIC, mode="max", num_samples=config.samples, max_concurrent_trials=config.concurrent,
            scheduler=ASHAScheduler(max_t=config.iterations, grace_period=min(config.grace, config.iterations)),
            search_alg=BasicVariantGenerator(random_state=config.seed, max_concurrent=config.concurrent or 0),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(out), verbose=0),
    )  # fmt: skip


def trial(setting: dict[str, Any], fixed: dict[str, Any]) -> None:
    """One practice, reporting each round to Tune; runs on a worker."""
    import numpy as np
    import torch
    from ray import tune
    from torch.utils.tensorboard import SummaryWriter

    from experiments.bundle import Bundle
    from experiments.practice import Practice
    from experiments.run_folder import RunFolder

    torch.set_num_threads(fixed["threads"])
    out = Path(fixed["sweep"]) / "trials" / tune.get_context().get_trial_id()
    settings = PracticeSettings(
        out=out,
        bundle=fixed["bundle"],
        quick=fixed["quick"],
        **{"iterations": fixed["iterations"], **setting},
    )
    practice = Practice(settings, Bundle.find(settings.bundle), RunFolder(out, settings.key()))
    recent: list[float] = []

    def report(row: dict[str, float]) -> None:
        recent.append(row["success_rate"])
        values = {k: v for k, v in row.items() if np.isfinite(v)}
        success = float(np.nanmean(recent[-5:]))
        tune.report({**values, METRIC: success, "policy": str(out / "policy")})

    with SummaryWriter(str(out)) as board:
        practice.run(board, report)
    practice.folder.finish()
