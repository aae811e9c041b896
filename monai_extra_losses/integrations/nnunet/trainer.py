"""Trainers of nnU-Net with other losses: its own classes, with the loss in the place of theirs."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, nn

from monai_extra_losses import __version__
from monai_extra_losses.integrations.nnunet.adapter import LossOfTraining
from monai_extra_losses.integrations.nnunet.choice import (
    CHOICE_VARIABLE,
    OWN_CHOICE,
    PREFIX,
    Training,
    built_loss,
    loss_config,
    table_names,
)
from monai_extra_losses.transforms.annotated import annotated_vector

RECORD = "loss.json"
"""File of the model folder, beside plans.json: the loss with its options."""


class WithExtraLoss:
    """What stands before a trainer class of nnU-Net and changes its loss, and nothing else.

    Deep supervision and its weights, batch Dice, the ignore label, regions and the schedule stay nnU-Net's. Of data
    that are annotated in part (`"annotated": {"case": [1, 3]}` in dataset.json) the loss is wrapped in
    `PartialLabelLoss`, and the Dice that nnU-Net logs counts the annotated classes of a case alone.

    Attributes:
        loss_choice: see `loss_config`; None: as the environment variable says, or loss.json of the model folder.

    Raises:
        ValueError: a loss that cannot be made, or (`on_train_start`) another one than the model folder's.
    """

    loss_choice: ClassVar[str | None] = None

    def _build_loss(self: Any) -> nn.Module:
        levels: nn.Module = super()._build_loss()  # type: ignore[misc]
        self._config_of_loss = self._loss_config()
        partly = bool(_annotated(self.dataset_json))
        loss = LossOfTraining(
            built_loss(self._config_of_loss, self._training(), ranks=self.is_ddp, partly=partly).to(self.device),
            self.configuration_manager.spacing,
            self.configuration_manager.patch_size,
            ignore_channel=self.label_manager.has_regions and self.label_manager.has_ignore_label,
        )
        self.print_to_log_file(f"Loss of monai_extra_losses {__version__}: {loss.loss}")
        if self.loss_choice is not None and CHOICE_VARIABLE in os.environ:
            self.print_to_log_file(
                f"{CHOICE_VARIABLE} is set and not read: {type(self).__name__} has a loss of its own. "
                f"{PREFIX}{OWN_CHOICE} reads it."
            )
        self._loss_of_level = loss
        if not isinstance(levels, DeepSupervisionWrapper):
            return loss
        levels.loss = loss
        weighted: nn.Module = levels
        return weighted

    def on_train_start(self: Any) -> None:
        """nnU-Net's start, and the loss written down: nothing of another loss is overwritten or mixed with it."""
        if not self.was_initialized:
            self.initialize()
        self._refuse_wrong_annotation()
        record = {"trainer": type(self).__name__, "loss": self._config_of_loss}
        recorded = _recorded(self.output_folder_base)
        trained = any(Path(self.output_folder_base).glob("fold_*/checkpoint_*.pth"))
        if trained and recorded is not None and recorded != record["loss"]:
            raise ValueError(
                f"expected the loss of {self.output_folder_base}, {json.dumps(recorded)}, got "
                f"{json.dumps(record['loss'])}: train it under a name of its own, {PREFIX}{OWN_CHOICE}_NAME say, or "
                "remove the folder."
            )
        super().on_train_start()  # type: ignore[misc]
        if self.local_rank == 0:
            text = json.dumps({**record, "monai_extra_losses": __version__, "torch": torch.__version__}, indent=2)
            (Path(self.output_folder_base) / RECORD).write_text(text + "\n", encoding="utf-8")

    def train_step(self: Any, batch: dict[str, Any]) -> Any:
        """nnU-Net's step, whose loss knows what is annotated in these cases."""
        self._loss_of_level.annotated = self._annotated_in(batch)
        return super().train_step(batch)  # type: ignore[misc]

    def validation_step(self: Any, batch: dict[str, Any]) -> Any:
        """nnU-Net's validation of a batch, or sample by sample, where not all classes are annotated in all of them."""
        annotated = self._annotated_in(batch)
        self._loss_of_level.annotated = annotated
        if annotated is None:
            return super().validation_step(batch)  # type: ignore[misc]
        results = []
        for sample, known in enumerate(annotated):
            self._loss_of_level.annotated = known.unsqueeze(0)
            result = super().validation_step(_sample_of(batch, sample))  # type: ignore[misc]
            counted = known if self.label_manager.has_regions else known[1:]
            results.append({k: v if k == "loss" else v * counted.cpu().numpy() for k, v in result.items()})
        mean = {"loss": np.mean([result["loss"] for result in results])}
        return mean | {k: sum(result[k] for result in results) for k in results[0] if k != "loss"}

    def perform_actual_validation(self: Any, save_probabilities: bool = False) -> None:
        """nnU-Net's, with a word where its numbers need one."""
        if _annotated(self.dataset_json):
            self.print_to_log_file(
                "summary.json counts classes that a case does not annotate as absent there; measure with "
                "`monai-extra-losses evaluate`, or on cases that annotate all."
            )
        super().perform_actual_validation(save_probabilities)  # type: ignore[misc]

    def _loss_config(self: Any) -> dict[str, Any]:
        choice = self.loss_choice or os.environ.get(CHOICE_VARIABLE)
        if choice is not None:
            return loss_config(choice, self._training())
        if (recorded := _recorded(self.output_folder_base)) is None:
            raise ValueError(
                f"expected the environment variable {CHOICE_VARIABLE} to name the loss of {type(self).__name__}: "
                "focal_tversky, say, or the path of a YAML file."
            )
        return recorded

    def _training(self: Any) -> Training:
        labels, plans = self.label_manager, self.configuration_manager
        return Training(
            regions=labels.has_regions,
            ignore_label=labels.ignore_label,
            batch_dice=plans.batch_dice,
            channels=labels.num_segmentation_heads,
            axes=len(plans.patch_size),
        )

    def _annotated_in(self: Any, batch: Mapping[str, Any]) -> Tensor | None:
        """(B, C) bool; None where every class of every case is annotated."""
        lists = [_classes_in(_annotated(self.dataset_json), str(key)) for key in batch["keys"]]
        if all(known is None for known in lists):
            return None
        return torch.stack([self._vector(known) for known in lists]).to(self.device, torch.bool)

    def _vector(self: Any, annotated: Sequence[int] | None) -> Tensor:
        labels = self.label_manager
        regions = _region_labels(labels.foreground_regions) if labels.has_regions else None
        return annotated_vector(annotated, labels.num_segmentation_heads, regions)

    def _refuse_wrong_annotation(self: Any) -> None:
        """A misspelt case would annotate everything, and a wrong class stop the training hours later."""
        table = _annotated(self.dataset_json)
        by_case = table if isinstance(table, Mapping) else {"every case": table}
        cases = {*self.dataset_class.get_identifiers(self.preprocessed_dataset_folder), "every case"}
        if unknown := sorted(set(by_case) - cases):
            raise ValueError(
                f'expected cases of the data set in "annotated" of dataset.json, got {", ".join(unknown[:5])}.'
            )
        for case, known in by_case.items():
            try:
                self._vector(known)
            except (TypeError, ValueError) as error:
                raise ValueError(f'"annotated" of dataset.json, {case}: {error}') from error


