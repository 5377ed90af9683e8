"""C16: a penalty on epistemic uncertainty in imagined RL, with an inverted U of true success over its weight.

RWM-U subtracts lambda times the disagreement of an ensemble from the reward. The disagreement of predicted frames does
not foretell wrong verdicts here, that of the verdicts on two futures does (`worldgym.models.FutureEnsemble`), so it is
the uncertainty: the standard deviation of two probabilities, at most 0.5. A success is not imitated if its reward falls
to 0.5: at lambda 3 if the probabilities differ by more than 1/3, at lambda 30 if they differ by more than 1/30. The
number of rounds, rollouts and updates is that of C1; imagination costs twice as much.

Example::

    from experiments.claims.c16 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from experiments.claims.arms import Arm, imagined_rl
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.figures import gains, way
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

NAME = "C16"
PENALTIES = (0.0, 3.0, 30.0)
"""No penalty, a moderate one, a large one."""
FUTURES = 1
NONE, MODERATE, LARGE = ((NAME, f"penalty-{weight:g}") for weight in PENALTIES)

OWN_ARMS = tuple(
    Arm(
        f"penalty-{weight:g}", f"imagined RL, penalty {weight:g}",
        imagined_rl({"futures": FUTURES if weight else 0, "penalty": weight}), splits=("seen",), evaluators=False,
    )
    for weight in PENALTIES
)  # fmt: skip


def arms(preset: ClaimPreset) -> list[tuple[str, str]]:
    """Imagined RL with each weight."""
    return [NONE, MODERATE, LARGE]


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare the moderate penalty with none and with the large one."""
    effect, second = difference(records, MODERATE, NONE, seeds), difference(records, MODERATE, LARGE, seeds)
    why = f"penalty 3 minus none: {said(effect)}; penalty 3 minus penalty 30: {said(second)}"
    if min(effect.mean, second.mean) <= 0:
        return Ruling(False, effect, f"{why}; true success has no maximum at the moderate penalty")
    if min(effect.low, second.low) > 0:
        return Ruling(True, effect, f"{why}; both intervals are above 0")
    return Ruling(None, effect, f"{why}; the means form an inverted U, but not both intervals are above 0")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Charts of the gains, and of imagined and true success during training with the moderate penalty."""
    return {**gains(records, MODERATE, [NONE, LARGE]), **way(records, MODERATE)}


CLAIM = Claim(
    NAME,
    "a penalty on the uncertainty raises true success, and a large one lowers it",
    "RWM-U (arXiv 2504.16680): without a penalty imagined and true return part; true return has a maximum over lambda",
    "the mean true success at penalty 3 is not above that without a penalty, or not above that at penalty 30",
    arms=arms,
    needs=arms,
    rule=rule,
    figures=figures,
    own_arms=OWN_ARMS,
)
