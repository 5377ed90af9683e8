"""Executes the stages of a recipe, each in a process of its own; a stopped build goes on where it was.

A stage is recorded with its options when it starts and when it has finished; a finished one is not repeated. If
options changed since, or a stage was put in front of a finished one, the build refuses to mix old and new parts:
`--from STAGE` removes what that stage and those after it have made, and builds them again. A stage that was
interrupted continues as its own command does.

Example::

    build = Build(read_recipe(Path("recipes/metaworld.yaml"), out), out)
    build.check(parse)           # every command line is valid
    build.run()
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.pipelines.recipe import Recipe, Stage
from worldgym.errors import CheckpointError, ConfigError, WorldgymError
from worldgym.utils.files import read_sealed, write_sealed
from worldgym.utils.staging import locked

STATE = "build.json"
FAILED = 2
PR_SET_PDEATHSIG = 1  # prctl(2)


class StageFailedError(WorldgymError):
    """A command of the build ended with an error, which it has printed itself."""


def stage_index(names: list[str], given: str) -> int:
    """Index of the stage that is meant by its name, by its number in the list (from 1), or by a part of one name only.

    Raises:
        ConfigError: there is no such stage, or the names of several have that part.

    Example:
        >>> stage_index(["collect data", "train judge judge"], "judge"), stage_index(["collect data", "card"], "2")
        (1, 1)
    """
    if given in names:
        return names.index(given)
    if given.isdecimal() and 1 <= int(given) <= len(names):
        return int(given) - 1
    found = [i for i, name in enumerate(names) if given.strip() and given in name]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(names, 1) if not found or i - 1 in found)
    what = "several stages" if found else "no stage"
    raise ConfigError(f"{what} {given!r}: type the number or the name of one of {listed}")


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
            state = read_sealed(self.file, f"Remove the folder {out} to build everything again")
            whole = isinstance(state, dict) and isinstance(state.get("stages"), dict) and "recipe" in state
            if not whole or not all(isinstance(row, dict) and "line" in row for row in state["stages"].values()):
                raise CheckpointError(f"{self.file} is no state of a build; remove the folder {out}, or give another")
            if state["recipe"] != recipe.name:
                raise ConfigError(
                    f"{out} holds a build of {state['recipe']!r}, not of {recipe.name!r}; give another --out"
                )
            self.done = state["stages"]

    def check(self, parse: Callable[[Stage], None], start: str | None = None) -> None:
        """Check all command lines before anything runs or is removed.

        Args:
            parse: parses the command line of a stage, and raises an error if it is invalid.
            start: stage from which everything will be built again; what was recorded of it and later ones is ignored.

        Raises:
            ConfigError: a command line is invalid, a stage was begun with other options, a stage was put in front of a
                finished one, or what a finished stage wrote is missing.
        """
        for stage in self.recipe.stages:
            try:
                parse(stage)
            except WorldgymError as error:
                raise ConfigError(f"stage {stage.name!r}: {error}\n  {stage.line}") from error
        waiting: Stage | None = None
        for stage in self._before(start):
            before, output = self.done.get(stage.name), self._output(stage)
            again = f"Type --from {shlex.quote(stage.name)}"
            rest = f"{again} to remove it and the stages after it, and to build them again; or give another --out"
            if before is None:
                waiting = waiting or stage
                continue
            if "seconds" not in before and (output is None or not output.exists()):
                waiting = waiting or stage  # it was begun and has made nothing
                continue
            if before["line"] != stage.line:
                lines = f"{before['line']}\nnow\n  {stage.line}"
                raise ConfigError(f"stage {stage.name!r} was begun with other options:\n  {lines}\n{rest}")
            if "seconds" not in before:
                waiting = waiting or stage
            elif waiting is not None:
                raise ConfigError(
                    f"stage {waiting.name!r} has not been built, and {stage.name!r} after it has. Type --from "
                    f"{shlex.quote(waiting.name)} to build it and everything after it; or give another --out"
                )
            elif output is not None and not output.exists():
                raise ConfigError(f"stage {stage.name!r} has finished, but {output} is missing. {rest}")

    def _before(self, start: str | None) -> list[Stage]:
        """Stages in front of `start`; all of them if it is None."""
        if start is None:
            return list(self.recipe.stages)
        return list(self.recipe.stages[: stage_index([stage.name for stage in self.recipe.stages], start)])

    def start_from(self, name: str) -> list[str]:
        """Forget stage `name` and those after it, and remove what they wrote into the folder of the build.

        Returns:
            the removed paths.

        Raises:
            ConfigError: there is no such stage, one of them extends what an earlier stage has made, or a path cannot be
                removed; nothing is removed in the first two cases.
        """
        earlier = self._before(name)
        again = self.recipe.stages[len(earlier) :]
        outputs: list[Path] = []
        for stage in again:
            output = self._output(stage)
            if output is None or stage.name not in self.done:
                continue
            for other in earlier:
                kept = self._output(other)
                if kept is not None and (kept == output or output in kept.parents or kept in output.parents):
                    raise ConfigError(
                        f"stage {stage.name!r} writes {output}, and so does the earlier stage {other.name!r}, which "
                        f"would stay. Type --from {shlex.quote(other.name)}, or give another --out"
                    )
            if output not in outputs:
                outputs.append(output)
        removed = []
        for output in outputs:
            if not output.exists() and not output.is_symlink():
                continue
            try:
                shutil.rmtree(output) if output.is_dir() and not output.is_symlink() else output.unlink()
            except OSError as error:
                raise ConfigError(f"cannot remove {output} ({error.strerror}); remove it yourself") from error
            removed.append(str(output))
        for stage in again:
            self.done.pop(stage.name, None)
        self._save()
        return removed

    def _output(self, stage: Stage) -> Path | None:
        for flag in ("--out", "--json"):
            if flag in stage.arguments:
                path = Path(os.path.normpath(Path(stage.arguments[stage.arguments.index(flag) + 1]).absolute()))
                home = Path(os.path.normpath(self.out.absolute()))
                return path if home in path.parents else None
        return None

    @property
    def left(self) -> list[Stage]:
        """Stages that have not finished."""
        return [stage for stage in self.recipe.stages if "seconds" not in self.done.get(stage.name, {})]

    def run(self, announce: Callable[[Stage, int], None], check_data: Callable[[Stage], None]) -> None:
        """Run the remaining stages.

        Args:
            announce: called with a stage and its number before it starts.
            check_data: raises an error if the stage's data lacks what the stage needs.

        Raises:
            StageFailedError: a command failed; the build continues there when it is started again.
            ConfigError: another build runs in the folder.
            KeyboardInterrupt: Ctrl-C was pressed. A stage that still ended is recorded.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, wait=False) as mine:
            if not mine:
                raise ConfigError(f"another `worldgym build` runs in {self.out}; wait for it, or give another --out")
            self._run(announce, check_data)

    def _run(self, announce: Callable[[Stage, int], None], check_data: Callable[[Stage], None]) -> None:
        numbers = {stage.name: number for number, stage in enumerate(self.recipe.stages, 1)}
        for stage in self.left:
            announce(stage, numbers[stage.name])
            check_data(stage)
            self.done[stage.name] = {"line": stage.line}
            self._save()
            began = time.perf_counter()
            code, stopped = execute(stage)
            if code == 130 or (stopped and code not in stage.accept):
                raise KeyboardInterrupt
            if code not in stage.accept:
                raise StageFailedError(
                    f"stage {stage.name!r} failed with exit code {code}; its message is above. What was built is kept "
                    f"in {self.out}; mend the cause and type the same command again"
                )
            self.done[stage.name] = {"line": stage.line, "code": code, "seconds": round(time.perf_counter() - began, 1)}
            self._save()
            if stopped:
                raise KeyboardInterrupt

    def _save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_sealed(self.file, {"recipe": self.recipe.name, "stages": self.done}, indent=1)


def execute(stage: Stage, command: Sequence[str] = (sys.executable, "-m", "worldgym")) -> tuple[int, bool]:
    """Run the command of a stage; return its exit code, and whether Ctrl-C was pressed meanwhile."""
    environment = {**os.environ, **stage.environment}
    line = [*command, *stage.words, *stage.arguments]
    with subprocess.Popen(line, env=environment, preexec_fn=_end_with_parent) as process:
        try:
            return process.wait(), False
        except KeyboardInterrupt:  # the terminal sent the signal to the command, too; it saves its state
            return process.wait(), True


def _end_with_parent() -> None:
    """Have the system end this process when its parent does, so that no stage goes on after its build was killed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

