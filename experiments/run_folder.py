"""A run folder that survives Ctrl-C: finished pieces are remembered as json, and used again when asked for.

Why: a demo takes minutes, and most of them are evaluations and RL iterations that need not be done twice.
Each piece is a function of the settings alone, so a resumed run ends with an uninterrupted one's numbers.

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
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "transformers", "safetensors")


class RunFolder:
    """State of one run.

    Args:
        out: the run's folder.
        settings: json-able; a half-finished run with other settings is not mixed with this one.
        fresh: forget what an interrupted run has done.

    Raises:
        ConfigError: the folder holds an interrupted run with other settings.
    """

    def __init__(self, out: str | Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.out = Path(out)
        self.state = self.out / "state"
        settings = json.loads(json.dumps(settings))
        marker = self.state / "settings.json"
        old = json.loads(marker.read_text()) if marker.is_file() else None
        if fresh or (old is not None and old.get("finished")):
            self._clear()
        elif old is not None and old["settings"] != settings:
            changed = sorted(
                k for k in {*old["settings"], *settings} if old["settings"].get(k) != settings.get(k)
            )
            raise ConfigError(
                f"{self.out} holds an interrupted run with other {', '.join(changed)}. Type the same settings "
                "to go on, --fresh to start over, or another --out"
            )
        self.resumed = marker.is_file()
        self.settings = settings
        self.state.mkdir(parents=True, exist_ok=True)
        self._mark(False)
        self.seconds: dict[str, float] = self.read("seconds") or {}

    def _mark(self, finished: bool) -> None:
        text = json.dumps({"settings": self.settings, "finished": finished}, indent=1)
        atomic_write_text(self.state / "settings.json", text)

    def _clear(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.rmtree(self.out / "videos", ignore_errors=True)
        for events in self.out.glob("events.out.tfevents.*"):
            events.unlink()

    def read(self, name: str) -> Any:
        """A remembered piece, or None."""
        file = self.state / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Remember a piece."""
        atomic_write_text(self.state / f"{name}.json", json.dumps(value))

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
        """The next run in this folder starts over."""
        self._mark(True)


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
