"""Published claims as experiments that can refute them: arms, budgets, metric, splits and a decision rule.

`worldgym claims list` lists the claims, `run` computes missing results, and `report` writes verdicts and pages from the
results, which are small JSON files in `docs/results/data`.

Example::

    from experiments.claims import CLAIMS, find_arm
    CLAIMS["C1"].refuted_if
    find_arm("imagined_rl").label
"""

from __future__ import annotations

from experiments.claims import (
    c1,
    c2,
    c3,
    c4,
    c5,
    c6,
    c7,
    c8,
    c9,
    c10,
    c11,
    c14,
    c16,
    c17,
    c20,
    c21,
    c23,
    c24,
    c25,
    e1,
    e2,
)
from experiments.claims.arms import Arm
from experiments.claims.claim import Claim, all_arms
from worldgym.errors import ConfigError

MODULES = (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c14, c16, c17, c20, c21, c23, c24, c25, e1, e2)
CLAIMS: dict[str, Claim] = {module.CLAIM.name: module.CLAIM for module in MODULES}
ARMS: dict[str, Arm] = all_arms(CLAIMS.values())


def find_arm(name: str) -> Arm:
    """Return the arm with this name.

    Raises:
        ConfigError: no arm has this name.
    """
    if name not in ARMS:
        raise ConfigError(f"unknown arm {name!r}; the arms are {', '.join(ARMS)}")
    return ARMS[name]
