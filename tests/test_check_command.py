"""`monai-extra-losses check`: what it measures, what it makes of it, and how it says so."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser
from scipy import ndimage

import monai_extra_losses
from monai_extra_losses.bundle.workflow import checked_overrides
from monai_extra_losses.cli import main
from monai_extra_losses.cli.runs import overrides_of
from monai_extra_losses.data import read_case_list
from monai_extra_losses.data.advice import DataAdvice, data_advice
from monai_extra_losses.data.check_report import DataReport, _tables, data_report
from monai_extra_losses.data.checks import CaseSummaries, CaseSummary
from monai_extra_losses.data.nifti import NiftiFile
from monai_extra_losses.data.statistics import (
    CaseMeasures,
    ClassStatistics,
    DataStatistics,
    Spread,
    data_statistics,
    measure_cases,
)

CONFIGS = monai_extra_losses.config_dir()


def write_case(folder: Path, name: str, label: np.ndarray, image: np.ndarray | None = None, affine: Any = None) -> None:
    affine = np.eye(4) if affine is None else affine
    if image is None:
        image = np.random.default_rng(len(name)).normal(size=label.shape)
    for part, data in (("imagesTr", image), ("labelsTr", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / part / f"{name}.nii.gz")


def measured(folder: Path, **options: Any) -> tuple[CaseSummaries, tuple[CaseMeasures, ...]]:
    return measure_cases(read_case_list(folder), progress=False, **options)


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_whole_volumes(phantom_folder: Path) -> None:
    case_list = read_case_list(phantom_folder)
    _, measures = measured(phantom_folder)
    for case, found in zip(case_list.cases, measures, strict=True):
        image, label = (nibabel.load(file).get_fdata() for file in (case.image[0], case.label))
        expected = [np.sort(image.ravel())[int(np.ceil(image.size * q / 100)) - 1] for q in (0.5, 50, 99.5)]
        assert found.percentiles == (pytest.approx(expected),)
        inside = np.sort(image[label > 0])
        assert found.labelled_percentiles[0][1] == inside[int(np.ceil(inside.size / 2)) - 1]
        assert sorted(found.components) == sorted(int(value) for value in np.unique(label) if value)
        for value, sizes in found.components.items():
            numbered, number = ndimage.label(label == value, structure=np.ones((3, 3, 3)))
            expected_sizes = sorted(int((numbered == i + 1).sum()) for i in range(number))
            assert sorted(size for size, count in sizes.items() for _ in range(count)) == expected_sizes


def test_components_hold_together_at_a_corner_and_know_the_border(tmp_path: Path) -> None:
    label = np.zeros((12, 10, 8), np.uint8)
    label[2:4, 2:4, 2:4] = 1  # 8 voxels ...
    label[4:6, 4:6, 4:6] = 1  # ... and 8 that share a corner with them
    label[8, 7, 5] = 1
    label[9:, 2, 2] = 5  # 3 voxels up to the border; the values between are free
    write_case(tmp_path, "a", label, affine=np.diag([2.0, 1.0, 3.0, 1.0]))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "organ", "5": "vessel"}}))
    summaries, measures = measured(tmp_path)
    assert measures[0].components == {1: {1: 1, 16: 1}, 5: {3: 1}}
    assert measures[0].at_border == (5,)
    organ, vessel = data_statistics(summaries, measures).classes
    assert organ.components == Spread(2, 2, 2)
    assert organ.component_voxels == Spread(1, 8.5, 16)
    assert organ.component_mm3 == Spread(6, 51, 96)
    assert organ.volume_ml == Spread(0.102, 0.102, 0.102)
    assert (organ.single_voxels, organ.border_cases, vessel.border_cases) == (1, 0, 1)
    assert organ.share == 17 / 960
    assert organ.others_per_voxel == pytest.approx(943 / 17)


def test_scale_factors_and_float_labels(tmp_path: Path) -> None:
    image = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    label = np.zeros((10, 10, 10), np.float32)
    label[5:, 5:, 5:] = 1
    write_case(tmp_path, "a", label, image)
    scaled = nibabel.Nifti1Image(image, np.eye(4))
    scaled.header.set_slope_inter(-2.0, 7.0)
    nibabel.save(scaled, tmp_path / "imagesTr" / "a.nii.gz")
    stored = nibabel.load(tmp_path / "imagesTr" / "a.nii.gz").get_fdata()
    assert stored.min() < stored.max() <= 7  # nibabel stores the numbers as given and the factor beside them
    (found,) = measured(tmp_path)[1]
    assert found.percentiles[0] == pytest.approx(np.percentile(stored, [0.5, 50, 99.5], method="inverted_cdf"))
    assert list(found.percentiles[0]) == sorted(found.percentiles[0])
    assert found.components == {1: {125: 1}}


def test_statistics_follow_the_axes_of_the_body(tmp_path: Path) -> None:
    label = np.zeros((16, 20, 24), np.uint8)
    label[4:8, 4:8, 4:8] = 1
    write_case(tmp_path, "a", label, affine=np.diag([1.0, 2.0, 6.0, 1.0]))
    # the axes of this file are S, R, A, the second one from left to right
    turned = np.array([[0, -1.0, 0, 0], [0, 0, 2.0, 0], [6.0, 0, 0, 0], [0, 0, 0, 1]])
    write_case(tmp_path, "bb", label.transpose(2, 0, 1), affine=turned)
    statistics = data_statistics(*measured(tmp_path))
    assert [(s.min, s.max) for s in statistics.shape] == [(16, 16), (20, 20), (24, 24)]
    assert [(s.min, s.max) for s in statistics.spacing_mm] == [(1, 1), (2, 2), (6, 6)]
    assert statistics.anisotropy == 6


def test_a_case_is_measured_once(phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    first = measured(data, cache_dir=tmp_path / "cache")
    read: list[str] = []
    original = NiftiFile.read_stored
    monkeypatch.setattr(NiftiFile, "read_stored", lambda self: (read.append(self.path.name), original(self))[1])
    assert measured(data, cache_dir=tmp_path / "cache") == first
    assert read == []
    label = nibabel.load(data / "labelsTr" / "phantom_002.nii.gz")
    voxels = np.asarray(label.dataobj).copy()
    voxels[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(voxels, label.affine), data / "labelsTr" / "phantom_002.nii.gz")
    _, again = measured(data, cache_dir=tmp_path / "cache")
    assert sorted(read) == ["phantom_002.nii.gz"] * 3  # the label for the check, both files for the measures
    assert [i for i in range(6) if again[i] != first[1][i]] == [2]
    assert again[2].at_border == (1,)


# ---- what follows from it --------------------------------------------------------------------------------------------


def same(value: float) -> Spread:
    return Spread(value, value, value)


def klass(name: str, voxels: float, **changes: Any) -> ClassStatistics:
    """A class of one component per case, in volumes of a million voxels of 1 mm."""
    entry = ClassStatistics(
        value=1,
        name=name,
        missing_cases=0,
        share=voxels / 1e6,
        others_per_voxel=(1e6 - voxels) / voxels,
        volume_ml=same(voxels / 1000),
        components=same(1),
        component_voxels=same(voxels),
        component_mm3=same(voxels),
        single_voxels=0,
        border_cases=0,
        annotated_cases=20,
    )
    return dataclasses.replace(entry, **changes)


def advice(*classes: ClassStatistics, **changes: Any) -> DataAdvice:
    statistics = DataStatistics(
        cases=20, shape=(same(100),) * 3, spacing_mm=(same(1),) * 3, anisotropy=1.0, channels=(), classes=classes
    )
    case = CaseSummary("a", (100, 100, 100), tuple(map(tuple, np.eye(4))), (), {0: 1})
    return data_advice(CaseSummaries((case,), (), {}, ()), dataclasses.replace(statistics, **changes), num_folds=5)


def tried(found: DataAdvice) -> list[str]:
    return [entry.loss for entry in found.losses]


def test_dice_ce_is_the_baseline_of_every_data_set() -> None:
    easy = advice(klass("organ", 20000, components=same(2)))
    assert tried(easy) == ["dice_ce"]
    assert (easy.losses[0].options, easy.remarks, easy.against, easy.pixdim) == ((), (), (), None)
    assert easy.patch_size == (96, 96, 96)


@pytest.mark.parametrize(
    ("changed", "losses"),
    [
        ({"others_per_voxel": 100.0}, ["dice_ce", "tversky"]),
        ({"others_per_voxel": 99.0}, ["dice_ce"]),
        ({"component_voxels": Spread(1, 26, 999)}, ["dice_ce", "focal_tversky", "dice_top_k"]),
        ({"component_voxels": Spread(1, 27, 999)}, ["dice_ce"]),
        ({"components": same(1), "component_voxels": Spread(1, 1000, 2000)}, ["dice_ce", "surface"]),
        ({"components": same(1), "component_voxels": Spread(1, 999, 2000)}, ["dice_ce"]),
    ],
)
def test_numbers_speak_for_a_loss_from_a_limit_on(changed: dict[str, Any], losses: list[str]) -> None:
    found = advice(klass("organ", 20000, **{"components": same(2)} | changed))
    assert tried(found) == losses


@pytest.mark.parametrize(
    ("scattered", "missing", "advised"), [(10, 0, True), (9, 0, False), (9, 2, True), (0, 20, False)]
)
def test_scattered_classes_speak_for_a_loss_of_components(scattered: int, missing: int, advised: bool) -> None:
    """Of 20 cases, in half of those that have the class."""
    found = advice(klass("lesion", 20000, components=same(2), scattered_cases=scattered, missing_cases=missing))
    assert ("component_dice_ce" in tried(found)) == advised


def _with_components(folder: Path, *sizes: Sequence[int]) -> DataReport:
    """Cases with components of so many voxels each."""
    for case, lengths in enumerate(sizes):
        label = np.zeros((16, 40, 20), np.uint8)
        for number, length in enumerate(lengths):
            label[1, 1 + 2 * number, 1 : 1 + length] = 1
        write_case(folder, f"case_{case}", label)
    return data_report(folder)


@pytest.mark.parametrize(
    ("sizes", "cases"),
    [
        ([(5, 5, 5), (3, 1, 1)], 2),
        ([(9, 9), (9, 9)], 0),  # a left and a right organ
        ([(17, 1, 1), (18, 1, 1)], 1),  # 17 of 19 are below nine tenths, 18 of 20 are crumbs beside an organ
    ],
)
def test_a_class_is_scattered_where_it_has_several_components_of_a_size(
    tmp_path: Path, sizes: Sequence[Sequence[int]], cases: int
) -> None:
    assert _with_components(tmp_path, *sizes).statistics.classes[0].scattered_cases == cases


def test_lesions_are_described_and_organs_are_not(tmp_path: Path) -> None:
    said = " ".join(_with_components(tmp_path / "lesions", (5, 5, 1), (4, 4, 3, 1), (9,)).text().split())
    assert "label_1: 3 (1 to 4) components per case, in 2 of 3 cases none holds nine tenths" in said
    assert "the median one has 0.004 ml, the smallest 0.001 ml." in said
    assert "--loss component_dice_ce" in said
    said = _with_components(tmp_path / "organs", (9,), (9, 8), (19, 1, 1)).text()
    assert "Scattered" not in said
    assert "component_dice_ce" not in said


def test_rare_classes_speak_against_voxel_wise_losses() -> None:
    found = advice(klass("organ", 20000), klass("lesion", 2000))
    assert "lesion (1:499)" in found.losses[1].why
    assert "organ" not in found.losses[1].why
    assert found.against[0].startswith("cross_entropy, poly: a network that never predicts lesion is right")


def test_a_class_that_is_often_missing_is_left_out_of_dice() -> None:
    found = advice(klass("lesion", 20000, missing_cases=2))
    assert found.losses[0].options == ("--loss::absent_class skip",)
    assert "Many cases have no lesion (2 of 20 cases)" in found.losses[0].why
    assert any(sentence.startswith("generalized_dice: in a case without lesion") for sentence in found.against)
    assert advice(klass("lesion", 20000, missing_cases=1)).losses[0].options == ()


def test_classes_of_different_orders_speak_for_generalized_dice() -> None:
    sizes = (klass("a", 200000), klass("b", 50000), klass("c", 20000))
    assert "generalized_dice" in tried(advice(*sizes))
    assert "generalized_dice" not in tried(advice(*sizes[::2]))
    assert "generalized_dice" not in tried(advice(*sizes[:2], dataclasses.replace(sizes[2], missing_cases=5)))


def test_thick_slices_speak_against_distances_in_voxels() -> None:
    assert advice(klass("a", 20000), anisotropy=3.0).against[0].startswith("hausdorff_er: it counts in voxels")
    assert advice(klass("a", 20000), anisotropy=2.9).against == ()


def test_spacings_that_differ_want_resampling() -> None:
    spacing = (same(1), Spread(1, 1, 1.2), Spread(2, 2.5004, 6))
    found = advice(klass("a", 20000), spacing_mm=spacing)
    assert found.pixdim == (1, 1, 2.5)
    assert "they differ up to 3 times (foot to head)" in found.pixdim_why
    assert found.patch_size == (96, 96, 32)  # 100 voxels of 1 mm are 40 of 2.5 mm
    assert advice(klass("a", 20000), spacing_mm=(*spacing[:2], same(5))).pixdim is None


def test_a_class_is_counted_over_the_cases_that_annotate_it() -> None:
    """Of 20 cases, 8 annotate the lesion and 2 of these have none; 5 annotate the cyst, and it is in 4."""
    lesion = klass("lesion", 2000, missing_cases=2, annotated_cases=8, border_cases=3)
    cyst = klass("cyst", 2000, missing_cases=1, annotated_cases=5)
    one = advice(klass("organ", 20000), lesion)
    assert one.losses[0].options == ("--loss::absent_class skip",)
    assert "Many cases have no lesion (2 of 8 annotated cases)" in one.losses[0].why
    assert "lesion: reaches the border of the volume in 3 of 8 annotated cases; is it cut off" in one.remarks[0]
    assert "lesion and cyst (2 of 8, 1 of 5 annotated cases)" in advice(lesion, cyst).losses[0].why
    # 2 of 20 would be a tenth, 1 of 20 would not
    assert advice(dataclasses.replace(lesion, missing_cases=0)).losses[0].options == ()
    assert advice(dataclasses.replace(cyst, missing_cases=1)).losses[0].options == ("--loss::absent_class skip",)
    unseen = {"share": 0.0, "others_per_voxel": None, "volume_ml": None, "components": None, "component_voxels": None}
    nowhere = dataclasses.replace(lesion, missing_cases=8, border_cases=0, **unseen)
    assert advice(klass("organ", 20000), nowhere).remarks[0].startswith("lesion: no case has a voxel of it")
    assert advice(klass("organ", 20000), nowhere).losses[0].options == ()
    many = [dataclasses.replace(lesion, name=f"l{i}", missing_cases=i, annotated_cases=10) for i in range(1, 7)]
    assert "(1 to 6 of 10 annotated cases)" in advice(*many).losses[0].why
    assert "(1 of 10 to 6 of 10 annotated cases)" in advice(*many, cyst).losses[0].why


def test_remarks_name_what_to_look_at() -> None:
    remarks = advice(klass("organ", 20000, single_voxels=3, border_cases=2, annotated_cases=4), cases=4).remarks
    assert remarks == (
        "4 labelled cases are fewer than the 5 folds of a training: give it --num_folds 4.",
        "organ: 3 connected components are single voxels; look whether they are meant or slips of the annotation.",
        "organ: reaches the border of the volume in 2 of 4 cases; is it cut off, or is the volume a crop?",
    )
    assert advice(klass("organ", 20000), cases=1).remarks[0].startswith("One labelled case is too few")
    empty = klass("vessel", 1, missing_cases=20, share=0.0, others_per_voxel=None, volume_ml=None)
    found = advice(klass("organ", 20000), dataclasses.replace(empty, components=None, component_voxels=None))
    assert found.remarks[0].startswith("vessel: no case has a voxel of it")
    assert found.losses[0].options == ()  # a class that nobody has is no class that is often missing


def test_every_loss_of_the_advice_trains_with_its_options() -> None:
    """The commands are those of the short command line, whose look-up refuses a name or an option that is not there."""
    classes = (
        klass("a", 200000),
        klass("b", 2000, component_voxels=same(5), missing_cases=5),
        klass("c", 20000),
    )
    scattered = klass("lesions", 9000, scattered_cases=10)
    many = [advice(*classes), advice(klass("a", 90000), klass("b", 9000), klass("c", 90000)), advice(scattered)]
    config = ConfigParser.load_config_files([str(CONFIGS / "train.yaml"), str(CONFIGS / "losses.yaml")])
    seen = {entry.loss: entry for found in many for entry in found.losses} | {
        entry.loss: entry for entry in many[0].losses
    }
    several = ["generalized_dice", "surface", "tversky"]
    assert sorted(seen) == ["component_dice_ce", "dice_ce", "dice_top_k", "focal_tversky", *several]
    overlays = {"boundary_maps", "boundary_schedule", "lesions", "vessels"} & {
        path.stem for path in CONFIGS.glob("*.yaml")
    }
    for entry in seen.values():
        words = [word for option in entry.options for word in option.split()]
        if words[:1] == ["--with"]:
            assert words[1] in overlays
            words = words[2:]
        checked_overrides(config, {"loss": entry.loss} | overrides_of(words))
    named = {name for found in many for sentence in found.against for name in sentence.partition(":")[0].split(", ")}
    assert named <= set(yaml.safe_load((CONFIGS / "losses.yaml").read_text())["losses"])


# ---- how it is said --------------------------------------------------------------------------------------------------


def ended(*arguments: object) -> Any:
    """Exit code, or the sentence in its place, of a command."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_text(phantom_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("check", phantom_folder) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Phantom, {phantom_folder}: 6 labelled cases and 2 others, every file read, no problem.")
    lines = [line.split() for line in said.splitlines()]
    assert ["foot", "to", "head", "16", "3"] in lines
    organ = data_report(phantom_folder).statistics.classes[0]
    row = next(line for line in said.splitlines() if line.startswith("1 organ"))
    assert f"{organ.share:.2%}" in row
    assert f"1:{organ.others_per_voxel:.0f}" in row
    assert "patch: 32 x 32 x 16 voxels" in said
    assert f"train --data {phantom_folder} --run runs/dice_ce --loss dice_ce --loss::absent_class skip\n" in said


