"""The one list of losses that every generic test runs over: a new loss is tested by adding an entry.

An entry says what a loss can do, its formula (a function of `references.py`) and, where there is other code for it,
what the benchmark compares it with; `variants` are options of its own that deserve the generic tests too.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import monai.losses
import numpy as np
import pytest
import references as ref
import references_torch as textbook
import torch
from memory import peak_extra_bytes
from torch import Tensor, nn

import monai_extra_losses.losses as losses
from monai_extra_losses.ops import plan

Family = Literal["region", "distribution", "boundary", "compound", "structure"]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Baseline:
    """Other code for a loss, equal to it: a row of the benchmark.

    Attributes:
        loss: MONAI's class, made as ours is, or a function of `references_torch.py`.
        what: what the row shows, after the name of the loss.
        activation: how both read logits; None: the first of the loss.
        options: those ours is made with.
    """

    loss: LossFunction
    what: str = ""
    activation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LossEntry:
    """One loss and how the generic tests may use it.

    Attributes:
        name: the class.
        family: what its mean is over, and the shape of reduction="none".
        reference: its formula in numpy; it takes the options of `variants` and `further` by their names.
        baselines: other code that is equal to it; () where nobody wrote any.
        activations: how it reads the input; "none" is probabilities.
        variants: further options, each with a short name.
        further: still more options with which it is compared with its reference.
        softmax_option, sigmoid_option: how the two are asked for.
        reductions: what `reduction` may be.
        zero_when_perfect: whether a perfect prediction gives 0 (up to `smallest`).
        smallest: the value of a perfect prediction, at most; None where it may be negative.
        mean_over: what the samples of a batch are to the mean: "pairs" of sample and class, or "samples", are averaged;
            "voxels" are pooled; a compound has "parts" of both kinds.
        sum_pools: whether the sum over a batch is no sum of those of its samples (class frequencies of the batch).
        reads_neighbours: whether the loss of a voxel depends on others near it: ignored is then not deleted.
        raw_scores: whether it reads raw scores, of which more is better without end, and has no activation.
        syncs: whether `sync_batch` can work; else it is refused.
        every_channel: whether every channel is a decision of its own under softmax too.
        background_apart: whether channel 0 is treated apart.
        axis_of_one: whether a spatial axis of one voxel is possible.
        measures: whether it measures distances, from whole maps.
        of_reduced: whether its formula is applied to the reduced loss.
        extended: whether an error counts only where it fills the neighbourhood of a voxel.
        hard_reference: whether the reference is for targets of 0 and 1 alone.
        whole_maps: whether it reads whole maps beside the pass.
        options: further options that it is made with.
        required: options without which it cannot be made.
    """

    name: str
    family: Family
    reference: ref.Reference
    baselines: tuple[Baseline, ...] = ()
    activations: tuple[str, ...] = ("softmax", "sigmoid", "none")
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    further: tuple[dict[str, Any], ...] = ()
    softmax_option: str = "softmax"
    sigmoid_option: str | None = "sigmoid"
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    smallest: float | None = 1e-6
    mean_over: Literal["pairs", "samples", "voxels", "parts"] = "pairs"
    sum_pools: bool = False
    reads_neighbours: bool = False
    raw_scores: bool = False
    syncs: bool = True
    every_channel: bool = False
    background_apart: bool = False
    axis_of_one: bool = True
    measures: bool = False
    of_reduced: bool = False
    extended: bool = False
    hard_reference: bool = False
    whole_maps: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    required: dict[str, Any] = field(default_factory=dict)

    @property
    def lean(self) -> bool:
        """Whether it is a sum over slabs, with the memory rule, one graph, and one derivative."""
        return self.family != "structure" and not self.measures and not self.whole_maps

    @property
    def unlike_reductions(self) -> tuple[str, ...]:
        """Those that differ by more than a factor: a sum is the mean, undivided."""
        return tuple(name for name in self.reductions if name != "sum" or "none" not in self.reductions)

    @property
    def loss(self) -> type[nn.Module]:
        return getattr(losses, self.name)

    def accepts(self, option: str) -> bool:
        return option in inspect.signature(self.loss).parameters

    def activation_options(self, activation: str) -> dict[str, bool]:
        option = {"softmax": self.softmax_option, "sigmoid": self.sigmoid_option, "none": None}[activation]
        return {} if option is None else {option: True}

    def make(self, activation: str | None = None, **options: Any) -> nn.Module:
        active = self.activation_options(activation or self.activations[0])
        return self.loss(**{"to_onehot_y": True, **active, **self.required, **self.options, **options})

    def per_channel(self, activation: str) -> bool:
        """Whether the map of a distribution loss has a loss for each channel."""
        return activation == "sigmoid" or self.every_channel or self.name in ("FusedFocalLoss", "FusedDiceFocalLoss")


REDUCED = ("mean", "sum")
LABELS: dict[str, Any] = {"to_onehot_y": True}
SOFTMAX: dict[str, Any] = {**LABELS, "softmax": True}
UNSMOOTHED: dict[str, Any] = {"smooth_nr": 0.0, "smooth_dr": 0.0}

LOSSES = [
    LossEntry(
        "FusedDiceLoss",
        "region",
        ref.mean_of_pairs(ref.dice),
        (
            Baseline(monai.losses.DiceLoss(**SOFTMAX)),
            Baseline(
                monai.losses.DiceLoss(**SOFTMAX, squared_pred=True), "squared_pred", options={"squared_pred": True}
            ),
        ),
        variants={"squared": {"squared_pred": True}, "jaccard": {"jaccard": True}, "soft_label": {"soft_label": True}},
        further=({"batch": True}, {"include_background": False}),
    ),
    LossEntry(
        "JaccardLoss",
        "region",
        ref.mean_of_pairs(ref.jaccard),
        (Baseline(monai.losses.DiceLoss(**SOFTMAX, jaccard=True)),),
    ),
    LossEntry(
        "FusedTverskyLoss",
        "region",
        ref.mean_of_pairs(ref.tversky),
        (Baseline(monai.losses.TverskyLoss(**SOFTMAX)),),
        variants={"alpha_beta": {"alpha": 0.3, "beta": 0.7}},
    ),
    LossEntry(
        "FocalTverskyLoss",
        "region",
        ref.mean_of_pairs(ref.focal_tversky),
        (Baseline(textbook.focal_tversky),),
        variants={"gamma": {"gamma": 2.0}},
        smallest=4e-4,  # the clamp 1e-7 under the root: 1e-7^(1/2) = 3.2e-4
    ),
    LossEntry(
        "LogCoshDiceLoss", "region", ref.mean_of_pairs(ref.log_cosh_dice_loss), (Baseline(textbook.log_cosh_dice),)
    ),
    LossEntry(
        "FusedGeneralizedDiceLoss",
        "region",
        ref.mean_of_pairs(ref.generalized_dice_loss),
        # Equal up to the smoothing, which ours adds after scaling the weights.
        (Baseline(monai.losses.GeneralizedDiceLoss(**SOFTMAX, **UNSMOOTHED), options=UNSMOOTHED),),
        variants={"simple": {"w_type": "simple"}, "soft_label": {"soft_label": True}},
        further=({"absent_class": "skip"}, {"w_type": "uniform"}),
        mean_over="samples",
    ),
    LossEntry(
        "SensitivitySpecificityLoss",
        "region",
        ref.mean_of_pairs(ref.sensitivity_specificity_loss),
        (Baseline(textbook.sensitivity_specificity),),
        variants={"lambda": {"sensitivity_weight": 0.7}},
    ),
    LossEntry(
        "TwoClassDiceLoss", "region", ref.mean_of_pairs(ref.two_class_dice_loss), (Baseline(textbook.two_class_dice),)
    ),
    LossEntry(
        "NoiseRobustDiceLoss",
        "region",
        ref.mean_of_pairs(ref.noise_robust_dice_loss),
        (Baseline(textbook.noise_robust_dice),),
        variants={"gamma": {"gamma": 1.0}},
    ),
    LossEntry(
        "BoundaryDoULoss",
        "region",
        ref.mean_of_pairs(ref.boundary_dou_loss),
        (Baseline(textbook.boundary_dou),),
        reads_neighbours=True,
    ),
    LossEntry(
        "CrossEntropyLoss",
        "distribution",
        ref.cross_entropy,
        (Baseline(textbook.cross_entropy),),
        variants={"label_smoothing": {"label_smoothing": 0.1}},
        mean_over="voxels",
    ),
    LossEntry(
        "FusedFocalLoss",
        "distribution",
        ref.focal,
        (
            Baseline(monai.losses.FocalLoss(**LABELS, use_softmax=True), "softmax", "softmax"),
            Baseline(monai.losses.FocalLoss(**LABELS), "sigmoid", "sigmoid"),
        ),
        activations=("softmax", "sigmoid"),
        variants={"alpha": {"alpha": 0.25}, "gamma": {"gamma": 0.5}},
        softmax_option="use_softmax",
        sigmoid_option=None,
        mean_over="voxels",
        hard_reference=True,  # of soft ones it is MONAI's, see test_drop_in.py
    ),
    LossEntry(
        "PolyLoss",
        "distribution",
        ref.mean_of_true_class(ref.poly),
        (Baseline(textbook.poly),),
        variants={"negative": {"epsilon": -0.5}},
        further=({"epsilon": 2.0},),
        mean_over="voxels",
    ),
    LossEntry(
        "GeneralizedCrossEntropyLoss",
        "distribution",
        ref.mean_of_true_class(ref.generalized_cross_entropy),
        (Baseline(textbook.generalized_cross_entropy),),
        variants={"mae": {"q": 1.0}},
        mean_over="voxels",
    ),
    LossEntry(
        "WeightedCrossEntropyLoss",
        "distribution",
        ref.positives_cross_entropy,
        (Baseline(textbook.weighted_cross_entropy),),
        variants={"beta": {"beta": 3.0}, "prediction": {"mode": "prediction"}, "target": {"mode": "target"}},
        mean_over="voxels",
        every_channel=True,
    ),
    LossEntry(
        "BalancedCrossEntropyLoss",
        "distribution",
        ref.balanced_cross_entropy,
        (Baseline(textbook.balanced_cross_entropy),),
        variants={"range": {"beta_range": (0.0, 1.0)}},
        mean_over="voxels",
        every_channel=True,
    ),
    LossEntry(
        "TopKLoss",
        "distribution",
        ref.top_k,
        (Baseline(textbook.top_k),),
        variants={"all": {"k": 100.0}, "per_class": {"per_class": True}},
        further=({"k": 30.0}, {"k": 30.0, "per_class": True}),
        mean_over="samples",
        syncs=False,
    ),
    *(
        LossEntry(
            name,
            "distribution",
            reference,
            (Baseline(plain),),
            activations=("none",),
            mean_over="voxels",
            raw_scores=True,
            every_channel=name != "CategoricalHingeLoss",
        )
        for name, reference, plain in (
            ("HingeLoss", ref.hinge, textbook.hinge),
            ("SquaredHingeLoss", ref.squared_hinge, textbook.squared_hinge),
            ("CategoricalHingeLoss", ref.categorical_hinge, textbook.categorical_hinge),
        )
    ),
    LossEntry(
        "FusedDiceCELoss",
        "compound",
        ref.dice_cross_entropy,
        (Baseline(monai.losses.DiceCELoss(**SOFTMAX)),),
        variants={"lambdas": {"lambda_dice": 0.3, "lambda_ce": 0.7, "label_smoothing": 0.1}},
        reductions=REDUCED,
        mean_over="parts",
    ),
    LossEntry(
        "FusedDiceFocalLoss",
        "compound",
        ref.dice_focal,
        # With softmax MONAI's focal part stays a sigmoid one.
        (Baseline(monai.losses.DiceFocalLoss(**LABELS, sigmoid=True), "sigmoid", "sigmoid"),),
        variants={"lambdas": {"lambda_dice": 0.3, "lambda_focal": 0.7, "gamma": 0.5}},
        mean_over="parts",
        hard_reference=True,
    ),
    LossEntry(
        "DiceTopKLoss",
        "compound",
        ref.dice_top_k,
        (Baseline(textbook.dice_top_k),),
        variants={"k": {"k": 20.0, "lambda_topk": 0.3}},
        further=({"k": 30.0, "lambda_dice": 0.3, "lambda_topk": 0.7},),
        reductions=REDUCED,
        mean_over="parts",
        syncs=False,
    ),
    LossEntry(
        "ComboLoss",
        "compound",
        ref.combo,
        (Baseline(textbook.combo),),
        variants={"knobs": {"alpha": 0.3, "beta": 0.8}},
        reductions=REDUCED,
        mean_over="parts",
    ),
    LossEntry(
        "ExponentialLogarithmicLoss",
        "compound",
        ref.exponential_logarithmic,
        (Baseline(textbook.exponential_logarithmic),),
        reductions=REDUCED,
        smallest=0.04,  # 0.8 (1e-6)^0.3 and 0.2 sqrt(4 classes) (1e-7)^0.3, of both sides one-vs-rest
        mean_over="parts",
        sum_pools=True,
    ),
    # MONAI's AsymmetricUnifiedFocalLoss is no baseline: two classes, and no activation.
    LossEntry(
        "UnifiedFocalLoss",
        "compound",
        ref.unified_focal,
        (Baseline(textbook.unified_focal),),
        variants={"asymmetric": {"asymmetric": True, "delta": 0.7, "gamma": 0.25}},
        further=({"asymmetric": True, "weight_focal": 0.3, "delta": 0.7, "gamma": 0.25},),
        reductions=REDUCED,
        smallest=2e-4,  # (1e-7)^0.5 / 2
        mean_over="parts",
        background_apart=True,
    ),
    LossEntry(
        "CorrelationMaximizedStructuralSimilarityLoss",
        "structure",
        ref.structural_similarity,
        (Baseline(textbook.structural_similarity),),
        variants={"knobs": {"weight_cross_entropy": 0.2, "threshold": 0.3}},
        reads_neighbours=True,
        syncs=False,
        axis_of_one=False,
    ),
    LossEntry(
        "LovaszLoss",
        "structure",
        ref.lovasz,
        (Baseline(textbook.lovasz),),
        variants={"skip": {"absent_class": "skip"}},
        further=({"batch": True}, {"batch": True, "absent_class": "skip"}),
        syncs=False,
    ),
    LossEntry(
        "CenterlineDiceLoss",
        "structure",
        ref.centerline_dice,
        (Baseline(textbook.centerline_dice, options={"iterations": 10}),),
        variants={"skip": {"absent_class": "skip"}},
        further=({"iterations": None}, {"iterations": 10, "smooth": 1.0}, {"include_background": False}),
        reads_neighbours=True,
        syncs=False,
        required={"iterations": 2},  # 10 by default, which few voxels do not need
        options={"include_background": True},
    ),
    LossEntry(
        "CenterlineBoundaryDiceLoss",
        "structure",
        ref.centerline_boundary_dice,
        variants={"skip": {"absent_class": "skip"}, "linear": {"radius_weight": "linear"}},
        further=({"iterations": 10, "smooth": 1.0}, {"include_background": False}),
        smallest=None,  # a skeleton beside the other may count more than all
        reads_neighbours=True,
        syncs=False,
        required={"iterations": 2},  # 10 by default, which few voxels do not need
        options={"include_background": True},
    ),
    LossEntry(
        "SkeletonRecallLoss",
        "structure",
        ref.skeleton_recall,
        variants={"union": {"union": True}},
        further=({"smooth": 1.0}, {"include_background": False}),
        reads_neighbours=True,
        syncs=False,
        options={"include_background": True},
    ),
    *(
        LossEntry(
            name,
            "structure",
            reference,
            variants={"skip": {"absent_class": "skip"}},
            further=(
                {"lambda_dice": 0.3, "lambda_ce": 0.7, "smooth": 1.0},
                {"connectivity": 1},
                {"include_background": False},
            ),
            reads_neighbours=True,
            syncs=False,
            options={"include_background": True},
        )
        for name, reference in (
            ("ComponentDiceCELoss", ref.component_dice_cross_entropy),
            ("BlobDiceCELoss", ref.blob_dice_cross_entropy),
        )
    ),
    LossEntry(
        "SurfaceDiceLoss",
        "structure",
        ref.surface_dice,
        variants={"skip": {"absent_class": "skip"}},
        further=({"tolerance_mm": 2.0, "smooth": 1.0}, {"tolerance_mm": 0.5}),
        reads_neighbours=True,
        syncs=False,
    ),
    LossEntry(
        "AverageCalibrationLoss",
        "structure",
        ref.average_calibration,
        variants={"soft": {"soft": True}, "smooth": {"absent_class": "smooth"}},
        further=({"bins": 5}, {"bins": 1, "soft": True}, {"bins": 7, "soft": True}),
        syncs=False,
    ),
    LossEntry(
        "TopologicalInteractionLoss",
        "distribution",
        ref.topological_interaction,
        activations=("softmax",),
        variants={"inclusion": {"exclusion": None, "inclusion": [[1, 0]]}, "faces": {"connectivity": 1}},
        mean_over="voxels",
        reads_neighbours=True,
        background_apart=True,  # the classes of a pair are
        whole_maps=True,
        required={"exclusion": [[0, 1]]},
    ),
    *(
        LossEntry(
            name,
            "boundary",
            reference,
            variants=variants,
            further=further,
            mean_over="samples" if name == "GeneralizedSurfaceLoss" else "pairs",
            smallest=None if name == "SurfaceLoss" else 1e-6,
            reads_neighbours=True,
            syncs=False,
            measures=True,
            of_reduced=name == "LogHausdorffLoss",
            extended=name == "HausdorffERLoss",
            options={"include_background": True} if name in ("HausdorffLoss", "LogHausdorffLoss") else {},
        )
        for name, reference, variants, further in (
            ("SurfaceLoss", ref.mean_of_pairs(ref.surface), {}, ()),
            (
                "GeneralizedSurfaceLoss",
                ref.mean_of_pairs(ref.generalized_surface),
                {"smooth": {"smooth": 0.5}, "skip": {"absent_class": "skip"}},
                (),
            ),
            (
                "HausdorffLoss",
                ref.mean_of_pairs(ref.hausdorff),
                {"one_sided": {"one_sided": True}, "alpha": {"alpha": 1.0}},
                ({"one_sided": True, "alpha": 1.5},),
            ),
            ("LogHausdorffLoss", ref.log_hausdorff, {"one_sided": {"one_sided": True}}, ()),
            (
                "HausdorffERLoss",
                ref.mean_of_pairs(ref.hausdorff_by_erosion),
                {"knobs": {"alpha": 1.0, "erosions": 3}},
                (),
            ),
        )
    ),
    *(
        LossEntry(
            name, "distribution", reference, mean_over="voxels", reads_neighbours=True, syncs=False, measures=True
        )
        for name, reference in (
            ("DistancePenaltyCrossEntropyLoss", ref.penalised_cross_entropy),
            ("ShapeAwareLoss", ref.shape_aware),
        )
    ),
]
ENTRIES = {entry.name: entry for entry in LOSSES}


@dataclass(frozen=True)
class LossCase:
    """One entry with one activation and one variant."""

    entry: LossEntry
    activation: str
    variant: str = ""

    @property
    def options(self) -> dict[str, Any]:
        return self.entry.variants.get(self.variant, {})

    def __call__(self, **options: Any) -> nn.Module:
        return self.entry.make(self.activation, **{**self.options, **options})

    def weighted(self, weight: Any) -> dict[str, Any]:
        """The option `weight`, where the loss has it."""
        return {"weight": weight} if self.entry.accepts("weight") else {}

    def __str__(self) -> str:
        return "-".join(filter(None, [self.entry.name, self.activation, self.variant]))

    def scores(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Random input in the range that the activation asks for: logits, or probabilities."""
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if self.activation == "none" and not self.entry.raw_scores:
            # The cross-entropy of a compound reads its input as scores, and probabilities are scores too.
            x = x.softmax(1) if shape[1] > 1 else x.sigmoid()
        return x.to(dtype)


