"""Parts of a call, and how they are read from tensors of any strides."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Which part of a call a slab is: a range of samples, and one of flat voxel positions."""

    samples: slice
    voxels: slice
    is_whole: bool = False  # the call itself

    def flat(self, tensor: Tensor) -> Tensor | None:
        """The piece of a (B, C, *spatial) tensor as a (b, C, m) view, or None where the strides do not allow one."""
        own = tensor if self.is_whole else tensor[self.samples]
        try:
            flat = own.view(own.shape[0], own.shape[1], -1)
        except RuntimeError:
            return None
        return flat if self.is_whole else flat[..., self.voxels]

    def read(self, tensor: Tensor) -> Tensor:
        """The piece of a (B, C, *spatial) tensor as (b, C, m); copied where there is no flat view."""
        view = self.flat(tensor)
        return self._rows(tensor).flatten(2) if view is None else view

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Store (b, C, m) values in a (B, C, *spatial) tensor of any strides and dtype."""
        view = self.flat(tensor)
        if view is not None:
            view.copy_(values)
        else:
            rows = self._rows(tensor)
            rows.copy_(values.reshape(rows.shape))

    def _rows(self, tensor: Tensor) -> Tensor:
        row = math.prod(tensor.shape[3:])
        return tensor[self.samples, :, self.voxels.start // row : self.voxels.stop // row]


def has_flat_view(tensor: Tensor) -> bool:
    """Whether the spatial axes of each sample can be seen as one."""
    return tensor.is_contiguous() or Piece(slice(0, 1), slice(0, 0)).flat(tensor) is not None
