"""Rollouts for improvers, collected in a world model, in a simulator, or on Ray workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.rollouts.trajectories import Rollouts

__all__ = ["Rollouts"]


def __getattr__(name: str) -> Any:
    """Import `Rollouts` on first access."""
    if name not in __all__:
        raise AttributeError(f"module 'agents.rollouts' has no attribute {name!r}; it has {', '.join(__all__)}")
    from agents.rollouts import trajectories

    return getattr(trajectories, name)
