"""Strategies of hypothesis for the calls of a loss: its options, scores, target and what is ignored.

Numbers come from a seed and a few knobs, so that a failing call shrinks to a small shape with plain scores.
"""

import inspect
import warnings
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from hypothesis import assume
from hypothesis import strategies as st
from loss_list import LossCase, LossEntry, one_hot
from monai.data import MetaTensor
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPECIAL = (0.0, -0.0, 1e4, -1e4, 1e-320, 1e-40, 1.0)
# The values of an option that the types and ranges of a signature do not say.
CHOICES: dict[str, tuple[Any, ...]] = {
    "alpha": (0.0, 0.25, 0.5, 1.0, 2.0),
    "beta": (0.05, 0.5, 0.7, 1.0, 3.0),
    "gamma": (0.0, 0.25, 0.5, 1.0, 4 / 3, 2.0, 3.0),
    "q": (0.01, 0.7, 1.0),
    "k": (0.1, 10.0, 34.0, 100.0),
    "epsilon": (-1.0, -0.5, 0.0, 2.0),
    "delta": (0.1, 0.6, 0.9),
    "beta_range": ((0.0, 1.0), (0.5, 0.5), (0.05, 0.95)),
    "bins": (1, 5, 20),
    "erosions": (1, 3),
    "iterations": (1, 2, 5),
    "connectivity": (None, 1, 2),
    "spacing": ("auto", None),
    "tolerance_mm": (0.5, 1.0, 2.0),
    "label_smoothing": (0.0, 0.1, 1.0),
}
PLAIN = ("reduction", "to_onehot_y", "softmax", "sigmoid", "use_softmax", "other_act", "sync_batch", "ignore_index")
SMOOTHING = ((1e-5, 1e-5), (1.0, 1.0), (0.0, 1e-5))


@dataclass(frozen=True)
class Call:
    """A loss with its options, and what it is called with.

    Attributes:
        case: the loss and its activation.
        options: what it is made with beside those of the activation.
        keep: (B, 1, *spatial) bool, the voxels that count.
    """

    case: LossCase
    options: dict[str, Any]
    scores: Tensor
    target: Tensor
    mask: Tensor | None
    keep: Tensor
    format: str = "contiguous"

    @property
    def entry(self) -> LossEntry:
        return self.case.entry

    @property
    def labelled(self) -> bool:
        return bool(self.options["to_onehot_y"])

    def loss(self, **options: Any) -> nn.Module:
        return quietly_made(self.entry, self.case.activation, {**self.options, **options})

    def but(self, **changes: Any) -> "Call":
        return replace(self, **changes)

    def with_options(self, **options: Any) -> "Call":
        return replace(self, options={**self.options, **options})

    def value(self, **options: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result: Tensor = self.loss(**options)(self.scores, self.target, self.mask)
        return result

    def value_and_gradient(self, **options: Any) -> tuple[Tensor, Tensor]:
        leaf = self.scores.detach().requires_grad_()
        value = self.but(scores=leaf).value(**options)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        shown = f"{self.case}({self.options}), {self.format} {self.scores.dtype} {tuple(self.scores.shape)}"
        few = self.scores.numel() <= 24
        return shown + (f", {self.scores.tolist()}, {self.target.tolist()}, {self.mask}" if few else "")


@st.composite
def options_of(draw: st.DrawFn, entry: LossEntry, activation: str, channels: int) -> dict[str, Any]:
    """Options of a loss, each its default half the time."""
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry.loss).parameters.items():
        if name in PLAIN or name in ("smooth_nr", "smooth_dr", "weight", "class_frequencies") or name in entry.required:
            continue
        values = _values_of(entry, name, parameter)
        if values and draw(st.booleans()):
            options[name] = draw(st.sampled_from(values))
    if entry.accepts("smooth_nr") and draw(st.booleans()):
        options["smooth_nr"], options["smooth_dr"] = draw(st.sampled_from(SMOOTHING))
    if "exclusion" in entry.required and draw(st.booleans()):
        options |= {"exclusion": None, "inclusion": [[channels - 1, 0]]}
    options |= _weights(draw, entry, activation, channels, options)
    return options


