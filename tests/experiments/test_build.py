"""`worldgym build`: recipes are read and checked as a whole, and a build goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiments.cli import main
from experiments.commands.build import check_data
from experiments.pipelines.build import Build, StageFailedError, stage_index
from experiments.pipelines.recipe import Recipe, Stage, arguments_of, read_recipe
from worldgym.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def write(folder: Path, stages, **more) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "stages": stages, **more}, sort_keys=False))
    return path


def test_values_keep_their_types_and_shares_divide_the_hours(tmp_path):
    stages = [
        {"collect": {"out": "$out/data", "episodes": "$episodes", "mix": {"expert": 1}, "tasks": ["a", "b"]}},
        {"train tokenizer": {"data": "$out/data", "out": "$out/t-$episodes", "minutes": {"share": 0.5}}},
    ]
    path = write(tmp_path, stages, values={"episodes": 7}, hours=2)
    recipe = read_recipe(path, Path("x"), values={"episodes": 9})
    first, second = recipe.stages
    assert first.line == "worldgym collect --out x/data --episodes 9 --mix.expert 1 --tasks a b"
    assert second.line == "worldgym train tokenizer --data x/data --out x/t-9 --minutes 60.0"
    assert (second.name, second.minutes, recipe.minutes) == ("train tokenizer t-9", 60.0, 60.0)
    assert read_recipe(path, Path("x"), hours=1).stages[1].minutes == 30.0


def test_a_recipe_takes_stages_and_values_from_its_base(tmp_path):
    stages = [{"collect": {"out": "$out/data", "episodes": "$episodes", "suite": "$suite"}}]
    write(tmp_path, stages, values={"episodes": 7, "suite": None}, hours=2, about="below")
    (tmp_path / "sub").mkdir()
    above = tmp_path / "sub" / "above.yaml"
    above.write_text("{base: ../mine.yaml, values: {episodes: 9}}")
    recipe = read_recipe(above, Path("x"))
    assert (recipe.name, recipe.about, recipe.hours) == ("above", "below", 2.0)
    assert recipe.stages[0].line == "worldgym collect --out x/data --episodes 9"
    assert read_recipe(above, Path("x"), values={"suite": "mine"}).stages[0].line.endswith("--episodes 9 --suite mine")
    (tmp_path / "third.yaml").write_text("base: sub/above.yaml")
    for text, said in {
        "{base: ../mine.yaml, values: {colour: 1}}": "has no values ['colour']; it has episodes, suite",
        "{base: ../mine.yaml, stages: [{info: {}}]}": "in place of `stages`",
        "{base: [1]}": "in place of `stages`",
        "{base: nothing.yaml}": "no recipe",
        "{base: ../third.yaml}": "in place of `stages`",
    }.items():
        above.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_recipe(above, Path("x"))
        assert said in str(caught.value)


def test_options_are_written_as_a_person_would_type_them():
    options = {
        "steps": 3, "use_state": False, "compile": True, "probe": None, "mix": {"near_miss": 0.1}, "seeds": [0, 1],
    }  # fmt: skip
    assert arguments_of({**options, "_": ["C1"]}) == [
        "C1", "--steps", "3", "--no-use-state", "--compile", "--mix.near_miss", "0.1", "--seeds", "0", "1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stages: []", "list of `stages`"),
        ("- 1", "list of `stages`"),
        ("a: [", "not YAML"),
        ("{stages: [{info: {}}], colour: red}", "unknown keys"),
        ("{stages: [{info: {}, list: {}}]}", "stage 1: expected one command"),
        ("{stages: [{info: [1]}]}", "expected a mapping"),
        ("{stages: [{collect: {out: $where/data}}]}", "where"),
        ("{stages: [{info: {}}, {info: {}}]}", "give each a `name`"),
        ("{stages: [{info: {}, needs: [luck]}]}", "unknown needs"),
        ("{stages: [{info: {}, needs: labels}]}", "`needs` is 'labels'; expected a list"),
        ("{stages: [{info: {}, accept: 1}]}", "`accept` is 1; expected a list"),
        ("{stages: [{info: {}, minutes: -5}]}", "`minutes` is -5; expected a number above 0"),
        ("{stages: [{info: {minutes: {share: abc}}}]}", "`share` is 'abc'"),
        ("{stages: [{info: {_: abc}}]}", "expected a list"),
        ("{stages: [{info: {a: 'b$'}}]}", "for a dollar"),
        ("{stages: [{info: &o {x: *o}}]}", "refer to themselves"),
        ("{stages: [{5: {}}]}", "expected one command"),
        ("{stages: [{info: {}, environment: abc}]}", "`environment` is 'abc'"),
        ("{stages: [{info: {}, environment: {'A=B': x}}]}", "expected names of variables"),
        ("{stages: [{info: {}}], hours: abc}", "`hours` is 'abc'"),
        ("{stages: [{info: {}}], values: [1]}", "expected names with values"),
        ("{stages: [{info: {}}], values: {out: x}}", "none named out"),
        ("{stages: [{info: {}}], 5: 3}", "unknown keys"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path, tmp_path)


def test_a_missing_recipe_a_missing_value_and_no_time_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no recipe"):
        read_recipe(tmp_path / "none.yaml", tmp_path)
    path = write(tmp_path, [{"info": {}}], values={"episodes": 1})
    with pytest.raises(ConfigError, match="no values"):
        read_recipe(path, tmp_path, values={"epochs": 2})
    with pytest.raises(ConfigError, match="hours"):
        read_recipe(path, tmp_path, hours=0)


def test_every_stage_is_checked_before_the_first_one_runs(tmp_path, capsys):
    path = write(tmp_path, [{"list": {}}, {"calibrate": {"episodes": 1}}])
    assert main(["build", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "stage 'calibrate'" in capsys.readouterr().err and not (tmp_path / "out").exists()
    path = write(tmp_path, [{"make coffee": {}}])
    assert main(["build", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "no command 'make coffee'" in capsys.readouterr().err


def test_a_build_goes_on_where_it_failed_and_repeats_nothing(tmp_path, capfd):
    out = tmp_path / "out"
    check = {"name": "check", "data check": {"_": [str(tmp_path / "data")]}}
    path = write(tmp_path, [{"list": {}}, check])
    command = ["build", str(path), "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0 and not out.exists()
    assert main(command) == 2
    assert "stage 'check' failed" in capfd.readouterr().err
    state = json.loads((out / "build.json").read_text())
    assert "seconds" in state["stages"]["list"] and "seconds" not in state["stages"]["check"]
    assert "begun" in (out / "build.html").read_text()
    path = write(tmp_path, [{"list": {}}, {**check, "accept": [0, 2]}])  # the same options, another judgement of them
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert "[2/2] check" in printed and "[1/2]" not in printed and "done in" in printed
    assert main(command) == 0 and "[2/2]" not in capfd.readouterr().out


def test_other_options_of_a_finished_stage_are_refused_until_it_is_removed(tmp_path):
    def build(seed):
        stages = (
            Stage("data", ("collect",), ("--out", str(tmp_path / "data"), "--seed", str(seed))),
            Stage("judge", ("train", "judge"), ("--out", str(tmp_path / "judge"))),
            Stage("more", ("collect",), ("--out", str(tmp_path / "data"), "--seed", "9")),
        )
        return Build(Recipe("r", "", 1.0, stages), tmp_path)

    first = build(0)
    for stage in first.recipe.stages:
        first.done[stage.name] = {"line": stage.line, "code": 0, "seconds": 1.0}
    first._save()
    for name in ("data", "judge"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="--from data"):
        build(1).check(lambda stage: None)
    again = build(0)
    again.check(lambda stage: None)
    assert not again.left
    with pytest.raises(ConfigError, match="so does the earlier stage 'data'"):
        again.start_from("judge")  # the last stage extends the dataset of the first, which would stay
    assert (tmp_path / "judge").is_dir() and not build(0).left, "nothing was removed"
    assert again.start_from("data") == [str(tmp_path / "data"), str(tmp_path / "judge")]
    assert [stage.name for stage in build(0).left] == ["data", "judge", "more"]
    with pytest.raises(ConfigError, match="no stage 'coffee': type the number or the name of one of 1 data, 2"):
        again.start_from("coffee")
    with pytest.raises(ConfigError, match="another --out"):
        Build(Recipe("other", "", 1.0, ()), tmp_path)


def made(folder: Path, *done: str, begun: str = "", inserted: bool = False) -> Build:
    names = ["one", "new", "two"] if inserted else ["one", "two"]
    stages = tuple(Stage(name, ("list",), ("--out", str(folder / name))) for name in names)
    build = Build(Recipe("r", "", 1.0, stages), folder)
    for stage in stages:
        if stage.name in done:
            build.done[stage.name] = {"line": stage.line, "code": 0, "seconds": 1.0}
            (folder / stage.name).mkdir(parents=True, exist_ok=True)
    if begun:
        build.done[begun] = {"line": "worldgym list --out elsewhere"}
    build._save()
    return build


def test_old_and_new_parts_are_not_mixed(tmp_path):
    def nothing(stage):
        return None

    build = made(tmp_path / "a", "one", begun="two")
    (tmp_path / "a" / "two").mkdir()
    with pytest.raises(ConfigError, match="begun with other options"):
        build.check(nothing)
    with pytest.raises(ConfigError, match="'new' has not been built, and 'two' after it has"):
        made(tmp_path / "b", "one", "two", inserted=True).check(nothing)
    build = made(tmp_path / "c", "one", "two")
    (tmp_path / "c" / "one").rmdir()
    with pytest.raises(ConfigError, match="is missing"):
        build.check(nothing)
    build.check(nothing, start="one")


def test_nothing_outside_the_folder_is_removed_and_links_are_not_followed(tmp_path):
    out, precious, big = tmp_path / "out", tmp_path / "precious", tmp_path / "big"
    for folder in (out, precious, big):
        folder.mkdir()
    (big / "file").write_text("x")
    (out / "link").symlink_to(big)
    stages = (
        Stage("a", ("list",), ("--out", str(out / ".." / "precious"))),
        Stage("b", ("list",), ("--out", str(out / "link"))),
    )
    build = Build(Recipe("r", "", 1.0, stages), out)
    build.done = {stage.name: {"line": stage.line, "code": 0, "seconds": 1.0} for stage in stages}
    assert build.start_from("a") == [str(out / "link")]
    assert precious.is_dir() and (big / "file").is_file() and not (out / "link").exists()


def test_a_wrong_option_is_found_before_anything_is_removed(tmp_path, capsys):
    out = tmp_path / "out"
    path = write(tmp_path, [{"list": {}}])
    assert main(["build", str(path), "--out", str(out)]) == 0
    (out / "build.html").write_text("kept")
    path = write(tmp_path, [{"list": {"colour": "red"}}])
    assert main(["build", str(path), "--out", str(out), "--from", "list"]) == 2
    assert json.loads((out / "build.json").read_text())["stages"], "still recorded"
    assert main(["build", str(path), "--out", str(out), "--from", "nope", "--dry-run"]) == 2
    capsys.readouterr()


def test_a_judge_is_not_trained_on_data_without_both_outcomes(tmp_path):
    data = tmp_path / "data"
    assert main(["collect", "--out", str(data), "--episodes", "2", "--workers", "0", "--horizon", "3",
                 "--mix", "random=1"]) == 0  # fmt: skip
    stage = Stage("judge", ("train", "judge"), (), needs=("labels",), data=data)
    with pytest.raises(ConfigError, match="failures only"):
        check_data(stage)
    check_data(Stage("tokenizer", ("train", "tokenizer"), (), data=data))


def test_a_second_build_in_the_same_folder_is_refused(tmp_path):
    stage = Stage("info", ("info",), ())
    first, second = (Build(Recipe("r", "", 1.0, (stage,)), tmp_path / "out") for _ in range(2))

    def meanwhile(*_):
        with pytest.raises(ConfigError, match="another `worldgym build` runs in"):
            second.run(lambda *_: None, lambda _: None)
        raise StopIteration

    with pytest.raises(StopIteration):
        first.run(meanwhile, lambda _: None)
    second.run(lambda *_: None, lambda _: None)
    assert not second.left


@pytest.mark.parametrize(("code", "kept"), [(0, True), (1, False), (130, False)])
def test_a_stage_that_ended_after_ctrl_c_is_recorded(tmp_path, monkeypatch, code, kept):
    recipe = Recipe("r", "", 1.0, (Stage("info", ("info",), ()), Stage("list", ("list",), ())))
    monkeypatch.setattr("experiments.pipelines.build.execute", lambda stage: (code, True))
    with pytest.raises(KeyboardInterrupt):
        Build(recipe, tmp_path).run(lambda *_: None, lambda _: None)
    assert [stage.name for stage in Build(recipe, tmp_path).left] == (["list"] if kept else ["info", "list"])


def test_a_stage_that_leaves_no_episode_out_is_refused(tmp_path):
    data = tmp_path / "data"
    assert main(["collect", "--out", str(data), "--episodes", "2", "--workers", "0", "--horizon", "3",
                 "--mix", "random=1"]) == 0  # fmt: skip
    needs = {"needs": ("left_out",), "data": data}
    check_data(Stage("tokenizer", ("train", "tokenizer"), ("--limit", "1"), **needs))
    with pytest.raises(ConfigError, match="has no `limit`"):
        check_data(Stage("tokenizer", ("train", "tokenizer"), (), **needs))
    with pytest.raises(ConfigError, match="first 2 episodes, and .* has 2: none is left out"):
        check_data(Stage("tokenizer", ("train", "tokenizer"), ("--limit", "2"), **needs))


def test_values_without_a_default_are_asked_for(tmp_path):
    stages = [{"collect": {"out": "$where", "episodes": "$episodes"}}]
    path = write(tmp_path, stages, values={"where": None, "episodes": None}, required=["where", "episodes"])
    with pytest.raises(ConfigError, match=r"needs values: type --set where=\.\.\. episodes=\.\.\."):
        read_recipe(path, Path("x"))
    assert read_recipe(path, Path("x"), values={"where": "a", "episodes": 1}).stages


def test_options_may_change_while_a_stage_has_made_nothing(tmp_path):
    def build(word):
        stage = Stage("check", ("data", "check"), (word, "--out", str(tmp_path / "out" / "x")))
        return Build(Recipe("r", "", 1.0, (stage,)), tmp_path / "out")

    first = build("a")
    with pytest.raises(StageFailedError):
        first.run(lambda *_: None, lambda _: None)
    build("b").check(lambda _: None)
    (tmp_path / "out" / "x").mkdir()
    with pytest.raises(ConfigError, match="begun with other options"):
        build("b").check(lambda _: None)


@pytest.mark.skipif(sys.platform != "linux", reason="the end of the parent is only noticed on Linux")
def test_a_stage_ends_when_its_build_is_killed():
    code = (
        "from experiments.pipelines.build import execute; from experiments.pipelines.recipe import Stage; "
        "execute(Stage('x', (), ()), ('sh', '-c', 'echo $$; exec sleep 60'))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the stage still runs")


def test_a_stage_that_fails_stops_the_build(tmp_path):
    stage = Stage("no", ("data", "check"), (str(tmp_path / "nothing"),))
    build = Build(Recipe("r", "", 1.0, (stage,)), tmp_path / "out")
    with pytest.raises(StageFailedError, match="exit code 2"):
        build.run(lambda *_: None, lambda _: None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path, tmp_path, capsys):
    source = ["--set", "source=recorded", "train=2"] if "recordings" in str(path) else []
    assert main(["build", str(path), "--dry-run", "--out", str(tmp_path / "out"), *source]) == 0
    assert "hours on two cores" in capsys.readouterr().out


def test_a_stage_is_named_by_its_number_or_by_a_part_of_one_name_only():
    names = ["collect data", "train judge judge_first", "train judge judge", "card"]
    for given, index in (("card", 3), ("2", 1), ("train judge judge", 2), ("data", 0), ("first", 1)):
        assert stage_index(names, given) == index
    several = "2 train judge judge_first, 3 train judge judge$"
    for given, listed in (("judge", several), ("5", "4 card$"), ("", "4 card$")):
        with pytest.raises(ConfigError, match=listed):
            stage_index(names, given)
