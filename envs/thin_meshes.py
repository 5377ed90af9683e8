"""Reduces the meshes of a MuJoCo model to a few triangles, for rendering small images in software.

A robot arm has tens of thousands of triangles, and at 64 pixels most of them are smaller than a pixel. Vertices are
merged in cells of a cubic grid (vertex clustering; Rossignac and Borrel 1993).

Example::

    copy = copy.deepcopy(model)         # the physics keeps the full meshes
    thin_meshes(copy, 0.02)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mujoco


def thin_meshes(model: mujoco.MjModel, cell: float) -> int:
    """Merge the vertices of each cell and remove faces that degenerate; changes `model` in place.

    Collisions must not be computed with `model` afterwards.

    Args:
        model: a copy that is used for rendering only.
        cell: side of a cell, metres.

    Returns:
        number of remaining triangles.

    Raises:
        ValueError: `cell` is not positive.
    """
    if cell <= 0:
        raise ValueError(f"cell is {cell}; expected a positive length in metres, such as 0.02")
    for mesh in range(model.nmesh):
        first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        cells = np.floor(model.mesh_vert[first : first + count] / cell).astype(np.int64)
        _, representative, of_vertex = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        begin, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        rows = slice(begin, begin + faces)
        merged = representative[of_vertex.ravel()][model.mesh_face[rows]]
        ordered = np.sort(merged, axis=1)
        proper = (ordered[:, 0] < ordered[:, 1]) & (ordered[:, 1] < ordered[:, 2])
        _, unique = np.unique(ordered[proper], axis=0, return_index=True)
        kept = np.sort(np.flatnonzero(proper)[unique])
        for name, values in (
            ("mesh_face", merged), ("mesh_facenormal", model.mesh_facenormal[rows]),
            ("mesh_facetexcoord", model.mesh_facetexcoord[rows]),
        ):  # fmt: skip
            getattr(model, name)[begin : begin + len(kept)] = values[kept]
        model.mesh_facenum[mesh] = len(kept)
    return int(model.mesh_facenum.sum())
