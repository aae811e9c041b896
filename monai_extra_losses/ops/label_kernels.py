"""Analytic slab kernels for label maps: the forward reads scores and labels once, the backward once more.

Everything works on one slab of one sample: x (C, m) scores, t (m,) class of each voxel, w (m,) weights or None. No
one-hot is built: with g the one-hot of t, sums over g are sums by label, and a gradient has a part that is the same for
every voxel of a class (`base`, `square`) and a part at the true class alone (`true`).

    dL/dp = w (base_c + 2 square_c p + g true_c)        from sum p, sum p^2, sum pg
    dL/dx = p (dL/dp - sum_k p_k dL/dp_k)               softmax
    dL/dx = p (1 - p) dL/dp                             sigmoid
    dL/dx = v (g - p)                                   from v = dL/dlog p_t under softmax
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.slabs import Voxels
from monai_extra_losses.ops.terms import Activation, CountSums, LogSums, Term, VoxelFormula, VoxelMap, VoxelSums

# Below this, log p_t is taken from the scores: a float32 softmax underflows at 1e-38 and has lost digits before.
_SMALL = 1e-30


def supports(terms: Sequence[Term]) -> bool:
    """Whether the kernels compute these terms for a label map."""
    activations = {term.activation for term in terms}
    if activations not in ({"softmax"}, {"sigmoid"}):
        return False
    return not any(
        (isinstance(term, VoxelSums) and term.one_vs_rest == (term.activation == "softmax"))
        or (isinstance(term, VoxelMap) and term.sums.one_vs_rest == (term.activation == "softmax"))
        or (isinstance(term, LogSums) and term.activation == "sigmoid")
        for term in terms
    )


class LabelSlab:
    """One slab of one sample with a label map."""

    def __init__(self, v: Voxels, activation: Activation) -> None:
        assert v.index is not None
        self.x = v.scores[0]
        self.t = v.index[0]
        self.w = None if v.weight is None else v.weight[0]
        self.softmax = activation == "softmax"

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        """Add this slab to the sums `outs` (rows, C), or fill the slab (channels, m) of a map."""
        counts = any(isinstance(term, CountSums) for term in terms)
        p = self._probabilities() if self.softmax or counts else None
        for term, out in zip(terms, outs, strict=True):
            if isinstance(term, CountSums):
                assert p is not None
                self._count(p, term, out)
            elif isinstance(term, LogSums):
                out[0] += self._sum(F.log_softmax(self.x, 0))
            elif isinstance(term, VoxelSums):
                self._voxel_sums(p, term, out)
            elif isinstance(term, VoxelMap):
                out.copy_(self._weighted(self._voxel_loss(p, term.sums)))

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
        """(C, m) gradient with respect to the scores, from the gradients of what `forward` gave."""
        x = self.x
        base, square, true, log_base = (x.new_zeros(x.shape[0]) for _ in range(4))
        squares = False
        voxelwise: Tensor | None = None  # v: (m,) under softmax, (C, m) under sigmoid
        p = self._probabilities()
        for term, grad in zip(terms, grads, strict=True):
            grad = grad.to(x.dtype)
            if isinstance(term, CountSums):
                true += grad[0]
                base += grad[1]
                if term.squares:
                    squares = True
                    square += grad[2]
            elif isinstance(term, LogSums):
                log_base += grad[0]
            else:
                v = self._voxel_gradient(p, term, grad)
                voxelwise = v if voxelwise is None else voxelwise + v
        if not self.softmax:
            return self._weighted(self._sigmoid_gradient(p, base, square if squares else None, true, voxelwise))
        jump = self._at(p) * true.index_select(0, self.t)
        if voxelwise is not None:
            jump += voxelwise
        inner = torch.addmv(jump, p.t(), base)
        if squares:
            inner += 2 * (square @ (p * p))
        inner += log_base.sum()
        d = base.unsqueeze(1) - inner
        if squares:
            d.addcmul_(square.unsqueeze(1), p, value=2)
        d.mul_(p)
        if any(isinstance(term, LogSums) for term in terms):
            d += log_base.unsqueeze(1)
        d.scatter_add_(0, self.t.unsqueeze(0), jump.unsqueeze(0))
        return self._weighted(d)

    def _probabilities(self) -> Tensor:
        return torch.softmax(self.x, 0) if self.softmax else torch.sigmoid(self.x)

    def _at(self, values: Tensor) -> Tensor:
        """(m,) value of each voxel's own class."""
        return values.gather(0, self.t.unsqueeze(0))[0]

    def _sum(self, values: Tensor) -> Tensor:
        """(C,) weighted sums over the voxels. Float32 within a slab (pairwise in torch), float64 across slabs."""
        return values.sum(1) if self.w is None else values @ self.w

    def _by_class(self, values: Tensor) -> Tensor:
        """(C,) weighted sums of (m,) values over the voxels of each class."""
        return sum_by_label(self.t, values if self.w is None else values * self.w, self.x.shape[0])

    def _weighted(self, values: Tensor) -> Tensor:
        return values if self.w is None else values.mul_(self.w)

    def _count(self, p: Tensor, term: CountSums, out: Tensor) -> None:
        out[0] += self._by_class(self._at(p))
        out[1] += self._sum(p)
        if term.squares:
            out[2] += self._sum(p * p)
            out[3] += sum_by_label(self.t, self.w, self.x.shape[0])  # g^2 = g

    def _log_true(self, p: Tensor) -> Tensor:
        """(m,) log p_t under softmax."""
        p_true = self._at(p)
        if p_true.device.type == "cpu" and p_true.min() > _SMALL:
            return p_true.log_()
        return self._at(F.log_softmax(self.x, 0))

    def _voxel_loss(self, p: Tensor | None, term: VoxelSums) -> Tensor:
        """(1, m) loss under softmax, (C, m) under sigmoid."""
        if self.softmax:
            assert p is not None
            return term.formula(self._log_true(p)).unsqueeze(0)
        loss = term.formula(F.logsigmoid(-self.x))
        return loss.scatter_(0, self.t.unsqueeze(0), term.formula(F.logsigmoid(self._at(self.x))).unsqueeze(0))

    def _voxel_sums(self, p: Tensor | None, term: VoxelSums, out: Tensor) -> None:
        loss = self._voxel_loss(p, term)
        if not self.softmax:
            out[0] += self._by_class(self._at(loss))
            out[1] += self._sum(loss.scatter_(0, self.t.unsqueeze(0), 0.0))
        elif term.by_class:
            out[0] += self._by_class(loss[0])
        else:
            out[0, 0] += self._sum(loss)[0]

    def _voxel_gradient(self, p: Tensor, term: Term, grad: Tensor) -> Tensor:
        """dL/dlog p_t (m,) under softmax; dL/dx (C, m) under sigmoid."""
        if isinstance(term, VoxelMap):
            sums, positive, negative = term.sums, grad, grad
        else:
            assert isinstance(term, VoxelSums)
            sums, positive, negative = term, grad[0], grad[1].unsqueeze(1)
        if self.softmax:
            slope = derivative(sums.formula, self._log_true(p))
            if isinstance(term, VoxelMap):
                return slope.mul_(positive[0])
            return slope.mul_(positive.index_select(0, self.t) if sums.by_class else positive[0])
        # d logsigmoid(-x) / dx = -p and d logsigmoid(x) / dx = 1 - p
        slope = derivative(sums.formula, F.logsigmoid(-self.x)).mul_(p).mul_(negative).neg_()
        at_true = derivative(sums.formula, F.logsigmoid(self._at(self.x))) * (1 - self._at(p))
        at_true *= self._at(positive) if isinstance(term, VoxelMap) else positive.index_select(0, self.t)
        return slope.scatter_(0, self.t.unsqueeze(0), at_true.unsqueeze(0))

    def _sigmoid_gradient(
        self, p: Tensor, base: Tensor, square: Tensor | None, true: Tensor, voxelwise: Tensor | None
    ) -> Tensor:
        slope = p * (1 - p)
        d = (
            slope * base.unsqueeze(1)
            if square is None
            else slope * torch.addcmul(base[:, None], square[:, None], p, value=2)
        )
        at_true = self._at(slope) * true.index_select(0, self.t)
        d.scatter_add_(0, self.t.unsqueeze(0), at_true.unsqueeze(0))
        return d if voxelwise is None else d.add_(voxelwise)


def derivative(formula: VoxelFormula, log_pt: Tensor) -> Tensor:
    """f'(log p_t) of an elementwise formula."""
    with torch.enable_grad():
        leaf = log_pt.detach().requires_grad_()
        value = formula(leaf)
        (slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
    return slope


def sum_by_label(t: Tensor, values: Tensor | None, num_classes: int) -> Tensor:
    """(C,) sums of `values` (m,), or counts, over the voxels of each label; the same bits on every run."""
    if t.device.type == "cpu":
        # With float32 weights bincount would add one after the other in float32.
        return torch.bincount(t, weights=None if values is None else values.double(), minlength=num_classes)
    classes = torch.arange(num_classes, device=t.device)
    one_hot = t.unsqueeze(0) == classes.unsqueeze(1)  # atomics would add in another order each time
    return one_hot.sum(1) if values is None else torch.where(one_hot, values, 0).sum(1, dtype=torch.float64)
