"""`worldgym claims list`, `run`, `report`: published claims as experiments.

Each finished claim, arm and seed is one small JSON file. `run` computes only the missing ones, so an interrupted set
continues where it stopped, on this machine or another. Several processes can share the work, each with some of the
seeds or arms and its own `--work`.

Example::

    worldgym claims list
    worldgym claims run C1 C2 --preset small --seeds 0 1 2
    worldgym claims report --json runs/claims.json
    worldgym claims run C2 --world metaworld       # in another world than the tabletop
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.claims import CLAIMS, find_arm
from experiments.claims.presets import PRESETS, ClaimPreset
from experiments.claims.records import Records, code_hash
from experiments.compute import DType, placing
from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text

logger = logging.getLogger(__name__)
RESULTS = Path("docs/results")
PresetName = Literal["tiny", "small"]


@dataclass(frozen=True)
class World:
    """Options that every command on claims has.

    Args:
        preset: preset whose results the verdicts are based on.
        world: suite or bundle in which the claims are measured; the tabletop if None. Results of another world are in
            a folder of that name, and RL in its software simulator is measured at the frozen gap of the suite only.
        results: folder of the results.
    """

    preset: PresetName = "small"
    world: str | None = None
    results: Path = RESULTS

    @property
    def sizes(self) -> ClaimPreset:
        """The preset, in this world."""
        preset = PRESETS[self.preset]
        return preset if self.world is None else preset.in_world(self.world)

    @property
    def pages(self) -> Path:
        """Folder of the pages and of `data/`."""
        return self.results if self.world is None else self.results / self.sizes.suite.name


@dataclass(frozen=True)
class ClaimsListConfig(World):
    """List the claims, their sources, and the rules that refute them.

    Args:
        preset: preset whose results the verdicts are based on.
        world: suite or bundle in which the claims are measured; the tabletop if None.
        results: folder of the results.
    """


@dataclass(frozen=True)
class ClaimsRunConfig(World):
    """Run the arms of claims that are not finished yet.

    Args:
        claims: claims to run, such as C1 C2.
        preset: `tiny` checks that everything runs, `small` gives results on two cores.
        world: suite or bundle in which the claims are measured, such as `metaworld`; the tabletop if None. Results of
            another world are in a folder of that name, and RL in its software simulator is measured at the frozen gap
            of the suite only.
        seeds: training seeds; those of the preset if empty.
        arms: run only these arms; all if empty.
        workers: number of processes for evaluation and simulators.
        threads: number of torch threads.
        results: folder of the results.
        work: folder for policies and logs, which are not kept with the results.
        again: run finished arms again.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    claims: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    seeds: tuple[int, ...] = ()
    arms: tuple[str, ...] = ()
    workers: int = 2
    threads: int = 2
    work: Path = Path("runs/claims")
    again: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        unknown = sorted(set(self.claims) - set(CLAIMS))
        if unknown or not self.claims:
            raise ConfigError(
                f"unknown claims {unknown}; the claims are {', '.join(CLAIMS)}. Type: worldgym claims list"
            )
        if self.threads < 1 or self.workers < 0 or min(self.seeds, default=0) < 0:
            raise ConfigError(
                f"threads is {self.threads}, workers {self.workers}, seeds {self.seeds}; expected threads of at least "
                "1, and workers and seeds of at least 0"
            )


@dataclass(frozen=True)
class ClaimsReportConfig(World):
    """Print the verdicts and write the pages in docs/results.

    Args:
        preset: preset whose results are reported.
        world: suite or bundle in which the claims were measured; the tabletop if None.
        results: folder of the results; the pages are written there, too.
        json: file for the verdicts as JSON; they are also printed.
        readme: file whose table between `<!-- results -->` and `<!-- /results -->` is replaced.
    """

    json: Path | None = None
    readme: Path | None = None


def list_claims(config: ClaimsListConfig) -> int:
    """Print every claim with its source, rule and verdict."""
    records, preset = Records(config.pages / "data", config.preset), config.sizes
    for name, claim in CLAIMS.items():
        verdict = claim.decide(records, preset)
        sys.stdout.write(
            f"{name}: {claim.title}\n  published: {claim.source}\n  refuted if {claim.refuted_if}\n"
            f"  {config.preset}: {verdict.verdict} ({verdict.why})\n"
        )
    return 0