def test_many_classes_are_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    label = np.zeros((32, 16, 16), np.uint8)
    for value in range(1, 31):  # at the border, in single voxels, and larger from id to id
        label[value, 0, : value // 2 : 2] = value
        label[value, 8:9, 0] = value
    for name in "abc":
        write_case(tmp_path, name, label)
    names = {"0": "background", **{str(value): f"part-{value:02d}" for value in range(1, 41)}}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names}))
    assert ended("check", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("part-" in line for line in lines) < 40
    assert lines.count("Of 40 classes these are the 10 rarest; --json tells of all.") == 2
    text = " ".join(" ".join(lines).split())
    assert any(line.startswith("1 part-01 ") for line in lines)
    assert "part-31, part-32, part-33 and 7 more: no case has a voxel of these 10 classes, so they cannot" in text
    assert "and 27 more: these 30 classes reach the border of the volume, in up to 3 of 3 cases each" in text
    assert "connected components of these 30 classes are single voxels" in text
    assert "no case has a voxel of the declared labels 31 (part-31), 32" in caplog.text
    assert caplog.text.count("part-") == 5
    assert ended("check", tmp_path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["statistics"]["classes"]) == 40
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {**names, "41": "more"} | {"3": "x"}}))
    changed = nibabel.load(tmp_path / "labelsTr" / "a.nii.gz")
    voxels = np.asarray(changed.dataobj).copy()
    voxels[0, 0, 0] = 99
    nibabel.save(nibabel.Nifti1Image(voxels, changed.affine), tmp_path / "labelsTr" / "a.nii.gz")
    said = str(ended("check", tmp_path))
    assert "(0 background, 1 part-01, 2 part-02, 3 x, 4 part-04 and 37 more), got 99 (1 voxels)" in said


