"""Claims: rules on made-up results, all arms at toy size, pages that follow from the results alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tabletop.grammar import task_of
from experiments.bundle import folder_hash
from experiments.claims import ARMS, CLAIMS, c2, c20, e2, find_arm
from experiments.claims.arms import run_arm
from experiments.claims.context import ClaimContext
from experiments.claims.presets import PRESETS
from experiments.claims.records import Records, code_hash, pack, unpack
from experiments.claims.report import write_report
from experiments.cli import main
from experiments.commands.claims import ClaimsReportConfig, ClaimsRunConfig, fill, todo
from worldgym.errors import CheckpointError, ConfigError

SMALL = PRESETS["small"]
STARTS = 120


def made_up(folder, rates, seeds=(0, 1, 2), spread=0.0):
    """Results in which `claim-arm` succeeds at a rate, on nested starts (so that pairs agree)."""
    records = Records(folder, "small")
    for (claim, arm), rate in rates.items():
        for seed in (0,) if arm in ARMS and not ARMS[arm].seeded else seeds:
            rng = np.random.default_rng(seed)
            won = rng.permutation(STARTS) < STARTS * (rate + spread * (seed - 1))
            text = pack(np.roll(won, 0))
            row = {"success": text, "progress": [1.0] * STARTS, "steps": 100}
            splits = (ARMS[arm].splits if arm in ARMS else ()) or SMALL.splits
            names = [f"{s}/greedy" for s in splits] + ["seen/sampled"]
            names += ["looked/real", "looked/soft", "looked/imagined"]
            records.write(
                claim, arm, seed,
                {
                    "label": arm, "settings": {}, "hashes": {"world_model": "x"}, "versions": {"worldgym": "0"},
                    "tasks": ["reach", "push"], "budget": {"updates": 1.0, "wall_seconds": 2.0},
                    "way": [{"round": 1.0, "steps": 10.0, "true": rate, "imagined": rate, "seconds": 1.0}],
                    "evaluations": dict.fromkeys(names, row),
                },
            )  # fmt: skip
    return records


def c1_rates(rl=0.8, sft=0.5, control=0.5):
    rest = {("C1", arm): control for arm in ("bc_only", "filtered_bc", "iter_sft")}
    return {("C1", "sft"): sft, ("C1", "imagined_rl"): rl, **rest}


def c2_rates(soft, **c1):
    return {**c1_rates(**c1), **{arm: rate for (_, arm), rate in zip(c2.swept(SMALL), soft, strict=True)}}


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_outcomes_survive_being_packed(values):
    assert unpack(pack(np.array(values))).tolist() == values


def test_a_hash_changes_with_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("x")
    first = folder_hash(tmp_path)
    (tmp_path / "a").write_text("y")
    second = folder_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, folder_hash(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("rates", "seeds", "wanted"),
    [
        (c1_rates(), (0, 1, 2), "supported"),
        (c1_rates(rl=0.5), (0, 1, 2), "refuted"),
        (c1_rates(rl=0.3), (0, 1, 2), "refuted"),
        (c1_rates(control=0.8), (0, 1, 2), "inconclusive"),
        (c1_rates(), (0, 1), "inconclusive"),
    ],
)
def test_c1_follows_its_rule(tmp_path, rates, seeds, wanted):
    verdict = CLAIMS["C1"].decide(made_up(tmp_path, rates, seeds), SMALL)
    assert (verdict.verdict, verdict.seeds) == (wanted, len(seeds)), verdict.why
    assert verdict.effect.mean == pytest.approx(rates["C1", "imagined_rl"] - rates["C1", "sft"], abs=0.12)


def test_the_ratio_to_sft_is_in_the_report_beside_the_difference(tmp_path):
    verdict = CLAIMS["C1"].decide(made_up(tmp_path, c1_rates()), SMALL)
    ratio = verdict.to_dict()["ratio"]
    assert ratio["mean"] == pytest.approx(0.8 / 0.5, abs=0.05)
    assert ratio["low"] <= ratio["mean"] <= ratio["high"]


def test_results_of_different_checkpoints_are_not_compared(tmp_path):
    records = made_up(tmp_path, c1_rates())
    facts = records.read("C1", "imagined_rl", 1)
    records.write("C1", "imagined_rl", 1, {**facts, "hashes": {"world_model": "y"}})
    verdict = CLAIMS["C1"].decide(records, SMALL)
    assert verdict.verdict == "inconclusive" and verdict.effect is None
    assert "world_model x, y" in verdict.why and "worldgym claims run C1 --again" in verdict.why


def test_without_results_nothing_is_decided_and_what_is_missing_is_named(tmp_path):
    for name, claim in CLAIMS.items():
        verdict = claim.decide(Records(tmp_path, "small"), SMALL)
        assert verdict.verdict == "not measured" and verdict.effect is None and "without results" in verdict.why, name
    with pytest.raises(CheckpointError, match="worldgym claims run C1"):
        Records(tmp_path, "small").read("C1", "sft", 0)


@pytest.mark.parametrize(
    ("soft", "wanted", "where"),
    [
        ((0.95, 0.9, 0.4, 0.3, 0.2), "supported", "cross at gap 0.3"),
        ((0.95, 0.9, 0.9, 0.9, 0.9), "refuted", "no crossing"),
        ((0.95, 0.9, 0.9, 0.9, 0.2), "inconclusive", "cross at gap 0.7"),
    ],
)
def test_c2_follows_its_rule_and_says_where_the_lines_cross(tmp_path, soft, wanted, where):
    verdict = CLAIMS["C2"].decide(made_up(tmp_path, c2_rates(soft)), SMALL)
    assert verdict.verdict == wanted and where in verdict.why, verdict.why


def test_where_the_lines_cross_has_an_interval_which_may_end_beyond_the_sweep(tmp_path):
    records = made_up(tmp_path / "a", c2_rates((0.85, 0.82, 0.78, 0.7, 0.6), rl=0.8), spread=0.01)
    low, high = c2.crosses(records, SMALL, [0, 1, 2])
    assert 0 <= low < 0.375 < high <= 1
    never = made_up(tmp_path / "b", c2_rates((0.95,) * 5, rl=0.5))
    assert c2.crosses(never, SMALL, [0, 1, 2]) == [float("inf")] * 2
    assert "beyond 1 to beyond 1" in CLAIMS["C2"].decide(never, SMALL).why


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_a_crossing_lies_where_the_sign_turns(values):
    gaps = [i / (len(values) - 1) for i in range(len(values))]
    at = c2.crossing(gaps, values)
    if at is None:
        assert max(values) <= 0 or values[0] <= 0
        assert not any(a <= 0 < b for a, b in zip(values, values[1:], strict=False))
    else:
        assert np.interp(at, gaps, values) == pytest.approx(0, abs=1e-6) or (at == 0 and values[0] > 0)


@pytest.mark.parametrize(
    ("own", "wanted", "where"),
    [
        ((0.5, 0.5, 0.55, 0.6, 0.6), "supported", "own episodes does not exceed imagined RL up to 800 episodes"),
        ((0.5, 0.6, 0.7, 0.85, 0.9), "inconclusive", "own episodes exceeds imagined RL from 400 episodes on"),
        ((0.9, 0.9, 0.9, 0.9, 0.9), "refuted", "own episodes exceeds imagined RL from 50 episodes on"),
    ],
)
def test_e1_says_how_many_episodes_exceed_imagined_rl(tmp_path, own, wanted, where):
    rates = c1_rates() | {("E1", f"own-{n}"): r for n, r in zip(SMALL.budgets, own, strict=True)}
    rates |= {("E1", f"demos-{n}"): 0.6 for n in SMALL.budgets}
    records = made_up(tmp_path / "data", rates)
    verdict = CLAIMS["E1"].decide(records, SMALL)
    assert verdict.verdict == wanted and where in verdict.why, verdict.why
    assert CLAIMS["E1"].figures(records, SMALL, [0, 1, 2])["episodes"].startswith("<svg")


@pytest.mark.parametrize(
    ("few", "cloned", "practised", "wanted"),
    [
        (0.2, 0.25, 0.6, "supported"), (0.3, 0.3, 0.4, "refuted"), (0.3, 0.8, 0.8, "refuted"),
        (0.3, 0.3, 0.7, "inconclusive"),
    ],
)  # fmt: skip
def test_e2_asks_for_the_published_ratio_and_for_more_than_cloning(tmp_path, few, cloned, practised, wanted):
    rates = {("E2", "few-10"): few, ("E2", "few_bc-10"): cloned, ("E2", "few_rl-10"): practised}
    records = made_up(tmp_path, {**c1_rates(), **rates}, spread=0.01)
    verdict = CLAIMS["E2"].decide(records, SMALL)
    assert verdict.verdict == wanted and "from the SFT policy of C1 the ratio is 1.6" in verdict.why


def test_few_demonstrations_are_the_first_of_each_verb(lab):
    demos, everything = e2.few_demonstrations(lab), lab.bundle.demonstrations()
    verbs = [task_of(demos.instructions[i]) for i in np.unique(demos.episode, return_index=True)[1]]
    assert 0 < max(map(verbs.count, verbs)) <= e2.DEMOS and len(demos) <= len(everything)
    assert demos.images.tobytes() == everything.images[np.isin(everything.episode, demos.episode)].tobytes()


def test_c20_ranks_every_policy_that_there_is(tmp_path):
    rates = dict(zip(c20.arms(SMALL), (0.7, 0.6, 0.5, 0.3, 0.2, 0.1), strict=True))
    records = made_up(tmp_path, rates)
    assert len(c20.pool(records)) == 1 + 3 * 5
    assert CLAIMS["C20"].decide(records, SMALL).verdict == "supported"
    for claim, arm, seed in c20.pool(records):  # an evaluator that is wrong about everything
        facts = records.read(claim, arm, seed)
        won = unpack(facts["evaluations"]["looked/real"]["success"])
        facts["evaluations"]["looked/imagined"] = {"success": pack(~won), "steps": 1}
        records.write(claim, arm, seed, facts)
    verdict = CLAIMS["C20"].decide(records, SMALL)
    assert verdict.verdict == "refuted" and verdict.effect.mean < -0.9


def test_pages_name_verdict_rule_seeds_cost_and_command_and_say_the_same_again(tmp_path):
    records = made_up(tmp_path / "data", c2_rates((0.95, 0.9, 0.4, 0.3, 0.2)))
    files = write_report(records, SMALL, tmp_path)
    page = (tmp_path / "C1.md").read_text()
    assert "**supported** (3 seeds)" in page and "worldgym claims run C1 --preset small --seeds 0 1 2" in page
    assert "Refuted if" in page and page.count(" / ") >= 8 and "| imagined_rl |" in page
    assert (tmp_path / "C2-gap.svg").read_text().startswith("<svg xmlns")
    before = {file: file.read_bytes() for file in files}
    assert write_report(records, SMALL, tmp_path) == files
    assert before == {file: file.read_bytes() for file in files}


def test_the_pages_in_the_repository_are_those_of_its_results(tmp_path):
    root = Path(__file__).parents[2] / "docs" / "results"
    records = Records(root / "data", "small")
    for file in write_report(records, SMALL, tmp_path):
        assert (root / file.name).read_text() == file.read_text(), "type: worldgym claims report"


def test_what_is_finished_is_not_run_again_and_other_claims_results_are_shared(tmp_path):
    config = ClaimsRunConfig(claims=("C1", "C2"), results=tmp_path, seeds=(0, 1))
    everything = todo(config, Records(tmp_path / "data", "small"))
    assert len(everything) == len(set(everything)) and everything.count(("C1", "sft", 0)) == 1
    assert ("C1", "imagined_rl", 1) in everything and ("C2", "imagined_rl", 0) not in everything
    made_up(tmp_path / "data", c1_rates(), seeds=(0,))
    left = todo(config, Records(tmp_path / "data", "small"))
    assert set(everything) - set(left) == {("C1", arm, 0) for _, arm in c1_rates()}
    assert len(todo(dataclasses.replace(config, again=True), Records(tmp_path / "data", "small"))) == len(
        everything
    )
    some = dataclasses.replace(config, arms=("imagined_rl",))
    assert todo(some, Records(tmp_path / "none", "small")) == [
        ("C1", "imagined_rl", 0),
        ("C1", "imagined_rl", 1),
    ]


@pytest.fixture(scope="module")
def lab(bundle, tmp_path_factory):
    preset = dataclasses.replace(PRESETS["tiny"], bundle=str(bundle), looked=2, episodes=2)
    with ClaimContext(preset, tmp_path_factory.mktemp("work"), workers=0) as shared:
        yield shared


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "bc_only",
        "filtered_bc",
        "iter_sft",
        "imagined_rl",
        "soft_rl-partial",
        "soft_rl-looks",
        "soft_rl-randomised",
        "real_rl",
        "real_judged",
        "demos-50",
        "few_bc-10",
        "few_rl-10",
        "told_outcome",
        "ramp",
    ],
)
def test_every_kind_of_arm_trains_counts_and_is_measured(lab, name):
    facts = run_arm(lab, ARMS[name], 0)
    found = facts["evaluations"]
    measured = {f"{split}/greedy" for split in ARMS[name].splits or SMALL.splits} | {"seen/sampled"}
    others = {f"looked/{world}" for world in ("real", "soft", "imagined")}
    assert set(found) == measured | (others if ARMS[name].evaluators else set())
    assert (len(found) == 9) == (name != "demos-50"), "all splits, but on the curve of episodes"
    assert all(set(row["success"]) <= {"0", "1"} for row in found.values())
    budget = facts["budget"]
    spent = {k for k in ("real_steps", "imagined_steps", "soft_steps") if budget.get(k)}
    wanted = {
        "filtered_bc": {"real_steps"}, "iter_sft": {"imagined_steps"}, "imagined_rl": {"imagined_steps"},
        "soft_rl-partial": {"soft_steps"}, "soft_rl-looks": {"soft_steps"}, "soft_rl-randomised": {"soft_steps"},
        "real_rl": {"real_steps"}, "real_judged": {"real_steps"},
        "demos-50": {"real_steps"}, "few_rl-10": {"imagined_steps"},
        "ramp": {"real_steps"}, "told_outcome": {"real_steps"},
    }  # fmt: skip
    assert spent == wanted.get(name, set()) and budget["wall_seconds"] >= 0
    wrong = {
        "soft_rl-looks": {"gap": 0.0, "looks": 1.0},
        "soft_rl-randomised": {"gap": SMALL.frozen_gap, "randomise": 1.0},
        "soft_rl-partial": {"gap": SMALL.frozen_gap, "partial": True},
    }
    assert wrong.get(name, {}).items() <= facts["settings"].items()
    if name in ("imagined_rl", "real_rl"):
        assert facts["way"][-1]["true"] >= 0 and ("imagined" in facts["way"][-1]) == (name == "imagined_rl")
    assert ("real_episodes" in budget) == (
        name in ("filtered_bc", "real_rl", "real_judged", "demos-50", "ramp", "told_outcome")
    )
    assert json.loads(json.dumps(facts)) == facts


def test_iter_sft_keeps_asking_the_first_policy(lab, tmp_path):
    from agents import collect
    from experiments.pipelines.finetune import FineTuning
    from experiments.pipelines.run_folder import RunFolder

    how = lab.preset.practice(0, tmp_path, lr=0.0, actor="initial", iterations=2)
    asked = []

    def gather(policy, starts, number, settings):
        asked.append(policy)
        return collect(lab.world_model, lab.judge, policy, starts, **settings)

    tuning = FineTuning(how, lab.bundle, RunFolder(tmp_path, how.key()), gather, tasks=lab.tasks)

    class Quiet:
        def add_scalar(self, *args): ...

    tuning.run(Quiet())
    assert len(asked) == 2
    first = lab.bundle.policy().state_dict()
    for policy in asked:
        assert all((first[k] == v).all() for k, v in policy.state_dict().items())


def test_the_commands_run_report_and_list(tmp_path, bundle, monkeypatch, capsys):
    tiny = dataclasses.replace(PRESETS["tiny"], bundle=str(bundle), looked=2, episodes=2)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    typed = ["--preset", "tiny", "--results", str(tmp_path)]
    run = ["claims", "run", "C1", "--arms", "sft", "bc_only", "--workers", "0", "--threads", "1", *typed]
    assert main([*run, "--work", str(tmp_path / "work")]) == 0
    assert len(list((tmp_path / "data" / "tiny").iterdir())) == 2
    assert not list((tmp_path / "work").glob("*/bc_only*")), "policies of finished arms are not kept"
    readme = tmp_path / "README.txt"
    readme.write_text("a\n<!-- results -->\nbefore\n<!-- /results -->\nb\n")
    out = tmp_path / "claims.json"
    assert main(["claims", "report", *typed, "--json", str(out), "--readme", str(readme)]) == 0
    assert (
        json.loads(out.read_text())["C1"]["verdict"] == "not measured" and "before" not in readme.read_text()
    )
    assert main(["claims", "list", *typed]) == 0
    assert "refuted if" in capsys.readouterr().out


def test_a_result_of_code_that_changed_meanwhile_is_not_kept(tmp_path, bundle, monkeypatch):
    from experiments.commands import claims

    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], bundle=str(bundle)))
    hashes = iter(["a", "b"])
    monkeypatch.setattr(claims, "code_hash", lambda: next(hashes))
    config = ClaimsRunConfig(
        claims=("C1",), preset="tiny", arms=("sft",), workers=0, threads=1, results=tmp_path,
        work=tmp_path / "work",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="git worktree"):
        claims.run(config)
    assert not list((tmp_path / "data").rglob("*.json"))
    assert code_hash() == code_hash() and len(code_hash()) == 16


def timeless(record):
    """What two runs of the same arm have in common."""
    return {**record, "budget": {k: v for k, v in record["budget"].items() if not k.endswith("_seconds")}} | {
        "way": [{k: v for k, v in row.items() if k != "seconds"} for row in record["way"]]
    }


@pytest.mark.parametrize(
    "removed",
    ["bc_only", *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("filtered_bc", "imagined_rl"))],
)
def test_a_set_of_runs_that_lacked_one_result_ends_as_the_uninterrupted_one(
    tmp_path, bundle, monkeypatch, removed
):
    """Whatever ran before in the process: other arms, or nothing but some draws from the global streams."""
    import torch

    monkeypatch.setitem(
        PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], bundle=str(bundle), looked=2, episodes=4)
    )
    monkeypatch.setattr(
        "experiments.commands.claims.code_hash", lambda: "the same"
    )  # sources may be edited meanwhile
    typed = ["claims", "run", "C1", "--preset", "tiny", "--results", str(tmp_path), "--workers", "0"]
    typed += ["--threads", "1", "--work", str(tmp_path / "work"), "--arms", "sft", "bc_only", "filtered_bc"]
    typed += ["imagined_rl"]
    torch.manual_seed(1)
    assert main(typed) == 0
    records = Records(tmp_path / "data", "tiny")
    names = records.arms("C1")
    whole = {name: timeless(records.read("C1", name, 0)) for name in names}
    records.file("C1", removed, 0).unlink()
    torch.rand(7), np.random.rand(3)
    assert main(typed) == 0
    assert {name: timeless(records.read("C1", name, 0)) for name in names} == whole


def test_an_arm_does_not_change_the_streams_of_its_process(lab):
    import torch

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run_arm(lab, ARMS["bc_only"], 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert timeless(run_arm(lab, ARMS["bc_only"], 0)) == timeless(first)


def test_a_working_folder_of_somebody_else_is_neither_used_nor_removed(lab):
    theirs = lab.work / "bc_only-7"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="another --work"):
        run_arm(lab, ARMS["bc_only"], 7)
    lab.forget("bc_only", 7)
    assert (theirs / "thesis.txt").read_text() == "x"


def test_what_other_code_left_unfinished_is_made_anew(lab):
    folder = lab.folder("imagined_rl", 9, code="a")
    (folder / "state").mkdir()
    assert lab.folder("imagined_rl", 9, code="a") == folder and (folder / "state").is_dir()
    lab.folder("imagined_rl", 9, code="b")
    assert not (folder / "state").exists()
    lab.forget("imagined_rl", 9)
    assert not folder.exists()


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the claims are C1"):
        ClaimsRunConfig(claims=("C99",))
    with pytest.raises(ConfigError, match="no arm dance"):
        todo(ClaimsRunConfig(claims=("C1",), arms=("dance",)), Records(tmp_path, "small"))
    with pytest.raises(ConfigError, match="the arms are sft"):
        find_arm("dance")
    (tmp_path / "x").write_text("no marks")
    with pytest.raises(ConfigError, match="has no lines"):
        fill(tmp_path / "x", "")
    assert ClaimsReportConfig().results == Path("docs/results")


def test_claims_in_another_world_have_a_folder_of_their_own_and_the_frozen_gap_alone(tmp_path):
    config = ClaimsRunConfig(claims=("C2",), world="tabletop", results=tmp_path)
    assert config.sizes.gaps == (SMALL.frozen_gap,) and config.sizes.splits == SMALL.splits
    assert config.pages == tmp_path / "tabletop" and config.sizes.options == "--world tabletop --preset small"
    jobs = [arm for _, arm, _ in todo(config, Records(config.pages / "data", "small"))]
    assert f"soft_rl-{SMALL.frozen_gap:g}" in jobs and len(set(jobs)) == 4, "SFT, imagined RL, RL in Real, RL in Soft"
    with pytest.raises(CheckpointError, match="recipes/"):
        ClaimsRunConfig(claims=("C2",), world="kitchen", results=tmp_path).sizes.suite  # noqa: B018
