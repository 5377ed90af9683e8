"""Imports MuJoCo with an OpenGL backend that can render on this machine.

Example::

    from envs.engine import mujoco
"""

from worldgym.utils.gl import prepare

prepare()  # must run before MuJoCo is imported

import mujoco  # noqa: E402

__all__ = ["mujoco"]
