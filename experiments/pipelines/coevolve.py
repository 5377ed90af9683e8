"""Co-evolution: a policy, its world model and its judge improve each other, in rounds.

A round collects episodes of the current policy in Real (they are counted), trains world model and judge on them,
improves the policy in imagination, and measures: true success, imagined success, and what the world model learned. The
recipe of a round is a file (`experiments/coevolution/`) in the format of `worldgym build`. Its stages are commands, and
an option of a command chooses another registered part. A stopped round continues where it was. It counts as soon as
its `round.json` is written.

Example::

    run = Coevolution(CoevolveSettings("vlaw", bundle="tabletop-small", data=Path("data/real"), out=Path("runs/vlaw")))
    while run.reason_to_stop() is None:
        run.do_round(parse, check_data)         # of experiments.commands.build
    run.best["parts"]["policy"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.bundle import Bundle
from experiments.pipelines.build import Build
from experiments.pipelines.checks import values_of
from experiments.pipelines.recipe import Recipe, Stage, read_recipe
from experiments.suites import BundleName
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import read_json, read_sealed, write_sealed
from worldgym.utils.staging import copy_folder

RECIPES = Path(__file__).parent.parent / "coevolution"
PARTS = ("policy", "world_model", "judge", "bundle")
"""What a round may replace; the `results` of a recipe."""
FACTS = "round.json"
LOGS = "data"
DECISION_SEED0, GATE_SEED0, FINAL_SEED0 = 16_000_000, 16_400_000, 16_800_000
"""First seeds of the starts on which rounds are compared, of the closed-loop gate, and of the final measurement."""
REAL_SEED0, SEEDS_PER_ROUND, SEEDS_PER_RUN = 400_000, 10_000, 100_000
MOST_ROUNDS = SEEDS_PER_RUN // SEEDS_PER_ROUND
"""Seeds of the episodes of the policy in Real: below 1,000,000, apart from those of recipes and of other rounds."""


@dataclass(frozen=True)
class CoevolveSettings:
    """Settings of a co-evolution.

    Args:
        recipe: `vlaw`, `world-vla-loop`, `dyna`, or a YAML file.
        bundle: bundle to start from: its policy, world model and judge.
        data: logs that the world model was trained on, which the new episodes are added to (a copy grows in `out`);
            without them the world model learns from new episodes alone, and forgets.
        out: folder of the run.
        rounds: largest number of rounds.
        preset: set of values of the recipe: `small`, or `tiny` to test whether it runs.
        seed: seed of all randomness, 0 to 4.
        set: values of the recipe to replace, `--set episodes=60 world_steps=500`.
        episodes: episodes in Real in which the policy of a round is measured, and of the gate; on the same starts in
            every round.
        final_episodes: episodes in Real on fresh starts in which the best round is compared with the first policy.
        gap_bound: the run stops when imagined minus true success grows by more than this in a round.
        fall_bound: the run stops when true success falls by more than this in a round, or significantly.
        workers: processes of the measurements.
    """

    recipe: str = "vlaw"
    bundle: BundleName = DEFAULT
    data: Path | None = None
    out: Path = Path("runs/coevolve")
    rounds: int = 2
    preset: Literal["small", "tiny"] = "small"
    seed: int = 0
    set: tuple[str, ...] = ()
    episodes: int = 201
    final_episodes: int = 300
    gap_bound: float = 0.1
    fall_bound: float = 0.05
    workers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise ConfigError(f"rounds is {self.rounds}, expected 1 to {MOST_ROUNDS}")
        if self.episodes < 1 or self.final_episodes < 1 or self.workers < 0:
            raise ConfigError("episodes and final_episodes must be at least 1, workers at least 0")
        if not 0 <= self.seed < 5:
            raise ConfigError(
                f"seed is {self.seed}, expected 0 to 4: each takes its own range of starts in Real"
            )
        if not 0 <= self.gap_bound <= 1 or not 0 <= self.fall_bound <= 1:
            raise ConfigError(
                f"gap_bound and fall_bound are rates, got {self.gap_bound} and {self.fall_bound}"
            )

    @property
    def values(self) -> dict[str, Any]:
        """Values that replace those of the recipe and its preset."""
        return values_of(self.set, "--set", "episodes=60")

    @property
    def recipe_file(self) -> Path:
        """File of the recipe.

        Raises:
            ConfigError: neither a recipe of this project nor a file.
        """
        named = RECIPES / f"{self.recipe}.yaml"
        if named.is_file():
            return named
        if Path(self.recipe).is_file():
            return Path(self.recipe)
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ConfigError(f"there is no recipe {self.recipe!r}; there are {known}, or give a YAML file")


class Coevolution:
    """The rounds of a run, from its folder.

    Args:
        settings: settings of the run.
        say: called with lines about the progress.
    """

    def __init__(self, settings: CoevolveSettings, say: Callable[[str], None] = lambda line: None) -> None:
        self.settings, self.say = settings, say
        self.start = Bundle.find(settings.bundle)
        self.rows: list[dict[str, Any]] = []
        while (file := self.folder(len(self.rows)) / FACTS).is_file():
            self.rows.append(dict(read_sealed(file, f"Remove {file.parent} to do this round again")))

    def folder(self, number: int) -> Path:
        """Folder of a round; 0 is the measurement before the first."""
        return self.settings.out / f"round-{number:02d}"

    @property
    def logs(self) -> Path:
        """The dataset that grows."""
        return self.settings.out / LOGS

    @property
    def parts(self) -> dict[str, str]:
        """Folders of the current parts: those of the last round."""
        folder = self.start.folder
        begun = {
            "policy": self.start.policy_folder,
            "world_model": folder / "world_model",
            "judge": folder / "judge",
        }
        return {**{name: str(path) for name, path in begun.items()}, "bundle": str(folder)} | (
            self.rows[-1]["parts"] if self.rows else {}
        )

    @property
    def best(self) -> dict[str, Any]:
        """The round with the highest true success; the earliest of equal ones."""
        return max(self.rows, key=lambda row: (row["true"]["mean"], -row["round"]))

    def recipe(self, number: int) -> Recipe:
        """The stages of a round, and its measurements."""
        settings, now = self.settings, self.parts
        measured = now if number == 0 else {}
        made = Recipe("measure", "", 1.0, ())
        if number:
            known = {
                "data": str(self.logs), "policy": now["policy"], "world_model": now["world_model"],
                "judge": now["judge"], "bundle": now["bundle"], "first": str(self.start.folder),
                "sft": str(self.start.policy_folder), "suite": self.start.card.get("suite"),
                "tasks": list(self.start.tasks), **self.start.world_model_options,
                "seed": settings.seed, "image_size": self._image_size(),
                "rollout_horizon": self.start.card.get("rollout_horizon"),
                "latent_judge": self._latent_judge(),
                "real_seed": REAL_SEED0 + SEEDS_PER_RUN * settings.seed + SEEDS_PER_ROUND * (number - 1),
            }  # fmt: skip
            made = self._read(number, known)
            measured = {**now, **made.results}
        return dataclasses.replace(made, stages=(*made.stages, *self._measurements(number, measured)))

    def _read(self, number: int, known: Mapping[str, Any]) -> Recipe:
        """The recipe of a round with what is known filled in; a recipe lists the values that it needs."""
        import yaml

        settings, file = self.settings, self.settings.recipe_file
        declared = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("values") or {}
        given = {name: value for name, value in known.items() if name in declared}
        if taken := sorted(set(settings.values) & set(known)):
            raise ConfigError(f"--set {taken[0]} is set by the run itself; leave it out")
        preset = None if settings.preset == "small" else settings.preset
        recipe = read_recipe(file, self.folder(number), None, {**given, **settings.values}, preset)
        if unknown := sorted(set(recipe.results) - set(PARTS)):
            raise ConfigError(f"{file}: `results` has {unknown[0]!r}, expected some of {', '.join(PARTS)}")
        return recipe

    def _measurements(self, number: int, parts: Mapping[str, str]) -> tuple[Stage, ...]:
        """True success, and the closed-loop gate, of the policy with the parts of the round."""
        folder, settings = self.folder(number), self.settings
        suite = self.start.card.get("suite")
        common = [
            "--bundle",
            parts["bundle"],
            "--episodes",
            str(settings.episodes),
            "--seed",
            str(settings.seed),
        ]
        common += ["--suite", suite] if suite else []
        common += ["--tasks", *self.start.tasks]
        true = ["--policy", parts["policy"], *common, "--start-seed", str(DECISION_SEED0)]
        true += ["--workers", str(settings.workers), "--out", str(folder / "eval.json")]
        gate = ["--policies", parts["policy"], *common, "--start-seed", str(GATE_SEED0)]
        gate += [
            "--out",
            str(folder / "gate.json"),
            "--world-model",
            parts["world_model"],
            "--judge",
            parts["judge"],
        ]
        return (
            Stage("measure: true success", ("eval",), tuple(true)),
            Stage("measure: gate", ("bench", "closed-loop"), tuple(gate), accept=(0, 1)),
        )

    def _latent_judge(self) -> str | None:
        """The latent judge of the first bundle, if it has one."""
        folder = self.start.folder / "judge_latent"
        return str(folder) if folder.is_dir() else None

    def _image_size(self) -> int | list[int]:
        """Size of the frames of the main camera."""
        height, width = self.start.world_model().specs.observation.main.size
        return int(height) if height == width else [int(height), int(width)]

    def check(self, parse: Callable[[Stage], None]) -> None:
        """Check the command lines of the next rounds before anything runs.

        Raises:
            ConfigError: one is invalid.
        """
        number = len(self.rows)
        for each in (number, max(1, number)):
            Build(self.recipe(each), self.folder(each)).check(parse)

    # -- rounds --------------------------------------------------------------------------------------------------------
    def reason_to_stop(self) -> str | None:
        """Why no further round is done; None if one is."""
        if self.rows and self.rows[-1]["stop"]:
            return str(self.rows[-1]["stop"])
        if len(self.rows) > self.settings.rounds:
            return f"all {self.settings.rounds} rounds are done"
        return None

    def do_round(self, check: Callable[[Stage], None], check_data: Callable[[Stage], None]) -> dict[str, Any]:
        """Do the next round, or the rest of one that was stopped; returns its row.

        Args:
            check: parses the command line of a stage.
            check_data: checks that the data of a stage have what it needs.
        """
        number = len(self.rows)
        if number:
            self._copy_logs()
        recipe = self.recipe(number)
        build = Build(recipe, self.folder(number))
        build.check(check)

        def announce(stage: Stage, position: int) -> None:
            self.say(f"\n[round {number}, {position}/{len(recipe.stages)}] {stage.name}: {stage.line}")

        build.run(announce, check_data)
        row = self._row(number, recipe)
        write_sealed(self.folder(number) / FACTS, row, indent=1)
        self.rows.append(row)
        return row

    def _copy_logs(self) -> None:
        """Copy the logs that the world model was trained on, once and as a whole."""
        if self.settings.data is not None:
            copy_folder(self.settings.data, self.logs)

    def _row(self, number: int, recipe: Recipe) -> dict[str, Any]:
        """Results of a round, from the files of its measurements."""
        from experiments.pipelines.coevolution_facts import decide, fidelity_facts, measured

        folder, parts = self.folder(number), {**self.parts, **recipe.results}
        row: dict[str, Any] = {
            "round": number,
            "parts": parts,
            **measured(folder / "eval.json", folder / "gate.json"),
        }
        row["new_episodes"] = self._new_episodes(number)
        row["real_episodes"] = sum(r["new_episodes"] for r in [*self.rows, row])
        row["world_model"] = None
        if row["new_episodes"]:
            row["world_model"] = fidelity_facts(
                self.parts, parts, self.logs, row["new_episodes"], self.settings.seed
            )
        row["stop"] = None
        if self.rows:
            row["stop"] = decide(self.rows[-1], row, self.settings.gap_bound, self.settings.fall_bound)
        return row

    def _new_episodes(self, number: int) -> int:
        """Episodes that the round added to the logs."""
        if not number or not self.logs.is_dir():
            return 0
        from worldgym.data import EpisodeDataset

        before = sum(row["new_episodes"] for row in self.rows)
        given = 0 if self.settings.data is None else len(EpisodeDataset(self.settings.data).records)
        return len(EpisodeDataset(self.logs).records) - given - before

    # -- the end -------------------------------------------------------------------------------------------------------
    def finish(self, check: Callable[[Stage], None]) -> dict[str, Any]:
        """Copy the best policy to `policy`, and compare it with the first one on fresh starts.

        Returns:
            the content of `result.json`.
        """
        from experiments.pipelines.coevolution_facts import compared

        best, settings = self.best, self.settings
        policy, file = settings.out / "policy", settings.out / "final" / "eval.json"
        names = list(dict.fromkeys([self.rows[0]["parts"]["policy"], best["parts"]["policy"]]))
        suite = self.start.card.get("suite")
        line = [
            "--policy",
            *names,
            "--bundle",
            str(self.start.folder),
            "--episodes",
            str(settings.final_episodes),
        ]
        line += ["--suite", suite] if suite else []
        line += [
            "--tasks",
            *self.start.tasks,
            "--start-seed",
            str(FINAL_SEED0),
            "--workers",
            str(settings.workers),
        ]
        stage = Stage("measure: best against first", ("eval",), (*line, "--out", str(file)))
        build = Build(Recipe("final", "", 1.0, (stage,)), settings.out / "final")
        build.check(check)
        build.run(lambda stage, _: self.say(f"\n[final] {stage.line}"), lambda _: None)
        copy_folder(Path(best["parts"]["policy"]), policy)
        result = {
            "recipe": settings.recipe, "preset": settings.preset, "seed": settings.seed, "rounds": len(self.rows) - 1,
            "best": best["round"], "stopped": self.reason_to_stop(), "real_episodes": best["real_episodes"],
            "final": compared(read_json(file, "type the same command again")), "history": self.rows,
        }  # fmt: skip
        write_sealed(settings.out / "result.json", result, indent=1)
        return result