@pytest.mark.parametrize(("number", "rows"), [(20, 20), (21, 10)])
def test_above_20_classes_the_10_rarest_have_a_row(number: int, rows: int) -> None:
    classes = tuple(klass(f"part-{n:02d}", 100 * (n + 1), value=n + 1) for n in range(number))
    statistics = DataStatistics(
        cases=20, shape=(same(100),) * 3, spacing_mm=(same(1),) * 3, anisotropy=1.0, channels=(), classes=classes
    )
    said = "\n".join(_tables(statistics))
    assert [name for name in (entry.name for entry in classes) if name in said] == [c.name for c in classes[:rows]]
    assert ("rarest" in said) == (rows < number)


def organs(folder: Path, **declared: Any) -> Path:
    """Liver (1) in a and b, kidney (2) in c, which is annotated in c and d alone; d has neither."""
    for name, values in (("a", [1]), ("b", [1]), ("c", [1, 2]), ("d", [])):
        label = np.zeros((16, 12, 10), np.uint8)
        for value in values:
            label[4 * value : 4 * value + 2, 3:6, 2:5] = value
        write_case(folder, name, label)
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "abcd"]
    for entry in training[:2]:
        entry["annotated"] = [1]
    content = {"labels": {"0": "background", "1": "liver", "2": "kidney"}, "training": training, **declared}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_statistics_of_a_class_are_over_the_cases_that_annotate_it(tmp_path: Path) -> None:
    report = data_report(organs(tmp_path))
    liver, kidney = report.statistics.classes
    assert (liver.annotated_cases, liver.missing_cases, liver.share) == (4, 1, 3 * 18 / (4 * 1920))
    assert (kidney.annotated_cases, kidney.missing_cases, kidney.share) == (2, 1, 18 / (2 * 1920))
    assert kidney.others_per_voxel == pytest.approx((2 * 1920 - 18) / 18)
    assert report.statistics.partly_annotated_cases == 2
    assert [case["annotated"] for case in report.document()["cases"]] == [(1,), (1,), None, None]