def quietly_made(entry: LossEntry, activation: str, options: dict[str, Any]) -> nn.Module:
    """The loss, without warnings of options that have no effect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return entry.make(activation, **options)


def _values_of(entry: LossEntry, name: str, parameter: inspect.Parameter) -> tuple[Any, ...]:
    limit = entry.loss.ranges.get(name)
    if isinstance(parameter.default, bool):
        return (True, False)
    if name in CHOICES:
        return tuple(value for value in CHOICES[name] if limit is None or limit.holds(value))
    if literals := [value for value in get_args(parameter.annotation) if isinstance(value, str)]:
        return tuple(literals)
    if isinstance(parameter.default, float):
        return tuple(value for value in (0.0, 0.3, 1.0, 2.0) if limit is None or limit.holds(value))
    return ()


def _weights(
    draw: st.DrawFn, entry: LossEntry, activation: str, channels: int, options: dict[str, Any]
) -> dict[str, Any]:
    if not entry.accepts("weight") or draw(st.booleans()):
        return {}
    loss = quietly_made(entry, activation, options)
    of_kept = loss.weighs_kept or (entry.name == "FusedFocalLoss" and not loss.include_background)
    dropped = of_kept and entry.name != "FusedDiceCELoss" and channels > 1
    numbers = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=channels, max_size=channels))
    return {"weight": numbers[1 if dropped else 0 :] if channels > 1 else draw(st.sampled_from([0.5, 2.0]))}


def _scores(draw: st.DrawFn, case: LossCase, shape: tuple[int, ...], generator: torch.Generator, tame: bool) -> Tensor:
    scale = draw(st.sampled_from([1.0, 3.0] if tame else [1.0, 1e-3, 30.0, 1e4]))
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if not tame and draw(st.booleans()):
        x[torch.rand(shape, generator=generator) < 0.5] = draw(st.sampled_from(SPECIAL))
    if not tame and draw(st.booleans()):
        x = x[:, :1].expand(shape).clone()  # equal scores of all classes
    if case.activation == "none" and not case.entry.raw_scores:
        x = x.softmax(1) if shape[1] > 1 else x.sigmoid()
    return x


def _labels(draw: st.DrawFn, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    channels = max(shape[1], 2)
    present = draw(st.lists(st.integers(0, channels - 1), min_size=1, max_size=channels, unique=True))
    drawn = torch.randint(0, len(present), (shape[0], 1, *shape[2:]), generator=generator)
    return torch.tensor(present)[drawn]


def _mask(draw: st.DrawFn, shape: tuple[int, ...], generator: torch.Generator, kinds: tuple[str, ...]) -> Tensor | None:
    kind = draw(st.sampled_from(kinds))
    if kind == "none":
        return None
    weights = torch.rand(shape, generator=generator, dtype=torch.float64)
    weights[weights < 0.3] = 0
    if kind == "sample":
        weights[0] = 0
    if kind == "nothing":
        weights.zero_()
    return weights if kind == "float" else weights > 0


@st.composite
def calls(
    draw: st.DrawFn,
    entry: LossEntry,
    *,
    tame: bool = False,
    activations: tuple[str, ...] = (),
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
    masks: tuple[str, ...] = ("none", "bool", "float", "sample", "nothing"),
    ignoring: bool = True,
    targets: tuple[str, ...] = ("labels", "one-hot", "soft"),
    plain: bool = False,
) -> Call:
    """A call of a loss.

    Args:
        tame: scores of size 1 to 3, none of them special.
        activations: of these alone.
        dtypes: of the scores.
        masks: kinds of masks.
        ignoring: whether an `ignore_index` is drawn too.
        targets: kinds of targets.
        plain: the defaults of every option.
    """
    activation = draw(st.sampled_from([a for a in entry.activations if a in (activations or entry.activations)]))
    case = LossCase(entry, activation)
    least = 2 if activation == "softmax" or entry.name == "CategoricalHingeLoss" else 1
    channels = draw(st.integers(least, 5))
    side = st.integers(1 if entry.axis_of_one else 2, 6)
    shape = (draw(st.integers(1, 3)), channels, *draw(st.lists(side, min_size=2, max_size=3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    try:
        options = {} if plain else draw(options_of(entry, activation, channels))
        quietly_made(entry, activation, options)
    except ValueError:  # options that exclude each other
        assume(False)
    dtype = draw(st.sampled_from(dtypes))
    scores = _scores(draw, case, shape, generator, tame).to(dtype)
    labels = _labels(draw, shape, generator)
    kind = draw(st.sampled_from(targets)) if channels > 1 else "one-hot"
    mask = _mask(draw, labels.shape, generator, masks)
    keep = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask > 0
    target = labels
    if kind == "labels" and ignoring and draw(st.booleans()):
        share, sentinel = draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.sampled_from([255, -1]))
        gone = torch.rand(labels.shape, generator=generator) < share
        target, keep, options["ignore_index"] = labels.masked_fill(gone, sentinel), keep & ~gone, sentinel
    elif kind == "one-hot":
        target = one_hot(labels, channels, torch.float64) if channels > 1 else (labels == 1).double()
    elif kind == "soft":
        target = torch.rand(shape, generator=generator, dtype=torch.float64)
        target = target / target.sum(1, keepdim=True) if activation != "sigmoid" else target
    options["to_onehot_y"] = kind == "labels"
    return Call(case, options, scores, target, mask, keep)


def reformatted(call: Call, name: str) -> Call:
    """The same numbers in another memory format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}

    def of(tensor: Tensor) -> Tensor:
        if name == "channels_last":
            return tensor.contiguous(memory_format=formats[tensor.ndim])
        if name == "strided":
            return tensor.repeat_interleave(2, -1)[..., ::2]
        if name == "transposed":
            return tensor.transpose(2, -1).contiguous().transpose(2, -1)
        return MetaTensor(tensor)

    mask = None if call.mask is None else of(call.mask)
    return call.but(scores=of(call.scores), target=of(call.target), mask=mask, format=name)


FORMATS = ("channels_last", "strided", "transposed", "MetaTensor")
