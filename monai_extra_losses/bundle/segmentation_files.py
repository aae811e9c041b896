"""The files of segmentations: written, moved to their place when whole, and recorded."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from numpy.typing import NDArray

from monai_extra_losses.bundle.case_report import items_of
from monai_extra_losses.bundle.endings import end_in_a_sentence
from monai_extra_losses.bundle.segmentation_record import SegmentationRecord, close_unfinished
from monai_extra_losses.data.errors import DatasetError

logger = logging.getLogger(__name__)

WritesCase = Callable[[str, NDArray[Any], Path], object]
"""Makes a file of the name of a case and its label map of axes x, y, z."""


class FinishedSegmentations:
    """Writes the files of each case, moves them to their place when they are whole, and records what they were made of.

    A killed run leaves no half file behind, and none without a record. A file is a NIfTI volume on the grid of the
    evaluator's output: (1,X,Y,Z) becomes (X,Y,Z), several channels (X,Y,Z,C). What fails, fails within the iteration.

    Args:
        unfinished: folder that the files are written to; `segmentation_record.open_unfinished` made it.
        output_dir: folder that they belong in.
        endings: key of the evaluator's output -> ending of the file's name after that of the case.
        made_of: case -> its `model`, `options` and `input`, as `SegmentationRecord` has them.
        dtype: of label maps; probabilities are float32.
        overwrite: replace what was made of something else.
        further_files: ending of a file's name after that of the case -> what makes it.
    """

    def __init__(
        self,
        *,
        unfinished: Path,
        output_dir: Path,
        endings: Mapping[str, str],
        made_of: Mapping[str, Mapping[str, Any]],
        dtype: type,
        overwrite: bool = False,
        further_files: Mapping[str, WritesCase] | None = None,
    ) -> None:
        self.unfinished = unfinished
        self.made_of = made_of
        self.output_dir = output_dir
        self.endings = dict(endings)
        self.dtype = dtype
        self.overwrite = overwrite
        self.further_files = dict(further_files or {})

    def attach(self, engine: Engine) -> None:
        """Write what each of `engine`'s iterations makes; attach after the postprocessing."""
        end_in_a_sentence(engine, self.output_dir)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda _: close_unfinished(self.unfinished))

    def _write(self, engine: Engine) -> None:
        for item in items_of(engine):
            names = {key: f"{item['case']}_{ending}.nii.gz" for key, ending in self.endings.items() if key in item}
            for key, name in names.items():
                write_nifti(item[key], self.unfinished / name, self.dtype if key == "pred" else np.float32)
            further = {ending: f"{item['case']}_{ending}" for ending in self.further_files}
            if further:
                label = item["pred"].as_tensor()[0].cpu().numpy().astype(self.dtype)
            for ending, name in further.items():
                self.further_files[ending](item["case"], label, self.unfinished / name)
            self._move(item["case"], [*names.values(), *further.values()])
            written = " and ".join([*(self.endings[key] for key in names), *further])
            logger.info(f"{item['case']}: {written} in {self.output_dir}")

    def _move(self, case: str, names: Sequence[str]) -> None:
        record, made_of = SegmentationRecord(self.output_dir), self.made_of[case]
        with record.alone():
            there = [name for name in names if (self.output_dir / name).exists()]
            other = record.difference(case, made_of, there) if there else None
            if other is not None and not self.overwrite:
                raise DatasetError(
                    f"Expected no other process to write {self.output_dir / there[0]} meanwhile, got {other}; give "
                    "another --output."
                )
            for name in there if other is not None else ():
                (self.output_dir / name).unlink()  # else the record would soon speak of a file that it does not mean
            record.add(case, made_of, names)
            for name in names:
                (self.unfinished / name).replace(self.output_dir / name)


def write_nifti(volume: MetaTensor, file: Path, dtype: type) -> None:
    """Write (C,X,Y,Z) as NIfTI in its own place: (X,Y,Z) of one channel, else (X,Y,Z,C).

    MONAI's `SaveImage` (1.6.1) drops axes of one voxel, and passes label ids through a resampler that rounds to float32
    even where there is nothing to resample.
    """
    channels: np.ndarray = volume.as_tensor().cpu().numpy().astype(dtype)
    voxels = channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)
    affine = volume.affine.cpu().double().numpy()
    image = nibabel.Nifti1Image(voxels, affine, dtype=dtype)
    image.set_sform(affine, code=1)  # both, for there are readers of either
    image.set_qform(affine, code=1)
    image.to_filename(file)
