"""What the configs call by `_target_`: set-ups, transforms, handlers, and small components.

A set-up object is the first thing each workflow builds. It takes the options as the command line gives them (text or
numbers), types and checks each one, and refuses with one sentence before any time is spent. Building it reads and
never writes, so that a workflow may build it twice.

The names are found here, whichever file they are in, and imported when they are asked for.
"""

import importlib
from typing import Any

_HOMES = {
    "AnyVolumeReader": "monai_extra_losses.bundle.volumes_to_segment",
    "CaseByCaseEvaluator": "monai_extra_losses.bundle.segmenting",
    "CaseInferer": "monai_extra_losses.bundle.segmenting",
    "CaseLoader": "monai_extra_losses.bundle.loaded_cases",
    "CalibrationErrord": "monai_extra_losses.bundle.calibration_metrics",
    "CaseReport": "monai_extra_losses.bundle.case_report",
    "CasesToSegment": "monai_extra_losses.bundle.segmenting",
    "CheckLoadedCased": "monai_extra_losses.bundle.loaded_cases",
    "ClassDice": "monai_extra_losses.bundle.tracking",
    "CollapseWarning": "monai_extra_losses.bundle.class_handlers",
    "EarlyStop": "monai_extra_losses.bundle.handlers",
    "EmptyAwareDice": "monai_extra_losses.bundle.case_report",
    "EpochProgress": "monai_extra_losses.bundle.handlers",
    "EvaluationSetUp": "monai_extra_losses.bundle.evaluation",
    "FinishedSegmentations": "monai_extra_losses.bundle.segmentation_files",
    "FiniteLossGuard": "monai_extra_losses.bundle.handlers",
    "InferenceSetUp": "monai_extra_losses.bundle.inference",
    "IntervalValidation": "monai_extra_losses.bundle.handlers",
    "InvertGeometryd": "monai_extra_losses.bundle.segmenting",
    "LabelIdReader": "monai_extra_losses.bundle.volumes_to_segment",
    "ListedOutput": "monai_extra_losses.bundle.handlers",
    "LossWeightSchedule": "monai_extra_losses.schedules",
    "MeanOverRunsd": "monai_extra_losses.bundle.ensemble",
    "PatchContent": "monai_extra_losses.bundle.class_handlers",
    "RefuseUnannotatedd": "monai_extra_losses.bundle.ignored_voxels",
    "RunCheckpoints": "monai_extra_losses.bundle.training_record",
    "RunSetUp": "monai_extra_losses.bundle.run_setup",
    "SeededEpochs": "monai_extra_losses.bundle.handlers",
    "SegmentationOfScoresd": "monai_extra_losses.bundle.segmenting",
    "SegmentationWorkflow": "monai_extra_losses.bundle.workflow",
    "ThreadStallNotice": "monai_extra_losses.bundle.thread_stalls",
    "TrackedParameters": "monai_extra_losses.bundle.tracking",
    "TrainingRecord": "monai_extra_losses.bundle.training_record",
    "TrainingSetUp": "monai_extra_losses.bundle.training",
    "decision": "monai_extra_losses.bundle.components",
    "device_of_process": "monai_extra_losses.bundle.processes",
    "half_precision": "monai_extra_losses.bundle.components",
    "has_regions": "monai_extra_losses.bundle.components",
    "intensity_scaling": "monai_extra_losses.bundle.components",
    "is_first_process": "monai_extra_losses.bundle.processes",
    "join_processes": "monai_extra_losses.bundle.processes",
    "loaded_members": "monai_extra_losses.bundle.ensemble",
    "loss_for_training": "monai_extra_losses.bundle.components",
    "loss_with_head": "monai_extra_losses.bundle.components",
    "loss_of_output": "monai_extra_losses.bundle.handlers",
    "network_at_start": "monai_extra_losses.bundle.weights",
    "network_of_run": "monai_extra_losses.bundle.networks",
    "prepared_cases": "monai_extra_losses.bundle.volume_cache",
    "read_checkpoint": "monai_extra_losses.bundle.weights",
    "refuse_machinery": "monai_extra_losses.bundle.processes",
    "refuse_run_folder": "monai_extra_losses.bundle.run_setup",
    "trainable_parameters": "monai_extra_losses.bundle.components",
    "with_weights": "monai_extra_losses.bundle.weights",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
