"""What a training says of classes that it loses."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from runs import train

from monai_extra_losses.bundle.class_handlers import CollapseWarning, PatchContent, is_seldom
from monai_extra_losses.ops.merging import ANNOTATED

LABELS = {1: "organ", 2: "lesion"}


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def _map(*voxels: int) -> torch.Tensor:
    """(1, 8) with these labels, then background."""
    return torch.tensor([[*voxels, *[0] * (8 - len(voxels))]])


class _Validations:
    """Of cases of label and prediction."""

    def __init__(self, **options: Any) -> None:
        self.engine = Engine(self._step)
        CollapseWarning(LABELS, **options).attach(self.engine)

    @staticmethod
    def _step(engine: Engine, batch: Any) -> Any:
        engine.state.batch = [{"label": label} for label, _ in batch]
        return [{"label": label, "pred": prediction} for label, prediction in batch]

    def run(self, *cases: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.engine.run([[case] for case in cases], max_epochs=1)

    @property
    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.engine.state.empty_validations  # type: ignore[attr-defined]
        return counts


BOTH, ORGAN = _map(1, 1, 2), _map(1, 1)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_class_that_is_not_predicted_three_times_in_a_row_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    validations = _Validations()
    for _ in range(2):
        validations.run((BOTH, ORGAN), (BOTH, ORGAN))
    assert not _warnings(caplog)
    validations.run((BOTH, ORGAN), (BOTH, ORGAN))
    (text,) = _warnings(caplog)
    assert text.startswith("lesion: no voxel predicted in 3 validations in a row, while their labels have 2. ")
    assert "--loss: dice_ce" in text
    for _ in range(7):
        validations.run((BOTH, ORGAN))
        validations.run((BOTH, BOTH))
    assert len(_warnings(caplog)) == 1, "one per class and training"


def test_one_voxel_in_one_case_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    validations = _Validations()
    for prediction in (ORGAN, ORGAN, _map(0, 0, 0, 2), ORGAN, ORGAN):
        validations.run((BOTH, ORGAN), (BOTH, prediction))
    assert not _warnings(caplog)
    assert validations.counts == {"organ": 0, "lesion": 2}


def test_a_class_that_no_label_has_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    validations = _Validations()
    for _ in range(4):
        validations.run((ORGAN, ORGAN))
    assert not _warnings(caplog)


def test_each_class_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    validations = _Validations()
    for _ in range(3):
        validations.run((BOTH, _map()))
    assert [text.partition(":")[0] for text in _warnings(caplog)] == ["organ", "lesion"]


def test_voxels_without_annotation_are_neither_predicted_nor_in_the_label(caplog: pytest.LogCaptureFixture) -> None:
    validations = _Validations(ignore_index=255)
    for _ in range(3):
        validations.run((_map(1, 2, 255), _map(1, 0, 2)))
    assert len(_warnings(caplog)) == 1
    assert _warnings(caplog)[0].startswith("lesion: ")


def test_regions_are_counted_each(caplog: pytest.LogCaptureFixture) -> None:
    validations = _Validations(multi_label=True)
    label = torch.cat([_map(1, 1, 1), _map(1)])
    for _ in range(3):
        validations.run((label, torch.cat([_map(1), _map()])))
    assert _warnings(caplog)[0].startswith(
        "lesion: no voxel predicted in 3 validations in a row, while their labels have 1."
    )


def test_a_training_that_resumes_goes_on_counting(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its decision leaves the lesion out. The first warning is that of the third validation, and the only one."""
    options: dict[str, Any] = {"val_interval": 1, "decision": {"_target_": f"{__name__}.without_lesion"}}
    run = train(phantom_folder, tmp_path / "run", epochs=2, **options)
    assert torch.load(run.last, weights_only=True)["empty_validations"]["lesion"] == 2
    said = capsys.readouterr().out
    assert "patches with organ: 4 of 4, lesion: " in said
    assert "no voxel predicted" not in said
    train(phantom_folder, run.root, epochs=3, resume=True, **options)
    train(phantom_folder, run.root, epochs=4, resume=True, **options)
    said = capsys.readouterr().out
    assert said.count("lesion: no voxel predicted in 3 validations in a row") == 1
    assert "patches with" not in said, "they are those of the first epoch"


def without_lesion() -> Any:
    def decide(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "pred": item["pred"][:2].argmax(0, keepdim=True)}

    return decide


# ---- patches ----


def _first_epoch(batches: Sequence[Any], labels: dict[int, str] | None = None, **options: Any) -> None:
    labels = labels or LABELS
    engine = Engine(lambda *_: None)
    PatchContent(labels, len(labels) + 1, **options).attach(engine)
    engine.run(batches, max_epochs=2)


def test_patches_with_each_class_are_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    _first_epoch([{"label": torch.stack([BOTH, ORGAN])}, {"label": torch.stack([ORGAN, _map()])}])
    assert [record.message for record in caplog.records if "patches" in record.message] == [
        "patches with organ: 3 of 4, lesion: 1 of 4"
    ]


def test_a_class_in_few_patches_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _first_epoch([{"label": torch.stack([BOTH] * 2 + [ORGAN] * 18)}])
    assert _warnings(caplog) == [
        "Few patches of the first epoch have a voxel of lesion (2 of 20); the others teach where it is not. A larger "
        "--patch_size, or more cases with it, helps."
    ]
    caplog.clear()
    _first_epoch([{"label": torch.stack([BOTH] * 3 + [ORGAN] * 17)}])
    assert not _warnings(caplog)


@pytest.mark.parametrize(("patches", "limit"), [(16, 4), (40, 14), (100, 40)])
def test_seldom_is_below_what_chance_makes_of_the_centres(patches: int, limit: int) -> None:
    """Of two classes: n/2 - sqrt(n)."""
    assert not is_seldom(limit, patches, 2)
    assert is_seldom(limit - 1, patches, 2)
    assert not is_seldom(0, 3, 2), "of three patches none may have it"


def test_regions_ignored_voxels_and_unknown_classes_of_patches(caplog: pytest.LogCaptureFixture) -> None:
    regions = torch.cat([_map(1, 255), _map(0, 255)])
    _first_epoch([{"label": regions[None]}], multi_label=True, ignore_index=255)
    assert "patches with organ: 1 of 1, lesion: 0 of 1" in caplog.text
    caplog.clear()
    labels = MetaTensor(torch.stack([BOTH, ORGAN]))
    labels.meta[ANNOTATED] = torch.from_numpy(np.array([[1, 1, 1], [1, 1, 0]]))
    _first_epoch([{"label": labels}])
    assert "patches with organ: 2 of 2, lesion: 1 of 1" in caplog.text


def test_of_many_classes_those_in_the_fewest_patches_are_named(caplog: pytest.LogCaptureFixture) -> None:
    names = {number: f"c{number}" for number in range(1, 12)}
    label = torch.arange(12)[None]
    without = label.masked_fill(label == 7, 0)
    _first_epoch([{"label": torch.stack([label, without])}], names)
    assert "patches with c7: 1 of 2, c1: 2 of 2, c2: 2 of 2 (the fewest of 11 classes)" in caplog.text
