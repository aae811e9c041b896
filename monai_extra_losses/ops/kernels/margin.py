"""The kernels of losses of raw scores."""

from typing import ClassVar

import torch
from torch import Tensor

from monai_extra_losses.ops.kernels.slab import Kernel, Parts, Slab, slope_at, target_sums
from monai_extra_losses.ops.terms import Activation, LeadSums, MarginSums, TargetSums


class MarginSlab(Slab):
    """A slab whose terms read raw scores. Part of the gradient: `d` (b, C, m), dL/dx without the voxels' weights."""

    activation: ClassVar[Activation] = "none"

    def lead(self) -> tuple[Tensor, Tensor]:
        """(b, m) score of the true class minus the largest other, and (b, 1, m) the class of that."""
        others = self.x.scatter(1, self.labels.t.unsqueeze(1), -torch.inf)
        top, rival = others.max(1, keepdim=True)
        return self.labels.pick(self.x) - top.squeeze(1), rival

    def write_gradient(self, parts: Parts, out: Tensor) -> None:
        out.copy_(self.weighted(parts["d"]))


def _margin_sums(slab: MarginSlab, term: MarginSums, out: Tensor) -> None:
    slab.by_outcome(term.formula(slab.labels.outcome(slab.x)), out)


def _margin_gradient(slab: MarginSlab, term: MarginSums, grad: Tensor) -> Parts:
    margin = slab.labels.outcome(slab.x)
    slope = slope_at(term, lambda: margin)
    return {"d": slab.labels.scale(torch.zeros_like(margin).add_(slope), grad[0], -grad[1])}


def _lead_sums(slab: MarginSlab, term: LeadSums, out: Tensor) -> None:
    out[0].add_(slab.by_class(term.formula(slab.lead()[0])))


def _lead_gradient(slab: MarginSlab, term: LeadSums, grad: Tensor) -> Parts:
    margin, rival = slab.lead()
    at_true = slope_at(term, lambda: margin) * slab.labels.factors(grad[0])
    d = slab.labels.add(torch.zeros_like(slab.x), at_true)
    return {"d": d.scatter_add_(1, rival, -at_true.unsqueeze(1))}


MarginSlab.kernels = {
    TargetSums: Kernel(target_sums, None),
    MarginSums: Kernel(_margin_sums, _margin_gradient, floats=lambda term, channels: 6 * channels),
    LeadSums: Kernel(_lead_sums, _lead_gradient, floats=lambda term, channels: 6 * channels),
}
