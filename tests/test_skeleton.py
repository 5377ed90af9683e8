"""The skeleton: a light import, clear messages, and a command line that explains mistakes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

import worldgym
from experiments import cli
from experiments.commands import info
from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError, DependencyError, RenderingError, WorldgymError
from worldgym.utils import egl, files, gl, optional, progress, shadow


def run_python(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        timeout=240,
    )


# --- importing worldgym -----------------------------------------------------------------------------------------------


def test_import_is_light_and_registers_every_id():
    code = (
        "import sys, json, gymnasium\n"
        "import worldgym\n"
        "heavy = ('torch', 'mujoco', 'transformers', 'envs', 'rewards', 'agents')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
        "print(json.dumps(sorted(i for i in gymnasium.registry if i.startswith('worldgym/'))))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    heavy, ids = map(json.loads, done.stdout.splitlines())
    assert heavy == []
    assert ids == [
        "worldgym/ActionRepeat-v0",
        "worldgym/Held-v0",
        "worldgym/Imagined-v0",
        "worldgym/ImaginedMetaWorld-v0",
        "worldgym/ImaginedTabletop-v0",
        "worldgym/MetaWorld-v0",
        "worldgym/Tabletop-v0",
    ]


def test_import_takes_less_than_0_4_s_of_cpu():
    # CPU time of the import alone; the best of three, because the machine may be busy.
    code = "import time, gymnasium; t = time.process_time(); import worldgym; print(time.process_time() - t)"
    assert min(float(run_python(code).stdout) for _ in range(3)) < 0.4


def test_the_prefixed_id_registers_itself_in_a_fresh_process():
    # What a remote worker does: it knows the id alone. `gym.make` resolves the prefix before anything else.
    code = (
        "import gymnasium\n"
        "try:\n    gymnasium.make('worldgym:worldgym/Imagined-v0', no_such_setting=1)\n"
        "except gymnasium.error.NameNotFound:\n    raise\n"
        "except Exception:\n    pass\n"
        "print('worldgym/Imagined-v0' in gymnasium.registry)"
    )
    done = run_python(code)
    assert done.stdout.strip() == "True", done.stderr


def test_registering_twice_changes_nothing():
    before = dict(gym.registry)
    worldgym.register_environments()
    assert gym.registry == before


def test_an_unknown_id_names_the_near_one():
    with pytest.raises(gym.error.NameNotFound, match="ImaginedTabletop"):
        gym.make("worldgym/ImaginedTablet-v0")


def test_every_promised_attribute_resolves():
    for name in worldgym.__all__:
        assert getattr(worldgym, name) is not None
    assert set(worldgym.__all__) <= set(dir(worldgym))


def test_an_unknown_attribute_lists_what_there_is():
    with pytest.raises(AttributeError, match="WorldModelEnv"):
        worldgym.WorldModel5D  # noqa: B018


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_a_missing_optional_package_names_its_extra():
    with pytest.raises(DependencyError, match=r'pip install "worldgym\[sb3\]"'):
        optional.require("no_such_package_anywhere", extra="sb3")
    assert optional.require("json") is json


def test_missing_egl_names_the_debian_package(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(egl, "LIBRARY", "libNoSuchEGL.so.1")
    with pytest.raises(RenderingError, match="apt-get install -y libegl1"):
        gl.require_gl()
    report = gl.gl_report()
    assert not report.works and "libegl1" in report.detail


def test_a_machine_without_display_gets_egl(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert gl.choose_backend() == "egl"
    assert os.environ["MUJOCO_GL"] == "egl"


def test_own_packages_are_found_as_ours():
    assert shadow.find_shadowed() == []
    shadow.require_own_packages()


def test_a_shadowing_package_is_named_with_its_place(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    code = (
        "from worldgym.utils.shadow import require_own_packages, find_shadowed\n"
        "print([s.name for s in find_shadowed()])\n"
        "require_own_packages()"
    )
    done = run_python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stdout.strip() == "['agents']"
    assert str(tmp_path / "agents") in done.stderr and "virtual environment" in done.stderr


def test_a_shadowing_distribution_is_named(tmp_path):
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("")
    meta = tmp_path / "other_rewards-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: other-rewards\nVersion: 1.0\n")
    (meta / "RECORD").write_text("rewards/__init__.py,,\n")
    (meta / "top_level.txt").write_text("rewards\n")
    done = run_python(
        "from worldgym.utils.shadow import find_shadowed; print(find_shadowed()[0])",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    assert "other-rewards" in done.stdout, done.stderr


def test_a_shadowed_command_line_is_explained(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "worldgym", "info"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert str(tmp_path / "experiments") in done.stderr and "Traceback" not in done.stderr


@given(before=st.binary(max_size=64), after=st.binary(max_size=64))
def test_atomic_write_replaces_the_whole_file(tmp_path_factory, before, after):
    path = tmp_path_factory.mktemp("atomic") / "deep" / "file"
    files.atomic_write_bytes(path, before)
    files.atomic_write_bytes(path, after)
    assert path.read_bytes() == after
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_survives_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.atomic_write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.9, "59s"), (75, "1m15s"), (3660, "1h01m")])
def test_durations_are_short(seconds, text):
    assert progress.format_seconds(seconds) == text


def test_progress_without_a_terminal_logs_lines_and_draws_no_bar(caplog, capsys):
    with caplog.at_level("INFO"), progress.Progress(4, "collect", every=0.0, terminal=False) as bar:
        for _ in range(4):
            bar.update(loss=0.5)
    assert "collect 4/4" in caplog.text and "loss=0.5" in caplog.text
    assert "\r" not in capsys.readouterr().err


def test_progress_on_a_terminal_draws_a_bar(capsys):
    with progress.Progress(2, "train", terminal=True) as bar:
        bar.update(2, loss=1.0)
    assert "train" in capsys.readouterr().err


# --- bundled checkpoints ----------------------------------------------------------------------------------------------


def test_an_unknown_checkpoint_lists_what_exists(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "tabletop-small", tasks=["reach", "push"])
    monkeypatch.setattr(pretrained, "_ROOT", tmp_path)
    with pytest.raises(CheckpointError, match="there is tabletop-small"):
        pretrained.path("tabletop-huge")
    with pytest.raises(CheckpointError, match="it has world_model"):
        pretrained.path("tabletop-small", "judge")
    assert pretrained.path("tabletop-small", "world_model").is_dir()


def test_a_checkpoint_is_found_by_its_suite_if_there_is_one_of_it(tmp_path, monkeypatch):
    for name in ("tabletop-small", "tabletop-base", "other"):
        make_checkpoint(tmp_path / name, tasks=["reach"])
        card = tmp_path / name / "card.json"
        suite = "kitchen" if name == "other" else "tabletop"
        card.write_text(json.dumps({**json.loads(card.read_text()), "suite": suite}))
    monkeypatch.setattr(pretrained, "_ROOT", tmp_path)
    assert pretrained.path("kitchen") == tmp_path / "other"
    with pytest.raises(CheckpointError, match="several checkpoints .*'tabletop'.* tabletop-base, tabletop-small"):
        pretrained.path("tabletop")


def test_a_card_says_what_a_checkpoint_covers(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "tabletop-small", tasks=["reach", "push"])
    (tmp_path / "not-a-checkpoint").mkdir()
    monkeypatch.setattr(pretrained, "_ROOT", tmp_path)
    assert pretrained.names() == ["tabletop-small"]
    card = pretrained.card("tabletop-small")
    assert card.tasks == ("reach", "push") and card.parts == ("world_model",) and card.megabytes > 0
    assert "covers reach, push" in info.as_text(info.gather())


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": 3}'])
def test_a_damaged_card_is_reported_and_info_goes_on(tmp_path, monkeypatch, text):
    make_checkpoint(tmp_path / "tabletop-small", tasks=[])
    (tmp_path / "tabletop-small" / "card.json").write_text(text)
    monkeypatch.setattr(pretrained, "_ROOT", tmp_path)
    with pytest.raises(CheckpointError, match="can't be read"):
        pretrained.card("tabletop-small")
    assert "damaged" in str(info._checkpoints())


def make_checkpoint(folder: Path, tasks: list[str]) -> None:
    (folder / "world_model").mkdir(parents=True)
    (folder / "world_model" / "model.safetensors").write_bytes(b"0" * 100)
    (folder / "card.json").write_text(json.dumps({"tasks": tasks}))


# --- the command line -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeConfig:
    """A command for tests."""

    fail: str = ""
    steps: int = 3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1. Try --steps 3.")


@pytest.fixture
def fake_command(monkeypatch):
    """The commands `fake` and `train fake`, whose `run` raises what `--fail` names."""
    errors = {
        "known": ConfigError("horizon is 0. Try --horizon 40."),
        "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
        "read_only": OSError(errno.EROFS, "Read-only file system", "runs/a"),
        "folder": IsADirectoryError(errno.EISDIR, "Is a directory", "runs/a"),
        "memory": MemoryError("36 GiB"),
        "disk": OSError(errno.ENOSPC, "No space left on device", "runs/a"),
        "interrupt": KeyboardInterrupt(),
        "bug": RuntimeError("a bug"),
        "missing": ModuleNotFoundError("No module named 'ray'", name="ray"),
    }
    seen = []

    def run(config: FakeConfig) -> int:
        seen.append(config)
        if config.fail:
            raise errors[config.fail]
        return 0

    module = types.ModuleType("experiments.commands.fake")
    module.__dict__.update(FakeConfig=FakeConfig, run=run)
    monkeypatch.setitem(sys.modules, "experiments.commands.fake", module)
    monkeypatch.setitem(cli.COMMANDS, ("fake",), cli.Command("fake", "FakeConfig", "for tests"))
    monkeypatch.setitem(cli.COMMANDS, ("train", "fake"), cli.Command("fake", "FakeConfig", "x", resumes=True))
    monkeypatch.delenv("WORLDGYM_DEBUG", raising=False)
    return seen


def test_a_command_gets_its_config(fake_command):
    assert cli.main(["fake", "--steps", "7"]) == 0
    assert fake_command == [FakeConfig(steps=7)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fake", "--fail", "known"], "worldgym fake: horizon is 0. Try --horizon 40."),
        (["fake", "--steps", "0"], "steps is 0; it must be at least 1"),
        (["fake", "--fail", "disk"], "the disk is full while writing runs/a"),
        (["fake", "--fail", "quota"], "the disk quota is used up. What was saved before is intact"),
        (["fake", "--fail", "read_only"], "no permission for runs/a"),
        (["fake", "--fail", "folder"], "runs/a: Is a directory; it is a folder; give a file"),
        (["fake", "--fail", "memory"], "out of memory (36 GiB)"),
        (["fake", "--fail", "missing"], "the package 'ray' is missing"),
    ],
)
def test_known_mistakes_print_one_message_and_exit_with_2(fake_command, capsys, arguments, text):
    with_exit = None
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:  # tyro ends the process itself for what it can explain
        with_exit, code = exit_, exit_.code
    printed = capsys.readouterr()
    assert code == 2, with_exit
    assert text in printed.err + printed.out and "Traceback" not in printed.err


def test_a_bug_keeps_its_traceback(fake_command):
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["fake", "--fail", "bug"])


def test_debugging_shows_the_traceback_of_known_mistakes(fake_command, monkeypatch):
    monkeypatch.setenv("WORLDGYM_DEBUG", "1")
    with pytest.raises(WorldgymError):
        cli.main(["fake", "--fail", "known"])


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(fake_command, capsys):
    assert cli.main(["train", "fake", "--fail", "interrupt"]) == 130
    assert "same command again:\n  worldgym train fake --fail interrupt" in capsys.readouterr().err
    assert cli.main(["fake", "--fail", "interrupt"]) == 130
    assert "keeps no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inf"], "Did you mean 'info'?"),
        (["train", "worldmodel"], "worldgym train world-model"),
        (["train"], "judge"),
    ],
)
def test_an_unknown_command_lists_the_known_ones(capsys, arguments, text):
    assert cli.main(arguments) == 2
    assert text in capsys.readouterr().err


def test_help_and_version_need_no_command(capsys):
    for arguments in ([], ["--help"], ["train", "--help"], ["--version"]):
        assert cli.main(arguments) == 0
    assert worldgym.__version__ in capsys.readouterr().out


def test_the_list_of_commands_holds_every_command_once():
    from experiments.cli import COMMANDS, usage

    lines = [line.strip() for line in usage().splitlines()]
    for words, command in COMMANDS.items():
        assert (
            sum(
                line.startswith(f"worldgym {' '.join(words)}  ") and line.endswith(command.help)
                for line in lines
            )
            == 1
        )


def test_the_help_is_found_without_torch():
    done = run_python(
        "import sys; from experiments import cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", sorted(cli.COMMANDS), ids="-".join)
def test_every_command_shows_its_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    assert f"worldgym {' '.join(words)}" in capsys.readouterr().out


def test_a_mistyped_option_ends_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", "--jsn"])
    assert ended.value.code == 2


def test_info_reports_versions_device_and_gl():
    done = subprocess.run(
        [sys.executable, "-m", "worldgym", "info", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["worldgym"] == worldgym.__version__
    assert report["packages"]["torch"] and report["torch"]["device"]
    assert report["gl"]["backend"] and report["gl"]["works"] == bool(report["gl"]["driver"])
    assert report["shadowed"] == []
    text = info.as_text(report)
    assert "gymnasium" in text and "worldgym/Tabletop-v0" in text


def test_info_survives_a_broken_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "can't be imported" in info._torch()["error"]
