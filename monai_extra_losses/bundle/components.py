"""Small components of the configs."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from monai.transforms import AsDiscreted, Compose, MapTransform, NormalizeIntensityd, ScaleIntensityRanged

from monai_extra_losses.bundle.hysteresis import HysteresisOfScoresd
from monai_extra_losses.bundle.ignored_voxels import leave_out
from monai_extra_losses.bundle.options import file_or_folder, half_precision_option, yes_or_no
from monai_extra_losses.data.datalist import read_case_list
from monai_extra_losses.data.declared import declared_ignore_label, declares_regions
from monai_extra_losses.data.errors import DatasetError, StartUpRefused
from monai_extra_losses.engines import AnnotatedVoxelLoss, LossWithMaps, StackedScoresLoss
from monai_extra_losses.losses import HeadlessNetwork, HeadLoss, PartialLabelLoss


def has_regions(dataset_dir: Any, regions: Any) -> bool:
    """Whether the data set's regions are to be segmented; the loss asks, which is built before the data are read."""
    if not yes_or_no("regions", regions) or dataset_dir is None:
        return False
    return declares_regions(str(file_or_folder("dataset_dir", dataset_dir)))


def decision(
    keys: str, regions: Mapping[str, Any] | None, hysteresis: Sequence[float] | None = None
) -> AsDiscreted | Compose:
    """The transform from scores to the best class per voxel, or with regions to those of probability 0.5 and more.

    With `hysteresis`, two thresholds, to the classes or regions that `HysteresisKeep` keeps.
    """
    largest = AsDiscreted(keys=keys, argmax=True)
    chosen = largest if regions is None else AsDiscreted(keys=keys, threshold=0.0)  # sigmoid(0) = 0.5
    if hysteresis is None:
        return chosen
    return Compose([HysteresisOfScoresd(keys, hysteresis, regions=regions is not None), chosen])


def half_precision(amp: Any, device: Any, recorded: str | None = None) -> torch.dtype | None:
    """The 16-bit type that the network computes in, or None.

    Args:
        amp: "fp16" (or True), "bf16" or False; None: as the run was trained where the device can, else fp16 on a GPU.
        device: of the network. A CPU computes in bf16 only.
        recorded: `RunRecord.amp` of the run.

    Raises:
        StartUpRefused: another value, or a type that the device cannot compute in.
    """
    chosen = half_precision_option("amp", amp)
    on_gpu = torch.device(device).type == "cuda"
    if chosen == "fp16" and not on_gpu:
        raise StartUpRefused(f"Expected amp to be bf16, False or null on a CPU, got {amp!r}; fp16 needs a GPU.")
    if chosen == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise StartUpRefused(f"Expected amp to be fp16 or False, got {amp!r}; this GPU has no bf16.")
    chosen = chosen or recorded or "fp16"
    if chosen == "fp16":
        return torch.float16 if on_gpu else None
    return torch.bfloat16 if chosen == "bf16" else None


def loss_for_training(
    loss: Any,
    device: torch.device,
    maps: Sequence[str] = (),
    dataset_dir: Any = None,
    regions: Any = False,
    deep_supervision: Any = False,
) -> torch.nn.Module:
    """The chosen loss with its buffers (class weights, say) on the device, which no engine does by itself.

    Args:
        loss: as the config gives it.
        device: of the training.
        maps: names of maps that come with the label (`engines.PrepareBatchMaps`), for a loss that takes them.
        dataset_dir, regions: whose ignore label the loss leaves out, as `TrainingSetUp` takes them; the loss is built
            before the data are read.
        deep_supervision: the network gives the scores of several levels.

    Where some case of the data set annotates a part of the classes, the loss is wrapped in `PartialLabelLoss`.

    Raises:
        StartUpRefused: what is no loss, or does not take the maps; a loss that cannot be wrapped.
    """
    if not isinstance(loss, torch.nn.Module):
        raise StartUpRefused(
            f"Expected loss to be a component or a reference such as @losses::tversky, got {loss!r}; "
            "configs/losses.yaml must be among the config files for a reference."
        )
    multi_label = has_regions(dataset_dir, regions)
    declared = None if dataset_dir is None else declared_ignore_label(str(dataset_dir), multi_label)
    leave_out(loss, declared, multi_label=multi_label)
    try:
        if _is_partly_annotated(dataset_dir) and not isinstance(loss, PartialLabelLoss):
            loss = PartialLabelLoss(loss, mode="sigmoid" if multi_label else "marginal")
        if declared is not None and multi_label:
            loss = AnnotatedVoxelLoss(loss, declared[1], maps)
        elif maps:
            loss = LossWithMaps(loss, maps)
    except (TypeError, ValueError) as error:
        raise StartUpRefused(str(error)) from None
    if yes_or_no("deep_supervision", deep_supervision):
        loss = StackedScoresLoss(loss)
    moved: torch.nn.Module = loss.to(device)
    return moved


def _is_partly_annotated(dataset_dir: Any) -> bool:
    if dataset_dir is None:
        return False
    try:
        return read_case_list(str(file_or_folder("dataset_dir", dataset_dir))).partly_annotated
    except DatasetError:  # which the set-up refuses
        return False


def loss_with_head(loss: torch.nn.Module, network: torch.nn.Module, head_loss: Any) -> torch.nn.Module:
    """The loss of the features that a `HeadlessNetwork` gives, with `head_loss`; else the loss itself."""
    return HeadLoss(cast(HeadlessNetwork, network).head, loss) if yes_or_no("head_loss", head_loss) else loss


def trainable_parameters(modules: Sequence[torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Parameters for the optimizer, of the network and of a loss that learns some."""
    # A loss may hold a part of the network: HeadLoss does.
    return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))


def intensity_scaling(keys: str, hu_window: Sequence[float] | None) -> MapTransform:
    """The transform of intensities: to 0..1 from a window, as for CT; or each channel of each image by itself."""
    if hu_window is None:
        return NormalizeIntensityd(keys=keys, channel_wise=True)
    low, high = hu_window
    return ScaleIntensityRanged(keys=keys, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
