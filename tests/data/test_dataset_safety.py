"""Kills, full disks, second writers, damaged and foreign folders: what was saved stays, and the message helps."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up import MANIFEST, episode, open_writer, same, specs

from worldgym.data import DatasetWriter, EpisodeDataset, SplitManifest
from worldgym.errors import DatasetError
from worldgym.utils import files

MakeDataset = Callable[..., Path]
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- continuing ------------------------------------------------------------------------------------------------------


def test_append_continues_where_the_last_writer_stopped(make_dataset: MakeDataset) -> None:
    folder = make_dataset(4)
    with open_writer(folder) as writer:
        assert writer.episodes_committed == 4
        assert writer.append(episode(4)) == 4
    dataset = EpisodeDataset(folder)
    assert all(same(made, episode(number)) for number, made in enumerate(dataset))
    actions = np.concatenate([made.actions for made in dataset])
    np.testing.assert_allclose(dataset.stats["action"]["mean"], actions.mean(axis=0), atol=1e-6)
    assert dataset.stats["observation.images.front"]["count"] == [5]


def test_killed_writer_loses_only_the_open_shard(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = (
        "import sys, time; from pathlib import Path; from made_up import episode, open_writer, specs\n"
        "import worldgym.data.writer as w\n"
        "writer = open_writer(Path(sys.argv[1]))\n"
        "for i in range(6): writer.append(episode(i))\n"
        "w.write_json = lambda *a: (print('ready', flush=True), time.sleep(60))\n"  # stops between data and commit
        "for i in range(6, 9): writer.append(episode(i))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "data/chunk-000/file-002.parquet").exists()  # written, never committed
    (folder / "data/chunk-000/.tmp-1-file-003.parquet").write_bytes(b"half")
    assert len(EpisodeDataset(folder)) == 6
    with open_writer(folder) as writer:
        assert writer.episodes_committed == 6
        assert not (folder / "data/chunk-000/file-002.parquet").exists()
        assert not list(folder.rglob(".tmp-*"))
        for number in range(6, 10):
            writer.append(episode(number))
    assert all(same(made, episode(number)) for number, made in enumerate(EpisodeDataset(folder)))


def test_killed_at_a_random_moment(tmp_path: Path) -> None:
    folder = tmp_path / "random"
    code = (
        "import sys; from pathlib import Path; from made_up import episode, open_writer, specs\n"
        "with open_writer(Path(sys.argv[1]), shard_episodes=1) as writer:\n"
        "    print('ready', flush=True)\n"
        "    for i in range(len(writer), 100000): writer.append(episode(i))\n"
    )
    for delay in (0.03, 0.11):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        dataset = EpisodeDataset(folder)
        dataset.verify()
        assert all(same(made, episode(number)) for number, made in enumerate(dataset))
    with open_writer(folder) as writer:
        assert len(writer) == len(dataset)


def test_exception_in_the_caller_saves_what_was_appended(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "d") as writer:
        writer.append(episode(0))
        raise KeyboardInterrupt
    assert len(EpisodeDataset(tmp_path / "d")) == 1


# ---- one writer ------------------------------------------------------------------------------------------------------


def test_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    with (
        open_writer(tmp_path / "d"),
        pytest.raises(DatasetError, match=rf"another writer .*pid {os.getpid()}"),
    ):
        open_writer(tmp_path / "d")
    open_writer(tmp_path / "d").close()
    assert not (tmp_path / "d" / ".writer.lock").exists()


def test_lock_of_a_dead_process_is_taken_over(
    make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_dataset(1)
    (folder / ".writer.lock").write_text("pid 999999999 on nowhere\n")
    with caplog.at_level("INFO"):
        open_writer(folder).close()
    assert "a writer that has ended (pid 999999999" in caplog.text


def test_closed_writer_refuses_more(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "d")
    writer.close()
    writer.close()
    with pytest.raises(DatasetError, match="closed"):
        writer.append(episode(0))


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["file-001.parquet", "tasks.parquet", "stats.json", "info.json"])
def test_full_disk_leaves_the_old_dataset(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    folder = make_dataset(3)
    before = {
        name: data for name, data in snapshot(folder).items() if name.startswith("data") or "info" in name
    }
    real = files.fsync

    def full(path: Path) -> None:
        if path.parent.name.startswith(".tmp-") and path.name == victim:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    writer = open_writer(folder)
    writer.append(episode(3, instruction="a new sentence"))
    monkeypatch.setattr(files, "fsync", full)
    with pytest.raises(
        DatasetError, match=r"disk is full.* 3 episodes saved before are intact.*free some space"
    ):
        writer.flush()
    after = snapshot(folder)
    assert all(after[name] == data for name, data in before.items())
    assert not any(".tmp-" in name or "file-001" in name for name in after)
    assert len(EpisodeDataset(folder)) == 3
    monkeypatch.setattr(files, "fsync", real)
    writer.flush()  # space was freed: nothing is lost
    writer.close()
    assert same(EpisodeDataset(folder)[3], episode(3, instruction="a new sentence"))


# ---- damaged and foreign ---------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "name", ["data/chunk-000/file-001.parquet", "meta/episodes/chunk-000/file-000.parquet"]
)
@pytest.mark.parametrize("damage", [Path.unlink, _truncate])
def test_damage_is_named_and_nothing_is_touched(
    make_dataset: MakeDataset, name: str, damage: Callable[[Path], None]
) -> None:
    folder = make_dataset(5)
    damage(folder / name)
    before = snapshot(folder)
    for opening in (EpisodeDataset, open_writer):
        with pytest.raises(DatasetError, match=rf"{name}.*restore"):
            opening(folder)
    assert snapshot(folder) == before


def test_flipped_bits_are_noticed_on_reading(make_dataset: MakeDataset) -> None:
    folder = make_dataset(3)
    path = folder / "data/chunk-000/file-000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    dataset = EpisodeDataset(folder)
    with pytest.raises(DatasetError, match=r"file-000\.parquet"):
        dataset.load_arrays()
    with pytest.raises(DatasetError, match="differs"):
        dataset.verify()


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v2.1"}, r"v2\.1.*convert"),
        ({"worldgym": None}, "without the 'worldgym' block"),
        ({"worldgym": {"format_version": 99}}, "worldgym format 99"),
        ({"total_episodes": 7}, "changed since it was written"),
    ],
)
def test_foreign_versions_are_refused_untouched(
    make_dataset: MakeDataset, changes: dict[str, object], message: str
) -> None:
    folder = make_dataset(2)
    _edit(folder, **changes)
    before = snapshot(folder)
    for opening in (EpisodeDataset, open_writer):
        with pytest.raises(DatasetError, match=message):
            opening(folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "[" * 5000, '{"a":' * 3000])
def test_broken_info_is_refused(make_dataset: MakeDataset, content: str) -> None:
    folder = make_dataset(1)
    (folder / "meta/info.json").write_text(content)
    with pytest.raises(DatasetError, match=r"info\.json is damaged"):
        EpisodeDataset(folder)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"thesis\.tex.*nothing was changed"):
        open_writer(tmp_path)
    assert snapshot(tmp_path) == {"thesis.tex": b"precious"}
    with pytest.raises(DatasetError, match="no dataset"):
        EpisodeDataset(tmp_path)
    with pytest.raises(DatasetError, match="is a file"):
        open_writer(tmp_path / "thesis.tex")


def test_other_settings_are_not_mixed_in(make_dataset: MakeDataset) -> None:
    folder = make_dataset(1)
    with pytest.raises(DatasetError, match="cameras=front 16x16, now cameras=front 32x32"):
        open_writer(folder, 32)
    with pytest.raises(DatasetError, match="split manifest"):
        DatasetWriter(folder, specs(), SplitManifest(rules={"other": 1}))
    with pytest.raises(ValueError, match="fps is 30"):
        DatasetWriter(folder, specs(), MANIFEST, fps=30)
    with open_writer(folder) as writer, pytest.raises(ValueError, match="frames front 8x8"):
        writer.append(episode(0, size=8))
