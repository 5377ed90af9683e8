"""A judge behind an endpoint, against a real server that also misbehaves: nothing lost, nothing silently zero."""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import time
import urllib.parse

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from misbehaving_server import Server

pytest.importorskip("openai", reason="needs the extra `http`")

from rewards import HttpJudge, HttpJudgeConfig, load_judge  # noqa: E402
from worldgym.errors import CheckpointError, ConfigError, JudgeUnavailableError  # noqa: E402
from worldgym.protocols import RewardModel  # noqa: E402

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    open_servers = []

    def make(*script, cache=None, otherwise="ok1", **settings):
        server = Server(*script, otherwise=otherwise)
        open_servers.append(server)
        settings = {
            "votes": 3, "timeout": 1.5, "deadline": 15.0, "retries": 2, "key_env": "TEST_JUDGE_KEY", **settings,
        }  # fmt: skip
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
    _, judge = serve(otherwise=trouble, retries=1, timeout=0.3 if trouble == "slow" else 1.5)
    with caplog.at_level(logging.WARNING):
        verdict = judge.score(videos(), words())
    assert verdict.valid.tolist() == [False] and verdict.raw[0]["error"]
    assert "1 of 1 videos" in caplog.text


def test_troubles_of_several_kinds_end_as_well(serve):
    server, judge = serve("garbage", otherwise="500", retries=2)
    assert judge.score(videos(), words()).valid.tolist() == [False]
    assert len(server.requests) == 3


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
    with pytest.raises(JudgeUnavailableError, match="budget of 0.00.*type the same command again"):
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


def test_kept_answers_that_changed_places_are_asked_for_again(serve, tmp_path):
    server, judge = serve("ok0", "ok1", concurrency=1, cache=tmp_path)
    assert judge.score(videos(2), words(2)).p_success.tolist() == [0.0, 1.0]
    one, two = sorted(tmp_path.rglob("*.json"))
    swapped = one.read_bytes(), two.read_bytes()
    one.write_bytes(swapped[1]), two.write_bytes(swapped[0])
    again = HttpJudge(judge.config, tmp_path)
    again.score(videos(2), words(2))
    assert again.spent.cached == 0 and len(server.requests) == 4


def test_settings_survive_the_disk_without_the_key(serve, tmp_path):
    _, judge = serve()
    judge.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert KEY not in text and "KEY" not in text
    again = HttpJudge.from_pretrained(tmp_path, keys={judge.config.url: "TEST_JUDGE_KEY"})
    assert again.config == judge.config
    assert HttpJudge.from_pretrained(tmp_path).config.key_env is None
    (tmp_path / "manifest.json").unlink()
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


# ---- deadlines, sizes, pauses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["hang", "drip", "later"])
def test_a_verdict_ends_within_its_deadline(serve, trouble):
    _, judge = serve(otherwise=trouble, timeout=30.0, deadline=0.6)
    began = time.monotonic()
    verdict = judge.score(videos(3), words(3))
    assert time.monotonic() - began < 1.6
    assert verdict.valid.tolist() == [False] * 3 and "within 0.6 s" in verdict.raw[0]["error"]


def test_a_request_that_drips_is_given_up_and_asked_again(serve):
    server, judge = serve("drip", timeout=0.4, deadline=5.0)
    assert judge.score(videos(), words()).valid.tolist() == [True] and len(server.requests) == 2


