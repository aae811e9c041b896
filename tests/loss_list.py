"""The one list of losses that every generic test runs over: a new loss is tested by adding an entry.

An entry says what a loss can do; `variants` are options of its own that deserve the generic tests too.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import monai_extra_losses.losses as losses

Family = Literal["region", "distribution", "compound"]


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
        smallest: the value of a perfect prediction.
    """

    name: str
    family: Family
    activations: tuple[str, ...] = ("softmax", "sigmoid", "none")
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    softmax_option: str = "softmax"
    sigmoid_option: str | None = "sigmoid"
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    smallest: float = 1e-6

    @property
    def loss(self) -> type[nn.Module]:
        return getattr(losses, self.name)

    def accepts(self, option: str) -> bool:
        return option in inspect.signature(self.loss).parameters

    def activation_options(self, activation: str) -> dict[str, bool]:
        option = {"softmax": self.softmax_option, "sigmoid": self.sigmoid_option, "none": None}[activation]
        return {} if option is None else {option: True}

    def make(self, activation: str = "softmax", **options: Any) -> nn.Module:
        return self.loss(**{"to_onehot_y": True, **self.activation_options(activation), **options})

    def one_vs_rest(self, activation: str, num_classes: int) -> bool:
        """Whether a distribution loss takes every channel as a decision of its own."""
        return activation == "sigmoid" or num_classes == 1


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
    LossEntry("CrossEntropyLoss", "distribution", variants={"label_smoothing": {"label_smoothing": 0.1}}),
    LossEntry(
        "FusedFocalLoss",
        "distribution",
        activations=("softmax", "sigmoid"),
        variants={"alpha": {"alpha": 0.25}, "gamma": {"gamma": 0.5}},
        softmax_option="use_softmax",
        sigmoid_option=None,
    ),
    LossEntry(
        "FusedDiceCELoss",
        "compound",
        variants={"lambdas": {"lambda_dice": 0.3, "lambda_ce": 0.7, "label_smoothing": 0.1}},
        reductions=("mean", "sum"),
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

    def __str__(self) -> str:
        return "-".join(filter(None, [self.entry.name, self.activation, self.variant]))

    def scores(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Random input in the range that the activation asks for: logits, or probabilities."""
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if self.activation == "none":
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


def every_case(*, family: Family | None = None, without: tuple[str, ...] = (), **filters: Any) -> pytest.MarkDecorator:
    """Parametrise a test over `case`: every loss, activation and variant."""
    cases = [
        case
        for case in loss_cases(**filters)
        if (family is None or case.entry.family == family) and case.entry.name not in without
    ]
    return pytest.mark.parametrize("case", cases, ids=str)


def every_loss(family: Family | None = None) -> pytest.MarkDecorator:
    """Parametrise a test over `entry`: every loss."""
    entries = [entry for entry in LOSSES if family in (None, entry.family)]
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
