"""A judge behind an endpoint, against a real server that also misbehaves: nothing lost, nothing silently zero."""

from __future__ import annotations

import base64
import io
import json
import logging

import numpy as np
import pytest
import torch
from misbehaving_server import Server

pytest.importorskip("openai", reason="needs the extra `http`")

from rewards import HttpJudge, HttpJudgeConfig  # noqa: E402
from worldgym.errors import CheckpointError, ConfigError  # noqa: E402
from worldgym.protocols import RewardModel  # noqa: E402

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    open_servers = []

    def make(*script, cache=None, otherwise="ok1", **settings):
        server = Server(*script, otherwise=otherwise)
        open_servers.append(server)
        settings = {"votes": 3, "timeout": 0.3, "retries": 2, "key_env": "TEST_JUDGE_KEY", **settings}
        return server, HttpJudge(HttpJudgeConfig(url=server.url, model="tiny-vlm", **settings), cache)

    yield make
    for server in open_servers:
        server.close()


def videos(count=1, frames=7, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, frames, 64, 64, 3), np.uint8)
    )


def words(count=1):
    return [f"reach thing {i}" for i in range(count)]


def test_the_request_holds_the_words_and_every_third_frame_with_the_last(serve):
    server, judge = serve()
    assert isinstance(judge, RewardModel)
    frames = videos(frames=8)
    verdict = judge.score(frames, ["touch the red cube"])
    assert verdict.p_success.tolist() == [1.0] and verdict.valid.tolist() == [True]
    (request,) = server.requests
    text, *pictures = request["messages"][0]["content"]
    assert "touch the red cube" in text["text"] and request["n"] == 3
    assert len(pictures) == 3  # frames 1, 4, 7
    from PIL import Image

    last = Image.open(io.BytesIO(base64.b64decode(pictures[-1]["image_url"]["url"].partition(",")[2])))
    small = np.asarray(last.resize((64, 64), Image.Resampling.BOX), np.float32)
    errors = [np.abs(small - frames[0, i].numpy().astype(np.float32)).mean() for i in range(8)]
    assert last.size == (256, 256) and int(np.argmin(errors)) == 7


