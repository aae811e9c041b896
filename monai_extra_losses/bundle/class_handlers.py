"""Ignite handlers that say when a training loses a class: it is no longer predicted, or seldom in the patches."""

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_extra_losses.bundle.case_report import annotated_in, items_of
from monai_extra_losses.bundle.processes import is_first_process
from monai_extra_losses.data.folder_files import first_of

logger = logging.getLogger(__name__)

_PATIENCE = 3  # validations; the first ones of a training may well predict nothing


class CollapseWarning:
    """Warns once of each class of which no voxel is predicted in three validations in a row, while the labels have it.

    `evaluator.state.empty_validations` counts them by name; the checkpoints keep it, so that a training that resumes
    goes on counting, and does not warn again.

    Args:
        labels: class -> name, without background; of regions 1, 2, ... -> name.
        multi_label: prediction and label are regions.
        ignore_index: what the label has in voxels without annotation, which count nowhere.
    """

    def __init__(self, labels: Mapping[int, str], multi_label: bool = False, ignore_index: int | None = None) -> None:
        self.names = list(labels.values())
        self.multi_label = multi_label
        self.ignore_index = ignore_index

    def attach(self, engine: Engine) -> None:
        """Follow the validations of `engine`."""
        cast(Any, engine.state).empty_validations = {}
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._judge)

    def _start(self, _: Engine) -> None:
        self._voxels = torch.zeros(2, len(self.names), dtype=torch.float64)  # predicted, in the label

    def _count(self, engine: Engine) -> None:
        for item in items_of(engine):
            prediction, label = (torch.as_tensor(item[key]) for key in ("pred", "label"))
            if self.ignore_index is not None:
                ignored = label[:1] == self.ignore_index
                prediction, label = prediction.masked_fill(ignored, 0), label.masked_fill(ignored, 0)
            found = [_voxels(volume, len(self.names), self.multi_label) for volume in (prediction, label)]
            self._voxels = self._voxels.to(label.device) + torch.stack(found)

    def _judge(self, engine: Engine) -> None:
        predicted, present = (row.tolist() for row in _of_all_processes(self._voxels))
        counts: dict[str, int] = cast(Any, engine.state).empty_validations
        for name, own, true in zip(self.names, predicted, present, strict=True):
            before = counts.get(name, 0)
            if before < _PATIENCE:
                counts[name] = before + 1 if not own and true else 0
                if counts[name] == _PATIENCE and is_first_process():
                    logger.warning(
                        f"{name}: no voxel predicted in {_PATIENCE} validations in a row, while their labels have "
                        f"{true:.0f}. Should it stay so, try another --loss: dice_ce, whose cross-entropy has a "
                        "gradient where a class is not predicted at all; dice_focal or dice_top_k for a rare one; "
                        "component_dice_ce for small lesions; or a lower --learning_rate."
                    )


class PatchContent:
    """Says in the first epoch in how many of its patches each class is, and warns where these are few.

    Attach to the trainer. A training that resumes after that epoch says nothing.

    Args:
        labels: class -> name, without background; of regions 1, 2, ... -> name.
        num_centres: classes that a patch is centred on, each as often, with background.
        multi_label: the label is regions.
        ignore_index: what the label has in voxels without annotation.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        num_centres: int,
        multi_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        self.names = list(labels.values())
        self.num_centres = num_centres
        self.multi_label = multi_label
        self.ignore_index = ignore_index

    def attach(self, engine: Engine) -> None:
        """Follow the patches of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.state.epoch == 1), self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), self._tell)

    def _start(self, _: Engine) -> None:
        self._patches = torch.zeros(2, len(self.names), dtype=torch.float64)  # with the class, that annotate it

    def _count(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        if not isinstance(batch, Mapping):  # a trainer of another kind
            return
        labels = torch.as_tensor(batch["label"])
        known = annotated_in(batch["label"], len(self.names))
        for number, label in enumerate(labels):
            held = label if self.ignore_index is None else label.masked_fill(label == self.ignore_index, 0)
            annotated = torch.ones(len(self.names), dtype=torch.bool) if known is None else known[number].cpu()
            has = _voxels(held, len(self.names), self.multi_label).cpu() > 0
            self._patches += torch.stack([has & annotated, annotated])

    def _tell(self, _: Engine) -> None:
        held, of = (row.tolist() for row in _of_all_processes(self._patches))
        if not is_first_process():
            return
        told = [(name, int(n), int(whole)) for name, n, whole in zip(self.names, held, of, strict=True) if whole]
        if not told:
            return
        rarest = sorted(told, key=lambda entry: entry[1] / entry[2])[:3] if len(told) > 10 else told
        of_how_many = f" (the fewest of {len(told)} classes)" if len(told) > 10 else ""
        logger.info(f"patches with {', '.join(f'{name}: {n} of {all_}' for name, n, all_ in rarest)}{of_how_many}")
        few = [f"{name} ({n} of {all_})" for name, n, all_ in told if is_seldom(n, all_, self.num_centres)]
        if few:
            logger.warning(
                f"Few patches of the first epoch have a voxel of {first_of(few)}; the others teach where it is not. A "
                "larger --patch_size, or more cases with it, helps."
            )


def is_seldom(number: int, patches: int, num_centres: int) -> bool:
    """Whether fewer patches have a class than their centres alone make likely, by two standard deviations.

    Args:
        number: of patches with the class.
        patches: all.
        num_centres: classes that a patch is centred on, each as often, where its case has all of them.
    """
    share = 1 / num_centres
    return number < share * patches - 2 * math.sqrt(share * (1 - share) * patches)


def _voxels(volume: Tensor, classes: int, multi_label: bool) -> Tensor:
    """(classes,) voxels of each class of a label map (1, *), or of each region (R, *)."""
    if multi_label:
        return (volume > 0).flatten(1).sum(1)
    return torch.bincount(volume.flatten().long(), minlength=classes + 1)[1 : classes + 1]


def _of_all_processes(numbers: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        numbers = numbers.to(torch.device("cuda") if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(numbers)
    return numbers
