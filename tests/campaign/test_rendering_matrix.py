"""The rendering campaign: a few of its cases, what it calls bad, and that it goes on where it stopped."""

from __future__ import annotations

import json

import pytest

from tests.campaign import drawing, rendering

PICTURE = {"hash": "a", "black": False}
CLEAR = {
    "error": "RenderingError",
    "kinds": ["RenderingError"],
    "text": "no display. Type: export MUJOCO_GL=egl",
}


def test_a_few_cases_are_good_and_are_not_repeated(tmp_path, capsys):
    out = tmp_path / "rendering.jsonl"
    assert rendering.main(["--quick", "--out", str(out)]) == 0, capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(rendering.QUICK)
    assert {row["outcome"] for row in rows} == {"same picture", "clear error"}
    capsys.readouterr()
    assert rendering.main(["--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(rows)} cases, {len(rows)} finished before" in printed
    assert "| method | cases | same picture | clear error |" in printed


@pytest.mark.parametrize(
    ("drawings", "outcome"),
    [
        ([PICTURE], "same picture"),
        ([PICTURE, {"hash": "b", "black": False}], "other picture"),
        ([{"hash": "b", "black": True}, PICTURE], "black"),
        ([PICTURE, CLEAR], "clear error"),
        ([{**CLEAR, "text": "EGL_BAD_ACCESS"}], "raw error"),
        (
            [{"error": "FatalError", "kinds": ["FatalError"], "text": "set MUJOCO_GL=egl"}, PICTURE],
            "raw error",
        ),
        ([PICTURE, {"neighbour": "mean 3, then 0"}, CLEAR], "neighbour changed"),
        (
            [
                {"error": "crash", "kinds": [], "text": "the child ended with -6"},
                {"hash": "b", "black": True},
            ],
            "crash",
        ),
    ],
)
def test_the_worst_drawing_of_a_case_counts(drawings, outcome):
    assert rendering.judged({"drawings": drawings}, "a")[0] == outcome


def test_every_start_method_meets_every_order_of_imports_and_every_backend():
    names = rendering.cases()
    assert len(set(names)) == len(names)
    for backend in rendering.BACKENDS:
        for first in drawing.FIRST:
            assert {f"{backend}/{first}/{method}" for method in drawing.METHODS} <= set(names)
    assert set(rendering.QUICK) <= set(names)


def test_an_error_where_egl_can_draw_is_bad_except_after_a_fork_or_a_failure_of_somebody_else():
    assert rendering.allowed("unset", "mujoco", "thread") == ("same picture",)
    assert rendering.allowed("egl", "gymnasium", "beside") == ("same picture",)
    for case in [("unset", "mujoco", "fork"), ("unset", "gymnasium", "main"), ("glfw", "mujoco", "main")]:
        assert rendering.allowed(*case) == ("same picture", "clear error")
