"""Executes the stages of a recipe, each in a process of its own; a stopped build goes on where it was.

A finished stage is recorded with its options and not repeated. If its options changed since, the build refuses to mix
old and new parts: `--from STAGE` removes that stage and those after it, and builds them again. A stage that was
interrupted continues as its own command does.

Example::

    build = Build(read_recipe(Path("recipes/metaworld.yaml"), out), out)
    build.check(parse)           # every command line is valid
    build.run()
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.pipelines.recipe import Recipe, Stage
from worldgym.errors import ConfigError, WorldgymError
from worldgym.utils.files import read_sealed, write_sealed

STATE = "build.json"
FAILED = 2


class StageFailedError(WorldgymError):
    """A command of the build ended with an error, which it has printed itself."""


class Build:
    """The state of one build.

    Args:
        recipe: the stages.
        out: folder of the build; `build.json` in it records the finished stages.

    Raises:
        ConfigError: the folder holds the build of another recipe.
    """

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.file = out / STATE
        self.done: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            state = read_sealed(self.file, f"Remove {self.file} to build everything again")
            if state["recipe"] != recipe.name:
                raise ConfigError(
                    f"{out} holds a build of {state['recipe']!r}, not of {recipe.name!r}; give another --out"
                )
            self.done = state["stages"]

    def check(self, parse: Callable[[Stage], None]) -> None:
        """Check all command lines before anything runs.

        Args:
            parse: parses the command line of a stage, and raises an error if it is invalid.

        Raises:
            ConfigError: a command line is invalid, or a finished stage had other options.
        """
        for stage in self.recipe.stages:
            try:
                parse(stage)
            except WorldgymError as error:
                raise ConfigError(f"stage {stage.name!r}: {error}\n  {stage.line}") from error
            before = self.done.get(stage.name)
            if before is not None and before["line"] != stage.line:
                again = f"Type --from {shlex.quote(stage.name)}"
                raise ConfigError(
                    f"stage {stage.name!r} was built with other options:\n  {before['line']}\nnow\n  {stage.line}\n"
                    f"{again} to remove it and the stages after it, and to build them again; or give another --out"
                )

    def start_from(self, name: str) -> list[str]:
        """Forget stage `name` and those after it, and remove what they wrote into the folder of the build.

        Folders that an earlier stage also writes (a dataset that is extended) are kept.

        Returns:
            the removed paths.

        Raises:
            ConfigError: there is no such stage.
        """
        names = [stage.name for stage in self.recipe.stages]
        if name not in names:
            raise ConfigError(f"no stage {name!r}; the stages are {', '.join(names)}")
        first = names.index(name)
        kept = {self._output(stage) for stage in self.recipe.stages[:first]}
        removed = []
        for stage in self.recipe.stages[first:]:
            output = self._output(stage)
            if self.done.pop(stage.name, None) is not None and output is not None and output not in kept:
                shutil.rmtree(output, ignore_errors=True) if output.is_dir() else output.unlink(missing_ok=True)
                removed.append(str(output))
        self._save()
        return removed

    def _output(self, stage: Stage) -> Path | None:
        for flag in ("--out", "--json"):
            if flag in stage.arguments:
                path = Path(stage.arguments[stage.arguments.index(flag) + 1])
                return path if self.out in path.parents else None
        return None

    @property
    def left(self) -> list[Stage]:
        """Stages that have not finished."""
        return [stage for stage in self.recipe.stages if stage.name not in self.done]

    def run(self, announce: Callable[[Stage, int], None], check_data: Callable[[Stage], None]) -> None:
        """Run the remaining stages.

        Args:
            announce: called with a stage and its number before it starts.
            check_data: raises an error if the stage's data lacks what the stage needs.

        Raises:
            StageFailedError: a command failed; the build continues there when it is started again.
        """
        numbers = {stage.name: number for number, stage in enumerate(self.recipe.stages, 1)}
        for stage in self.left:
            announce(stage, numbers[stage.name])
            check_data(stage)
            began = time.perf_counter()
            code = execute(stage)
            if code == 130:
                raise KeyboardInterrupt
            if code not in stage.accept:
                raise StageFailedError(
                    f"stage {stage.name!r} failed with exit code {code}; its message is above. What was built is kept "
                    f"in {self.out}; mend the cause and type the same command again"
                )
            self.done[stage.name] = {"line": stage.line, "code": code, "seconds": round(time.perf_counter() - began, 1)}
            self._save()

    def _save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_sealed(self.file, {"recipe": self.recipe.name, "stages": self.done}, indent=1)


def execute(stage: Stage, command: Sequence[str] = (sys.executable, "-m", "worldgym")) -> int:
    """Run the command of a stage and return its exit code."""
    environment = {**os.environ, **stage.environment}
    with subprocess.Popen([*command, *stage.words, *stage.arguments], env=environment) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal sent the signal to the command, too; it saves its state
            process.wait()
            raise