def test_probability_is_the_share_of_votes_and_unreadable_ones_do_not_count(serve):
    _, judge = serve("one", "unsure", "ok0", votes=4, otherwise="one")
    # answers: 1; then three wanted, all without a score
    verdict = judge.score(videos(), words())
    assert (
        verdict.raw[0]["scores"] == [1.0]
        and len(verdict.raw[0]["texts"]) == 4
        and verdict.p_success[0] == 1.0
    )
    _, judge = serve("one", "ok0", votes=3)
    verdict = judge.score(videos(), words())
    assert verdict.raw[0]["scores"] == [1.0, 0.0, 0.0] and float(verdict.p_success[0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("trouble", ["429", "500", "hang", "garbage", "half", "schema", "drop"])
def test_what_passes_costs_a_retry_and_no_verdict(serve, trouble):
    server, judge = serve(trouble)
    verdict = judge.score(videos(), words())
    assert verdict.valid.tolist() == [True] and verdict.p_success.tolist() == [1.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize("trouble", ["429", "500", "slow", "garbage", "half", "schema", "drop", "unsure"])
def test_what_stays_makes_the_video_invalid_and_not_a_failure(serve, trouble, caplog):
    _, judge = serve(otherwise=trouble, retries=1)
    with caplog.at_level(logging.WARNING):
        verdict = judge.score(videos(), words())
    assert verdict.valid.tolist() == [False] and verdict.raw[0]["error"]
    assert "1 of 1 videos" in caplog.text


def test_troubles_of_several_kinds_end_as_well(serve):
    server, judge = serve("garbage", otherwise="500", retries=1)
    assert judge.score(videos(), words()).valid.tolist() == [False]
    assert len(server.requests) == 3  # garbage, then one that is refused and sent again once


def test_one_bad_answer_takes_no_other_video_with_it(serve):
    server, judge = serve("garbage", "garbage", retries=1, concurrency=1)
    verdict = judge.score(videos(4), words(4))
    assert verdict.valid.tolist() == [False, True, True, True] and len(server.requests) == 5


@pytest.mark.parametrize("status", ["401", "404"])
def test_a_refused_key_or_model_stops_with_what_to_look_at_and_the_key_stays_hidden(serve, status, caplog):
    _, judge = serve(otherwise=status)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match="TEST_JUDGE_KEY") as caught:
        judge.score(videos(), words())
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    assert KEY not in caplog.text and KEY not in repr(judge)


def test_no_more_requests_at_a_time_than_allowed(serve):
    server, judge = serve(concurrency=3)
    judge.score(videos(12), words(12))
    assert 2 <= server.most_at_once <= 3


def test_money_is_counted_and_the_budget_holds(serve):
    _, judge = serve(price_in=2.0, price_out=10.0, budget=0.004, concurrency=1)
    judge.score(videos(1), words(1))
    assert (judge.spent.requests, judge.spent.tokens_in, judge.spent.tokens_out) == (1, 1000, 30)
    assert judge.spent.money == pytest.approx(0.0023)
    with pytest.raises(ConfigError, match="budget of 0.00"):
        judge.score(videos(3, seed=1), words(3))


def test_answers_are_kept_on_disk_and_failures_are_not(serve, tmp_path):
    server, judge = serve("ok0", "garbage", retries=0, concurrency=1, cache=tmp_path)
    first = judge.score(videos(2), words(2))
    assert first.valid.tolist() == [True, False]
    again = HttpJudge(judge.config, tmp_path)
    second = again.score(videos(2), words(2))
    assert second.valid.tolist() == [True, True] and second.p_success.tolist() == [0.0, 1.0]
    assert again.spent.cached == 1 and again.spent.requests == 1 and len(server.requests) == 3
    assert second.raw[0]["cached"] and KEY not in "".join(f.read_text() for f in tmp_path.rglob("*.json"))
    for file in tmp_path.rglob("*.json"):
        file.write_text(file.read_text()[:20])  # damaged: asked again, not believed
    assert (
        HttpJudge(judge.config, tmp_path).score(videos(2), words(2)).valid.all() and len(server.requests) == 5
    )
    other = HttpJudge(HttpJudgeConfig(**{**vars(judge.config), "temperature": 0.5}), tmp_path)
    other.score(videos(2), words(2))
    assert other.spent.cached == 0


def test_settings_survive_the_disk_without_the_key(serve, tmp_path):
    _, judge = serve()
    judge.save_pretrained(tmp_path)
    assert HttpJudge.from_pretrained(tmp_path).config == judge.config
    assert KEY not in (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps({"url": 3}))
    with pytest.raises(CheckpointError, match="no settings of an HttpJudge"):
        HttpJudge.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost"}, "expected http"),
        ({"prompt": "Did it work?"}, "{instruction}"),
        ({"votes": 2, "min_votes": 3}, "min_votes at most votes"),
        ({"threshold": 0.0}, "threshold"),
    ],
)
def test_impossible_settings_are_explained(settings, message):
    with pytest.raises(ConfigError, match=message):
        HttpJudgeConfig(**{"url": "http://localhost/v1", "model": "m", **settings})


def test_a_missing_key_is_named_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="export NO_SUCH_KEY"):
        HttpJudge(HttpJudgeConfig(url="http://localhost/v1", model="m", key_env="NO_SUCH_KEY"))


def test_an_imagined_episode_whose_endpoint_is_down_is_invalid_and_the_others_go_on(serve):
    from worldgym.imagination import WorldModelVectorEnv
    from worldgym.pretrained import path

    _, judge = serve("garbage", retries=0, concurrency=1, votes=1)
    envs = WorldModelVectorEnv(
        path("tabletop-small") / "world_model", judge, path("tabletop-small") / "starts.npz", num_envs=2, chunk=5,
        horizon=5, autoreset_mode="Disabled",
    )  # fmt: skip
    envs.reset(seed=0)
    _, reward, terminated, truncated, info = envs.step(np.zeros((2, 5, 4), np.float32))
    assert info["invalid"].tolist() == [True, False] and reward.tolist() == [0.0, 1.0]
    assert truncated[0] and terminated.tolist() == [False, True]
