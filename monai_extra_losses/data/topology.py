"""Betti numbers of masks: pieces, loops and enclosed cavities."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Mask = NDArray[np.bool_]


def betti_numbers(mask: _Mask) -> tuple[int, int]:
    """Connected components b0 and loops b1 of a mask.

    b1 = b0 - chi in 2D and b0 + b2 - chi in 3D, chi the Euler number and b2 the enclosed cavities. Voxels are connected
    by a common face, edge or corner, those of the background by a common face, as duality asks for. What is beyond the
    border is background.

    Args:
        mask: (X, Y) or (X, Y, Z).
    """
    from scipy import ndimage  # 0.2 s

    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return 0, 0
    mask = np.pad(mask[box[0]], 1)
    components = int(ndimage.label(mask, np.ones([3] * mask.ndim))[1])
    cavities = int(ndimage.label(~mask)[1]) - 1 if mask.ndim == 3 else 0
    return components, components + cavities - euler_number(mask)


def euler_number(mask: _Mask) -> int:
    """Euler number of the union of closed voxels: corners - edges + faces - cubes."""
    total, padded = 0, np.pad(mask, 1)
    for is_point in itertools.product((False, True), repeat=mask.ndim):
        cells: Any = padded
        for axis in np.flatnonzero(is_point):
            before, after = np.delete(cells, -1, axis), np.delete(cells, 0, axis)
            cells = before | after
        total += (-1) ** (mask.ndim - sum(is_point)) * int(cells.sum())
    return total
