"""A run folder that survives Ctrl-C: finished pieces are remembered as json, and used again when asked for.

Why: a demo takes minutes, and most of them are evaluations and RL iterations that need not be done twice.
Each piece is a function of the settings alone, so a resumed run ends with an uninterrupted one's numbers. A finished
run is kept until somebody asks for another one.

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
"""What runs write into their folder: where one of these is and no marker, the folder is somebody else's."""
RESTART = "remove {out} to start over"
AGAIN = "type the same command with --fresh to start over"
"""`restart` of the commands that have that option."""


class RunFolder:
    """State of one run.

    `state/settings.json` is the marker: it says what was asked for and which files this run has made. Only these are
    ever removed.

    Args:
        out: the run's folder.
        settings: json-able; a run with other settings is not mixed with this one, and not replaced by it.
        fresh: remove what an interrupted or finished run has made.
        restart: what a user does to start over, for messages.

    Attributes:
        resumed: the folder holds a run of these settings, interrupted or finished.
        finished: it came to its end; nothing has been written to the folder yet.

    Raises:
        ConfigError: the folder holds a run with other settings, or files of these names that no run made.
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
            write_sealed(self.state / MARKER, old, indent=1)  # a full disk is met before anything is removed
            self._clear(old)
            old = None
        elif told := changes(old["settings"], self.settings):
            raise ConfigError(
                f"{self.out} holds {'a finished' if old['finished'] else 'an interrupted'} run with other settings "
                f"({told}). Type the same settings to {'see its results' if old['finished'] else 'go on'}, "
                f"{self.restart}, or give another --out"
            )
        self.resumed = old is not None
        self.finished = old is not None and bool(old["finished"])
        self.made: list[str] = old["made"] if old else []
        self.token: str = old["token"] if old else secrets.token_hex(6)
        self.state.mkdir(parents=True, exist_ok=True)
        for folder in (self.state, self.out):  # a finished run writes nothing, and so would never meet leftovers
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
            raise CheckpointError(f"{file} is no marker of this version's runs. {remedy}")
        return facts

    def _mark(self, finished: bool) -> None:
        facts = {"settings": self.settings, "finished": finished, "made": sorted(self.made), "token": self.token}
        write_sealed(self.state / MARKER, facts, indent=1)

    def _refuse_foreign(self) -> None:
        names = [name for name in WRITTEN if _holds_anything(self.out / name)]
        if names:
            raise ConfigError(
                f"{self.out} holds {', '.join(names)}, which no interrupted or finished run of this command left "
                "there. Nothing of it was touched; give another --out, or move it away"
            )

    def own(self, name: str) -> Path:
        """Note that this run is about to make a file or folder, `name` relative to `out`; returns its path."""
        if name not in self.made:
            self.made.append(name)
            self._mark(False)
        return self.out / name

    def disown(self, *names: str) -> None:
        """Remove what this run has made and needs no more."""
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
        """Remove what the marker lists, and `videos` when nothing else is in it; the marker is replaced afterwards."""
        for name in old["made"]:
            self._remove(str(name))
        self._remove_events(old["token"])
        with suppress(OSError):
            (self.out / "videos").rmdir()

    # -- TensorBoard ------------------------------------------------------------------------------
    def _remove_events(self, token: str) -> None:
        for file in self.out.glob(f"events.out.tfevents.*.{token}"):
            file.unlink(missing_ok=True)

    @contextmanager
    def board(self) -> Iterator[Any]:
        """A TensorBoard writer in `out`, in place of the one of an interrupted part of this run.

        Its caller writes all rows again, remembered ones included: readers disagree on what to do with steps that two
        event files have.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._remove_events(self.token)
        with SummaryWriter(str(self.out), filename_suffix=f".{self.token}") as writer:
            yield writer

    # -- pieces -----------------------------------------------------------------------------------
    def read(self, name: str) -> Any:
        """A remembered piece, or None.

        Raises:
            CheckpointError: it is damaged.
        """
        file = self.state / f"{name}.json"
        return read_sealed(file, self._remedy) if file.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Remember a piece."""
        write_sealed(self.own(f"state/{name}.json"), value)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The remembered piece, or a new one, made and remembered."""
        value = self.read(name)
        if value is None:
            value = make()
            self.write(name, value)
        return value

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to `seconds[name]`; it survives an interruption."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - began)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to `seconds[name]` and remember."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.write("seconds", self.seconds)

    def save(self, name: str, value: Any) -> Path:
        """Write a result beside the state, for people."""
        return atomic_write_text(self.out / name, json.dumps(value, indent=1) + "\n")

    def finish(self) -> None:
        """Note that the run came to its end."""
        self._mark(True)

    def has(self, *names: str) -> bool:
        """Whether the run has finished and its results `names`, relative to `out`, are all there."""
        return self.finished and all((self.out / name).exists() for name in names)


def _holds_anything(path: Path) -> bool:
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.startswith(PREFIX) for entry in path.iterdir())


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from worldgym import __version__

    found = {"worldgym": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold (nan, infinities), in dicts and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
