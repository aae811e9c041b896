"""Voxels without annotation on their way to the loss: which value it leaves out, and whether it does."""

import inspect
from collections.abc import Hashable, Iterator, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor, nn

from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.data.errors import DatasetError, StartUpRefused


class RefuseUnannotatedd(MapTransform):
    """Refuses a label all of whose voxels are ignored: no patch could be cut around one that is not.

    `check` refuses such files; resampling may leave out the few slices that are annotated.

    Args:
        keys: of the labels.
        ignore_index: what they have in voxels without annotation.
    """

    def __init__(self, keys: KeysCollection, ignore_index: int) -> None:
        super().__init__(keys)
        self.ignore_index = ignore_index

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """The item as it is."""
        for key in self.key_iterator(dict(data)):
            label = data[key]
            if not (label != self.ignore_index).any():
                file = label.meta.get("filename_or_obj", key) if isinstance(label, MetaTensor) else key
                raise DatasetError(
                    f"{file}: expected voxels with annotation after resampling, got the ignore label in every voxel; "
                    "take a finer --pixdim, or leave the case out."
                )
        return dict(data)


def leave_out(loss: nn.Module, declared: tuple[int, int] | None, *, multi_label: bool) -> None:
    """Give a loss and its parts the ignore label of the data set, where they have an `ignore_index` that says no other.

    Does nothing the second time. An `ignore_index` that is another one stays, for `check_ignore_index` to refuse.

    Args:
        loss: of the training; changed.
        declared: the ignore label and what the label in memory has instead; None: every voxel is annotated.
        multi_label: the target is regions, of which `ignore_index` would be a channel: the mask of
            `engines.AnnotatedVoxelLoss` leaves the voxels out.
    """
    if declared is None:
        return
    for owner in _owners(loss):
        if _chosen(owner) in (None, *declared) and not (multi_label and _chosen(owner) is None):
            owner.ignore_index = None if multi_label else declared[1]  # type: ignore[assignment]


def check_ignore_index(loss: nn.Module, record: RunRecord) -> list[str]:
    """Refuse an `ignore_index` that no voxel of the training can have.

    Args:
        loss: of the training, after `leave_out`.
        record: of the run.

    Returns:
        What to warn of: voxels of a class that the loss leaves out.

    Raises:
        StartUpRefused: an `ignore_index` that is no class and not the ignore label, or a class where there is an ignore
            label already, for a loss has one.
    """
    warned = []
    names = list(record.labels.values()) if record.regions is None else list(record.regions)
    for owner in _owners(loss):
        chosen = _chosen(owner)
        if chosen is None or (chosen == record.ignore_index and record.regions is None):
            continue
        name = type(owner).__name__.removeprefix("_")
        if chosen not in range(len(names)):
            raise StartUpRefused(
                f"Expected the ignore_index of {name} to be a class, 0 to {len(names) - 1}, or the ignore label of the "
                f"data set, {'which has none' if record.ignore_label is None else record.ignore_label}, got {chosen}, "
                'which no voxel has; declare the value of voxels without annotation in dataset.json: "ignore_label": '
                f"{chosen if record.ignore_label is None else record.ignore_label}."
            )
        if record.ignore_label is not None and record.regions is None:
            raise StartUpRefused(
                f"Expected the ignore_index of {name} to be left to the ignore label of the data set, "
                f"{record.ignore_label}, got {chosen} ({names[chosen]}); a loss leaves one value out."
            )
        warned.append(
            f"ignore_index {chosen} leaves the voxels of {names[chosen]} out of the loss, so that nothing teaches the "
            "network what they are; validation and evaluation still ask for them."
        )
    return list(dict.fromkeys(warned))


def counts_ignored(loss: nn.Module, scores: Tensor, target: Tensor, ignored: Tensor) -> bool:
    """Whether a loss changes with the scores of ignored voxels.

    Args:
        loss: as the trainer has it.
        scores: (B, C, *spatial).
        target: as the trainer hands it to the loss.
        ignored: (B, 1, *spatial) bool.
    """
    channel = torch.arange(scores.shape[1], device=scores.device).view(1, -1, *[1] * (scores.ndim - 2))
    others = torch.where(ignored, 3 * channel - 2 * scores, scores)
    with torch.no_grad():
        before, after = loss(scores, target), loss(others, target)
    return not torch.allclose(before, after, rtol=1e-4, atol=1e-6)


def needs_maps(loss: nn.Module) -> bool:
    """Whether a loss cannot be tried without maps beside the label."""
    parameters = list(inspect.signature(loss.forward).parameters.values())
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters[2:])


def _owners(loss: nn.Module) -> Iterator[nn.Module]:
    return (module for module in loss.modules() if hasattr(module, "ignore_index"))


def _chosen(owner: nn.Module) -> int | None:
    """The `ignore_index` of a loss; torch's own default, -100, is none."""
    is_torchs = type(owner).__module__.startswith("torch.")
    value = owner.ignore_index
    return None if value is None or (is_torchs and value == -100) else int(value)  # type: ignore[arg-type]
