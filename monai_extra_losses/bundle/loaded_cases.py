"""Cases as they are loaded in mid-training: checked as at the start, and one sentence for a case that fails."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import MapTransform

from monai_extra_losses.data.checks import TOLERANCE, corner_distance_mm, read_voxels
from monai_extra_losses.data.errors import CaseFailed, CasesFailed, DatasetError

_SHOWN = 5  # label values named in one sentence


class CheckLoadedCased(MapTransform):
    """Refuses what the check of the data set refuses, for files may change between that check and an epoch.

    Put it after `LoadImaged`. The image must be finite and have its channels; the label must have its shape and lie on
    its grid, to `checks.TOLERANCE` of the smallest spacing, and hold the label values alone. It gets the affine of the
    image: at 45 degrees between two axes of the body rounding decides to which a volume is turned.

    Args:
        image: key of the image (C,X,Y,Z).
        label: key of the label (1,X,Y,Z).
        in_channels: C.
        label_values: values that a label may have.

    Raises:
        DatasetError: the first that is wrong, with the file.
    """

    def __init__(
        self, image: str = "image", label: str = "label", *, in_channels: int, label_values: Sequence[int]
    ) -> None:
        super().__init__([image, label])
        self.in_channels = in_channels
        self.label_values = list(label_values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item, the label on the very grid of the image."""
        image, label = (data[key] for key in self.keys)
        of_image, of_label = (
            tensor.meta.get("filename_or_obj", key) for tensor, key in zip((image, label), self.keys, strict=True)
        )
        if len(image) != self.in_channels:
            raise DatasetError(
                f"{of_image}: expected {self.in_channels} channel(s), as the other cases have, got {len(image)}."
            )
        broken = int((~image.as_tensor().isfinite()).sum())
        if broken:
            raise DatasetError(
                f"{of_image}: expected finite intensities, got {broken} voxels of NaN or infinity; replace them or "
                "leave the case out."
            )
        _refuse_other_grid(image, label, of_image, of_label)
        values = label.as_tensor()
        if not values.is_floating_point():
            values = values.to(torch.int64)  # unsigned numbers have no ignore label below 0
        foreign = values[~torch.isin(values, torch.tensor(self.label_values, dtype=values.dtype))]
        if foreign.numel():
            found = foreign.unique()[:_SHOWN].tolist()
            words = [str(int(value)) if float(value).is_integer() else f"{value:g}" for value in found]
            shown = ", ".join(dict.fromkeys(words))  # each NaN is unique
            known = ", ".join(map(str, self.label_values))
            raise DatasetError(f"{of_label}: expected the label values {known}, got {shown} too; correct the file.")
        placed = MetaTensor(label.as_tensor(), meta={**label.meta, "affine": image.affine.clone()})
        return dict(data) | {self.keys[1]: placed}


def _refuse_other_grid(image: MetaTensor, label: MetaTensor, of_image: str, of_label: str) -> None:
    shape, other = tuple(image.shape[1:]), tuple(label.shape[1:])
    if shape != other:
        raise DatasetError(
            f"{of_label}: expected shape {shape} of {of_image}, got {other}; resample it onto that grid."
        )
    affine = image.affine.double()
    distance = corner_distance_mm(shape, affine.numpy(), label.affine.double().numpy())
    allowed = TOLERANCE * float(affine[:3, :3].norm(dim=0).min())
    if distance > allowed:
        raise DatasetError(
            f"{of_label}: expected the affine of {of_image} (corners within {allowed:.3g} mm), got corners "
            f"{distance:.3g} mm away; resample it onto that grid."
        )


def sentence_of(error: BaseException, item: Mapping[str, Any]) -> str:
    """What is wrong with a case, in one sentence.

    Args:
        error: what loading it raised.
        item: with the files under `image` (a list) and `label`.
    """
    cause: BaseException = error
    while not isinstance(cause, DatasetError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, DatasetError):
        return str(cause)
    # readers do not say which file it is
    for file in (*item["image"], item["label"]):
        try:
            read_voxels(Path(file), "label" if file == item["label"] else "image")
        except DatasetError as problem:
            return f"{file}: {problem}"
    return f"{item.get('case', item['image'][0])}: expected a case that can be prepared, got {cause!r}."


class CaseLoader(DataLoader):
    """MONAI's `DataLoader`, which ends the program with the sentence of a case that cannot be loaded.

    Raises:
        CasesFailed: by its iterator, also for a case of a loader process, and for a process that was killed.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except CaseFailed as failed:
            raise CasesFailed(str(failed)) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).partition("\n")[0].rstrip(". ")
            raise CasesFailed(
                f"Expected loader processes that go on, got: {reason}; lower --num_workers, or make room in memory."
            ) from None
