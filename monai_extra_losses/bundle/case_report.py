"""Metrics of each case, in tables and pictures."""

import logging
import math
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice
from monai.transforms import Orientation

from monai_extra_losses.bundle.case_tables import Legend, write_tables
from monai_extra_losses.bundle.endings import end_in_a_sentence
from monai_extra_losses.bundle.evaluation_record import EvaluationRecord
from monai_extra_losses.bundle.further_metrics import metric_sets_of
from monai_extra_losses.bundle.lesion_matching import LesionRule
from monai_extra_losses.bundle.metric_set import Measured, VoxelGrid
from monai_extra_losses.bundle.processes import is_first_process
from monai_extra_losses.bundle.run_folder import ResultsFolder
from monai_extra_losses.bundle.training_record import overlap_of
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.ops.merging import ANNOTATED

logger = logging.getLogger(__name__)


class EmptyAwareDice(DiceMetric):
    """Dice per case and foreground class of label maps (B,1,*), or of regions (B,R,*), with the rule for empty classes
    above; NaN for a class that the case does not annotate.

    `aggregate` is the mean over classes of the mean over the cases in which a class is defined.

    Args:
        num_classes: with background; of regions their number.
        multi_label: the inputs are regions, 0 or 1, that may overlap.
        ignore_index: what the target has in voxels without annotation, which count in no prediction and no target.
    """

    def __init__(self, num_classes: int, multi_label: bool = False, ignore_index: int | None = None) -> None:
        super().__init__(
            include_background=multi_label,
            reduction="none",
            ignore_empty=True,
            num_classes=None if multi_label else num_classes,
        )
        self.multi_label = multi_label
        self.ignore_index = ignore_index

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self.ignore_index is not None:  # background in both adds to no Dice of a class
            ignored = y[:, :1] == self.ignore_index
            y_pred, y = y_pred.masked_fill(ignored, 0), y.masked_fill(ignored, 0)
        dice = super()._compute_tensor(y_pred, y)
        for case, column in dice.isnan().nonzero().tolist():
            invented = y_pred[case, column] > 0 if self.multi_label else y_pred[case] == column + 1
            if invented.any():
                dice[case, column] = 0.0
        known = annotated_in(y, dice.shape[1])
        return dice if known is None else dice.masked_fill(~known.to(dice.device), torch.nan)

    def aggregate(self, reduction: Any = None) -> torch.Tensor:
        """Mean over classes of `per_class`."""
        return self.per_class().nanmean()

    def per_class(self) -> torch.Tensor:
        """Mean over cases for each foreground class; NaN for a class that no case has."""
        buffer = self.get_buffer()
        assert isinstance(buffer, torch.Tensor)  # for the type checker
        return buffer.nanmean(dim=0)