def loss_cases(
    *, variants: bool = True, activations: tuple[str, ...] = ("softmax", "sigmoid", "none")
) -> Iterator[LossCase]:
    for entry in LOSSES:
        for activation in entry.activations:
            if activation in activations:
                yield LossCase(entry, activation)
                for variant in entry.variants if variants else ():
                    yield LossCase(entry, activation, variant)


@contextmanager
def told(*what: object) -> Iterator[None]:
    """Say of a failure inside a loop which of its turns it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case of {', '.join(map(str, what))}")
        raise


def each(names: str | Sequence[str], kinds: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each kind inside one case, where `pytest.mark.parametrize` would make a case of each.

    Arguments as there. For kinds of data that one mechanism takes (dtypes, ways of ignoring, numbers of classes): a
    failure names its kind. It counts as skipped where every kind is.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [(kind,) if len(names) == 1 else tuple(kind) for kind in kinds]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any, **given: Any) -> None:
            skipped: list[BaseException] = []
            for row in rows:
                with told(*row):
                    try:
                        test(*args, **given, **dict(zip(names, row, strict=True)))
                    except pytest.skip.Exception as reason:
                        skipped.append(reason)
            if len(skipped) == len(rows):
                raise skipped[0]

        functools.update_wrapper(run, test)
        parameters = inspect.signature(test).parameters
        kept = [parameter for name, parameter in parameters.items() if name not in names]
        run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return run

    return decorate


# The loss of each family that `make test` runs a long proof over; where it takes no part, the first that does.
TYPICAL = ("FusedDiceLoss", "CrossEntropyLoss", "FusedDiceCELoss", "GeneralizedSurfaceLoss", "LovaszLoss")


def _marks(entries: Sequence[LossEntry], long: bool) -> list[list[pytest.MarkDecorator]]:
    """Those of each entry: of a long proof, all but one loss of each family are slow."""
    quick: dict[Family, str] = {}
    for entry in sorted(entries, key=lambda entry: entry.name not in TYPICAL):
        quick.setdefault(entry.family, entry.name)
    return [[pytest.mark.slow] if long and entry.name != quick[entry.family] else [] for entry in entries]


def every_case(
    *,
    family: Family | None = None,
    accepts: str | None = None,
    only: Callable[[LossEntry], bool] | None = None,
    long: bool = False,
    **filters: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test over `case`: every loss, activation and variant that is able to pass it; a loss is a test of its own.

    For what differs from loss to loss: value, gradient, deletion, batch, sync, absent class, direction. A `long` one
    runs over a loss of each family; `make test-all` runs it over the others too.
    """
    of_losses: dict[str, list[LossCase]] = {}
    for case in loss_cases(**filters):
        if family in (None, case.entry.family) and (accepts is None or case.entry.accepts(accepts)):
            of_losses.setdefault(case.entry.name, []).append(case)
    entries = [ENTRIES[name] for name in of_losses if only is None or only(ENTRIES[name])]
    names = [pytest.param(entry.name, marks=marks) for entry, marks in zip(entries, _marks(entries, long), strict=True)]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any, name_of_loss: str, **given: Any) -> None:
            each("case", of_losses[name_of_loss])(test)(*args, **given)

        functools.update_wrapper(run, test)
        parameters = [parameter for name, parameter in inspect.signature(test).parameters.items() if name != "case"]
        own = inspect.Parameter("name_of_loss", inspect.Parameter.KEYWORD_ONLY)
        run.__signature__ = inspect.Signature([*parameters, own])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("name_of_loss", names)(run)

    return decorate