def test_the_report_tells_where_each_class_is_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("check", organs(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "2 of 4 cases are partly annotated: they say nothing of some classes." in said
    rows = [line.split() for line in said.splitlines() if line.startswith(("1 liver", "2 kidney"))]
    assert rows[:2] == [["1", "liver", "4", "3", "of", "4"], ["2", "kidney", "2", "1", "of", "2"]]
    classes = next(row for row in rows[2:] if row[1] == "kidney")
    assert classes[-6:] == ["1", "of", "2", "0", "of", "2"]  # without it, at the border
    assert "Annotated regions" not in said
    declared = json.loads((tmp_path / "dataset.json").read_text())
    for entry in declared["training"]:
        entry["annotated"] = [1, 2]
    assert "annotated" not in data_report(organs(tmp_path, training=declared["training"])).text().casefold()


def test_a_region_is_annotated_where_all_of_its_labels_are(tmp_path: Path) -> None:
    text = data_report(organs(tmp_path, regions={"both": [1, 2], "liver": [1]})).text()
    lines = text.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("Annotated regions")) :]
    assert [line.split() for line in table[1:3]] == [["both", "2", "1", "of", "2"], ["liver", "4", "3", "of", "4"]]


def test_of_many_classes_those_that_few_cases_annotate_are_shown(tmp_path: Path) -> None:
    for name in "ab":
        label = np.zeros((31, 8, 8), np.uint8)
        label[1:, 3, 3] = np.arange(1, 31) * (np.arange(1, 31) < (31 if name == "a" else 6))
        write_case(tmp_path, name, label)
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "ab"]
    training[1]["annotated"] = [1, 2, 3, 4, 5]  # type: ignore[assignment]
    names = {"0": "background", **{str(value): f"part-{value:02d}" for value in range(1, 31)}}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names, "training": training}))
    text = data_report(tmp_path).text()
    table = text[text.index("Annotated classes") : text.index("Percentiles")]
    assert [line.split()[0] for line in table.splitlines()[1:11]] == [str(value) for value in range(6, 16)]
    assert "Of 30 these are the 10 annotated in the fewest cases; --json tells of all." in table


