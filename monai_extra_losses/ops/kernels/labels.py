"""How the kernels read the labels of a slab: by index, or as a one-hot where classes are few.

Gathering, scattering and counting cost the same whatever the number of classes, and on a CPU seven times what they cost
per number of a slab that a vectorized multiplication goes through: up to `_FEW` classes the one-hot of a slab, which
never leaves the cache, is the faster way to the same numbers.
"""

import functools
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.wrong_targets import WrongLabelsError

_FEW = 10


class IndexedLabels:
    """Labels t (b, m) as an index.

    Args:
        v: slab with a label map.
    """

    def __init__(self, v: Voxels) -> None:
        assert v.labels is not None
        self._voxels, self._labels = v, v.labels
        self._num_classes = v.scores.shape[1]

    @cached_property
    def t(self) -> Tensor:
        """(b, m) int64 class of each voxel."""
        return self._voxels.index()

    @cached_property
    def volumes(self) -> Tensor:
        """(b, C) number of voxels of each label.

        Raises:
            WrongLabelsError: on the CPU.
        """
        if self._labels.device.type != "cpu":
            return sum_by_label(self.t, None, self._num_classes)
        refuse_outside(self._labels, self._num_classes)
        volumes = sum_by_label(self.t, None, self._num_classes)
        if self._labels.is_floating_point():
            # Truncation only lowers labels >= 0: the sums agree where every label is a whole number.
            whole = (volumes * torch.arange(self._num_classes)).sum()
            if self._labels.sum(dtype=torch.float64) != whole:
                raise WrongLabelsError
        return volumes

    def own(self, values: Tensor) -> Tensor:
        """(b, m) value of each voxel's own class, of (b, C, m)."""
        return self.pick(values)

    def pick(self, values: Tensor) -> Tensor:
        """The same, of values that may be infinite."""
        return values.gather(1, self.t.unsqueeze(1)).squeeze(1)

    def of_classes_from(self, first: int) -> Tensor:
        """(b, C', m) bool: whether a voxel is of each class from `first` on."""
        return self.t.unsqueeze(1) == torch.arange(first, self._num_classes, device=self.t.device).unsqueeze(1)

    def factors(self, per_class: Tensor) -> Tensor:
        """(b, m) factor of each voxel's class, of (b, C)."""
        return per_class.gather(1, self.t)

    def sums(self, values: Tensor) -> Tensor:
        """(b, C) sums of (b, m) values over the voxels of each class."""
        return sum_by_label(self.t, values, self._num_classes)

    def own_sums(self, values: Tensor, w: Tensor | None) -> Tensor:
        """(b, C) sums of (b, C, m) values over the voxels of each class, with weights (b, m)."""
        own = self.own(values)
        return self.sums(own if w is None else own * w)

    def put(self, values: Tensor, at_true: Tensor) -> Tensor:
        """`values` (b, C, m) with that of each voxel's own class replaced by one of (b, m), in place."""
        return values.scatter_(1, self.t.unsqueeze(1), at_true.unsqueeze(1))

    def clear(self, values: Tensor) -> Tensor:
        """`values` (b, C, m) with that of each voxel's own class set to 0, in place."""
        return values.scatter_(1, self.t.unsqueeze(1), 0.0)

    def add(self, values: Tensor, at_true: Tensor) -> Tensor:
        """`values` (b, C, m) with (b, m) added to that of each voxel's own class, in place."""
        return values.scatter_add_(1, self.t.unsqueeze(1), at_true.unsqueeze(1))

    def outcome(self, scores: Tensor) -> Tensor:
        """(b, C, m) score of each channel's outcome: the score at the true class, else its negative."""
        return self.put(scores.neg(), self.own(scores))

    def scale(self, values: Tensor, true: Tensor, other: Tensor) -> Tensor:
        """`values` (b, C, m) times (b, C) factors of a class's own voxels and of the others, in place."""
        at_true = self.own(values).mul_(self.factors(true))
        return self.put(values.mul_(other.unsqueeze(2)), at_true)


