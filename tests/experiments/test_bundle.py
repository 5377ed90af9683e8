"""A bundle is written whole or not at all, and every file of it is verified and typed when it is read."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from experiments.bundle import Bundle, folder_hash
from experiments.cli import main
from experiments.commands import bundle as command
from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError
from worldgym.models import WorldModelConfig
from worldgym.specs import Specs
from worldgym.utils.arrays import write_arrays
from worldgym.utils.folders import MANIFEST, seal_folder

BUNDLED = pretrained.path("tabletop-small")


class FakeDataset:
    """Stands for a dataset of two verbs; what is taken from it comes from a tiny bundle."""

    manifest, summary = SimpleNamespace(hash="abc", name="x"), {"episodes": 2}
    specs, cameras = Specs(WorldModelConfig.preset("tiny").described.observation), ("front",)

    def __init__(self, folder: Path) -> None: ...

    def require_seen(self) -> FakeDataset:
        return self

    def load_arrays(self, **how: object) -> FakeDataset:
        return self

    def __len__(self) -> int:
        return 2

    tasks, behaviours = ("push", "reach"), ("imported", "imported")


@pytest.fixture
def typed(bundle, tmp_path, monkeypatch):
    """The command line of a bundle in `tmp_path/out`, whose parts are a tiny bundle's."""
    monkeypatch.setattr("worldgym.data.EpisodeDataset", FakeDataset)
    monkeypatch.setattr("agents.algorithms.sft.demonstrations", lambda arrays, count, **how: [])
    monkeypatch.setattr(
        command, "write_starts", lambda path, *rest: shutil.copyfile(bundle / path.name, path)
    )
    monkeypatch.setattr(command, "write_demos", lambda path, *rest: shutil.copyfile(bundle / path.name, path))
    parts = shutil.copytree(bundle, tmp_path / "parts")
    return [
        "bundle", "--data", str(tmp_path), "--world-model", str(parts / "world_model"), "--judge",
        str(parts / "judge"), "--policy", str(parts / "policy_sft"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_verifies_itself_and_its_parts(typed, tmp_path):
    assert main(typed) == 0
    out = Bundle(tmp_path / "out")
    assert out.card["real_episodes"] == 2 and out.card["name"] == "out"
    assert len(out.demonstrations()) and len(out.start_bank().starts.images)
    out.world_model(), out.judge(), out.policy()
    for folder in (out.folder, *(out.folder / part for part in ("world_model", "judge", "policy_sft"))):
        assert (folder / MANIFEST).is_file()


def test_a_bundle_without_judge_policy_and_probe(typed, tmp_path):
    at = typed.index("--judge")
    assert main([*typed[:at], *typed[at + 4 :], "--licence", "MIT"]) == 0
    out = Bundle(tmp_path / "out")
    assert {path.name for path in out.folder.iterdir() if path.is_dir()} == {"world_model"}
    assert not (out.folder / "demos.npz").exists() and out.card["licence"] == "MIT" and "suite" not in out.card
    assert len(out.start_bank().starts.images)
    with pytest.raises(CheckpointError, match="probe"):
        out.probe()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_row_of_each_demonstration_is_stored(tmp_path, monkeypatch, every):
    lengths = [5, 1, 4]
    episode = np.repeat([3, 8, 9], lengths)
    rows = np.arange(10, dtype=np.uint8)
    chunks = SimpleNamespace(
        images=rows[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8), episode=episode, views={},
        states=np.zeros((10, 2), np.float32), actions=np.zeros((10, 5, 2), np.float32), instructions=["do"] * 10,
        goals=np.zeros((10, 2), np.float32),
    )  # fmt: skip
    monkeypatch.setattr("agents.chunk_dataset", lambda demos, chunk, hand: chunks)
    command.write_demos(tmp_path / "demos.npz", [], 5, FakeDataset.specs, every)
    kept = np.load(tmp_path / "demos.npz")["images"][:, 0, 0, 0].tolist()
    assert kept == [i + at for i, n in zip((0, 5, 6), lengths, strict=True) for at in range(0, n, every)]


def test_weights_of_half_size_load_as_the_same_weights_to_three_digits(typed, tmp_path):
    assert main(typed) == 0 and main([*typed[:-1], str(tmp_path / "half"), "--half"]) == 0
    whole, half = Bundle(tmp_path / "out"), Bundle(tmp_path / "half")
    sizes = [(b.policy_folder / "model.safetensors").stat().st_size for b in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    mine, theirs = whole.policy().state_dict(), half.policy().state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert theirs[name].dtype == value.dtype and torch.allclose(theirs[name], value, rtol=1e-3, atol=1e-6)


def test_weights_too_large_for_half_the_size_are_refused(tmp_path):
    save_file({"scale": torch.tensor([1e6])}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="without --half"):
        command.halve(tmp_path)


@pytest.mark.parametrize("at", ["copy_part", "write_starts", "write_demos", "write_card"])
def test_a_full_disk_keeps_the_old_bundle_and_names_the_new_one(typed, tmp_path, monkeypatch, capsys, at):
    assert main(typed) == 0
    (tmp_path / "out" / "README.md").write_text("written by people")
    before = content(tmp_path / "out")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "a/source/file")

    with monkeypatch.context() as patch:
        patch.setattr(command, at, full)
        assert main(typed) == 2
    said = capsys.readouterr().err
    assert f"the disk is full while writing {tmp_path / 'out'}" in said and "source" not in said
    assert content(tmp_path / "out") == before
    assert main(typed) == 0, "the model card stays, and nothing is in the way of the next one"
    assert content(tmp_path / "out").keys() == before.keys()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_part_is_not_bundled(typed, tmp_path, capsys, file):
    path = tmp_path / "parts" / "judge" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(typed) == 2
    assert "another SHA-256" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["card.json", "starts.npz", "demos.npz"])
@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_bundle_is_noticed(bundle, tmp_path_factory, name, where, bit):
    folder = tmp_path_factory.mktemp("flip")
    shutil.copyfile(bundle / name, folder / name)
    seal_folder(folder)
    data = bytearray((folder / name).read_bytes())
    data[where % len(data)] ^= 1 << bit
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        read_all(Bundle(folder), name)


def read_all(bundle, name):
    return {
        "card.json": lambda: bundle.card,
        "starts.npz": bundle.start_bank,
        "demos.npz": bundle.demonstrations,
    }[name]()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "can't be read"), ("[]", "expected an object"), ("{", "can't be read"), ("[" * 100_000, "can't be read"),
        ('{"tasks": {"a": 1}}', "tasks"), ('{"tasks": "push"}', "tasks"), ('{"tasks": [0]}', "tasks"),
        ('{"tasks_thin": [null]}', "tasks_thin"), ('{"real_episodes": true}', "real_episodes"),
        ('{"real_episodes": "many"}', "real_episodes"), ('{"real_episodes": NaN}', "real_episodes"),
        ('{"split_manifest": 3}', "split_manifest"), ('{"data": [1]}', "data"),
    ],
)  # fmt: skip
def test_a_card_of_another_type_is_named_with_what_to_do(tmp_path, text, said):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"(?s)card.json.*{said}.*worldgym bundle"):
        _ = Bundle(tmp_path).card


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("starts.npz", {"images": lambda x: x.reshape(len(x), -1)}, "images"),
        ("starts.npz", {"states": lambda x: np.full_like(x, np.inf)}, "NaN or infinite"),
        ("starts.npz", {"tasks": lambda x: x[:-1]}, "tasks"),
        ("starts.npz", {"instructions": lambda x: np.arange(len(x))}, "instructions"),
        ("demos.npz", {"images": lambda x: x[:0]}, "it is empty"),
        ("demos.npz", {"actions": lambda x: np.full_like(x, np.nan)}, "NaN or infinite"),
        ("demos.npz", {"actions": lambda x: x[:, 0]}, "actions"),
        ("demos.npz", {"goals": lambda x: x[:, :2]}, "goals"),
    ],
)
def test_arrays_of_a_bundle_have_their_shapes_and_are_finite(bundle, tmp_path, name, change, said):
    with np.load(bundle / name) as archive:
        arrays = {key: change.get(key, lambda x: x)(archive[key]) for key in archive.files}
    write_arrays(tmp_path / name, arrays)
    with pytest.raises(CheckpointError, match=f"{name}.*{said}"):
        read_all(Bundle(tmp_path), name)