# One loss for each way in which a loss is computed: what of the package sees the data first, and what computes.
MECHANISMS: dict[str, tuple[str, str]] = {
    "counts, softmax": ("FusedDiceLoss", "softmax"),
    "counts, sigmoid": ("FusedDiceLoss", "sigmoid"),
    "counts, definition": ("FusedDiceLoss", "none"),
    "one value per sample": ("FusedGeneralizedDiceLoss", "softmax"),
    "errors": ("NoiseRobustDiceLoss", "softmax"),
    "contours": ("BoundaryDoULoss", "softmax"),
    "true class": ("CrossEntropyLoss", "softmax"),
    "outcomes": ("CrossEntropyLoss", "sigmoid"),
    "log-probabilities, definition": ("CrossEntropyLoss", "none"),
    "focal, true class": ("FusedFocalLoss", "softmax"),
    "focal, outcomes": ("FusedFocalLoss", "sigmoid"),
    "one-vs-rest under softmax": ("WeightedCrossEntropyLoss", "softmax"),
    "map of voxels": ("TopKLoss", "softmax"),
    "margin": ("HingeLoss", "none"),
    "lead": ("CategoricalHingeLoss", "none"),
    "compound": ("FusedDiceCELoss", "softmax"),
    "windows": ("CorrelationMaximizedStructuralSimilarityLoss", "softmax"),
    "ranks": ("LovaszLoss", "sigmoid"),
    "skeletons": ("CenterlineDiceLoss", "softmax"),
    "thickness": ("CenterlineBoundaryDiceLoss", "softmax"),
    "tubes": ("SkeletonRecallLoss", "softmax"),
    "components": ("ComponentDiceCELoss", "softmax"),
    "components, outcomes": ("BlobDiceCELoss", "sigmoid"),
    "rims": ("SurfaceDiceLoss", "softmax"),
    "bins": ("AverageCalibrationLoss", "softmax"),
    "critical voxels": ("TopologicalInteractionLoss", "softmax"),
    "distances": ("GeneralizedSurfaceLoss", "softmax"),
    "distances of the prediction": ("HausdorffLoss", "sigmoid"),
    "erosions": ("HausdorffERLoss", "none"),
    "distances of voxels": ("ShapeAwareLoss", "softmax"),
}


