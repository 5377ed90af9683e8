"""Optical flow as actions, for recordings whose actions are unknown.

Motus (thu-ml/Motus) trains its action expert on latent actions first: 14 numbers per step that encode the optical flow.
Here the flow is classical (dense inverse search, Kroeger et al., ECCV 2016, as in OpenCV), and its code is linear: the
mean flow of 8 x 8 cells, projected on its first principal components, each divided by three standard deviations.

Example::

    arrays = with_flow_actions(dataset.load_arrays(), hz=5.0)
    arrays.actions.shape                                # (F, 14)
    arrays.specs.action.names[:2]                       # ('flow_0', 'flow_1')
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldgym.data.arrays import EpisodeArrays
from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec
from worldgym.utils.optional import require

CELLS = 8
"""Cells of the flow along each side."""
DIMS = 14
"""Numbers per step in Motus."""
SPREADS = 3.0
"""Standard deviations of a component that become 1."""


def cell_flows(frames: np.ndarray) -> np.ndarray:
    """Mean optical flow of the cells between consecutive frames, in pixels.

    Args:
        frames: `(T+1,H,W,3)` uint8 of one episode, with H and W of at least 16.

    Returns:
        `(T,8,8,2)` float32, x and y.

    Raises:
        ConfigError: frames that are too small.
        DependencyError: OpenCV is not installed.
    """
    cv2 = require("cv2", extra="flow", package="opencv-python-headless")
    height, width = frames.shape[1:3]
    if min(height, width) < 2 * CELLS:
        raise ConfigError(
            f"optical flow needs frames of at least {2 * CELLS} pixels, got {height}x{width}; import the recording "
            "with a larger --image-size"
        )
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    out = np.zeros((len(frames) - 1, CELLS, CELLS, 2), np.float32)
    for i, (before, after) in enumerate(zip(grey[:-1], grey[1:], strict=True)):
        flow = method.calc(before, after, None)
        out[i] = cv2.resize(flow, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return out


def with_flow_actions(arrays: EpisodeArrays, hz: float, dims: int = DIMS) -> EpisodeArrays:
    """Episodes whose actions are codes of the optical flow of the main camera.

    Args:
        arrays: episodes with or without actions.
        hz: steps per second.
        dims: numbers per step, at most 128.

    Returns:
        the same episodes with actions `(F,dims)` in [-1, 1]; all have actions.

    Raises:
        ConfigError: `dims` out of range, frames that are too small, no movement at all, or no specs.
        DependencyError: OpenCV is not installed.
    """
    if not 1 <= dims <= 2 * CELLS**2:
        raise ConfigError(f"flow actions: got {dims} dimensions, expected 1 to {2 * CELLS**2}; Motus has {DIMS}")
    if arrays.specs is None:
        raise ConfigError("these episodes have no specs; load them with EpisodeDataset(...).load_arrays()")
    parts = [cell_flows(arrays.frames[arrays.rows(i)]).reshape(-1, 2 * CELLS**2) for i in range(len(arrays))]
    flows = np.concatenate(parts).astype(np.float64)
    centre = flows.mean(0)
    spread, axes = np.linalg.eigh(np.cov(flows - centre, rowvar=False))
    spread, axes = spread[::-1][:dims], axes[:, ::-1][:, :dims]
    if not spread[0] > 1e-12:
        raise ConfigError("nothing moves in these episodes, so optical flow gives no actions; give other recordings")
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(dims)])  # a sign that does not depend on the solver
    scale = SPREADS * np.sqrt(np.maximum(spread, 1e-12))
    codes = np.clip((flows - centre) @ axes / scale, -1, 1).astype(np.float32)
    actions = np.zeros((len(arrays.frames), dims), np.float32)
    ends = np.zeros(len(arrays.frames), bool)
    ends[arrays.offsets[1:] - 1] = True
    actions[~ends] = codes
    spec = ActionSpec(
        tuple(f"flow_{i}" for i in range(dims)), ("1",) * dims, hz, (-1.0,) * dims, (1.0,) * dims
    )
    return replace(
        arrays, actions=actions, has_action=np.ones(len(arrays), bool), specs=replace(arrays.specs, action=spec)
    )