def run(config: ClaimsRunConfig) -> int:
    """Run every (claim, arm, seed) that is not finished.

    Raises:
        ConfigError: the source code changed while an arm ran; the result of that arm is discarded.
    """
    import torch

    from experiments.claims.arms import run_arm
    from experiments.claims.context import ClaimContext

    torch.set_num_threads(config.threads)
    preset = config.sizes
    records = Records(config.pages / "data", preset.name)
    jobs, code = list(todo(config, records)), code_hash()
    logger.info("%d results to compute", len(jobs))
    with ClaimContext(preset, config.work / preset.world / preset.name, config.workers, placing(config)) as lab:
        for claim, name, seed in todo(replace(config, again=True), records):
            if records.has(claim, name, seed) and not config.again:
                lab.forget(name, seed)  # working folder of a process that was killed after it had written the result
        for i, (claim, name, seed) in enumerate(jobs):
            if not config.again and records.has(claim, name, seed):
                continue  # another process has finished it meanwhile
            arm = find_arm(name)
            logger.info("%d/%d %s: %s, seed %d", i + 1, len(jobs), claim, arm.label, seed)
            facts = run_arm(lab, arm, seed, code)
            if code_hash() != code:  # worker processes started meanwhile have run other code than this process
                raise ConfigError(
                    f"the source code changed while {claim} {name}, seed {seed} ran, so its result is discarded. Run "
                    "it again from a checkout that does not change: git worktree add ../runs HEAD"
                )
            file = records.write(claim, name, seed, {**facts, "code": code})
            lab.forget(arm.name, seed)
            rates = {key: row["success"].count("1") / len(row["success"]) for key, row in facts["evaluations"].items()}
            shown = {key: rate for key, rate in rates.items() if key == "seen/greedy"} or rates
            logger.info("  %s; written to %s", ", ".join(f"{key} {rate:.3f}" for key, rate in shown.items()), file)
    for name in config.claims:
        verdict = CLAIMS[name].decide(records, preset)
        sys.stdout.write(f"{name}: {verdict.verdict} ({verdict.why})\n")
    return 0


def todo(config: ClaimsRunConfig, records: Records) -> list[tuple[str, str, int]]:
    """Return the (claim, arm, seed) to run: all arms of a seed, then the next seed.

    They include arms of other claims that the given claims need.

    Raises:
        ConfigError: none of the claims has an arm of this name.
    """
    from experiments.claims.claim import unseeded

    preset = config.sizes
    needed = list(dict.fromkeys(pair for name in config.claims for pair in CLAIMS[name].arms(preset)))
    if unknown := set(config.arms) - {arm for _, arm in needed}:
        raise ConfigError(
            f"no arm {', '.join(sorted(unknown))} in these claims; the arms are {', '.join(arm for _, arm in needed)}"
        )
    jobs = []
    for i, seed in enumerate(config.seeds or preset.seeds):
        for owner, arm in needed:
            if config.arms and arm not in config.arms:
                continue
            if unseeded(arm):
                if i:
                    continue
                job = (owner, arm, 0)
            else:
                job = (owner, arm, seed)
            if config.again or not records.has(*job):
                jobs.append(job)
    return jobs


def report(config: ClaimsReportConfig) -> int:
    """Write the pages and print the verdicts."""
    from experiments.claims.report import verdict_table, verdicts, write_report

    preset = config.sizes
    records = Records(config.pages / "data", preset.name)
    found = verdicts(records, preset)
    for file in write_report(records, preset, config.pages, found):
        logger.info("written %s", file)
    if config.readme is not None:
        fill(config.readme, "\n".join(verdict_table(records, preset, "docs/results/", found)))
    facts = {name: verdict.to_dict() for name, verdict in found.items()}
    text = json.dumps(facts, indent=1) + "\n"
    if config.json is not None:
        atomic_write_text(config.json, text)
    sys.stdout.write(text)
    return 0


def fill(file: Path, table: str) -> None:
    """Replace the table between the two marker lines of a file.

    Raises:
        ConfigError: the file lacks a marker line.
    """
    text = file.read_text()
    first, last = "<!-- results -->", "<!-- /results -->"
    if first not in text or last not in text:
        raise ConfigError(f"{file} has no lines {first} and {last}; add them where the table belongs")
    head, _, rest = text.partition(first)
    atomic_write_text(file, f"{head}{first}\n{table}\n{last}{rest.partition(last)[2]}")