def every_mechanism(
    *,
    accepts: str | None = None,
    only: Callable[[LossEntry], bool] | None = None,
    activations: Iterable[str] = (),
    long: bool = False,
) -> pytest.MarkDecorator:
    """Parametrise a test over `case`: one loss for each family and kernel, with its defaults.

    For what is written once: checks of labels, shapes, dtypes and masks, memory formats, copies. A `long` one is as in
    `every_case`. A new loss gets an entry in `MECHANISMS` if it reads its data in a way that none of these does.
    """
    cases = {
        name: LossCase(ENTRIES[loss], activation)
        for name, (loss, activation) in MECHANISMS.items()
        if (accepts is None or ENTRIES[loss].accepts(accepts))
        and (only is None or only(ENTRIES[loss]))
        and activation in (tuple(activations) or ("softmax", "sigmoid", "none"))
    }
    all_marks = _marks([case.entry for case in cases.values()], long)
    parameters = [
        pytest.param(case, id=f"{name}: {case.entry.name}", marks=marks)
        for (name, case), marks in zip(cases.items(), all_marks, strict=True)
    ]
    return pytest.mark.parametrize("case", parameters)


def every_loss(
    *, accepts: str | None = None, only: Callable[[LossEntry], bool] | None = None, long: bool = False
) -> pytest.MarkDecorator:
    """Parametrise a test over `entry`: every loss; `long` as in `every_case`."""
    entries = [
        entry for entry in LOSSES if (accepts is None or entry.accepts(accepts)) and (only is None or only(entry))
    ]
    parameters = [
        pytest.param(entry, id=entry.name, marks=marks)
        for entry, marks in zip(entries, _marks(entries, long), strict=True)
    ]
    return pytest.mark.parametrize("entry", parameters)


