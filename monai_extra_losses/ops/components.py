"""Connected components of regions, and cells: for each voxel the component that is nearest to it, in mm.

Both are whole numbers, 1, 2, ... in each region of each sample. A voxel of a component lies in the cell of its own
component, so that a map of cells and the region are all there is to know: a map of components is that of the cells
within the region, 0 outside.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_extra_losses.ops.distance import VoxelSpacing, spacing_rows
from monai_extra_losses.ops.numbers import array_of, numbers_of

Array = np.ndarray[Any, Any]

# What cc3d calls the neighbours that are up to 1, 2, 3 axes off.
_NEIGHBOURS = {2: (4, 8), 3: (6, 18, 26)}


def components_of_regions(regions: Tensor, connectivity: int | None) -> Tensor:
    """(B, C, *spatial) int32: the component of each voxel of each region, 0 outside.

    Args:
        regions: (B, C, *spatial) bool, 1D to 3D.
        connectivity: neighbours are up to one step off in so many axes, 1..D; None: in all.

    Raises:
        ImportError: without cc3d.
        ValueError: a connectivity above the number of axes; regions that cannot be read (vmap).
    """
    found: Tensor = _of_each_region(regions, connectivity, lambda components, number, n: components)
    return found


def cells_of_regions(regions: Tensor, connectivity: int | None, spacing: VoxelSpacing) -> Tensor:
    """(B, C, *spatial) int32: for each region the component that is nearest to each voxel, 0 where there is none.

    Args:
        regions: (B, C, *spatial) bool, 1D to 3D.
        connectivity: see `components_of_regions`.
        spacing: mm per spatial axis, (D,) or (B, D); None measures in voxels.

    Raises:
        ImportError: without cc3d, or without scipy where there are several components.
        ValueError: see `components_of_regions`; a spacing that does not fit.
    """
    rows = spacing_rows(spacing, regions.shape[0], regions.ndim - 2)
    cells: Tensor = _of_each_region(
        regions, connectivity, lambda components, number, n: _cells(components, number, rows[n])
    )
    return cells


@torch.compiler.disable  # type: ignore[untyped-decorator]
def number_of_ids(cells: Tensor) -> int:
    """One more than the largest number of a map of cells or components; 1 where it has no numbers.

    Raises:
        ValueError: numbers below 0, or that are not whole.
    """
    known = numbers_of(cells)
    if known is None or not known.numel():
        return 1
    lowest, highest = (limit.item() for limit in torch.aminmax(known))
    if not 0 <= lowest <= highest < 2**31 or (known.is_floating_point() and not torch.equal(known, known.trunc())):
        raise ValueError(
            f"expected cells that are whole numbers >= 0, got {lowest:g} to {highest:g}; move them with the label by "
            "mode='nearest'."
        )
    return int(highest) + 1


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _of_each_region(regions: Tensor, connectivity: int | None, result: Callable[[Array, int, int], Array]) -> Tensor:
    """(B, C, *spatial) int32 of the components of each region, their number and the number of the sample."""
    axes = regions.ndim - 2
    if connectivity is not None and connectivity > axes:
        raise ValueError(
            f"expected connectivity in 1 to {axes} for {axes} spatial axes, got {connectivity}; None takes all axes."
        )
    found = torch.zeros_like(regions, dtype=torch.int32, memory_format=torch.contiguous_format)
    known = numbers_of(regions)
    if known is None:
        return found
    if known.shape != regions.shape:
        raise ValueError(
            "expected cells where the target cannot be read (vmap), got none; give those of transforms.ComponentCells."
        )
    for n, sample in enumerate(regions):
        for c, region in enumerate(sample):
            if bool(region.any()):
                array = array_of(region)
                components, number = connected_components(array, connectivity)
                found[n, c] = torch.from_numpy(result(components, number, n).astype(np.int32)).to(found.device)
    return found


def connected_components(region: Array, connectivity: int | None) -> tuple[Array, int]:
    """The components of one region (*spatial) bool as whole numbers from 1 on, and how many there are."""
    cc3d = _imported("cc3d", "connected-components-3d")
    grid = region[None] if region.ndim == 1 else region
    neighbours = _NEIGHBOURS[grid.ndim]
    chosen = neighbours[(connectivity or region.ndim) - 1]
    # Not as bool: of such, cc3d 4.1.1 numbers voxels of the background, too (2D, 8 neighbours).
    numbers = np.ascontiguousarray(grid).view(np.uint8)
    components, number = cc3d.connected_components(numbers, connectivity=chosen, return_N=True)
    return components.reshape(region.shape), number


def _cells(components: Array, number: int, spacing: list[float]) -> Array:
    if number == 1:
        return np.ones_like(components)
    ndimage = _imported("scipy.ndimage", "scipy")
    nearest = ndimage.distance_transform_edt(
        components == 0, sampling=spacing, return_distances=False, return_indices=True
    )
    cells: Array = components[tuple(nearest)]
    return cells


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(
            f"expected {package}, which finds the components of a label, got none; install it: pip install {package}, "
            "or this package with its extra [lesions]."
        ) from None
