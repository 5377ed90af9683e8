"""`worldgym coevolve`: a policy, its world model and its judge improve each other, in rounds.

A round collects episodes of the policy in Real, trains world model and judge on them, improves the policy in
imagination, and measures. It stops when the gap between imagined and true success grows or true success falls, and
keeps the best round. The same command continues a stopped run.

Example::

    worldgym coevolve --recipe vlaw --data data/real --out runs/vlaw
    worldgym coevolve --recipe dyna --data data/real --rounds 3 --set episodes=60 --out runs/dyna
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from experiments.commands.build import check_data, parse
from experiments.pipelines.coevolve import LOGS, MOST_ROUNDS, Coevolution, CoevolveSettings
from experiments.pipelines.training_run import claim, content_of, fingerprint
from experiments.reports.coevolution import write_coevolution_report
from worldgym.errors import ConfigError
from worldgym.utils.staging import locked

ROUNDS = tuple(f"round-{number:02d}" for number in range(MOST_ROUNDS + 1))
OWN = ("policy", "result.json", "report.html", "final", LOGS, *ROUNDS)
"""What a run writes."""


@dataclass(frozen=True)
class CoevolveConfig(CoevolveSettings):
    """Improve policy, world model and judge in rounds; the same command continues a stopped run.

    Args:
        fresh: delete what an earlier run wrote to `out`, and start over.
        dry_run: print and check the commands of the next round only.
    """

    fresh: bool = False
    dry_run: bool = False


def run(config: CoevolveConfig) -> int:
    """Do the rounds that are left, then the final measurement, and write the page."""
    settings: CoevolveSettings = config
    if settings.out.exists() and not settings.out.is_dir():
        raise ConfigError(f"--out {settings.out} is a file, but a run needs a folder; give another --out")
    coevolution = Coevolution(settings, say)
    if config.dry_run:
        recipe = coevolution.recipe(max(1, len(coevolution.rows)))
        sys.stdout.write("".join(f"{stage.line}\n" for stage in recipe.stages))
        coevolution.check(parse)
        return 0
    if not config.fresh:
        coevolution.check(parse)
    claim(settings.out, "coevolve", identity(settings), own=OWN, fresh=config.fresh)
    if config.fresh:
        coevolution = Coevolution(settings, say)
        coevolution.check(parse)
    with locked(settings.out, wait=False) as mine:
        if not mine:
            raise ConfigError(
                f"another `worldgym coevolve` runs in {settings.out}; wait for it, or give another --out"
            )
        while (reason := coevolution.reason_to_stop()) is None:
            row = coevolution.do_round(parse, check_data)
            sys.stdout.write(f"\n{line_of(row)}\n")
            write_coevolution_report(coevolution.rows, settings.out / "report.html", settings.recipe)
        result = coevolution.finish(parse)
        write_coevolution_report(coevolution.rows, settings.out / "report.html", settings.recipe, result)
    final = result["final"]
    sys.stdout.write(
        f"\nstopped: {reason}\nbest round: {result['best']}, {result['real_episodes']} episodes in Real\n"
    )
    sys.stdout.write(f"on fresh starts: first policy {rate(final['first'])}, best {rate(final['best'])}\n")
    if final["difference"] is not None:
        change = final["difference"]
        low, high = 100 * change["low"], 100 * change["high"]
        sys.stdout.write(f"difference: {100 * change['mean']:+.1f} [{low:+.1f}, {high:+.1f}] points\n")
    sys.stdout.write(f"policy: {settings.out / 'policy'}\nreport: {settings.out / 'report.html'}\n")
    return 0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def identity(settings: CoevolveSettings) -> dict[str, Any]:
    """What a continued run must have in common: all but the number of rounds, and how it is computed."""
    from experiments.bundle import Bundle
    from worldgym.data import EpisodeDataset

    kept = ("recipe", "preset", "seed", "episodes", "final_episodes", "gap_bound", "fall_bound")
    facts: dict[str, Any] = {f"--{name.replace('_', '-')}": getattr(settings, name) for name in kept}
    facts["--set"] = settings.values
    facts["--recipe"] = content_of(settings.recipe_file)
    facts["--bundle"] = Bundle.find(settings.bundle).fingerprint()
    facts["--data"] = None if settings.data is None else fingerprint(EpisodeDataset(settings.data))
    return facts


def line_of(row: dict[str, Any]) -> str:
    """One line about a round."""
    parts = [
        f"round {row['round']}",
        f"{row['real_episodes']} episodes in Real",
        f"true success {rate(row['true'])}",
    ]
    for name in ("imagined", "precision", "recall"):
        parts.append(f"{name} {'-' if row[name] is None else format(100 * row[name], '.0f') + ' %'}")
    return ", ".join(parts)


def rate(value: dict[str, float]) -> str:
    """`84.0 % [80.1, 87.3]`."""
    return f"{100 * value['mean']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
