"""Inputs of the campaign, made once by the commands themselves at toy size, and the command lines that are tried.

Example::

    place = Workspace(Path("/tmp/worldgym-campaign"))
    place.make()
    COMMANDS["train-policy"].line(place)      # ["train", "policy", "--data", ...]
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import forked, said

TESTS = Path(__file__).resolve().parents[1]
DONE = ".made"


@dataclass(frozen=True)
class Tried:
    """A command that the campaign tries.

    Args:
        words: of the command line, `{name}` standing for folders of the workspace.
        again: options that are added when it goes on.
        going_on: file of the case's folder that shows that there is something to go on with.
        skip: pattern of files that are not compared.
        weight: how often it is tried, relative to the others.
    """

    words: str
    again: str = ""
    going_on: str = ""
    skip: str | None = None
    weight: int = 4

    def line(self, place: Workspace, here: Path | None = None) -> list[str]:
        """The command line, as it is typed in the case's folder `here`."""
        words = self.words.split()
        if self.again and here is not None and (here / self.going_on).exists():
            words += self.again.split()
        return [word.format(**place.names()) for word in words]


COMMANDS: dict[str, Tried] = {
    "collect": Tried("collect --out out --episodes 8 --tasks reach push --horizon 12 --workers 0 --shard-episodes 2"),
    "import": Tried("import --source {lerobot} --out out --image-size 32", weight=3),
    "train-tokenizer": Tried("train tokenizer --data {data} --out out --preset tiny --steps 8 --batch 8"),
    "train-world-model": Tried(
        "train world-model --data {data} --tokenizer {tokenizer} --out out --preset tiny --steps 5 --shift-steps 4 "
        "--batch 4 --window 4"
    ),
    "train-judge": Tried("train judge --data {data} --out out --preset tiny --steps 8 --batch-size 16 --limit 16"),
    "train-policy": Tried(
        "train policy --data {data} --out out --preset tiny --epochs 5 --demos-per-task 4 --batch-size 32 "
        "--finish-steps 6"
    ),
    "train-probe": Tried("train probe --world-model {world} --out out --episodes 12 --steps 12 --batch 8"),
    "rl": Tried("rl --bundle {bundle} --out out --quick --iterations 3 --piece 1"),
    "demo": Tried("demo --bundle {bundle} --out out --quick"),
    "claims": Tried(
        "claims run C1 --preset tiny --arms sft bc_only imagined_rl --workers 0 --threads 1 --results results "
        "--work out",
        skip=r"^out/",
    ),
    "sweep": Tried(
        "sweep --space lr=1e-5,2e-5 --bundle {bundle} --out out --iterations 2 --quick --concurrent 1",
        again="--resume", going_on="out/sweep_settings.json", skip=r"^out/tune|tfevents|/state/", weight=1,
    ),
    "bundle": Tried(
        "bundle --data {data} --world-model {world} --judge {judge} --policy {policy} --out out --starts 20 "
        "--demos-per-task 2",
        weight=3,
    ),
    "bench-video": Tried(
        "bench video --source {bridge} --image-size 32 --tokenizer-steps 4 --shift-steps 3 --steps 3 --preset tiny "
        "--out out --json video.json", weight=3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Workspace:
    """A folder with the inputs.

    Args:
        folder: where they are made.
    """

    folder: Path

    def names(self) -> dict[str, str]:
        """Folders by name, for command lines."""
        inside = {
            "data": "data", "tokenizer": "tokenizer", "world": "world/export", "judge": "judge", "policy": "policy",
            "probe": "probe/export", "latent": "latent", "bundle": "bundle", "whole": "whole", "lerobot": "lerobot",
            "lerobot3": "lerobot3", "bridge": "bridge", "imported": "imported",
        }  # fmt: skip
        return {name: str(self.folder / "inputs" / path) for name, path in inside.items()}

    def at(self, name: str) -> Path:
        """One of those folders."""
        return Path(self.names()[name])

    def make(self, only: tuple[str, ...] | None = None) -> None:
        """Make what is missing.

        Args:
            only: names of inputs; all when None.
        """
        inputs = self.folder / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for name, words in INPUTS.items():
            if only is not None and name not in only:
                continue
            mark = inputs / f"{DONE}-{name}"
            if mark.is_file():
                continue
            self._make(name, words, mark)

    def _make(self, name: str, words: str | Callable[[Workspace], Any], mark: Path) -> None:
        where = self.at(name)
        out = where.parent if where.name == "export" else where
        shutil.rmtree(out, ignore_errors=True)
        log = mark.with_suffix(".log")
        log.unlink(missing_ok=True)
        if callable(words):
            ended = forked(lambda: words(self), log=log, seconds=600)
        else:
            line = [word.format(out=out, **self.names()) for word in words.split()]
            ended = forked(lambda: command(line), log=log, seconds=600)
        if ended.code:
            raise SystemExit(f"the input {name} can't be made: {said(log, 6)}")
        mark.touch()


def command(line: list[str]) -> int:
    """Run `worldgym LINE` in this process."""
    from experiments.cli import main

    return main(line)


def settle_settings(place: Workspace) -> None:
    """Change what makes toy runs too coarse to be killed in: checkpoints at every step, claims on the toy bundle.

    Call it once in the parent; every run of the campaign, uninterrupted ones included, is made so.
    """
    from experiments.claims import presets
    from experiments.commands import claims
    from worldgym.training.loop import LoopConfig

    check = LoopConfig.__post_init__

    def often(self: Any) -> None:
        object.__setattr__(self, "save_seconds", 0.0)
        object.__setattr__(self, "log_every", 2)
        check(self)

    LoopConfig.__post_init__ = often  # type: ignore[method-assign]
    tiny = dataclasses.replace(presets.PRESETS["tiny"], bundle=str(place.at("bundle")), looked=2, episodes=2)
    presets.PRESETS["tiny"] = tiny
    code = claims.code_hash()
    claims.code_hash = lambda: code  # the sources are those in memory, whatever is edited meanwhile


def _module(path: Path) -> Any:
    """A module of the tests beside, whose folders are no packages."""
    spec = importlib.util.spec_from_file_location(f"campaign_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _tiny_bundle(place: Workspace) -> int:
    import torch

    torch.set_num_threads(1)
    _module(TESTS / "experiments" / "tiny_bundle.py").make_tiny_bundle(place.at("bundle"))
    return 0


def _lerobot(version: str, name: str, filmed: bool) -> Callable[[Workspace], int]:
    def make(place: Workspace) -> int:
        _module(TESTS / "data" / "test_imports.py").make(
            place.at(name), version, lengths=(4, 6), filmed=filmed
        )
        return 0

    return make


def _bridge(place: Workspace) -> int:
    import numpy as np

    from worldgym.data.codecs.video import encode_mp4

    folder = place.at("bridge")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in "ab":
        frames = np.full((8, 128, 128, 3), 90, np.uint8)
        for t in range(8):
            frames[t, 40:70, 10 + 8 * t : 40 + 8 * t] = (220, 40, 40)
        encode_mp4(folder / f"{name}.mp4", frames, 128, 20)
        rows = np.zeros((8, 10), np.float32)
        rows[:, :6], rows[:, 6] = rng.uniform(-1, 1, (8, 6)), 1
        np.savez(folder / f"{name}.npz", arr_0=rows)
    return 0


INPUTS: dict[str, str | Callable[[Workspace], Any]] = {
    "data": "collect --out {out} --episodes 24 --tasks reach push --horizon 24 --workers 0",
    "tokenizer": "train tokenizer --data {data} --out {out} --preset tiny --steps 10 --batch 8",
    "world": "train world-model --data {data} --tokenizer {tokenizer} --out {out} --preset tiny --steps 6 "
    "--shift-steps 4 --batch 4 --window 4",
    "judge": "train judge --data {data} --out {out} --preset tiny --steps 6 --batch-size 16",
    "latent": "train judge --kind latent --world-model {world} --data {data} --out {out} --preset tiny --steps 6 "
    "--batch-size 16",
    "policy": "train policy --data {data} --out {out} --preset tiny --epochs 2 --demos-per-task 4 --batch-size 32 "
    "--finish-steps 2",
    "probe": "train probe --world-model {world} --out {out} --episodes 12 --steps 4 --batch 8",
    "whole": "bundle --data {data} --world-model {world} --judge {judge} --policy {policy} --probe {probe} "
    "--latent-judge {latent} --out {out} --starts 20 --demos-per-task 2",
    "bundle": _tiny_bundle,
    "lerobot": _lerobot("v2.1", "lerobot", True),
    "lerobot3": _lerobot("v3.0", "lerobot3", False),
    "bridge": _bridge,
    "imported": "import --source {lerobot} --out {out} --image-size 32",
}
