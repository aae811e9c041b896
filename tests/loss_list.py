"""The one list of losses that every generic test runs over: a new loss is tested by adding an entry.

An entry says what a loss can do; `variants` are options of its own that deserve the generic tests too.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from memory import peak_extra_bytes
from torch import Tensor, nn

import monai_extra_losses.losses as losses

Family = Literal["region", "distribution", "boundary", "compound", "structure"]


@dataclass(frozen=True)
class LossEntry:
    """One loss and how the generic tests may use it.

    Attributes:
        name: the class.
        family: what its mean is over, and the shape of reduction="none".
        activations: how it reads the input; "none" is probabilities.
        variants: further options, each with a short name.
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
        options: further options that it is made with.
    """

    name: str
    family: Family
    activations: tuple[str, ...] = ("softmax", "sigmoid", "none")
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
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
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def lean(self) -> bool:
        """Whether it is a sum over slabs, with the memory rule, one graph, and one derivative."""
        return self.family != "structure" and not self.measures

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
        return self.loss(**{"to_onehot_y": True, **active, **self.options, **options})

    def per_channel(self, activation: str) -> bool:
        """Whether the map of a distribution loss has a loss for each channel."""
        return activation == "sigmoid" or self.every_channel or self.name in ("FusedFocalLoss", "FusedDiceFocalLoss")


REDUCED = ("mean", "sum")
LOSSES = [
    LossEntry(
        "FusedDiceLoss",
        "region",
        variants={"squared": {"squared_pred": True}, "jaccard": {"jaccard": True}, "soft_label": {"soft_label": True}},
    ),
    LossEntry("JaccardLoss", "region"),
    LossEntry("FusedTverskyLoss", "region", variants={"alpha_beta": {"alpha": 0.3, "beta": 0.7}}),
    # The clamp 1e-7 under the root: 1e-7^(3/4) = 5.6e-6.
    LossEntry("FocalTverskyLoss", "region", variants={"gamma": {"gamma": 2.0}}, smallest=4e-4),
    LossEntry("LogCoshDiceLoss", "region"),
    LossEntry(
        "FusedGeneralizedDiceLoss",
        "region",
        variants={"simple": {"w_type": "simple"}, "soft_label": {"soft_label": True}},
        mean_over="samples",
    ),
    LossEntry("SensitivitySpecificityLoss", "region", variants={"lambda": {"sensitivity_weight": 0.7}}),
    LossEntry("TwoClassDiceLoss", "region"),
    LossEntry("NoiseRobustDiceLoss", "region", variants={"gamma": {"gamma": 1.0}}),
    LossEntry("BoundaryDoULoss", "region", reads_neighbours=True),
    LossEntry(
        "CrossEntropyLoss", "distribution", variants={"label_smoothing": {"label_smoothing": 0.1}}, mean_over="voxels"
    ),
    LossEntry(
        "FusedFocalLoss",
        "distribution",
        activations=("softmax", "sigmoid"),
        variants={"alpha": {"alpha": 0.25}, "gamma": {"gamma": 0.5}},
        softmax_option="use_softmax",
        sigmoid_option=None,
        mean_over="voxels",
    ),
    LossEntry("PolyLoss", "distribution", variants={"negative": {"epsilon": -0.5}}, mean_over="voxels"),
    LossEntry("GeneralizedCrossEntropyLoss", "distribution", variants={"mae": {"q": 1.0}}, mean_over="voxels"),
    LossEntry(
        "WeightedCrossEntropyLoss",
        "distribution",
        variants={"beta": {"beta": 3.0}, "prediction": {"mode": "prediction"}, "target": {"mode": "target"}},
        mean_over="voxels",
        every_channel=True,
    ),
    LossEntry(
        "BalancedCrossEntropyLoss",
        "distribution",
        variants={"range": {"beta_range": (0.0, 1.0)}},
        mean_over="voxels",
        every_channel=True,
    ),
    LossEntry("TopKLoss", "distribution", variants={"all": {"k": 100.0}}, mean_over="samples", syncs=False),
    *(
        LossEntry(
            name,
            "distribution",
            activations=("none",),
            mean_over="voxels",
            raw_scores=True,
            every_channel=name != "CategoricalHingeLoss",
        )
        for name in ("HingeLoss", "SquaredHingeLoss", "CategoricalHingeLoss")
    ),
    LossEntry(
        "FusedDiceCELoss",
        "compound",
        variants={"lambdas": {"lambda_dice": 0.3, "lambda_ce": 0.7, "label_smoothing": 0.1}},
        reductions=REDUCED,
        mean_over="parts",
    ),
    LossEntry(
        "FusedDiceFocalLoss",
        "compound",
        variants={"lambdas": {"lambda_dice": 0.3, "lambda_focal": 0.7, "gamma": 0.5}},
        mean_over="parts",
    ),
    LossEntry(
        "DiceTopKLoss",
        "compound",
        variants={"k": {"k": 20.0, "lambda_topk": 0.3}},
        reductions=REDUCED,
        mean_over="parts",
        syncs=False,
    ),
    LossEntry(
        "ComboLoss", "compound", variants={"knobs": {"alpha": 0.3, "beta": 0.8}}, reductions=REDUCED, mean_over="parts"
    ),
    LossEntry(
        "ExponentialLogarithmicLoss",
        "compound",
        reductions=REDUCED,
        smallest=0.04,  # 0.8 (1e-6)^0.3 and 0.2 sqrt(4 classes) (1e-7)^0.3, of both sides one-vs-rest
        mean_over="parts",
        sum_pools=True,
    ),
    LossEntry(
        "UnifiedFocalLoss",
        "compound",
        variants={"asymmetric": {"asymmetric": True, "delta": 0.7, "gamma": 0.25}},
        reductions=REDUCED,
        smallest=2e-4,  # (1e-7)^0.5 / 2
        mean_over="parts",
        background_apart=True,
    ),
    LossEntry(
        "CorrelationMaximizedStructuralSimilarityLoss",
        "structure",
        variants={"knobs": {"weight_cross_entropy": 0.2, "threshold": 0.3}},
        reads_neighbours=True,
        syncs=False,
        axis_of_one=False,
    ),
    LossEntry("LovaszLoss", "structure", variants={"skip": {"absent_class": "skip"}}, syncs=False),
    *(
        LossEntry(
            name,
            "boundary",
            variants=variants,
            mean_over="samples" if name == "GeneralizedSurfaceLoss" else "pairs",
            smallest=None if name == "SurfaceLoss" else 1e-6,
            reads_neighbours=True,
            syncs=False,
            measures=True,
            of_reduced=name == "LogHausdorffLoss",
            extended=name == "HausdorffERLoss",
            options={"include_background": True} if name in ("HausdorffLoss", "LogHausdorffLoss") else {},
        )
        for name, variants in {
            "SurfaceLoss": {},
            "GeneralizedSurfaceLoss": {"smooth": {"smooth": 0.5}, "skip": {"absent_class": "skip"}},
            "HausdorffLoss": {"one_sided": {"one_sided": True}, "alpha": {"alpha": 1.0}},
            "LogHausdorffLoss": {"one_sided": {"one_sided": True}},
            "HausdorffERLoss": {"knobs": {"alpha": 1.0, "erosions": 3}},
        }.items()
    ),
    *(
        LossEntry(name, "distribution", mean_over="voxels", reads_neighbours=True, syncs=False, measures=True)
        for name in ("DistancePenaltyCrossEntropyLoss", "ShapeAwareLoss")
    ),
]


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


def every_case(
    *,
    family: Family | None = None,
    accepts: str | None = None,
    only: Callable[[LossEntry], bool] | None = None,
    **filters: Any,
) -> pytest.MarkDecorator:
    """Parametrise a test over `case`: every loss, activation and variant that is able to pass it."""
    cases = [
        case
        for case in loss_cases(**filters)
        if family in (None, case.entry.family)
        and (accepts is None or case.entry.accepts(accepts))
        and (only is None or only(case.entry))
    ]
    return pytest.mark.parametrize("case", cases, ids=str)


def every_loss(*, accepts: str | None = None) -> pytest.MarkDecorator:
    """Parametrise a test over `entry`: every loss."""
    entries = [entry for entry in LOSSES if accepts is None or entry.accepts(accepts)]
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


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
    """Peak extra memory of forward and backward: 1.25 times the logits (the gradient is 1.0), plus maps."""
    scores = scores.requires_grad_()
    factors = torch.ones_like(loss(scores, *data))
    peak = peak_extra_bytes(lambda: loss(scores, *data).backward(factors))
    size = scores.numel() * scores.element_size()
    assert peak <= (1.25 + maps) * size, f"{peak / size:.2f} times the logits"
