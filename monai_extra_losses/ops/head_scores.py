"""Scores that are never there as a whole: those of a 1x1x1 convolution, computed slab by slab."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.pieces import Piece

# What may be asked of scores that have a shape and no numbers.
_FACTS = frozenset(
    {
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_meta", "layout")
        ),
        *(
            getattr(Tensor, name)
            for name in ("size", "dim", "numel", "is_floating_point", "is_complex", "element_size")
        ),
    }
)


class HeadScores(Tensor):
    """The scores (B, C, *spatial) of features (B, K, *spatial): W f + b in each voxel.

    A tensor with their shape, precision and device. Numbers it has none: whoever wants to compute with them as a whole
    gets a sentence.

    Attributes:
        features: (B, K, *spatial), of any float dtype.
        weight: W, (C, K).
        bias: b, (C,), or None.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, features: Tensor, weight: Tensor, bias: Tensor | None) -> Self:
        """Scores in float32, or float64 where the features are."""
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        shape = features.shape[0], weight.shape[0], *features.shape[2:]
        nothing = torch.full((), torch.nan, dtype=dtype, device=features.device)
        scores = nothing.expand(shape).as_subclass(cls)
        scores.features, scores.weight, scores.bias = features, weight, bias
        return scores

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _FACTS:
            raise ValueError(  # for a TypeError Python would say that there is no such operator
                "expected a loss that reads its scores slab by slab, got one that reads all of them at once "
                f"({getattr(func, '__name__', func)}): compute the scores, and give them to the loss without HeadLoss."
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def features_in(self, piece: Piece, weight: Tensor | None) -> Tensor:
        """(b, K, m) features of a piece in the precision of the scores, 0 where a voxel of `weight` (b, m) counts 0."""
        features = piece.read(self.features).to(self.dtype)
        # Whatever stands there, NaN too, would be multiplied by a gradient of 0.
        return features if weight is None else features.masked_fill(weight.unsqueeze(1) == 0, 0)

    def read(self, piece: Piece, weight: Tensor | None) -> Tensor:
        """(b, C, m) scores of a piece."""
        features = self.features_in(piece, weight)
        w = self.weight.detach().to(features.dtype).expand(features.shape[0], -1, -1)
        if self.bias is None:
            return torch.bmm(w, features)
        bias = self.bias.detach().to(features.dtype).view(1, -1, 1)
        return torch.baddbmm(bias, w, features)

    def gradients(self, needed: tuple[bool, bool, bool]) -> "HeadGradients":
        """What collects those of features, weight and bias that are `needed`."""
        features, weight, bias = needed
        dtype = sum_dtype(self.device)
        return HeadGradients(
            self,
            torch.empty_like(self.features) if features else None,
            torch.zeros_like(self.weight, dtype=dtype) if weight else None,
            torch.zeros_like(self.bias, dtype=dtype) if bias and self.bias is not None else None,
        )


@dataclass(frozen=True, slots=True)
class HeadGradients:
    """The gradients of a head and its features, from those of the scores of each piece.

    df = W^T dz, dW = sum dz f^T, db = sum dz.
    """

    scores: HeadScores
    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(self, piece: Piece, voxel_weight: Tensor | None, d: Tensor) -> None:
        """Add what follows from d (b, C, m), the gradient of the scores of a piece."""
        if self.features is not None:
            w = self.scores.weight.detach().to(d.dtype).t().expand(d.shape[0], -1, -1)
            piece.write(self.features, torch.bmm(w, d))
        if self.weight is not None:
            features = self.scores.features_in(piece, voxel_weight)
            self.weight.add_(torch.bmm(d, features.transpose(1, 2)).sum(0))
        if self.bias is not None:
            self.bias.add_(d.sum(2).sum(0))

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients, in the precision of what they are of."""
        of_weight, of_bias = self.weight, self.bias
        if of_weight is not None:
            of_weight = of_weight.to(self.scores.weight.dtype)
        if of_bias is not None and self.scores.bias is not None:
            of_bias = of_bias.to(self.scores.bias.dtype)
        return self.features, of_weight, of_bias