@pytest.mark.parametrize("name", ["starts.npz", "demos.npz"])
def test_an_empty_archive_is_a_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{name} can't be read.*worldgym bundle"):
        read_all(Bundle(tmp_path), name)


def test_the_bundled_checkpoints_are_what_their_manifests_list():
    from worldgym.utils.folders import verify_folder

    for folder in [BUNDLED, *(path for path in BUNDLED.iterdir() if path.is_dir())]:
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        files = [name for name in listed if not name.endswith(".md")]  # model cards are edited by hand
        verify_folder(folder, files, "see CONTRIBUTING.md")
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
        assert there == set(listed)


def test_the_results_in_the_repository_are_of_the_bundled_weights_or_say_that_they_are_not():
    card, results = Bundle(BUNDLED).card, Path("docs/results")
    for file in sorted((results / "data/small").glob("*.json")):
        hashes = json.loads(file.read_text())["hashes"]
        page = (results / f"{file.name.split('-')[0]}.md").read_text()
        for part in ("world_model", "judge", "policy_sft"):
            same = (folder_hash(BUNDLED / part), *card["earlier_hashes"].get(part, ()))
            if hashes[part] not in same:
                assert hashes[part] in card["replaced"][part], file.name
                assert part in page.partition("Replaced in the bundle since then: ")[2], page


def test_a_card_that_changed_places_with_the_manifest_is_refused(tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "b", ignore=shutil.ignore_patterns("*.npz", "*.safetensors"))
    card, manifest = tmp_path / "b" / "card.json", tmp_path / "b" / MANIFEST
    swapped = card.read_bytes(), manifest.read_bytes()
    manifest.write_bytes(swapped[0]), card.write_bytes(swapped[1])
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        Bundle(tmp_path / "b").card  # noqa: B018
