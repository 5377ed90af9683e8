"""Layouts and rules for property tests: those of known systems, and arbitrary ones."""

from __future__ import annotations

from hypothesis import strategies as st

from worldgym.nn import (
    Rule,
    Segment,
    SequenceLayout,
    block_causal,
    encoder_decoder,
    full,
    joint_video_action,
    teacher_forcing,
)

ROLES = ("video", "action", "state")


@st.composite
def rules(draw) -> Rule:
    kind = draw(st.sampled_from(["full", "causal", "window", "forcing", "joint", "memory", "any"]))
    if kind == "any":
        table = draw(st.lists(st.booleans(), min_size=len(ROLES) ** 2 * 12, max_size=len(ROLES) ** 2 * 12))

        def arbitrary(query: Segment, key: Segment) -> bool:
            place = ROLES.index(query.role) * len(ROLES) + ROLES.index(key.role)
            place = place * 12 + (query.block - key.block) % 3 * 4 + 2 * query.clean + key.clean
            same = (query.role, query.block, query.clean) == (key.role, key.block, key.clean)
            return same or table[place]

        return arbitrary
    return {
        "full": full(),
        "causal": block_causal(),
        "window": block_causal(draw(st.integers(1, 3))),
        "forcing": teacher_forcing(),
        "joint": joint_video_action(),
        "memory": encoder_decoder(("state",), causal=draw(st.booleans())),
    }[kind]


@st.composite
def cases(draw) -> tuple[SequenceLayout, Rule]:
    segments = draw(
        st.lists(
            st.builds(Segment, st.sampled_from(ROLES), st.integers(0, 3), st.integers(1, 3), st.booleans()),
            min_size=1,
            max_size=7,
        )
    )
    return SequenceLayout(tuple(segments)), draw(rules())
