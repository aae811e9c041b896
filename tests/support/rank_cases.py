"""What the processes of test_distributed.py compute, and one process with all samples: losses in situations."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import yaml
from loss_list import ENTRIES, LOSSES, LossEntry
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_extra_losses import config_dir, drop_in, losses

SYNCED: dict[str, Any] = {"sync_batch": True, "ignore_index": 255}
CLASSES = 4
WEIGHT = [0.5, 2.0, 3.0, 1.0]
UNEVEN = (slice(0, 1), slice(1, 4))  # the samples of each rank
NONE_ON_ONE = (slice(0, 0), slice(0, 4))


class Data(NamedTuple):
    """What a step reads; `annotated` (B, C) goes to `PartialLabelLoss`."""

    images: Tensor
    labels: Tensor
    mask: Tensor | None = None
    annotated: Tensor | None = None

    def of(self, samples: slice) -> "Data":
        return Data(*(None if tensor is None else tensor[samples] for tensor in self))


@dataclass(frozen=True)
class RankCase:
    """A loss and its data.

    Attributes:
        make: makes the loss.
        situation: a name of `SITUATIONS`.
        dtype: of the scores.
        gradient: whether the step has a backward.
    """

    make: Callable[[], nn.Module]
    situation: str = "classes"
    dtype: torch.dtype = torch.float64
    gradient: bool = True

    @property
    def samples(self) -> Sequence[slice]:
        return NONE_ON_ONE if self.situation == "no sample" else UNEVEN

    @property
    def data(self) -> Data:
        return SITUATIONS[self.situation]()

    def __call__(self, network: nn.Module, data: Data) -> Tensor:
        scores = network(data.images).to(self.dtype)
        loss = self.make()
        if data.annotated is None:
            return loss(scores, data.labels, *([] if data.mask is None else [data.mask]))
        mode = "marginal" if loss.softmax else "sigmoid"
        return losses.PartialLabelLoss(loss, mode=mode)(scores, data.labels, annotated=data.annotated)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(2, CLASSES, 3, padding=1).double()


@functools.cache
def classes() -> Data:
    """Class 2 on the second rank alone, class 3 on none, and a part of the first rank ignored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 2, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 1, 6, 5), generator=generator)
    labels[0][labels[0] == 2] = 1
    labels[0, :, :3] = 255
    return Data(images, labels)


def ignored() -> Data:
    images, labels = classes()[:2]
    labels = labels.clone()
    labels[0] = 255
    return Data(images, labels)


def masked() -> Data:
    """A mask of weights, all 0 on the first rank."""
    generator = torch.Generator().manual_seed(2)
    images, labels = classes()[:2]
    mask = torch.rand(labels.shape, generator=generator, dtype=torch.float64)
    mask[mask < 0.2] = 0
    mask[0] = 0
    return Data(images, labels, mask)


def annotated() -> Data:
    """Each process knows a class of which the other one has not heard."""
    images, labels = classes()[:2]
    labels = labels.clone()
    known = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1], [1, 0, 1, 1]], dtype=torch.bool)
    for sample, row in enumerate(known):
        for c in (~row).nonzero().flatten():
            labels[sample][labels[sample] == c] = 0
    return Data(images, labels, None, known)


def annotated_and_ignored() -> Data:
    images, labels, _, known = annotated()
    labels[0] = 255
    return Data(images, labels, None, known)


SITUATIONS: dict[str, Callable[[], Data]] = {
    "classes": classes,
    "all ignored": ignored,
    "all masked": masked,
    "no sample": classes,
    "annotated": annotated,
    "annotated, all ignored": annotated_and_ignored,
}
ALL_SEE = [name for name in SITUATIONS if "annotated" not in name]


def syncing(cls: Any) -> bool:
    """Whether a loss has `sync_batch`, and its constructor takes it."""
    return isinstance(cls, type) and "sync_batch" in inspect.signature(cls).parameters and ENTRIES[cls.__name__].syncs


