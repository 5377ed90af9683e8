"""`worldgym audit`, whole at toy size: two judges, two policies, and one judge behind an endpoint that is down."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from experiments.bundle import Bundle
from experiments.cli import main
from experiments.commands.audit import AuditConfig, ranking
from experiments.reports.audit import worst_false_positives
from worldgym.errors import ConfigError
from worldgym.evaluation.judge_audit import JudgeAudit
from worldgym.evaluation.outcomes import Start

KEYS = {
    "balanced_accuracy_real", "false_positive_rate_imagined", "recall_imagined", "swapped_instruction_rejection",
    "ms_per_episode",
}  # fmt: skip


def test_judges_are_compared_on_the_same_episodes(bundle, tmp_path, capsys):
    strict = tmp_path / "strict"
    judge = Bundle.find(bundle).judge()
    judge.set_threshold(0.99)
    judge.save_pretrained(strict)
    out = tmp_path / "audit.json"
    few = ["--episodes", "6", "--horizon", "10", "--bundle", str(bundle), "--json", str(out)]
    assert main(["audit", "--policy", "sft", "sft@1.0", "--judges", f"bundled,{strict}", *few]) == 0
    facts = json.loads(out.read_text())
    assert list(facts["judges"]) == ["bundled", str(strict)] and facts["rewarded"] == "bundled"
    for row in facts["judges"].values():
        assert (
            set(row) >= KEYS
            and sum(row["confusion"][k] for k in ("fp", "tp", "fn", "tn")) == facts["episodes"]
        )
        assert sum(part["count"] for part in row["calibration"]) == facts["episodes"] * 2
    assert set(facts["imagined_minus_true"]) >= {"mean", "low", "high"} and set(facts["policies"]) == {
        "sft",
        "sft@1.0",
    }
    assert 0 <= facts["agreement"][f"bundled | {strict}"] <= 1
    said = capsys.readouterr().out
    page = out.with_suffix(".html").read_text()
    for heading in ("Judged success in imagination", "Calibration", "Agreement between judges"):
        assert heading in page
    assert "imagined - true success, judged by bundled" in said and "agree at" in said


def test_scores_are_ranked_by_task_against_the_truth_of_the_same_step():
    now = np.array([[False, True], [False, False], [True, True]])
    scores = np.array([[0.1, 0.9], [0.2, np.nan], [0.8, 0.05]], np.float32)
    starts = tuple(Start(task, seed) for seed, task in enumerate(("reach", "reach", "push")))
    seen = {"sft": JudgeAudit(starts, ["a", "b", "c"], {"j": scores}, now, now, {"j": 1 - scores})}
    assert ranking("j", seen, ("reach",)) == {"imagined": 1.0, "real": 0.0}
    assert ranking("j", seen, ("push",)) == {"imagined": None, "real": None}, "every frame is fulfilled"
    both = ranking("j", seen, ("reach", "push"))
    assert both["imagined"] == pytest.approx(4 / 6) and both["real"] == pytest.approx(2 / 6)


def test_a_judge_whose_endpoint_is_down_has_no_verdicts_and_scores_no_zero(bundle, tmp_path, capsys):
    pytest.importorskip("openai", reason="needs the extra `http`")
    from rewards import HttpJudge, HttpJudgeConfig

    down = HttpJudgeConfig(
        url="http://127.0.0.1:9/v1", model="m", key_env=None, retries=0, timeout=1.0, size=16
    )
    HttpJudge(down).save_pretrained(tmp_path / "down")
    out = tmp_path / "audit.json"
    few = ["--episodes", "3", "--horizon", "5", "--bundle", str(bundle), "--json", str(out)]
    assert main(["audit", "--judges", "bundled", str(tmp_path / "down"), *few]) == 0
    facts = json.loads(out.read_text())
    row = facts["judges"][str(tmp_path / "down")]
    assert (
        row["invalid"] == facts["episodes"]
        and sum(row["confusion"][k] for k in ("fp", "tp", "fn", "tn")) == 0
    )
    assert row["balanced_accuracy_real"] is None and facts["judges"]["bundled"]["invalid"] == 0
    assert "episodes without a verdict" in capsys.readouterr().out


def test_bad_settings_are_refused(tmp_path, bundle, capsys):
    with pytest.raises(ConfigError, match="named twice"):
        AuditConfig(judges=("bundled", "bundled"))
    with pytest.raises(ConfigError, match="start_seed"):
        AuditConfig(start_seed=5)
    assert main(["audit", "--judges", str(tmp_path), "--bundle", str(bundle)]) == 2
    assert "no judge in" in capsys.readouterr().err


def test_the_most_confident_false_positives_are_shown(tmp_path):
    count, looks = 5, 3
    said = np.full((count, looks), 0.1, np.float32)
    said[1, 2], said[2, 1], said[4, 0] = 0.95, 0.99, 0.9
    truth = np.zeros((count, looks), bool)
    truth[4] = True  # a true positive is not shown
    frames = np.random.default_rng(0).integers(0, 200, (count, looks, 16, 16, 3), np.uint8)
    seen = JudgeAudit(
        tuple(Start("reach", 19_000_000 + i) for i in range(count)), [f"reach thing {i}" for i in range(count)],
        {"j": said}, truth, truth, frames=frames, imagined=frames + 9,
    )  # fmt: skip
    films = worst_false_positives({"sft": seen}, "j", 0.8, tmp_path, count=5)
    assert [film["caption"].split(" (")[0] for film in films] == ["reach thing 2", "reach thing 1"]
    assert "judged 0.99" in films[0]["caption"]
    lengths = [Image.open(film["gif"]).n_frames for film in films]
    assert lengths[0] < lengths[1], "up to the check at which the judge reported success"
    assert worst_false_positives({"sft": seen}, "j", 0.8, tmp_path, count=1) == films[:1]
