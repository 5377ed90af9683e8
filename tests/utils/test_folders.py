"""A folder is replaced as a whole or not at all, is verified when it is read, and leftovers of the dead are removed."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils import files, folders, staging
from worldgym.utils.folders import COMMIT, MANIFEST, save_folder, settle, verify_folder

REMEDY = "train it again"
OLD = {"config.json": "old", "sub/weights": "w-old", "only-old": "x"}
NEW = {"config.json": "new", "sub/weights": "w-new", "only-new": "y"}


def write(folder: Path, content: dict[str, str]) -> None:
    with save_folder(folder) as stage:
        for name, text in content.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def killed_at(call: int, action) -> bool:
    """Run `action` in a child that dies at its `call`-th change of the file system; whether it died."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(original):
            def wrapper(*args, **kwargs):
                nonlocal count
                count += 1
                if count == call:
                    os._exit(9)
                return original(*args, **kwargs)

            return wrapper

        for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("exists", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, exists):
    call, ends = 0, set()
    while True:
        call += 1
        root = tmp_path / str(call)
        target = root / "model"
        root.mkdir()
        if exists:
            write(target, OLD)
            (target / "events").write_text("somebody else's")
        died = killed_at(call, lambda target=target: write(target, NEW))
        if target.is_dir():
            settle(target)
        found = content(target) if target.is_dir() else None
        if exists:
            assert found.pop("events") == "somebody else's"
        assert found in ((OLD, NEW) if exists else (None, NEW))
        if found is not None:
            verify_folder(target, list(found), REMEDY)
        ends.add(found == NEW)
        write(target, NEW)  # whoever comes next also removes what the dead process left
        assert not [p for p in root.rglob("*") if p.name.startswith((staging.PREFIX, COMMIT))]
        if not died:
            break
    assert call > 5 and ends == {False, True}


def test_a_full_disk_keeps_the_old_folder(tmp_path):
    write(tmp_path / "model", OLD)
    with pytest.raises(OSError, match="No space"), save_folder(tmp_path / "model") as stage:
        (stage / "config.json").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert content(tmp_path / "model") == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_first_save_leaves_nothing(tmp_path):
    with pytest.raises(OSError), save_folder(tmp_path / "deep" / "model"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(ConfigError, match="is a file"), save_folder(tmp_path / "model"):
        pass
    with pytest.raises(ConfigError, match="is a folder"):
        files.atomic_write_text(tmp_path, "text")


def test_a_linked_folder_is_written_through_the_link(tmp_path):
    write(tmp_path / "store", OLD)
    (tmp_path / "model").symlink_to(tmp_path / "store")
    write(tmp_path / "model", NEW)
    assert (tmp_path / "model").is_symlink() and content(tmp_path / "store") == NEW


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7), name=st.sampled_from(sorted(OLD)))
def test_a_flipped_bit_is_noticed(tmp_path_factory, where, bit, name):
    target = tmp_path_factory.mktemp("flip") / "model"
    write(target, OLD)
    data = bytearray((target / name).read_bytes())
    data[where % len(data)] ^= 1 << bit
    (target / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="another SHA-256") as error:
        verify_folder(target, sorted(OLD), REMEDY)
    assert REMEDY.capitalize() in str(error.value)
    (target / MANIFEST).unlink()  # the other remedy that the message names
    verify_folder(target, sorted(OLD), REMEDY)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"../x": {"bytes": 1, "sha256": "0"}}}',
     '{"format": 1, "files": {"config.json": 3}}', '{"format": 1, "files": []}', "\x00\xff", "[" * 100_000],
)  # fmt: skip
def test_a_damaged_manifest_is_named(tmp_path, text):
    write(tmp_path / "model", OLD)
    (tmp_path / "model" / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged|not listed"):
        verify_folder(tmp_path / "model", ["config.json"], REMEDY)


def test_missing_folders_and_files_are_said_with_the_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=f"no folder .*nope; {REMEDY}"):
        verify_folder(tmp_path / "nope", ["config.json"], REMEDY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"holds no config.json and no weights; {REMEDY}"):
        verify_folder(tmp_path / "empty", ["config.json", "weights"], REMEDY)


def test_a_sweep_removes_what_is_unlocked_and_keeps_what_is_in_use(tmp_path):
    (tmp_path / ".tmp-0123456789ab").mkdir()
    (tmp_path / ".tmp-0123456789ab" / "x").write_text("x")
    (tmp_path / ".tmp-12345-results.json").write_text("of an earlier version")
    (tmp_path / ".tmp-checkpoint-a1_b2c3d").mkdir()
    (tmp_path / ".tmp-notes").write_text("somebody else's")
    with staging.staging(tmp_path) as alive:
        staging.sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {alive.name, ".tmp-notes"}
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-notes"]


def test_threads_that_save_the_same_folder_leave_one_whole_save(tmp_path):
    write(tmp_path / "model", OLD)
    versions = [dict.fromkeys(OLD, f"{i}") for i in range(8)]
    threads = [threading.Thread(target=write, args=(tmp_path / "model", v)) for v in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(tmp_path / "model") in versions
    verify_folder(tmp_path / "model", sorted(OLD), REMEDY)


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                          lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_a_sealed_file_gives_back_what_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("seal") / "x.json"
    files.write_sealed(path, value)
    expected = json.loads(json.dumps(value))
    assert files.read_sealed(path, REMEDY) == expected


def test_a_changed_digit_of_a_sealed_file_is_noticed(tmp_path):
    files.write_sealed(tmp_path / "x.json", {"success": "0110"}, indent=1)
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text().replace("0110", "1110"))
    with pytest.raises(CheckpointError, match=REMEDY):
        files.read_sealed(tmp_path / "x.json", REMEDY)
    (tmp_path / "x.json").write_text('{"success": "0110"}')
    with pytest.raises(CheckpointError, match="earlier version"):
        files.read_sealed(tmp_path / "x.json", REMEDY)
    assert files.read_sealed(tmp_path / "x.json", REMEDY, required=False) == {"success": "0110"}


def test_seal_folder_lists_files_in_place(tmp_path):
    (tmp_path / "a").write_text("a")
    folders.seal_folder(tmp_path)
    verify_folder(tmp_path, ["a"], REMEDY)
    (tmp_path / "a").write_text("b")
    with pytest.raises(CheckpointError, match="SHA-256"):
        verify_folder(tmp_path, ["a"], REMEDY)


def test_a_removal_that_is_interrupted_leaves_the_folder_whole_or_only_a_leftover(tmp_path, monkeypatch):
    from worldgym.utils import staging

    folder = tmp_path / "checkpoint"
    (folder / "inner").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(staging.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            staging.discard(folder)
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    staging.sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    staging.discard(folder)