def public_losses() -> dict[str, Any]:
    """Name -> class of what has `sync_batch`, by any public name."""
    found = {name: getattr(module, name) for module in (losses, drop_in) for name in module.__all__}
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and "sync_batch" in inspect.signature(cls).parameters
    }


def _case(entry: LossEntry, activation: str, situation: str = "classes", **options: Any) -> RankCase:
    pooled = {"batch": True} if entry.accepts("batch") else {}
    return RankCase(functools.partial(entry.make, activation, **{**SYNCED, **pooled, **options}), situation)


def of_situations(entry: LossEntry) -> Iterator[tuple[str, RankCase]]:
    """Every activation of a loss in every situation."""
    for activation in entry.activations:
        for situation in ALL_SEE:
            for reduction in ("mean", "sum") if situation in ("classes", "all masked") else ("mean",):
                case = _case(entry, activation, situation, reduction=reduction)
                yield f"{activation}, {situation}, {reduction}", case
        if activation != "none":
            for situation in ("annotated", "annotated, all ignored"):
                yield f"{activation}, {situation}", _case(entry, activation, situation)


def of_options(entry: LossEntry) -> Iterator[tuple[str, RankCase]]:
    """Options of a loss that change what is added up."""
    first = entry.activations[0]
    for activation in entry.activations:
        for name, options in entry.variants.items():
            yield f"{activation}, {name}", _case(entry, activation, **options)
        if entry.accepts("weight"):
            yield f"{activation}, weight", _case(entry, activation, weight=WEIGHT)
    if entry.accepts("absent_class"):
        for situation in ("classes", "all ignored", "no sample"):
            yield f"skip, {situation}", _case(entry, first, situation, absent_class="skip")
    if entry.family != "distribution" or entry.every_channel:
        yield "without background", _case(entry, first, include_background=False)
    yield "bfloat16", replace(_case(entry, first), dtype=torch.bfloat16)
    # DDP's average comes after the gradient is rounded, which a factor of 2 changes where float16 is subnormal.
    yield "float16, without gradient", replace(_case(entry, first), dtype=torch.float16, gradient=False)


@dataclass(frozen=True)
class _Entry:
    """An entry of configs/losses.yaml with `sync_batch` wherever a loss of it takes that."""

    name: str
    content: dict[str, Any] = field(hash=False)

    def __call__(self) -> nn.Module:
        options = {"to_onehot_y": True, "softmax": True, "sigmoid": False, "include_background": True}
        parser = ConfigParser({**options, "loss": synced(self.content)})
        made: nn.Module = parser.get_parsed_content("loss")
        return made


def target_of(content: dict[str, Any]) -> Any:
    return getattr(losses, content["_target_"].rpartition(".")[2])


def synced(content: Any) -> Any:
    """The content with `sync_batch` for each loss that can."""
    if isinstance(content, list):
        return [synced(part) for part in content]
    if not isinstance(content, dict):
        return content
    result = {key: synced(value) for key, value in content.items()}
    if "_target_" in content and syncing(target_of(content)):
        entry = ENTRIES[target_of(content).__name__]
        result |= {**SYNCED, **({"batch": True} if entry.accepts("batch") else {})}
    elif "_target_" in content and target_of(content).__name__ in ENTRIES:
        result["ignore_index"] = 255
    return result


def entries_of_the_bundle() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((config_dir() / "losses.yaml").read_text())["losses"]
    return found


def whole(content: Any) -> bool:
    """Whether every loss of an entry can add up over ranks."""
    parts = content.get("losses", [content])
    return all(syncing(target_of(part)) for part in (parts.values() if isinstance(parts, dict) else parts))


RANK_CASES: dict[str, dict[str, RankCase]] = {
    **{entry.name: {**dict(of_situations(entry)), **dict(of_options(entry))} for entry in LOSSES if entry.syncs},
    "configs/losses.yaml": {
        name: RankCase(_Entry(name, content)) for name, content in entries_of_the_bundle().items() if whole(content)
    },
}
