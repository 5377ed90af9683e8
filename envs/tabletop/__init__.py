"""The tabletop: language-conditioned manipulation with primitives, in two domains (real, soft).

Example::

    from envs.tabletop import TASKS, TabletopEnv
    env = TabletopEnv(domain="soft", gap=0.5, task=TASKS[0])
"""

from worldgym.utils.gl import prepare

prepare()  # before anything below imports MuJoCo

from envs.tabletop.env import TabletopEnv  # noqa: E402
from envs.tabletop.grammar import TASKS  # noqa: E402
from envs.tabletop.tasks import SPLITS  # noqa: E402
from envs.tabletop.vector import TabletopVectorEnv  # noqa: E402

__all__ = ["SPLITS", "TASKS", "TabletopEnv", "TabletopVectorEnv"]
