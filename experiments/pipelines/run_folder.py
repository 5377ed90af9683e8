"""A run folder that survives Ctrl-C: finished steps are stored as JSON and reused.

A demo takes minutes, mostly for evaluations and RL iterations that need not be repeated. Each step depends only on the
settings, so a resumed run gives the same numbers as an uninterrupted one. A finished run is kept until the user asks
for a new one.

Example::

    folder = RunFolder("runs/demo", settings)
    before = folder.once("eval-sft-greedy", lambda: evaluate().to_dict())
    with folder.clock("update"):
        ...
    folder.finish()
"""

from __future__ import annotations

import json
import math
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.files import atomic_write_text, read_sealed, write_sealed
from worldgym.utils.staging import PREFIX, sweep_once
from worldgym.utils.typed import changes

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "transformers", "safetensors")
MARKER = "settings.json"
WRITTEN = (
    "state", "videos", "policy", "policy_bc_only", "config.yaml", "history.json", "clips.json", "results.json",
    "evaluations.json", "report.html", "looks.json",
)  # fmt: skip
"""Files and folders that runs write. If one exists without a marker, the folder is not a run folder of this command."""
RESTART = "remove {out} to start over"
AGAIN = "type the same command with --fresh to start over"
"""`restart` for the commands with the option --fresh."""


class RunFolder:
    """State of one run.

    `state/settings.json` is the marker. It stores the settings and the files that this run has written. Only these
    files are ever removed.

    Args:
        out: the run's folder.
        settings: JSON values; a run with other settings is neither continued nor replaced.
        fresh: remove the files of an interrupted or finished run.
        restart: how a user starts over, for messages.

    Attributes:
        resumed: the folder holds a run with these settings, interrupted or finished.
        finished: the run has finished; nothing has been written to the folder since.

    Raises:
        ConfigError: the folder holds a run with other settings, or files of these names that no run wrote.
        CheckpointError: the marker is damaged.
    """

    def __init__(
        self, out: str | Path, settings: Mapping[str, Any], *, fresh: bool = False, restart: str = RESTART
    ) -> None:
        self.out = Path(out)
        self.state = self.out / "state"
        self.restart = restart.format(out=self.out)
        self.settings = json.loads(json.dumps(settings))
        old = self._marker()
        if old is None:
            self._refuse_foreign()
        elif fresh:
            write_sealed(self.state / MARKER, old, indent=1)  # fails on a full disk before anything is removed
            self._clear(old)
            old = None
        elif differences := changes(old["settings"], self.settings):
            raise ConfigError(
                f"{self.out} holds {'a finished' if old['finished'] else 'an interrupted'} run with other settings "
                f"({differences}). Type the same settings to "
                f"{'see its results' if old['finished'] else 'continue it'}, "
                f"{self.restart}, or give another --out"
            )
        self.resumed = old is not None
        self.finished = old is not None and bool(old["finished"])
        self.made: list[str] = old["made"] if old else []
        self.token: str = old["token"] if old else secrets.token_hex(6)
        self.state.mkdir(parents=True, exist_ok=True)
        for folder in (self.state, self.out):  # a finished run writes nothing, so it would never clean up leftovers
            sweep_once(folder)
        if not self.finished:
            self._mark(False)
        self.seconds: dict[str, float] = self.read("seconds") or {}

    # -- the marker -------------------------------------------------------------------------------
    @property
    def _remedy(self) -> str:
        return f"{self.restart[:1].upper()}{self.restart[1:]}, or give another --out."

    def _marker(self) -> dict[str, Any] | None:
        file = self.state / MARKER
        if not file.is_file():
            return None
        remedy = f"Give another --out, or move {self.state} away."
        facts = read_sealed(file, remedy)
        kinds = {"settings": dict, "finished": bool, "made": list, "token": str}
        if not isinstance(facts, dict) or any(
            not isinstance(facts.get(key), kind) for key, kind in kinds.items()
        ):
            raise CheckpointError(f"{file} is not a marker of a run of this version. {remedy}")
        return facts

    def _mark(self, finished: bool) -> None:
        facts = {"settings": self.settings, "finished": finished, "made": sorted(self.made), "token": self.token}
        write_sealed(self.state / MARKER, facts, indent=1)

    def _refuse_foreign(self) -> None:
        names = [name for name in WRITTEN if _holds_anything(self.out / name)]
        if names:
            raise ConfigError(
                f"{self.out} holds {', '.join(names)}, which no interrupted or finished run of this command wrote. "
                "Nothing was changed; give another --out, or move these files away"
            )

    def own(self, name: str) -> Path:
        """Register a file or folder, `name` relative to `out`, before this run writes it; returns its path."""
        if name not in self.made:
            self.made.append(name)
            self._mark(False)
        return self.out / name

    def disown(self, *names: str) -> None:
        """Remove files of this run that it no longer needs."""
        for name in names:
            self._remove(name)
        self.made = [name for name in self.made if name not in names]
        self._mark(False)

    def _remove(self, name: str) -> None:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            return
        path = self.out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def _clear(self, old: Mapping[str, Any]) -> None:
        """Remove the files in the marker, and `videos` if it is then empty; the marker is replaced afterwards."""
        for name in old["made"]:
            self._remove(str(name))
        self._remove_events(old["token"])
        with suppress(OSError):
            (self.out / "videos").rmdir()

    def forget(self) -> None:
        """Remove the marker of a new run that saved no result, so that a corrected command can use the folder."""
        if self.resumed or self.finished or set(self.made) - {"state/seconds.json"}:
            return
        self._clear({"made": [*self.made, "config.yaml"], "token": self.token})
        (self.state / MARKER).unlink(missing_ok=True)

    # -- TensorBoard ------------------------------------------------------------------------------
    def _remove_events(self, token: str) -> None:
        for file in self.out.glob(f"events.out.tfevents.*.{token}"):
            file.unlink(missing_ok=True)

    @contextmanager
    def board(self) -> Iterator[Any]:
        """Open a TensorBoard writer in `out` that replaces the event file of an interrupted part of this run.

        The caller writes all rows again, stored ones included, because TensorBoard readers treat steps that occur in
        two event files differently.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._remove_events(self.token)
        with SummaryWriter(str(self.out), filename_suffix=f".{self.token}") as writer:
            yield writer

    # -- stored results ---------------------------------------------------------------------------
    def read(self, name: str) -> Any:
        """Return a stored result, or None.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = self.state / f"{name}.json"
        return read_sealed(file, self._remedy) if file.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Store a result."""
        write_sealed(self.own(f"state/{name}.json"), value)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the stored result, or call `make` and store its result."""
        value = self.read(name)
        if value is None:
            value = make()
            self.write(name, value)
        return value

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to `seconds[name]`; the sum is kept across interruptions."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - began)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to `seconds[name]` and store it."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.write("seconds", self.seconds)

    def save(self, name: str, value: Any) -> Path:
        """Write a result file into `out`, for users."""
        return atomic_write_text(self.out / name, json.dumps(value, indent=1) + "\n")

    def finish(self) -> None:
        """Mark the run as finished."""
        self._mark(True)

    def has(self, *names: str) -> bool:
        """Whether the run has finished and its results `names`, relative to `out`, all exist."""
        return self.finished and all((self.out / name).exists() for name in names)


def _holds_anything(path: Path) -> bool:
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.startswith(PREFIX) for entry in path.iterdir())


def versions() -> dict[str, str]:
    """Versions on which a result depends."""
    from worldgym import __version__

    found = {"worldgym": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def finite(value: Any) -> Any:
    """Replace every number that JSON cannot represent (nan, infinities) by None, in dicts and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
