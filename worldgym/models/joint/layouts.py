"""The families of joint world-action models: for each one sequence layout, one attention rule, and its experts.

Roles of the segments are `video` (patches of a latent frame), `action` (one token each), `state` (proprioception at the
start of a block), `register` (learned tokens) and `text`. Block 0 holds the first frame; block i holds the i-th chunk
of actions and the frame after it.

Example::

    family = family_of("dreamzero")
    layout = family.layout(Sizes(blocks=2, patches=16, chunk=5))
    layout.mask(family.rule())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worldgym.errors import ConfigError
from worldgym.nn import Rule, Segment, SequenceLayout, full, joint_video_action

REGISTERS = 8
"""Learned tokens of UWM and Motus."""
WORDS = 4
"""Tokens that the understanding expert of Motus makes of the instruction."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of tokens.

    Args:
        blocks: chunks of actions in the sequence, n.
        patches: tokens of a latent frame.
        chunk: actions of a block, K.
    """

    blocks: int
    patches: int
    chunk: int


@dataclass(frozen=True)
class Family:
    """One kind of joint model.

    Args:
        name: its name.
        layout: the sequence of `Sizes` in training.
        step: the sequence in which the last of the `blocks` is sampled.
        rule: creates the attention rule.
        experts: roles of each expert, by the name of the expert; one expert processes all roles.
        blocks: largest number of blocks in one sequence.
        coupled: video and actions of a block share one noise level; else the levels are independent.
        observes: `tokens`, the first frame is in the sequence as clean tokens; `modulation`, it enters through adaLN.
        future: whether actions attend to the noisy future frame, so that sampling actions also samples video.
        shift: shift of the noise levels towards noise in training.
        source: paper or code that the layout follows.
    """

    name: str
    layout: Callable[[Sizes], SequenceLayout]
    step: Callable[[Sizes], SequenceLayout]
    rule: Callable[[], Rule]
    experts: dict[str, tuple[str, ...]]
    blocks: int
    coupled: bool
    observes: str
    future: bool
    shift: float
    source: str

    @property
    def cached(self) -> bool:
        """Whether no given token attends to a noisy one, so that keys and values of the given ones can be kept."""
        layout = self.step(Sizes(1, 1, 1))
        rule = self.rule()
        given = [s for s in layout.segments if s.clean]
        return bool(given) and not any(rule(q, k) for q in given for k in layout.segments if not k.clean)


def uwm(sizes: Sizes) -> SequenceLayout:
    """Actions, the next frame, registers; the observation is not in the sequence (UWM, arXiv 2504.02792, figure 2)."""
    return SequenceLayout.of(
        Segment("action", 1, sizes.chunk),
        Segment("video", 1, sizes.patches),
        Segment("register", 1, REGISTERS),
    )


def dreamzero(sizes: Sizes) -> SequenceLayout:
    """Clean frames of all blocks, then noisy frames, actions and proprioception of each (arXiv 2602.15922)."""
    n = range(1, sizes.blocks + 1)
    return SequenceLayout(
        (
            *(Segment("video", i, sizes.patches, clean=True) for i in range(sizes.blocks + 1)),
            *(Segment("video", i, sizes.patches) for i in n),
            *(Segment("action", i, sizes.chunk) for i in n),
            *(Segment("state", i, 1) for i in n),
        )
    )


def dreamzero_step(sizes: Sizes) -> SequenceLayout:
    """Clean frames up to the last block, then its noisy frame, actions and proprioception."""
    n = sizes.blocks
    return SequenceLayout(
        (
            *(Segment("video", i, sizes.patches, clean=True) for i in range(n)),
            Segment("video", n, sizes.patches), Segment("action", n, sizes.chunk), Segment("state", n, 1),
        )
    )  # fmt: skip


def fastwam(sizes: Sizes) -> SequenceLayout:
    """The first frame and proprioception, then the future frame and the actions (LeRobot `policies/fastwam`)."""
    return SequenceLayout.of(
        Segment("video", 0, sizes.patches, clean=True),
        Segment("state", 0, 1, clean=True),
        Segment("video", 1, sizes.patches),
        Segment("action", 1, sizes.chunk),
    )


def fastwam_rule(future_reads_actions: bool = False) -> Rule:
    """Video attends to video, and the first frame only to itself; actions to actions, proprioception and first frame.

    Args:
        future_reads_actions: the future frame also attends to actions and proprioception, as in GigaWorld-Policy. Then
            imagined video follows actions. Actions still never see the future frame.
    """

    def may_attend(query: Segment, key: Segment) -> bool:
        first = key.role == "video" and key.clean
        if query.clean:
            return first if query.role == "video" else key.role == "state"
        if query.role == "action":
            return first or key.role in ("action", "state")
        return key.role == "video" or future_reads_actions

    return may_attend


def causal_fastwam_rule() -> Rule:
    """`fastwam_rule` with a future frame that attends to the actions."""
    return fastwam_rule(True)


def motus(sizes: Sizes) -> SequenceLayout:
    """First and future frame, proprioception, actions, registers, and tokens of the instruction (thu-ml/Motus)."""
    return SequenceLayout.of(
        Segment("text", 0, WORDS, clean=True),
        Segment("video", 0, sizes.patches, clean=True),
        Segment("video", 1, sizes.patches),
        Segment("state", 0, 1, clean=True),
        Segment("action", 1, sizes.chunk),
        Segment("register", 1, REGISTERS),
    )


ONE = {"all": ("video", "action", "state", "register", "text")}
TWO = {"video": ("video",), "action": ("action", "state", "register")}
FAMILIES = {
    f.name: f
    for f in (
        Family("uwm", uwm, uwm, full, ONE, 1, False, "modulation", True, 1.0, "arXiv 2504.02792"),
        Family(
            "dreamzero", dreamzero, dreamzero_step, joint_video_action, ONE, 3, True, "tokens", True, 5.0,
            "arXiv 2602.15922",
        ),
        Family(
            "fastwam", fastwam, fastwam, fastwam_rule, TWO, 1, False, "tokens", False, 5.0, "LeRobot policies/fastwam"
        ),
        Family(
            "gigaworld", fastwam, fastwam, causal_fastwam_rule, TWO, 1, False, "tokens", False, 5.0, "GigaWorld-Policy"
        ),
        Family(
            "motus", motus, motus, full, {**TWO, "understanding": ("text",)}, 1, False, "tokens", True, 5.0,
            "thu-ml/Motus",
        ),
    )
}  # fmt: skip
"""Families by name. `gigaworld` is `fastwam` with a future frame that attends to the actions."""


def family_of(name: str) -> Family:
    """The family of a name.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r} of joint models; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]
