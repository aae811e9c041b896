"""The terms of a pass: their definitions at once, all formulas of the package, and terms of somebody else."""

import dataclasses
import inspect
import itertools
from typing import Any

import torch
from torch import Tensor

from monai_extra_losses.ops import formulas
from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelFormula,
    VoxelMap,
    probabilities,
)


def formulas_of(argument: str, *values: float) -> list[VoxelFormula]:
    """Every formula of `ops.formulas` that reads `argument`, "log_pt" or "margin", with each of the values.

    A formula of several hyper-parameters gets every combination.
    """
    found: list[VoxelFormula] = []
    for cls in vars(formulas).values():
        if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls)):
            continue
        (reads,) = list(inspect.signature(cls.__call__).parameters)[1:]
        assert reads in ("log_pt", "margin"), f"{cls.__name__} reads {reads}: log_pt or margin?"
        if reads == argument:
            number = len(dataclasses.fields(cls))
            found += [cls(*chosen) for chosen in itertools.product(values, repeat=number)]
    return found


def focal(log_pt: Tensor) -> Tensor:
    return (-torch.expm1(log_pt)) ** 2 * -log_pt


def totals(results: list[Tensor], terms: list[Term]) -> list[Tensor]:
    """Where a term does not want its classes apart, only their total has a meaning."""
    apart = [not isinstance(term, TrueClassSums) or term.by_class for term in terms]
    return [r if a else r.sum(-1, keepdim=True) for r, a in zip(results, apart, strict=True)]


def definitions(data: CallData, terms: list[Term]) -> list[Tensor]:
    """The plain definitions, on all voxels at once."""
    results = [term.definition(data.whole()) for term in terms]
    return [
        result.reshape(*result.shape[:2], *data.scores.shape[2:]) if isinstance(term, VoxelMap) else result
        for term, result in zip(terms, results, strict=True)
    ]


def results_and_gradient(function: Any, data: CallData, terms: list[Term]) -> tuple[list[Tensor], Tensor]:
    """Results, and the gradient of their sum with an own random factor for each number."""
    leaf = data.scores.detach().requires_grad_()
    same = CallData(leaf, data.target, data.mask, data.labels, data.ignore_index)
    results = totals(function(same, terms), terms)
    generator = torch.Generator().manual_seed(3)
    factors = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    total = torch.stack([(r * f).sum().double() for r, f in zip(results, factors, strict=True)]).sum()
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    return [r.detach() for r in results], torch.zeros_like(leaf) if gradient is None else gradient


@dataclasses.dataclass(frozen=True)
class CubeSums:
    """A term of somebody else: sum p^3 g, result (1, B, C)."""

    activation: Activation

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 1, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        p = probabilities(v.scores, self.activation)
        return v.weighted(p**3 * v.one_hot()).sum(-1, dtype=torch.float64).unsqueeze(0)


class SquareRootSums(CountSums):
    """One that changes the definition of a term with a kernel: sum p^(1/2) and its square."""

    def definition(self, v: Voxels) -> Tensor:
        p = (probabilities(v.scores, self.activation) + 1e-3).sqrt()
        return torch.stack([v.weighted(part).sum(-1, dtype=torch.float64) for part in (p, p * p)])


class TwiceSums(TrueClassSums):
    """One that changes the losses of a term with a kernel."""

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        positive, negative = TrueClassSums.losses(self, v)
        return 2 * positive, 2 * negative


class TwiceOutcomeSums(OutcomeSums):
    """The same one-vs-rest."""

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        positive, negative = OutcomeSums.losses(self, v)
        return 2 * positive, 2 * negative


class SizeSums(TargetSums):
    """One that reads the scores where the term that it derives from does not."""

    reads_scores = True

    def definition(self, v: Voxels) -> Tensor:
        return v.weighted(v.scores**2).sum(-1, dtype=torch.float64).expand(2, -1, -1)


class VolumeSums(CubeSums):
    """One that reads the target alone: it has no gradient."""

    def definition(self, v: Voxels) -> Tensor:
        return v.weighted(v.one_hot()).sum(-1, dtype=torch.float64).unsqueeze(0)
