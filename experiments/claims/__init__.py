"""Published claims as experiments that may refute them: arms, budgets, metric, splits and the rule.

`worldgym claims list` says what there is, `run` makes what is missing, `report` draws verdicts and pages from the
results, which are small JSON files under `docs/results/data`.

Example::

    from experiments.claims import CLAIMS
    CLAIMS["C1"].refuted_if
"""

from __future__ import annotations

from experiments.claims import c1, c2, c5, c20, e1, e2
from experiments.claims.claim import Claim

CLAIMS: dict[str, Claim] = {module.CLAIM.name: module.CLAIM for module in (c1, c2, c5, c20, e1, e2)}