@pytest.mark.parametrize("trouble", ["huge", "claims", "bomb"])
def test_a_reply_is_not_read_beyond_its_limit(serve, trouble):
    import resource

    _, judge = serve(otherwise=trouble, retries=0, timeout=20.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = judge.score(videos(), words())
    assert verdict.valid.tolist() == [False] and verdict.raw[0]["error"]
    # The server makes its 64 MB in this very process; the client must not add the reply to them several times.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_a_key_does_not_follow_a_redirect(serve):
    other, _ = serve()
    server, judge = serve(otherwise="redirect", retries=0)
    server.elsewhere = other.url + "/chat/completions"
    assert judge.score(videos(), words()).valid.tolist() == [False]
    assert other.requests == [] and server.keys == [f"Bearer {KEY}"]


def test_missing_token_counts_cost_no_verdict(serve):
    _, judge = serve(otherwise="nulls", price_in=2.0)
    assert judge.score(videos(), words()).valid.tolist() == [True]
    assert judge.spent.tokens_in == 0 and judge.spent.money == 0.0


def test_a_key_that_the_endpoint_echoes_is_masked_in_answers_files_and_logs(serve, tmp_path, caplog):
    _, judge = serve(otherwise="echo", cache=tmp_path)
    with caplog.at_level(logging.DEBUG):
        verdict = judge.score(videos(), words())
    assert verdict.valid.tolist() == [True]
    files = "".join(f.read_text() for f in tmp_path.rglob("*.json"))
    assert "***" in files and KEY not in files + caplog.text + str(verdict.raw)


@given(st.text(min_size=8, max_size=40, alphabet=st.characters(min_codepoint=33, max_codepoint=126)))
def test_every_way_of_writing_a_key_is_masked(key):
    from rewards.models.endpoint import masked

    forms = [key, urllib.parse.quote(key, safe=""), json.dumps(key), base64.b64encode(key.encode()).decode()]
    for form in forms:
        assert key not in masked(f"no, {form} is wrong", key) and form.strip('"') not in masked(form, key)


def test_a_refusal_after_answers_is_no_verdict_and_many_in_a_row_pause_the_run(serve):
    _, judge = serve("ok1", otherwise="401", retries=0, give_up=3, concurrency=1)
    assert judge.score(videos(), words()).valid.tolist() == [True]
    assert judge.score(videos(2, seed=1), words(2)).valid.tolist() == [False, False]
    with pytest.raises(
        JudgeUnavailableError, match="3 times in a row.*paused.*type the same command again"
    ) as caught:
        judge.score(videos(1, seed=2), words(1))
    assert KEY not in str(caught.value)


def test_a_refused_parameter_names_the_setting(serve):
    _, judge = serve(otherwise="400")
    with pytest.raises(ConfigError, match="token_parameter='max_completion_tokens'"):
        judge.score(videos(), words())
    server, judge = serve(token_parameter="max_completion_tokens", temperature=None, batch=False)
    assert judge.score(videos(), words()).valid.tolist() == [True]
    assert len(server.requests) == 3
    for request in server.requests:
        assert request["max_completion_tokens"] == 300 and not {"n", "temperature", "max_tokens"} & set(
            request
        )


# ---- keys --------------------------------------------------------------------------------------------------------


def test_a_folder_decides_neither_which_variable_is_read_nor_where_it_goes(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "sk-something-else-entirely")
    server, _ = serve()
    (tmp_path / "config.json").write_text(json.dumps({"url": server.url, "model": "m", "key_env": "SECRET"}))
    for keys in (None, {}, {"https://api.example.com/v1": "SECRET"}, {server.url + "/": "SECRET"}):
        judge = load_judge(tmp_path, keys=keys)
        judge.score(videos(), words())
    assert all("sk-something" not in str(key) for key in server.keys) and server.keys
    load_judge(tmp_path, keys={server.url: "SECRET"}).score(videos(), words())
    assert server.keys[-1] == "Bearer sk-something-else-entirely"


@pytest.mark.parametrize(
    "pair",
    [
        "SECRET",
        "sk-abc=",
        "=SECRET",
        "ftp://h/v1=SECRET",
        "https://h/v1=sk-a b",
        "https://h/v1=NOT_SET_ANYWHERE",
    ],
)
def test_a_key_on_the_command_line_is_an_address_and_a_variable(pair, monkeypatch):
    from rewards.loading import judge_keys

    monkeypatch.setenv("SECRET", "x")
    url = "https://h/v1?a=b"
    assert judge_keys([f"{url}=SECRET"]) == {url: "SECRET"}
    with pytest.raises(ConfigError, match="URL=VARIABLE|is not set; type export"):
        judge_keys([pair])


def test_a_key_that_a_folder_names_is_not_followed_and_the_remedy_is_said(
    serve, tmp_path, monkeypatch, caplog
):
    from experiments.bundle import Bundle

    monkeypatch.setenv("SECRET", "sk-something-else-entirely")
    server, _ = serve()
    (tmp_path / "config.json").write_text(json.dumps({"url": server.url, "model": "m", "key_env": "SECRET"}))
    bundle = Bundle(tmp_path)
    bundle.named_judge(str(tmp_path)).score(videos(), words())
    assert server.keys == ["Bearer none"] and f"--judge-keys {server.url}=VARIABLE" in caplog.text
    bundle.named_judge(str(tmp_path), keys=[f"{server.url}=SECRET"]).score(videos(), words())
    assert server.keys[-1] == "Bearer sk-something-else-entirely"


def test_a_judge_inside_others_gets_the_key_that_the_caller_names(serve, tmp_path):
    from rewards import CalibratedJudge, ComposedJudge, Term
    from rewards.wrappers.calibrated import Calibration

    server, judge = serve()
    composed = ComposedJudge({"vlm": Term(judge, 1.0)})
    CalibratedJudge(composed, Calibration((0.0, 1.0), (0.0, 1.0), 0.5)).save_pretrained(tmp_path / "both")
    assert not any("KEY" in f.read_text() for f in (tmp_path / "both").rglob("*.json"))
    load_judge(tmp_path / "both").score(videos(), words())
    load_judge(tmp_path / "both", keys={server.url: "TEST_JUDGE_KEY"}).score(videos(), words())
    assert server.keys == ["Bearer none", f"Bearer {KEY}"]


def test_a_judge_is_copied_pickled_and_sent_without_the_key(serve):
    import pickle

    server, judge = serve()
    sent = pickle.dumps(judge)
    assert KEY.encode() not in sent
    for other in (pickle.loads(sent), copy.deepcopy(judge)):
        assert other.score(videos(), words()).valid.tolist() == [True]
    assert server.keys == [f"Bearer {KEY}"] * 2


def test_a_verdict_is_had_inside_a_running_loop(serve):
    import asyncio

    _, judge = serve()

    async def cell():
        return judge.score(videos(), words())

    assert asyncio.run(cell()).valid.tolist() == [True]
