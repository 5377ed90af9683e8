"""The open_clip judge: goal minus baseline, local files, a small model trained to judge (`make test-clip`)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from judged_world import Reddish, logs

from rewards import JudgeTrainConfig, OpenClipJudge, OpenClipJudgeConfig, load_judge, train_open_clip
from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.optional import require

try:
    open_clip = require("open_clip", extra="clip")
except ImportError:
    pytest.skip(
        "open_clip is not importable here; type `make test-clip`, which installs it", allow_module_level=True
    )

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 48, "layers": 2, "head_width": 16, "pool_type": "avg"},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
WORDS = [
    "push the red cube to the left",
    "push the green cube to the right",
    "push the blue cube to the left",
]


def videos(count=3, steps=4, size=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, steps, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return OpenClipJudge.from_description(SMALL)


def test_the_score_is_how_much_nearer_the_goal_is_than_the_baseline(judge):
    verdict = judge.score(videos(), WORDS)
    with torch.no_grad():
        seen = torch.nn.functional.normalize(judge.model.encode_image(judge.pixels(videos()[:, -1])), dim=-1)
        words = judge.model.encode_text(judge.tokenizer([*WORDS, judge.config.baseline]))
        words = torch.nn.functional.normalize(words, dim=-1)
    by_hand = (seen * words[:3]).sum(-1) - seen @ words[3]
    assert torch.allclose(torch.tensor(verdict.raw), by_hand, atol=1e-5)
    assert torch.allclose(verdict.p_success, torch.sigmoid(100 * by_hand), atol=1e-4) and verdict.valid.all()


def test_time_is_aggregated_as_asked(judge):
    clips = videos()
    one = [judge.score(clips[:, : t + 1], WORDS).raw for t in range(4)]
    pick = lambda how: judge.with_config(aggregate=how, frames=2, stride=2).score(clips, WORDS).raw  # noqa: E731
    assert pick("mean") == pytest.approx(np.mean([one[1], one[3]], 0), abs=1e-5)
    assert pick("max") == pytest.approx(np.max([one[1], one[3]], 0), abs=1e-5)
    assert judge.score(clips, WORDS).raw == pytest.approx(one[3], abs=1e-6)


def test_other_sizes_are_resized_and_batches_do_not_matter(judge):
    big = videos(size=40)
    whole = judge.score(big, WORDS).p_success
    assert torch.allclose(whole, judge.with_config(max_batch=1).score(big, WORDS).p_success, atol=1e-4)


def test_it_comes_back_from_disk_and_open_clip_itself_reads_it(judge, tmp_path):
    judge.with_config(threshold=0.7).save_pretrained(tmp_path / "clip", half=False)
    again = load_judge(tmp_path / "clip")
    assert isinstance(again, OpenClipJudge) and again.threshold == 0.7
    assert torch.equal(again.score(videos(), WORDS).p_success, judge.score(videos(), WORDS).p_success)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    pixels = judge.pixels(videos()[:, -1])
    with torch.no_grad():
        assert torch.allclose(model.encode_image(pixels), judge.model.encode_image(pixels), atol=1e-5)


def test_a_named_model_takes_local_weights(tmp_path):
    torch.manual_seed(1)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "wg-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    source = OpenClipJudge.from_description(SMALL)
    file = tmp_path / "weights.pt"
    torch.save(source.model.state_dict(), file)
    made = OpenClipJudge.create("wg-small", str(file))
    made.mean, made.std = source.mean, source.std
    assert np.allclose(made.score(videos(), WORDS).raw, source.score(videos(), WORDS).raw, atol=1e-5)
    with pytest.raises(CheckpointError, match="no model 'wg-none'"):
        OpenClipJudge.create("wg-none")


def test_a_small_model_learns_to_judge():
    settings = JudgeTrainConfig(
        steps=250, batch_size=64, lr=2e-3, val_fraction=0.2, val_pairs=300, colour_jitter=0.02
    )
    trained, report = train_open_clip(logs(120), None, settings, description=SMALL)
    assert report["balanced_accuracy"] > 0.8, report
    assert trained.threshold >= 0.5 and trained.config.scale > 0


def test_a_teacher_hands_on_what_it_sees():
    arrays = logs(60)
    settings = JudgeTrainConfig(
        steps=60, batch_size=16, lr=3e-3, val_fraction=0.2, val_pairs=100, colour_jitter=0.02
    )
    frames = torch.from_numpy(arrays.frames[np.flatnonzero(~arrays.success)[:60]])[:, None]
    words = ["push the green cube to the left"] * 60
    red = Reddish().score(frames, words).p_success.bool()
    said = {}
    for teacher in (None, Reddish()):
        trained, _ = train_open_clip(arrays, None, settings, description=SMALL, teacher=teacher, lessons=200)
        p = trained.score(frames, words).p_success
        said[teacher is None] = float(p[red].mean() - p[~red].mean())
    assert said[False] > said[True] + 0.1


def test_what_cannot_work_is_refused(judge, tmp_path):
    with pytest.raises(ConfigError, match=r"needs \{instruction\}"):
        OpenClipJudgeConfig(goal="success")
    with pytest.raises(ConfigError, match="scores one frame"):
        OpenClipJudgeConfig(frames=3)
    with pytest.raises(ConfigError, match="did you mean 'baseline'"):
        OpenClipJudgeConfig.from_dict({"baselin": "x"})
    with pytest.raises(ValueError, match="expected uint8"):
        judge.score(videos().float(), WORDS)
    with pytest.raises(CheckpointError, match="holds no open_clip_config.json"):
        OpenClipJudge.from_pretrained(tmp_path)


def test_the_bundled_one_tells_what_is_done_from_what_is_not_and_from_other_words():
    from envs.tabletop import TabletopEnv
    from envs.tabletop.collect import rollout
    from rewards.training.negatives import goal_of
    from worldgym import pretrained

    judge = load_judge(pretrained.path("tabletop-small") / "judge_open_clip")
    env, rng = TabletopEnv(domain="real", terminate_on_success=False), np.random.default_rng(0)
    verbs = ("reach", "push", "pick_place")
    shown = [rollout(env, verbs[i % 3], 19_700_000 + i, "expert", rng) for i in range(30)]
    env.close()
    done = np.stack([e.frames[-1] for e in shown])  # fulfilled for three frames
    start, texts = np.stack([e.frames[0] for e in shown]), [e.instruction for e in shown]
    others = texts[3:] + texts[:3]  # the same verb, mostly another thing
    goals = [[goal_of(e.task, text) for e, text in zip(shown, said, strict=True)] for said in (texts, others)]
    wrong = np.array([set(a[1]) != set(b[1]) for a, b in zip(*goals, strict=True)])
    said = {
        name: judge.score(frames[:, None], words).p_success.numpy() >= judge.threshold
        for name, frames, words in (("done", done, texts), ("start", start, texts), ("other", done, others))
    }
    assert said["done"].mean() >= 0.8 and said["start"].mean() <= 0.05 and said["other"][wrong].mean() <= 0.3