class FewLabels(IndexedLabels):
    """Labels as g (b, C, m), on the CPU. The values that it is given must be finite."""

    @cached_property
    def g(self) -> Tensor:
        """(b, C, m) 1 at each voxel's own class, 0 elsewhere."""
        return self._compared(torch.eq)

    @cached_property
    def volumes(self) -> Tensor:
        """See `IndexedLabels`; nothing but the whole numbers 0..C-1 finds its class."""
        volumes = self.g.sum(2)
        if volumes.sum(dtype=torch.float64) != self._labels.numel():
            raise WrongLabelsError
        return volumes

    @cached_property
    def _other(self) -> Tensor:
        """(b, C, m) 1 - g."""
        return self._compared(torch.ne)

    def _compared(self, comparison: Callable[..., Tensor]) -> Tensor:
        # A comparison that writes floats is vectorized; one of bytes that multiplies floats later is not.
        labels = self._labels if self._labels.dtype == torch.float64 else self._labels.float()
        classes = _column(self._num_classes, labels.dtype)
        out = torch.empty_like(self._voxels.scores, memory_format=torch.contiguous_format)
        return comparison(labels.unsqueeze(1), classes, out=out)

    def own(self, values: Tensor) -> Tensor:
        return (values * self.g).sum(1)

    def factors(self, per_class: Tensor) -> Tensor:
        return torch.bmm(per_class.unsqueeze(1), self.g).squeeze(1)

    def sums(self, values: Tensor) -> Tensor:
        return (self.g * values.unsqueeze(1)).sum(2)

    def own_sums(self, values: Tensor, w: Tensor | None) -> Tensor:
        own = values * self.g
        return own.sum(2) if w is None else torch.bmm(own, w.unsqueeze(2)).squeeze(2)

    def put(self, values: Tensor, at_true: Tensor) -> Tensor:
        return self.clear(values).addcmul_(self.g, at_true.unsqueeze(1))

    def clear(self, values: Tensor) -> Tensor:
        return values.mul_(self._other)

    def add(self, values: Tensor, at_true: Tensor) -> Tensor:
        return values.addcmul_(self.g, at_true.unsqueeze(1))

    def outcome(self, scores: Tensor) -> Tensor:
        return (self.g - self._other).mul_(scores)

    def scale(self, values: Tensor, true: Tensor, other: Tensor) -> Tensor:
        # Not other + g (true - other): that would round a small factor of the true class away.
        return values.mul_((self.g * true.unsqueeze(2)).addcmul_(self._other, other.unsqueeze(2)))


@functools.cache
def _column(num_classes: int, dtype: torch.dtype) -> Tensor:
    """(C, 1) the labels 0..C-1."""
    return torch.arange(num_classes, dtype=dtype, device="cpu").unsqueeze(1)


def read_labels(v: Voxels) -> IndexedLabels:
    """The labels of a slab, in the form that is faster for its number of classes."""
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
    """(b, C) sums of `values` (b, m), or counts, over the voxels of each label; the same bits on every run."""
    if t.device.type == "cpu":
        batch = t.shape[0]
        index = t if batch == 1 else t + num_classes * torch.arange(batch).unsqueeze(1)
        # With float32 weights bincount would add one after the other in float32.
        weights = None if values is None else values.double().flatten()
        return torch.bincount(index.flatten(), weights=weights, minlength=batch * num_classes).view(batch, num_classes)
    classes = torch.arange(num_classes, device=t.device)
    one_hot = t.unsqueeze(1) == classes.unsqueeze(1)  # atomics would add in another order each time
    return (
        one_hot.sum(2)
        if values is None
        else torch.where(one_hot, values.unsqueeze(1), 0).sum(2, dtype=sum_dtype(t.device))
    )
