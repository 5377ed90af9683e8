"""Selects the suite of a command and creates its environments.

A command takes `--suite NAME`. Without it, the suite is the one in the bundle's card, or else the default suite. This
module names no simulator.

Example::

    suite = chosen_suite(config.suite, config.bundle)
    env = real_env(suite, horizon=config.horizon)
    with evaluation_pool(suite, workers=2, horizon=40, chunk=5) as pool:
        pool.evaluate(policy, starts)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError
from worldgym.evaluation import EvaluationPool
from worldgym.registry import SUITES
from worldgym.suite import SINGLE, Suite, load_suite

__all__ = ["chosen_suite", "domain_settings", "evaluation_pool", "known_split", "known_tasks", "other_instructions",
    "real_env", "suite_of_bundle", "suite_of_data", "BundleName"]

BundleName = Annotated[str, tyro.conf.arg(aliases=("--world",))]
"""Option `--bundle` of a command, or `--world`: the name of a bundled checkpoint or of its suite, or a folder."""


def chosen_suite(name: str | None = None, bundle: str | Path | None = None) -> Suite:
    """The suite `name`, else that of the bundle, else the default suite.

    Raises:
        ConfigError: no suite has that name.
        CheckpointError: the bundle's card is damaged.
    """
    return load_suite(name if name is not None or bundle is None else suite_of_bundle(bundle))


def suite_of_bundle(bundle: str | Path) -> str | None:
    """Suite in the card of a bundle; None if there is no card or it was written by an earlier version."""
    folder = Path(bundle).expanduser()
    if not folder.is_dir():
        try:
            folder = pretrained.path(str(bundle))
        except CheckpointError:
            return None  # the error is raised again where the bundle is needed
    found = pretrained.read_card(folder).get("suite")
    return None if found is None else str(found)


def suite_of_data(dataset: Any) -> str | None:
    """The suite in which a dataset was collected, from the name of its split manifest; None if there is none."""
    return dataset.manifest.name if dataset.manifest.name in SUITES.names() else None


def other_instructions(dataset: Any, arrays: Any, suite: str | None = None) -> list[tuple[str, ...]] | None:
    """For each episode of `arrays`, other instructions that a policy could follow from its start state.

    Args:
        dataset: the `EpisodeDataset` that `arrays` come from.
        arrays: its `EpisodeArrays`, or some of the episodes.
        suite: name of the suite that collected it; None takes the one that the dataset names.

    Returns:
        None if the dataset is of no suite, its suite does not know, or an episode lacks the seed of its start state.
    """
    name = suite or suite_of_data(dataset)
    asked = None if name is None else getattr(load_suite(name), "other_instructions", None)
    if asked is None:
        return None
    records = [dataset.records[int(i)] for i in arrays.indices]
    if not all("seed" in record.provenance for record in records):
        return None
    return [
        tuple(asked(task=record.task, seed=int(record.provenance["seed"]), split=record.split)) for record in records
    ]


def domain_settings(suite: Suite, domain: str | None = None, gap: float = 0.0) -> dict[str, Any]:
    """Settings of `Suite.make` for a domain; None selects the domain that stands in for the robot.

    Raises:
        ConfigError: the suite has no such domain, or no gap.
    """
    domain = suite.domains[0] if domain is None else domain
    if domain not in suite.domains:
        raise ConfigError(
            f"suite {suite.name} has no domain {domain!r}; its domains are {', '.join(suite.domains)}"
        )
    if gap and "gap" not in suite.gap_knobs:
        raise ConfigError(f"suite {suite.name} has no gap between its domains; do not set --gap")
    return {"domain": domain, "gap": gap} if gap else {"domain": domain}


def real_env(suite: Suite, **settings: Any) -> Any:
    """Create a single environment of the domain that stands in for the robot."""
    return suite.make_single(**domain_settings(suite), **settings)


def evaluation_pool(suite: Suite, *, workers: int, **settings: Any) -> EvaluationPool:
    """Evaluation in worker processes; `settings` are those of `Suite.make`, `domain` as in `domain_settings`."""
    where = {} if "domain" in settings else domain_settings(suite)
    return EvaluationPool(SINGLE, workers=workers, env_kwargs={"suite": suite.name, **where, **settings})


def known_tasks(suite: Suite, tasks: Sequence[str]) -> tuple[str, ...]:
    """Return `tasks` after checking that the suite has all of them.

    Raises:
        ConfigError: a task is unknown.
    """
    for task in tasks:
        if task not in suite.tasks:
            raise ConfigError(
                f"unknown task {task!r}; the tasks are {', '.join(suite.tasks)} (suite {suite.name}). Name the "
                "suite of these tasks with --suite; tasks of recordings without a simulator cannot be measured in Real"
            )
    return tuple(tasks)


def known_split(suite: Suite, split: str) -> str:
    """Return `split` after checking that the suite has it.

    Raises:
        ConfigError: the split is unknown.
    """
    if split not in suite.splits:
        raise ConfigError(
            f"unknown split {split!r}; the splits are {', '.join(suite.splits)} (suite {suite.name})"
        )
    return split