class CaseReport:
    """Measures every case of an evaluation; writes cases.csv, summary.csv and one picture per case, and copies those of
    the best, the median and the worst case to overlay_best.png, overlay_median.png and overlay_worst.png.

    Takes from the evaluator `pred` and `label`, label maps of classes (1,X,Y,Z) or regions (R,X,Y,Z) on the case's own
    grid, `picture` (C,X,Y,Z), the intensities on that grid, and `case`, the name.

    Args:
        folder: of tables and pictures.
        labels: class -> name, without background; of regions 1, 2, ... -> name.
        surface_tolerance_mm: distance at which two surfaces count as one, in mm.
        overlays: draw the pictures.
        ignore_index: what the label has in voxels without annotation. They are taken out of prediction and target
            before anything is measured: volumes are those of the annotated part, and what is cut at its border has a
            surface there.
        metrics: names of sets of further metrics, see `further_metrics`.
        lesion_rule: of the set `lesions`; None: the default.
        hysteresis: thresholds by which the predictions were decided; for the legend.
        record: of what is measured, written when all is, before cases.csv; None: there is none.
    """

    def __init__(
        self,
        *,
        folder: ResultsFolder,
        labels: Mapping[int, str],
        surface_tolerance_mm: float,
        overlays: bool = True,
        ignore_index: int | None = None,
        metrics: Sequence[str] = (),
        lesion_rule: LesionRule | None = None,
        hysteresis: Sequence[float] | None = None,
        record: EvaluationRecord | None = None,
    ) -> None:
        self.hysteresis = hysteresis
        self.record = record
        self.folder = folder
        self.labels = dict(labels)
        self.surface_tolerance_mm = surface_tolerance_mm
        self.overlays = overlays
        self.ignore_index = ignore_index
        self.metric_sets = metric_sets_of(metrics, lesion_rule)
        self.rows: list[dict[str, Any]] = []
        self.objects: list[list[dict[str, Any]]] = [[] for _ in self.metric_sets]

    def attach(self, engine: Engine) -> None:
        """Measure the output of each of `engine`'s iterations."""
        end_in_a_sentence(engine, self.folder.root)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, _: Engine) -> None:
        for rows in (self.rows, *self.objects):
            rows.clear()

    def _measure(self, engine: Engine) -> None:
        for item in items_of(engine):
            turn = Orientation("RAS", labels=None)
            prediction, target, picture = (
                cast(MetaTensor, turn(item[key]).cpu()) for key in ("pred", "label", "picture")
            )
            spacing = [float(mm) for mm in target.pixdim]
            grid = VoxelGrid(spacing, np.asarray(target.affine, dtype=float))
            predicted, true = (masks_of(volume.numpy(), self.labels) for volume in (prediction, target))
            ignored = None if self.ignore_index is None else target[0].numpy() == self.ignore_index
            if ignored is not None:
                predicted, true = ({n: mask & ~ignored for n, mask in masks.items()} for masks in (predicted, true))
            vector = annotated_in(target, len(self.labels))
            known = self.labels
            if vector is not None:
                known = {n: name for (n, name), is_known in zip(known.items(), vector[0], strict=True) if is_known}
            rows = []
            found: list[Measured] = []
            for number, name in known.items():
                measured = case_metrics(
                    predicted[number],
                    true[number],
                    spacing=spacing,
                    surface_tolerance_mm=self.surface_tolerance_mm,
                )
                of_class = {"case": item["case"], "label": name}
                for chosen, objects in zip(self.metric_sets, self.objects, strict=True):
                    found.append(chosen.of_case(item, number, predicted[number], true[number], grid))
                    measured |= found[-1].numbers
                    objects += [{**of_class, **row} for row in found[-1].objects]
                rows.append({**of_class, **measured})
            self.rows += rows
            if self.overlays:
                from monai_extra_losses.report.overlays import draw_overlay

                mean = np.nanmean([row["dice"] for row in rows] or [math.nan])
                others = [name for number, name in self.labels.items() if number not in known]
                draw_overlay(
                    picture[0].numpy(),
                    {number: mask & (number in known) for number, mask in true.items()},
                    {number: mask & (number in known) for number, mask in predicted.items()},
                    spacing=spacing,
                    labels=self.labels,
                    out=self.folder.overlays / f"{item['case']}.png",
                    title=f"{item['case']}, mean Dice {mean:.3f}"
                    + (f"; not annotated: {first_of(others)}" if others else ""),
                    affine=known_affine(target),
                    ignored=ignored,
                    missed=_union(one.missed for one in found),
                    invented=_union(one.invented for one in found),
                )

    def _write(self, engine: Engine) -> None:
        rows, objects = self._rows_of_all_processes()
        if not is_first_process():
            return
        legend = Legend(self.surface_tolerance_mm, self.hysteresis, overlap_of(engine))
        copies = self._copy_overlays(rows) if self.overlays else []
        if self.record is not None:
            self.record.with_windows(getattr(engine, "inferer", None)).write(self.folder.record)
        write_tables(self.folder, rows, objects, list(self.labels.values()), self.metric_sets, legend)
        if self.overlays:
            logger.info(f"Pictures: {self.folder.overlays}; {', '.join(map(str, copies))}")

    def _copy_overlays(self, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
        """The pictures of the best, the median and the worst case by mean Dice, where one sees them first."""
        dice: dict[str, list[float]] = {}
        for row in rows:
            dice.setdefault(row["case"], []).extend([] if math.isnan(row["dice"]) else [row["dice"]])
        ranked = sorted((case for case in dice if dice[case]), key=lambda case: (np.mean(dice[case]), case))
        last = len(ranked) - 1
        copies: dict[int, Path] = {}  # of two cases none is in the middle
        for rank, place in {"best": last, "worst": 0, "median": last // 2}.items():
            if 0 <= place <= last and place not in copies:
                picture = self.folder.overlays / f"{ranked[place]}.png"
                copies[place] = Path(shutil.copyfile(picture, self.folder.overlay_of(rank)))
        return list(copies.values())

    def _rows_of_all_processes(self) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """The rows, and the objects of each set."""
        tables = [self.rows, *self.objects]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, tables)
            tables = [
                sorted((row for rows in parts for row in rows), key=lambda row: row["case"])
                for parts in zip(*gathered, strict=True)
            ]
        return tables[0], tables[1:]


def _union(masks: Iterable[np.ndarray | None]) -> np.ndarray | None:
    known = [mask for mask in masks if mask is not None]
    return np.logical_or.reduce(known) if known else None


def annotated_in(label: torch.Tensor, classes: int) -> torch.Tensor | None:
    """(B, C) bool: which of the classes, without the background, are annotated, by the label's meta data; None: all."""
    vector = getattr(label, "meta", {}).get(ANNOTATED)
    return None if vector is None else torch.atleast_2d(torch.as_tensor(vector))[:, -classes:] > 0


def known_affine(volume: MetaTensor) -> np.ndarray | None:
    """The affine of a volume; None where it is of a NIfTI file that says nothing of its orientation."""
    codes = [int(volume.meta[code]) for code in ("qform_code", "sform_code") if code in volume.meta]
    return None if codes and not any(codes) else np.asarray(volume.affine, dtype=float)


def masks_of(volume: np.ndarray, labels: Mapping[int, str]) -> dict[int, np.ndarray]:
    """Number -> mask (X,Y,Z), of a label map (1,X,Y,Z) or of regions (R,X,Y,Z), which are numbered from 1."""
    if len(volume) == 1:  # one region is the label map of one class
        return {number: volume[0] == number for number in labels}
    return {number: volume[number - 1] > 0 for number in labels}


def case_metrics(
    prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float], surface_tolerance_mm: float
) -> dict[str, float]:
    """Metrics of one class in one case, with the rule for empty classes above.

    Args:
        prediction, target: bool arrays (X,Y,Z).
        spacing: of a voxel, in mm.
        surface_tolerance_mm: distance at which two surfaces count as one, in mm.

    Returns:
        `dice`, `hd95_mm` and `surface_dice` (NaN when undefined), `target_ml`, `prediction_ml`, `false_positive_ml`.
    """
    millilitre = float(np.prod(spacing)) / 1000
    target_voxels, prediction_voxels = int(target.sum()), int(prediction.sum())
    both = int((prediction & target).sum())
    volumes = {
        "target_ml": target_voxels * millilitre,
        "prediction_ml": prediction_voxels * millilitre,
        "false_positive_ml": (prediction_voxels - both) * millilitre,
    }
    if not target_voxels and not prediction_voxels:
        return {"dice": math.nan, "hd95_mm": math.nan, "surface_dice": math.nan, **volumes}
    dice = 2 * both / (target_voxels + prediction_voxels)
    if not target_voxels or not prediction_voxels:
        diagonal = float(np.linalg.norm(np.array(target.shape) * np.array(spacing)))
        return {"dice": dice, "hd95_mm": diagonal, "surface_dice": 0.0, **volumes}
    p, g = (torch.from_numpy(mask)[None, None] for mask in (prediction, target))
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        hd95 = compute_hausdorff_distance(p, g, percentile=95, **options)
        surface = compute_surface_dice(p, g, class_thresholds=[surface_tolerance_mm], **options)
    return {"dice": dice, "hd95_mm": hd95.item(), "surface_dice": surface.item(), **volumes}


def items_of(engine: Engine) -> list[dict[str, Any]]:
    """The cases of an evaluator's last batch, each with what was loaded and what was predicted."""
    batch, output = cast(list[dict[str, Any]], engine.state.batch), cast(list[dict[str, Any]], engine.state.output)
    return [{**loaded, **result} for loaded, result in zip(batch, output, strict=True)]
