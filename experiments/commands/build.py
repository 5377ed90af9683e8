"""`worldgym build RECIPE`: makes a bundle from nothing, by the commands that a recipe lists.

It prints what each stage will take before it starts, goes on where it was stopped, and writes a page with all commands
and their durations. `recipes/` holds the recipes of the bundled checkpoints.

Example::

    worldgym build recipes/metaworld.yaml --hours 3
    worldgym build recipes/metaworld.yaml --set episodes=200 --dry-run
"""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.pipelines.build import Build
from experiments.pipelines.checks import values_of
from experiments.pipelines.recipe import Recipe, Stage, read_recipe
from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text


@dataclass(frozen=True)
class BuildConfig:
    """Make a bundle from a recipe.

    Args:
        recipe: a YAML file, see `experiments.pipelines.recipe`.
        out: folder of the build; `runs/` and the name of the recipe if None.
        hours: time that the recipe's shares divide; that of the recipe if None.
        set: values of the recipe to replace, `--set episodes=200 minutes=5`; `null` leaves an option out.
        start: (`--from`) number or name of a stage: remove what it and those after it have built, and build them again.
        dry_run: print the commands and the expected durations only.
    """

    recipe: tyro.conf.Positional[Path]
    out: Path | None = None
    hours: float | None = None
    set: tuple[str, ...] = ()
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    dry_run: bool = False


def run(config: BuildConfig) -> int:
    """Check the recipe, print its stages, run those that are left, and write the page."""
    out = Path("runs") / config.recipe.stem if config.out is None else config.out
    if out == Path() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"--out is {str(config.out)!r}; expected a folder, such as runs/{config.recipe.stem}")
    recipe = read_recipe(config.recipe, out, config.hours, values_of(config.set, "--set", "episodes=200"))
    build = Build(recipe, out)
    build.check(parse, config.start)
    if config.start is not None and not config.dry_run:
        removed = build.start_from(config.start)
        sys.stdout.write("".join(f"removed {path}\n" for path in removed))
    sys.stdout.write(plan(recipe, build) + "\n")
    if config.dry_run:
        return 0

    def announce(stage: Stage, number: int) -> None:
        sys.stdout.write(f"\n[{number}/{len(recipe.stages)}] {stage.name}: {stage.line}\n")
        sys.stdout.flush()

    try:
        build.run(announce, check_data)
    finally:
        if build.done:
            atomic_write_text(out / "build.html", page(recipe, build))
    sys.stdout.write(f"\nbuilt in {out}; {out / 'build.html'} lists every command and its duration\n")
    return 0


def parse(stage: Stage) -> None:
    """Check that the command of a stage exists and accepts its options."""
    from experiments.cli import COMMANDS, parse_command

    if stage.words not in COMMANDS or stage.words == ("build",):
        raise ConfigError(f"there is no command {' '.join(stage.words)!r} that a recipe can use; type: worldgym --help")
    try:
        parse_command(stage.words, list(stage.arguments))
    except SystemExit as ended:  # the parser has printed what is wrong
        raise ConfigError("the command does not accept these options; see above") from ended


def check_data(stage: Stage) -> None:
    """Check that the dataset of a stage has what the stage needs.

    Raises:
        ConfigError: it has no success labels, or the stage leaves no episode out.
    """
    if not stage.needs or stage.data is None:
        return
    from worldgym.data import EpisodeDataset

    records = EpisodeDataset(stage.data).records
    if "left_out" in stage.needs:
        given = dict(zip(stage.arguments, stage.arguments[1:], strict=False)).get("--limit")
        if given is None:
            raise ConfigError(f"stage {stage.name!r} needs left_out, but has no `limit`; give it one in the recipe")
        if (limit := int(given)) >= len(records):
            raise ConfigError(
                f"stage {stage.name!r} trains on the first {limit} episodes, and {stage.data} has {len(records)}: none "
                "is left out to be measured. Type a smaller number, such as a value of the recipe with --set"
            )
    if "labels" not in stage.needs:
        return
    if not any(record.success for record in records) or all(record.success for record in records):
        raise ConfigError(
            f"stage {stage.name!r} learns from success labels, and {stage.data} has "
            f"{'successes' if records and records[0].success else 'failures'} only. Record both, or remove this stage "
            "from the recipe and score episodes with a vision-language judge (docs/guides/judges.md)"
        )


def plan(recipe: Recipe, build: Build) -> str:
    """Return the table of stages with their expected or measured durations."""
    lines = [f"{recipe.name}: {len(recipe.stages)} stages, about {recipe.minutes / 60:.1f} hours on two cores"]
    for number, stage in enumerate(recipe.stages, 1):
        before = build.done.get(stage.name)
        if before is not None and "seconds" in before:
            cost = f"done in {before['seconds'] / 60:.1f} min"
        else:
            cost = "short" if stage.minutes is None else f"about {stage.minutes:.0f} min"
        lines.append(f"  {number:>2}  {stage.name:<36} {cost:<18} {stage.note}".rstrip())
    return "\n".join(lines)


def page(recipe: Recipe, build: Build) -> str:
    """Return an HTML page with all commands and their durations."""
    rows = []
    for stage in recipe.stages:
        before = build.done.get(stage.name)
        state = "not built yet"
        if before is not None:
            state = f"{before['seconds'] / 60:.1f} min" if "seconds" in before else "begun"
        if before is not None and before.get("code"):
            state += f", exit code {before['code']}"
        cells = (stage.name, state, stage.note)
        rows.append(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + f"<td><code>{html.escape(stage.line)}</code></td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in ("stage", "duration", "note", "command"))
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(recipe.name)}</title>'
        "<style>body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto}td,th{text-align:left;padding:.2em .8em;"
        "vertical-align:top}code{font-size:12px}</style>"
        f"<h1>{html.escape(recipe.name)}</h1><p>{html.escape(recipe.about)}</p>"
        f"<table><tr>{head}</tr>{''.join(rows)}</table>\n"
    )
