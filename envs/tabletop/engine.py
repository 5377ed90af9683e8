"""MuJoCo, imported with a backend that can draw here.

Example::

    from envs.tabletop.engine import mujoco
"""

from worldgym.utils.gl import prepare

prepare()  # before MuJoCo is imported

import mujoco  # noqa: E402

__all__ = ["mujoco"]
