"""How the kernels read the labels of a slab: by index, or as a one-hot where classes are few.

Gathering, scattering and counting cost the same whatever the number of classes, and on a CPU seven times what they cost
per number of a slab that a vectorized multiplication goes through: up to `_FEW` classes the one-hot of a slab, which
never leaves the cache, is the faster way to the same numbers.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from monai_extra_losses.ops.slabs import Voxels
from monai_extra_losses.ops.terms import sum_dtype
from monai_extra_losses.ops.wrong_targets import WrongLabelsError

_FEW = 10


class IndexedLabels:
    """Labels t (m,) as an index.

    Args:
        v: slab of one sample with a label map.
    """

    def __init__(self, v: Voxels) -> None:
        assert v.labels is not None
        self._voxels, self._labels = v, v.labels[0]
        self._num_classes = v.scores.shape[1]

    @cached_property
    def t(self) -> Tensor:
        """(m,) int64 class of each voxel."""
        return self._voxels.index()[0]

    @cached_property
    def volumes(self) -> Tensor:
        """(C,) number of voxels of each label.

        Raises:
            WrongLabelsError: on the CPU.
        """
        if self._labels.device.type != "cpu":
            return sum_by_label(self.t, None, self._num_classes)
        refuse_outside(self._labels, self._num_classes)
        volumes = torch.bincount(self.t, minlength=self._num_classes)
        if self._labels.is_floating_point():
            # Truncation only lowers labels >= 0: the sums agree where every label is a whole number.
            whole = (volumes * torch.arange(volumes.shape[0])).sum()
            if self._labels.sum(dtype=torch.float64) != whole:
                raise WrongLabelsError
        return volumes

    def own(self, values: Tensor) -> Tensor:
        """(m,) value of each voxel's own class, of (C, m)."""
        return self.pick(values)

    def pick(self, values: Tensor) -> Tensor:
        """The same, of values that may be infinite."""
        return values.gather(0, self.t.unsqueeze(0))[0]

    def factors(self, per_class: Tensor) -> Tensor:
        """(m,) factor of each voxel's class, of (C,)."""
        return per_class.index_select(0, self.t)

    def sums(self, values: Tensor) -> Tensor:
        """(C,) sums of (m,) values over the voxels of each class."""
        return sum_by_label(self.t, values, self._num_classes)

    def own_sums(self, values: Tensor, w: Tensor | None) -> Tensor:
        """(C,) sums of (C, m) values over the voxels of each class, with weights (m,)."""
        own = self.own(values)
        return self.sums(own if w is None else own * w)

    def put(self, values: Tensor, at_true: Tensor) -> Tensor:
        """`values` (C, m) with that of each voxel's own class replaced by one of (m,), in place."""
        return values.scatter_(0, self.t.unsqueeze(0), at_true.unsqueeze(0))

    def clear(self, values: Tensor) -> Tensor:
        """`values` (C, m) with that of each voxel's own class set to 0, in place."""
        return values.scatter_(0, self.t.unsqueeze(0), 0.0)

    def add(self, values: Tensor, at_true: Tensor) -> Tensor:
        """`values` (C, m) with (m,) added to that of each voxel's own class, in place."""
        return values.scatter_add_(0, self.t.unsqueeze(0), at_true.unsqueeze(0))

    def outcome(self, scores: Tensor) -> Tensor:
        """(C, m) score of each channel's outcome: the score at the true class, else its negative."""
        return self.put(scores.neg(), self.own(scores))

    def scale(self, values: Tensor, true: Tensor, other: Tensor) -> Tensor:
        """`values` (C, m) times (C,) factors of a class's own voxels and of the others, in place."""
        at_true = self.own(values).mul_(self.factors(true))
        return self.put(values.mul_(other.unsqueeze(1)), at_true)


class FewLabels(IndexedLabels):
    """Labels as g (C, m), on the CPU. The values that it is given must be finite."""

    @cached_property
    def g(self) -> Tensor:
        """(C, m) 1 at each voxel's own class, 0 elsewhere."""
        return self._compared(torch.eq)

    @property
    def volumes(self) -> Tensor:
        """See `IndexedLabels`; nothing but the whole numbers 0..C-1 finds its class."""
        volumes = self.g.sum(1)
        if volumes.sum(dtype=torch.float64) != self._labels.numel():
            raise WrongLabelsError
        return volumes

    @cached_property
    def _other(self) -> Tensor:
        """(C, m) 1 - g."""
        return self._compared(torch.ne)

    def _compared(self, comparison: Callable[..., Tensor]) -> Tensor:
        # A comparison that writes floats is vectorized; one of bytes that multiplies floats later is not.
        labels = self._labels if self._labels.dtype == torch.float64 else self._labels.float()
        classes = torch.arange(self._num_classes, dtype=labels.dtype).unsqueeze(1)
        out = torch.empty_like(self._voxels.scores[0], memory_format=torch.contiguous_format)
        return comparison(labels.unsqueeze(0), classes, out=out)

    def own(self, values: Tensor) -> Tensor:
        return (values * self.g).sum(0)

    def factors(self, per_class: Tensor) -> Tensor:
        return per_class @ self.g

    def sums(self, values: Tensor) -> Tensor:
        return (self.g * values).sum(1)

    def own_sums(self, values: Tensor, w: Tensor | None) -> Tensor:
        own = values * self.g
        return own.sum(1) if w is None else own @ w

    def put(self, values: Tensor, at_true: Tensor) -> Tensor:
        return self.clear(values).addcmul_(self.g, at_true)

    def clear(self, values: Tensor) -> Tensor:
        return values.mul_(self._other)

    def add(self, values: Tensor, at_true: Tensor) -> Tensor:
        return values.addcmul_(self.g, at_true)

    def outcome(self, scores: Tensor) -> Tensor:
        return (self.g - self._other).mul_(scores)

    def scale(self, values: Tensor, true: Tensor, other: Tensor) -> Tensor:
        # Not other + g (true - other): that would round a small factor of the true class away.
        return values.mul_((self.g * true.unsqueeze(1)).addcmul_(self._other, other.unsqueeze(1)))


def read_labels(v: Voxels) -> IndexedLabels:
    """The labels of a slab of one sample, in the form that is faster for its number of classes."""
    return FewLabels(v) if few_classes(v.scores) else IndexedLabels(v)


def few_classes(scores: Tensor) -> bool:
    """Whether `read_labels` takes a one-hot for scores (B, C, *)."""
    return scores.shape[1] <= _FEW and scores.device.type == "cpu"


def refuse_outside(labels: Tensor, num_classes: int) -> None:
    """Refuse values below 0 or above num_classes - 1, and NaN."""
    if labels.numel() and labels.dtype != torch.bool:
        # As numbers: a tensor of uint8 would be compared with 256 as with 0.
        lowest, highest = (limit.item() for limit in torch.aminmax(labels))
        if not (lowest >= 0 and highest <= num_classes - 1):  # NaN is neither
            raise WrongLabelsError


def sum_by_label(t: Tensor, values: Tensor | None, num_classes: int) -> Tensor:
    """(C,) sums of `values` (m,), or counts, over the voxels of each label; the same bits on every run."""
    if t.device.type == "cpu":
        # With float32 weights bincount would add one after the other in float32.
        return torch.bincount(t, weights=None if values is None else values.double(), minlength=num_classes)
    classes = torch.arange(num_classes, device=t.device)
    one_hot = t.unsqueeze(0) == classes.unsqueeze(1)  # atomics would add in another order each time
    return one_hot.sum(1) if values is None else torch.where(one_hot, values, 0).sum(1, dtype=sum_dtype(t.device))