def labels_like(scores: Tensor, *, seed: int = 1, dtype: torch.dtype = torch.int64) -> Tensor:
    """(B, 1, *spatial) random labels for (B, C, *spatial) scores."""
    shape = (scores.shape[0], 1, *scores.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, max(scores.shape[1], 2), shape, generator=generator).to(dtype)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, C, *spatial) of (B, 1, *spatial) labels; zeros for a label that is no class."""
    classes = torch.arange(num_classes).view(1, -1, *[1] * (labels.ndim - 2))
    return (labels == classes).to(dtype)


def value_and_gradient(loss: nn.Module, scores: Tensor, *data: Tensor | None) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of its sum with uneven factors where it has elements."""
    leaf = scores.detach().requires_grad_()  # keeps strides and subclass
    value = loss(leaf, *data)
    factors = torch.linspace(0.5, 1.5, max(value.numel(), 1), dtype=value.dtype).view(value.shape)
    (gradient,) = torch.autograd.grad((value * (factors if value.ndim else 1)).sum(), leaf)
    return value.detach(), gradient


def assert_lean(loss: nn.Module, scores: Tensor, *data: Tensor, maps: float = 0.0) -> None:
    """Peak extra memory of forward and backward: 1.25 times the logits (the gradient is 1.0), plus maps.

    By the share that large volumes have; small ones may take 4 MiB more.
    """
    scores = scores.requires_grad_()
    factors = torch.ones_like(loss(scores, *data))
    with mock.patch.object(plan, "_FEW_BYTES", 0):
        peak = peak_extra_bytes(lambda: loss(scores, *data).backward(factors))
    size = scores.numel() * scores.element_size()
    assert peak <= (1.25 + maps) * size, f"{peak / size:.2f} times the logits"


def assert_is_its_formula(
    entry: LossEntry, activation: str, shape: tuple[int, ...], kind: str, options: dict[str, Any]
) -> None:
    """Value and gradient of a loss that sorts voxels, beside those of its reference; its last class is absent."""
    scores = torch.randn(shape, dtype=torch.float64)
    scores = scores.softmax(1) if activation == "none" else scores
    labels, mask, w = labels_like(scores), None, np.ones((shape[0], 1, *shape[2:]))
    labels[0] = labels[0] % (shape[1] - 1)  # the last class is absent
    g = ref.one_hot(labels.numpy(), shape[1])
    if "mask" in kind:
        mask = torch.rand(w.shape, dtype=torch.float64) * (torch.rand(w.shape) > 0.3)
        w = mask.numpy()
    if "soft" in kind:
        g = torch.rand(shape, dtype=torch.float64).numpy()
    target = torch.from_numpy(g) if "soft" in kind else labels
    loss = entry.make(activation, to_onehot_y="labels" in kind, **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-10)
    # Steps so small that no voxel changes its bin or its rank.
    ref.assert_gradient(
        gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-6, step=1e-7
    )