@functools.cache
def trainer_named(name: str) -> type | None:
    """The trainer of a name; None where it is none of this package.

    Args:
        name: nnUNetTrainer_LOSS, LOSS an entry of losses.yaml; nnUNetTrainer_extra_loss, which the environment variable
            tells its loss, or nnUNetTrainer_extra_loss_NAME, for a model folder of its own. Each may go on with __BASE
            for nnU-Net's nnUNetTrainer_BASE or nnUNetTrainerBASE in the place of nnUNetTrainer:
            nnUNetTrainer_tversky__250epochs.

    Raises:
        ValueError: a BASE that nnU-Net does not find.
    """
    choice, _, base = name.removeprefix(PREFIX).partition("__")
    told = choice == OWN_CHOICE or choice.startswith(f"{OWN_CHOICE}_")
    if not name.startswith(PREFIX) or not (told or choice in table_names()):
        return None
    options = {"loss_choice": None if told else choice, "__doc__": f"nnU-Net's trainer with another loss: {choice}."}
    return type(name, (WithExtraLoss, _base_named(base, name)), options)


def _base_named(base: str, of: str) -> type:
    if not base:
        found: type = nnUNetTrainer
        return found
    for name in (f"{PREFIX}{base}", f"{PREFIX.removesuffix('_')}{base}"):
        try:
            found = recursive_find_trainer_class_by_name(name)
        except RuntimeError:  # nnU-Net's, where there is none
            continue
        return found
    raise ValueError(f"expected the end of {of} to be a trainer of nnU-Net's, {PREFIX}250epochs say, got {base!r}.")


def _annotated(dataset_json: Mapping[str, Any]) -> Mapping[str, Sequence[int]] | Sequence[int]:
    """Name of a case -> the classes annotated in it, where cases that are not there annotate all; or those of all."""
    table: Mapping[str, Sequence[int]] | Sequence[int] = dataset_json.get("annotated", {})
    if not isinstance(table, Mapping | list):
        raise ValueError(f'expected "annotated" of dataset.json as {{"case": [1, 3]}}, got {table!r}.')
    return table


def _classes_in(annotated: Mapping[str, Sequence[int]] | Sequence[int], case: str) -> Sequence[int] | None:
    if isinstance(annotated, Mapping):
        return annotated.get(case)
    return annotated or None


def _recorded(folder: str | None) -> dict[str, Any] | None:
    file = None if folder is None else Path(folder) / RECORD
    if file is None or not file.is_file():
        return None
    loss: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["loss"]
    return loss


def _region_labels(regions: Sequence[int | Sequence[int]]) -> list[list[int]]:
    return [[region] if isinstance(region, int) else list(region) for region in regions]


def _sample_of(batch: Mapping[str, Any], sample: int) -> dict[str, Any]:
    def cut(values: Any) -> Any:
        return (
            [level[sample : sample + 1] for level in values]
            if isinstance(values, list)
            else values[sample : sample + 1]
        )

    return {"data": cut(batch["data"]), "target": cut(batch["target"]), "keys": [batch["keys"][sample]]}
