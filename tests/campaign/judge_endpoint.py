"""Environment episodes whose judge's endpoint misbehaves: no silent zero, no late verdict, no key in what is left.

`python -m tests.campaign.judge_endpoint --out judge_endpoint.jsonl`. A real server on this machine answers each verdict
of an episode in one of many wrong ways. A case is good when the episode is invalid, or has exactly the reward of the
score that was sent; when the verdict came within its deadline; and when the key is in no log, answer, file or error.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .harness import go, markdown, options, wanted

TESTS = Path(__file__).resolve().parents[1]
KEY, VARIABLE = "sk-campaign-0123456789-abcdef", "CAMPAIGN_JUDGE_KEY"
DEADLINE, SLACK = 0.6, 1.0  # seconds; the slack is for a busy machine
GOOD = {"ok0": 0.0, "ok1": 1.0, "nulls": 1.0, "echo": 1.0}
BAD = (
    "unsure", "429", "500", "401", "404", "400", "slow", "hang", "garbage", "half", "schema", "drop", "drip", "later",
    "huge", "claims", "bomb", "redirect",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a case is bad."""
    given = options("judge_endpoint", "Episodes against a faulty judge.", 1000, 25).parse_args(arguments)
    kinds = (*GOOD, *BAD)
    rng = np.random.default_rng(given.seed)
    drawn = [
        *kinds,
        *(kinds[int(i)] for i in rng.integers(len(kinds), size=max(0, wanted(given) - len(kinds)))),
    ]
    names = [f"{kind}.{number}" for number, kind in enumerate(drawn[: wanted(given)])]
    book = go(given, names, lambda name, keep: case(name))
    rows = list(book.rows.values())
    if rows:
        print(markdown(rows, "fault"))
    return int(any(row["bad"] for row in rows))


@functools.cache
def stage() -> tuple[Any, Any, Any]:
    """Server, judge and environment, made once: a judge that has answered takes refusals as failed verdicts."""
    sys.path[:0] = [str(TESTS / "rewards"), str(TESTS / "imagination")]
    os.environ[VARIABLE] = KEY
    from fakes import DotWorldModel, make_starts
    from misbehaving_server import Server

    from rewards import HttpJudge, HttpJudgeConfig
    from worldgym.imagination import WorldModelEnv

    server = Server(otherwise="ok1", slow=0.0)
    config = HttpJudgeConfig(
        url=server.url, model="m", key_env=VARIABLE, votes=1, retries=1, timeout=DEADLINE / 2, deadline=DEADLINE,
        give_up=None, size=16, max_reply=100_000,
    )  # fmt: skip
    judge = HttpJudge(config)
    env = WorldModelEnv(DotWorldModel(0.0), judge, make_starts(), horizon=1)
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))
    return server, judge, env


def case(name: str) -> dict[str, Any]:
    """One episode of one verdict."""
    fault, number = name.split(".")
    server, judge, env = stage()
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server.script.clear()
    server.otherwise = fault
    env.reset(seed=int(number))
    began, error = time.monotonic(), ""
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            _, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
    except Exception as raised:  # nothing may come out of a step
        error = f"{type(raised).__name__}: {raised}"
        reward, terminated, truncated, info = 0.0, False, False, {"invalid": False}
    seconds = time.monotonic() - began
    logging.getLogger().removeHandler(handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    outcome = _outcome(fault, reward, bool(terminated or truncated), info, error)
    if KEY in log.getvalue() + error + repr(judge):
        outcome = "key told"
    elif seconds > DEADLINE + SLACK:
        outcome = "late"
    facts = {"fault": fault, "megabytes": round(grown), "verdict_seconds": round(seconds, 3)}
    return {**facts, "outcome": outcome, "bad": outcome not in ("invalid", "scored"), "seconds": seconds}


def _outcome(fault: str, reward: float, over: bool, info: dict[str, Any], error: str) -> str:
    if error:
        return f"raw error: {error[:200]}"
    if fault in GOOD:
        right = not info["invalid"] and over and reward == GOOD[fault]
        return "scored" if right else f"wrong: reward {reward}, invalid {info['invalid']}"
    return "invalid" if info["invalid"] and over else f"silent: reward {reward}"


if __name__ == "__main__":
    sys.exit(main())