def test_what_no_case_annotates_is_a_problem_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"0": "background", "1": "liver", "2": "kidney", "3": "spleen", "4": "cyst"}
    first, second, _, last = json.loads((organs(tmp_path) / "dataset.json").read_text())["training"]
    training = [first, {**second, "annotated": [1, 3]}, {**last, "annotated": [2]}]
    organs(tmp_path, labels=names, training=training, regions={"whole": [1, 2], "odd": [2, 4], "ok": [1, 3]})
    (tmp_path / "imagesTr" / "a.nii.gz").unlink()
    assert ended("check", tmp_path, "--json") == 1
    classes, regions, file = json.loads(capsys.readouterr().out)["problems"]
    where = tmp_path / "dataset.json"
    assert classes == (
        f"{where}: expected every class to be annotated in some case, got none for 4 cyst; correct `annotated`, add "
        "cases that annotate it, or remove it from `labels`."
    )
    assert regions == (
        f"{where}: expected every region to be annotated in some case, which takes all of its labels, got none for "
        "whole (1, 2); correct `annotated`, add cases that annotate it, or remove it from `regions`."
    )
    assert "expected a file" in file
    # one case that annotates all is enough
    organs(tmp_path, labels=names, training=[first, last])
    (tmp_path / "labelsTr" / "a.nii.gz").replace(tmp_path / "imagesTr" / "a.nii.gz")
    shutil.copy(tmp_path / "labelsTr" / "b.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")
    assert data_report(tmp_path).statistics.classes[3].annotated_cases == 1


