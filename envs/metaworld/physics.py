"""Dynamics and appearance of the simulated arm: stock Meta-World, and the misspecified software simulator.

Example::

    Physics().softened(0.5)       # half way to the largest gap
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from envs.gap import within


@dataclass(frozen=True)
class Physics:
    """Differences to stock Meta-World; the defaults are none.

    Args:
        gain: factor on the commanded displacement.
        latency: steps of Meta-World (12.5 ms) by which commands are late.
        rotation: rotation of commanded x and y, radians (an error of hand-eye calibration).
        bias: constant added to the commanded displacement, in units of the largest one, x and y.
        friction: factor on the friction of all bodies.
        damping: factor on the damping of all joints.
        weld: time constant of the weld that pulls the hand, seconds; larger is softer. Stock: 0.02.
        azimuth: rotation of the front camera about the vertical, degrees.
        brightness: factor on all lights.
        tint: colour of the table is moved towards green by this share.
    """

    gain: float = 1.0
    latency: int = 0
    rotation: float = 0.0
    bias: float = 0.0
    friction: float = 1.0
    damping: float = 1.0
    weld: float = 0.02
    azimuth: float = 0.0
    brightness: float = 1.0
    tint: float = 0.0

    def softened(self, gap: float, looks: float | None = None) -> Physics:
        """Return the software simulator's physics.

        Args:
            gap: misspecification of the dynamics, in [0, 1].
            looks: misspecification of the appearance, in [0, 1]; None for the value of `gap`.

        Raises:
            ConfigError: a value is out of range.
        """
        gap, looks = within("gap", gap), within("looks", gap if looks is None else looks)
        return replace(
            self,
            gain=1 + 0.5 * gap,  # the arm of the simulator is faster than the real one
            rotation=0.5 * gap,
            bias=-0.15 * gap,
            friction=1 - 0.4 * gap,
            damping=1 + 0.5 * gap,
            azimuth=8 * looks,
            brightness=1 - 0.25 * looks,
            tint=0.4 * looks,
        )
