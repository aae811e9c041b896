"""The data of one call, shared by the parts of a compound loss: checked once, each sum computed once."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from monai_extra_losses.losses.checks import ShapeMismatchError, plain
from monai_extra_losses.losses.geometry import Geometry
from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.contours import contour_sizes
from monai_extra_losses.ops.fused_sums import fused_sums, whole
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import Term

Source = Literal["scores", "activated"]
Asked = tuple[Source, Term]


class LossInputs:
    """One call's data, and what is computed of it.

    Args:
        data: scores, target and mask.
        other_act: activation of the user; applied to the whole input, once, when a term reads its result.
        affine: (4, 4), or one per sample (B, 4, 4), of a target that knows where its voxels are.
        distance: (B, C, *spatial) signed distances of the target's classes, where the caller has them.
        annotated: (B, C) bool, the classes that are annotated in each sample; None: all. The others have sums of 0.
        skeleton: like the target, the tubes of its classes, where the caller has them.
        cells: (B, C or C-1, *spatial) component that is nearest, of each class, where the caller has them.
    """

    def __init__(
        self,
        data: CallData,
        other_act: Callable[[Tensor], Tensor] | None = None,
        affine: Tensor | None = None,
        distance: Tensor | None = None,
        annotated: Tensor | None = None,
        skeleton: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> None:
        self.data, self.other_act, self.annotated = data, other_act, annotated
        self.skeleton, self.cells = skeleton, cells
        self.scores, self.labels = data.scores, data.labels
        self.channels, self.axes = data.scores.shape[1], data.scores.ndim - 2
        self._affine, self._distance = affine, distance
        self._geometry: Geometry | None = None
        self._contour_sizes: Tensor | None = None
        self._activated: CallData | None = None

    def compute(self, asked: Mapping[str, Asked]) -> dict[str, Tensor]:
        """The results of what is asked, by its name, in one pass for each source; equal terms are computed once."""
        if self.other_act is None:  # both sources read the same
            return self._answers(self.data, asked)
        answers: dict[str, Tensor] = {}
        for source in ("scores", "activated"):
            of_source = {name: term for name, term in asked.items() if term[0] == source}
            answers |= self._answers(self.read(source), of_source) if of_source else {}
        return answers

    def _answers(self, data: CallData, asked: Mapping[str, Asked]) -> dict[str, Tensor]:
        terms = [term for _, term in asked.values()]
        results = fused_sums(data, terms)
        if self.annotated is not None:
            results = [self._of_annotated(result) for result in results]
        return dict(zip(asked, results, strict=True))

    def _of_annotated(self, result: Tensor) -> Tensor:
        """Sums (rows, B, C) or a map (B, C, *spatial), 0 for the classes without annotation; another map as it is."""
        assert self.annotated is not None
        known = self.annotated
        if result.ndim > 3 or result.shape[1:] != known.shape:
            if result.shape[:2] != known.shape:
                return result
            known = known.view(*known.shape, *[1] * (result.ndim - 2))
        return torch.where(known, result, 0)

    def annotated_channels(self) -> int | Tensor:
        """How many classes there are, (B, 1) where not all are annotated."""
        if self.annotated is None:
            return self.channels
        return self.annotated.sum(1, keepdim=True, dtype=sum_dtype(self.annotated.device))

    @property
    def geometry(self) -> Geometry:
        """The target and the prediction as regions in space."""
        if self._geometry is None:
            activated = lambda: self.read("activated").merged().scores  # noqa: E731
            self._geometry = Geometry(self.data, activated, self._affine, self._distance)
        return self._geometry

    def exact(self) -> Tensor:
        """An empty tensor on the device, in the dtype of sums: what factors of voxels are made like."""
        return torch.empty(0, dtype=sum_dtype(self.scores.device), device=self.scores.device)

    def contour_sizes(self) -> Tensor:
        """(B, C) number of target voxels with a face neighbour outside their class, the border counting as outside."""
        if self._contour_sizes is None:
            self._contour_sizes = contour_sizes(self.data)
        return self._contour_sizes

    def whole(self, *, any_target: bool = False) -> Voxels:
        """All voxels at once, for what cannot be computed slab by slab; `any_target`: its values are not checked."""
        return whole(self.read("activated"), any_target=any_target)

    def read(self, source: Source) -> CallData:
        """The data with the scores as the network gave them, or as the user's activation makes them."""
        if source == "scores" or self.other_act is None:
            return self.data
        if self._activated is None:
            # In half precision a small p has few digits, and its slope 1/p may be infinite.
            scores = self.scores.to(self.data.dtype)
            counts = self.data.voxels_that_count()
            if counts is not None:  # NaN there would come back in the gradient of the activation
                scores = scores.masked_fill(~counts, 0)
            activated = plain("the result of other_act", self.other_act(scores))
            if activated.shape != scores.shape:
                raise ShapeMismatchError(
                    f"expected other_act to keep the shape {tuple(scores.shape)}, got {tuple(activated.shape)}."
                )
            self._activated = self.data.with_scores(activated)
        return self._activated