def test_json_is_one_document_with_everything(phantom_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("check", phantom_folder, "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert list(document) == [
        "format",
        "folder",
        "name",
        "problems",
        "passed_over",
        "remarks",
        "labels",
        "regions",
        "ignore_label",
        "percentiles",
        "statistics",
        "advice",
        "cases",
        "validation",
        "unlabelled",
    ]
    report = data_report(phantom_folder)
    assert document["statistics"] == json.loads(json.dumps(dataclasses.asdict(report.statistics)))
    assert [case["name"] for case in document["cases"]] == [case.name for case in report.summaries.cases]
    assert document["cases"][0]["components"]["1"]
    assert document["advice"]["losses"][0]["loss"] == "dice_ce"


def test_all_problems_at_once(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    (data / "imagesTr" / "phantom_000.nii.gz").unlink()
    (data / "labelsTr" / "phantom_003.nii.gz").write_bytes(b"")
    assert (said := ended("check", data)).startswith("The data set has 2 problems:\n")
    assert "imagesTr/phantom_000.nii.gz: expected a file" in said
    assert "labelsTr/phantom_003.nii.gz: expected a NIfTI file, got an empty one" in said
    assert capsys.readouterr().out == ""
    assert ended("check", data, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["format", "folder", "problems"]
    assert [problem.partition(": ")[0] for problem in document["problems"]] == [
        str(data / "imagesTr" / "phantom_000.nii.gz"),
        str(data / "labelsTr" / "phantom_003.nii.gz"),
    ]
    assert "expected a data set folder" in ended("check", tmp_path / "nowhere")
    assert ended("check") == 2


def test_the_command_needs_no_torch(phantom_folder: Path) -> None:
    code = "import sys; from monai_extra_losses.cli import main\n"
    code += f"try: main(['check', {str(phantom_folder)!r}])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'monai', 'matplotlib'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_hippocampus_is_measured_faster_the_second_time(hippocampus: Path, tmp_path: Path) -> None:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        summaries, measures = measured(hippocampus, cache_dir=tmp_path)
        seconds.append(time.perf_counter() - start)
    statistics = data_statistics(summaries, measures)
    assert [entry.name for entry in statistics.classes] == ["Anterior", "Posterior"]
    assert seconds[1] < seconds[0] / 2  # 3 s and 0.5 s on an idle machine
