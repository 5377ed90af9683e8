"""What a language model wrote is a score of the scale, or no verdict; never another number taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.models.answers import Scale, read_score
from worldgym.errors import ConfigError

PLAIN = [
    ("Final Score: {}", ""), ("**Final Score:** {}", ""), ("**Final Score: {}**", ""), ("final score = {}", ""),
    ("The final score is {}.", ""), ("Final Score (0 or 1): {}", ""), ("Final Score [0/1]: **{}**", ""),
    ("Final Score:\n{}", ""), ("Final Score: $\\boxed{{{}}}$", ""), ("So it is \\boxed{{{}}}.", ""),
    ('```json\n{{"score": {}}}\n```', ""), ('{{"reason": "seen", "Final_Score": "{}"}}', ""),
    ("Final Score: 0\nNo, wait.\nFinal Score: {}", ""), ("Final Score: {} (it was close, 5 cm)", ""),
    ("FINAL SCORE - {}!", ""), ("1. It moves.\n2. It lies there.\nFinal Score: {}\nThank you.", ""),
]  # fmt: skip


@pytest.mark.parametrize("template", [template for template, _ in PLAIN])
@pytest.mark.parametrize("score", ["0", "1", "1.0"])
def test_plain_ways_of_saying_a_score_are_read(template, score):
    assert read_score(template.format(score), Scale()) == float(score)


@pytest.mark.parametrize(
    "text",
    ["Final Score: 12/100", "Final Score: 1/10", "Final Score: 1 out of 10", "Final Score: 0.7", "Final Score: 100%",
     "Final Score: 1%", "Final Score: -1", "Final Score: 10", "Final Score: X", "Final Score: one", "", "1",
     "I give it a 1.", "Final Score: 1.5", "Final Score: 1,000", "\\boxed{7}", '{"score": 0.5}', '{"score": null}',
     "Final Score: 2", "Final Score: 1e3", "Final Score: 01/01/2026"],
)  # fmt: skip
def test_other_numbers_are_no_verdict(text):
    assert read_score(text, Scale()) is None


@pytest.mark.parametrize("note", ["(at 12:0)", "(not 0: it lies there)", "[ratio 1:0]"])
def test_a_colon_in_brackets_does_not_hide_the_score(note):
    assert read_score(f"Final Score: 1 {note}", Scale()) == 1.0


@given(low=st.integers(0, 5), span=st.integers(1, 100), value=st.integers(0, 200))
def test_another_scale_takes_its_own_whole_numbers_and_no_others(low, span, value):
    scale = Scale(low, low + span)
    expected = float(value) if low <= value <= low + span else None
    assert read_score(f"Final Score: {value}", scale) == expected
    assert read_score(f"Final Score: {value}/{span}", scale) is None


@given(st.text(max_size=200))
def test_whatever_is_written_gives_a_score_of_the_scale_or_none(text):
    for written in (text, f"Final Score: {text}", f"\\boxed{{{text}}}", f'{{"score": {text}}}'):
        assert read_score(written, Scale()) in (None, 0.0, 1.0)


def test_a_pattern_of_ones_own_decides_alone():
    scale = Scale(pattern=r"verdict=(\w+)")
    assert read_score("Final Score: 0 verdict=1", scale) == 1.0
    assert read_score("Final Score: 1", scale) is None and read_score("verdict=yes", scale) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"lowest": 1},
        {"success": 0},
        {"success": 2},
        {"pattern": "("},
        {"pattern": "score"},
        {"pattern": "(a)(b)"},
    ],
)
def test_impossible_scales_are_refused(settings):
    with pytest.raises(ConfigError):
        Scale(**settings)
