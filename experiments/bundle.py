"""Load the parts of a checkpoint folder (a bundle), by name or by path.

A bundle is a folder with `world_model/`, `judge/`, `policy_sft/`, `probe/`, `card.json`, and two small archives:
`starts.npz` (images `(N,64,64,3)` uint8, states `(N,4)`, instructions, tasks, optional steps: logged real frames from
which imagined episodes start) and `demos.npz` (images, states, actions `(M,K,4)` float32, instructions, optional
episode and goals: the demonstrations of the SFT policy, for the BC-only control).

Example::

    bundle = Bundle.find("tabletop-small")
    world_model, judge, policy = bundle.world_model(), bundle.judge(), bundle.policy()
    starts = bundle.start_bank(["reach"]).sample(16, np.random.default_rng(0))
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compute import ON_CPU, Placing
from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError
from worldgym.imagination.starts import VIEWS
from worldgym.utils.arrays import Field, array_names, read_arrays
from worldgym.utils.files import file_sha256, read_json
from worldgym.utils.folders import MANIFEST, verify_file

JUDGE_FOLDERS = {"bundled": "judge", "latent": "judge_latent", "open_clip": "judge_open_clip"}
"""Folders of the judges of a bundle, by judge name."""
DEMOS = {
    "images": Field("uint8", ("M", "H", "W", 3)),
    "background": Field("uint8", ("H", "W", 3), required=False),
    "states": Field("float", ("M", "S")),
    "actions": Field("float", ("M", "K", "A"), finite=False),  # NaN after the end of an episode
    "instructions": Field("text", ("M",)),
    "episode": Field("int", ("M",), required=False),
    "goals": Field("float", ("M", "S"), required=False, finite=False),  # NaN if not recorded
}
"""Fields of the archive of demonstrations; the archive of starts is read by `ArrayStarts`."""
ARCHIVES = ("starts.npz", "demos.npz")


def folder_hash(folder: Path) -> str:
    """Short SHA-256 over names and contents of the files in a folder. Manifests are left out."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        total.update(file.relative_to(folder).as_posix().encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Bundle:
    """A checkpoint folder.

    Args:
        folder: path of the folder.
        placing: device and precision of the loaded parts.
    """

    folder: Path
    placing: Placing = ON_CPU

    @classmethod
    def find(cls, name: str | Path, placing: Placing = ON_CPU) -> Bundle:
        """Find a bundle: an existing folder, or else a bundled checkpoint of that name.

        Raises:
            CheckpointError: neither exists.
        """
        folder = Path(name).expanduser()
        return cls(folder if folder.is_dir() else pretrained.path(str(name)), placing)

    @property
    def card(self) -> dict[str, Any]:
        """Content of `card.json`, or an empty dictionary.

        Raises:
            CheckpointError: the file is damaged, or a field has the wrong type.
        """
        return pretrained.read_card(self.folder)

    def fingerprint(self, *, policy: Path | None = None, judge: Path | None = None) -> str:
        """SHA-256 of all inputs of a fine-tuning run: parts, starts, demonstrations, and a replaced policy or judge."""
        folders = [policy or self.policy_folder, self._part("world_model"), judge or self._part("judge")]
        hashes = [folder_hash(folder) for folder in folders]
        hashes += [file_sha256(self.folder / name) for name in ARCHIVES if (self.folder / name).is_file()]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the bundle: those of its card, else those that its suite records by default."""
        from worldgym.suite import load_suite

        return tuple(self.card.get("tasks", ())) or load_suite(self.card.get("suite")).default_tasks

    @property
    def policy_folder(self) -> Path:
        """Folder of the SFT policy."""
        return self._part("policy_sft")

    @property
    def starts_file(self) -> Path:
        """Archive of the logged frames from which imagined episodes start."""
        return self.folder / "starts.npz"

    def policy(self) -> Any:
        """Load a new copy of the SFT policy, of any registered type."""
        from agents import load_policy

        return self.placing(load_policy(self.policy_folder))

    def world_model(self) -> Any:
        """Load the world model, of any registered type."""
        from worldgym.models import load_world_model

        return self.placing(load_world_model(self._part("world_model")))

    @property
    def world_model_options(self) -> dict[str, str | None]:
        """Options of `worldgym train world-model` that continue the bundle's: `type`, and `probe` if that needs one."""
        file = self.folder / "world_model" / "config.json"
        kind = str(read_json(file, pretrained.remedy(self.folder)).get("type", "video"))
        probe = self.folder / "probe"
        return {"type": kind, "probe": str(probe) if kind == "chunk" and probe.is_dir() else None}

    def judge(self) -> Any:
        """Load the judge that provides the reward, of any registered type."""
        return self.named_judge("bundled")

    def named_judge(
        self,
        name: str,
        tokenizer: Any | None = None,
        cache: Path | None = None,
        keys: Sequence[str] = (),
    ) -> Any:
        """Load a judge by name: `bundled`, `latent`, `open_clip` belong to this bundle; anything else is a folder.

        Args:
            name: name or folder of the judge.
            tokenizer: tokenizer of the world model, for judges that read latents.
            cache: folder of cached answers, for judges behind an endpoint.
            keys: `URL=VARIABLE`, for judges behind an endpoint; see `rewards.loading.judge_keys`.

        Raises:
            CheckpointError: no such part, or no such folder.
            ConfigError: `keys` are malformed.
        """
        from rewards.loading import judge_keys, load_judge

        folder, known = self.judge_folder(name), judge_keys(keys)
        return self.placing(load_judge(folder, tokenizer=tokenizer, cache=cache, keys=known))

    def judge_folder(self, name: str) -> Path:
        """Folder from which `named_judge` loads a judge.

        Raises:
            CheckpointError: no such part, or no such folder.
        """
        folder = Path(name).expanduser()
        if not folder.is_dir() and name not in JUDGE_FOLDERS:
            raise CheckpointError(
                f"there is no folder {name}; give a folder written by a judge's save_pretrained, or one of the "
                f"bundle's judges: {', '.join(JUDGE_FOLDERS)}"
            )
        return folder if folder.is_dir() else self._part(JUDGE_FOLDERS[name])

    def probe(self) -> Any:
        """Load the probe that measures positions in frames: the folder `probe`, else the copy in the world model.

        Raises:
            CheckpointError: the bundle has neither.
        """
        from worldgym.models.probe import PositionProbe

        if not (self.folder / "probe").is_dir():
            copy = getattr(self.world_model(), "locator", None)
            if isinstance(copy, PositionProbe):
                return copy
        return self.placing(PositionProbe.from_pretrained(self._part("probe")))

    def start_bank(self, tasks: Sequence[str] | None = None) -> Any:
        """Load the starts of imagined episodes, as `agents.StartBank`.

        Raises:
            CheckpointError: no such archive, or no start of these tasks.
        """
        from agents import StartBank, Starts
        from worldgym.imagination.starts import ArrayStarts

        try:
            return StartBank(Starts.of(ArrayStarts.load(self.starts_file, pretrained.remedy(self.folder)), tasks))
        except ConfigError as error:
            raise CheckpointError(f"{self.starts_file}: {error}") from error

    def demonstrations(self) -> Any:
        """Load the demonstrations of the SFT policy, as `agents.ChunkDataset`; goals are nan if not recorded."""
        from agents import ChunkDataset

        remedy = pretrained.remedy(self.folder)
        file = verify_file(self.folder / "demos.npz", remedy)
        views = {
            name: Field("uint8", ("M", f"H of {name}", f"W of {name}", 3))
            for name in array_names(file)
            if name.startswith(VIEWS)
        }
        data = read_arrays(file, {**DEMOS, **views}, remedy[:1].upper() + remedy[1:])
        self._check_actions(np.asarray(data["actions"], np.float32), file, remedy)
        images = data["images"]
        if "background" in data:  # stored as wrapped differences from the median image
            images = images + data["background"]
        return ChunkDataset(
            images=images,
            states=np.asarray(data["states"], np.float32),
            instructions=[str(text) for text in data["instructions"]],
            actions=np.asarray(data["actions"], np.float32),
            episode=np.asarray(data.get("episode", np.zeros(len(data["images"]))), np.int64),
            goals=np.asarray(data.get("goals", np.full_like(data["states"], np.nan)), np.float32),
            views={name.removeprefix(VIEWS): data[name] for name in views},
        )

    @staticmethod
    def _check_actions(actions: np.ndarray, file: Path, remedy: str) -> None:
        """Raise a CheckpointError unless actions are finite, except for whole steps of NaN at the end of a chunk."""
        unknown = np.isnan(actions).all(-1)  # (M, K): after the end of an episode
        ends = (unknown[:, :-1] <= unknown[:, 1:]).all() and not unknown[:, 0].any()
        bad = ~np.isfinite(actions) & ~unknown[..., None]
        if bad.any() or not ends:
            raise CheckpointError(
                f"{file} can't be read: actions holds {int(bad.sum())} values that are NaN or infinite within an "
                f"episode. {remedy[:1].upper()}{remedy[1:]}"
            )

    def _part(self, name: str) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            raise CheckpointError(f"{self.folder} has no {name}/; {pretrained.remedy(self.folder)}")
        return folder
