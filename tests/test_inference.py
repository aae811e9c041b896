"""Inference: volumes of any format, flips, probabilities, regions, original label ids, cases that fail."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from marks import slow
from monai.bundle import ckpt_export
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    InvertibleTransform,
    LoadImaged,
    NormalizeIntensityd,
    Rotate90d,
    Spacingd,
    Transposed,
)
from runs import evaluate, table
from volume_files import DIRECTIONS, volume, write, write_dicom, write_nifti

import monai_extra_losses
from monai_extra_losses.bundle.inference import InferenceSetUp
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.segmentation_record import SegmentationRecord, close_unfinished, open_unfinished
from monai_extra_losses.bundle.segmenting import CaseInferer, InvertGeometryd, SegmentationOfScoresd
from monai_extra_losses.bundle.training import TrainingSetUp
from monai_extra_losses.bundle.volumes_to_segment import AnyVolumeReader, find_inputs, input_stamp
from monai_extra_losses.data.errors import CasesFailed, DatasetError, StartUpRefused, WritingFailed

CONFIGS = monai_extra_losses.config_dir()
IMAGE = Path("imagesTs") / "phantom_test_000.nii.gz"


def infer(run: RunFolder, source: Path, output: Path, **options: Any) -> None:
    folders = {"bundle_root": str(run.root), "input": str(source), "output_dir": str(output)}
    run_configs(("inference",), workflow_type="infer", **folders, **options)


def voxels_of(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj)


def names_in(folder: Path) -> set[str]:
    """Files that a person sees."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def voxels_to_segment(phantom_folder: Path) -> np.ndarray:
    """Of axes that differ, in the integers that DICOM takes."""
    return voxels_of(phantom_folder / IMAGE)[:28, :24].round().astype(np.int16)


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short training; do not write into it."""
    root = tmp_path_factory.mktemp("runs") / "trained"
    quick: dict[str, Any] = {
        "epochs": 4,
        "val_interval": 4,
        "num_folds": 3,
        "channels": [4, 8, 16],
        "learning_rate": 0.02,
    }
    run_configs(("train",), dataset_dir=str(phantom_folder), bundle_root=str(root), **quick)
    return RunFolder(root)


@pytest.fixture
def changed(trained: RunFolder, tmp_path: Path) -> Callable[..., RunFolder]:
    """A copy of the run whose record has other fields."""

    def change(**fields: Any) -> RunFolder:
        run = RunFolder(Path(shutil.copytree(trained.root, tmp_path / "copy")))
        dataclasses.replace(RunRecord.read(run.record), **fields).write(run.record)
        return run

    return change


# ---- formats and grids ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["oblique", "permuted", "oblique and flipped"])
def test_every_format_gets_the_same_labels_on_its_own_grid(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, name: str
) -> None:
    image = volume(voxels_to_segment(phantom_folder), DIRECTIONS[name], spacing=(1, 1.1, 3))
    source, out = tmp_path / "in", tmp_path / "out"
    files = {suffix: write(image, source / f"{suffix}.{suffix}") for suffix in ("nii", "nrrd", "mha", "mhd")}
    write(image, source / "gz.nii.gz")
    if "flipped" not in name:  # DICOM's axes are right-handed
        files["dicom"] = write_dicom(image, source / "dicom" / "study")
    infer(trained, source, out)
    cases = {*files, "gz"}
    assert names_in(out) == {f"{case}_seg.nii.gz" for case in cases}
    expected = voxels_of(out / "nii_seg.nii.gz")
    assert len(np.unique(expected)) > 1
    for case in cases:
        written = sitk.ReadImage(str(out / f"{case}_seg.nii.gz"))
        assert written.GetSize() == image.GetSize()
        assert written.GetPixelID() == sitk.sitkUInt8
        for corner in ((0, 0, 0), (27, 0, 0), (0, 23, 0), (27, 23, 15)):
            found, right = (grid.TransformIndexToPhysicalPoint(corner) for grid in (written, image))
            assert found == pytest.approx(right, abs=1e-3)
        np.testing.assert_array_equal(voxels_of(out / f"{case}_seg.nii.gz"), expected)


def test_an_nrrd_turned_in_memory_is_segmented_in_the_same_place(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    image = volume(voxels_to_segment(phantom_folder), np.eye(3), spacing=(1, 1, 3))
    write(image, tmp_path / "straight.nrrd")
    turned = sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])
    write(turned, tmp_path / "in" / "turned.nrrd")
    infer(trained, tmp_path / "straight.nrrd", tmp_path / "out")
    infer(trained, tmp_path / "in", tmp_path / "out")
    straight, other = (sitk.ReadImage(str(tmp_path / "out" / f"{name}_seg.nii.gz")) for name in ("straight", "turned"))
    there = sitk.Resample(other, straight, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert sitk.GetArrayFromImage(straight).any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(straight))


def test_the_reader_hands_on_nifti_as_monai_reads_it(phantom_folder: Path, tmp_path: Path) -> None:
    from monai.transforms import LoadImage

    ours, theirs = LoadImage(reader=AnyVolumeReader(), image_only=True), LoadImage(image_only=True)
    file = phantom_folder / IMAGE
    mine, monais = ours(file), theirs(file)
    assert torch.equal(mine.as_tensor(), monais.as_tensor())
    assert mine.meta.keys() == monais.meta.keys()
    assert torch.equal(mine.affine, monais.affine)
    assert torch.equal(ours([file, file]).as_tensor(), theirs([file, file]).as_tensor())


def test_channels_may_have_different_formats(phantom_folder: Path, tmp_path: Path) -> None:
    image = volume(voxels_to_segment(phantom_folder))
    write(image, tmp_path / "a_0000.nii.gz")
    write(image, tmp_path / "a_0001.mha")
    voxels, _ = AnyVolumeReader().get_data([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.mha"])
    assert voxels.shape == (2, 28, 24, 16)
    np.testing.assert_array_equal(voxels[0], voxels[1])
    assert find_inputs(tmp_path, 2).cases == {"a": (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.mha")}
    assert find_inputs(tmp_path, 1) == find_inputs(tmp_path, 2)
    write(volume(voxels_to_segment(phantom_folder), origin=(0, 0, 0)), tmp_path / "b.mha")
    with pytest.raises(DatasetError, match=r"b\.mha: expected the grid of .*a_0000\.nii\.gz, got another"):
        AnyVolumeReader().get_data([tmp_path / "a_0000.nii.gz", tmp_path / "b.mha"])


def test_one_of_several_series_is_picked(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    image = volume(voxels_to_segment(phantom_folder))
    folder = tmp_path / "scan of today"
    write_dicom(image, folder)
    write_dicom(image - 100, folder, description="native", series=2)
    with pytest.raises(StartUpRefused, match=r"expected one DICOM series, got 2: .*Portal venous.*--series"):
        infer(trained, folder, tmp_path / "out")
    infer(trained, folder, tmp_path / "out", series="portal")
    assert names_in(tmp_path / "out") == {"scan of today_seg.nii.gz"}


def test_what_lies_beside_the_volumes_is_passed_over(phantom_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_folder / "imagesTs", tmp_path / "in")
    for name in ("notes.txt", "._phantom_test_000.nii.gz", ".unfinished/half.nii.gz", "old/a.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"text")
    found = find_inputs(tmp_path / "in", 1)
    assert list(found.cases) == ["phantom_test_000", "phantom_test_001"]
    others, folders = found.passed_over
    assert others == f"{tmp_path / 'in'}: 1 file of other formats (notes.txt)."
    assert (
        "1 folder of volumes that are no case each (old); give the folder as --input, or a pattern such as" in folders
    )


def touch(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "in_channels", "cases", "passed_over"),
    [
        ("p1/t1.nii.gz p2/t1.nrrd", 1, "p1:t1.nii.gz p2:t1.nrrd", []),
        (
            "p1/x_0000.nii p1/x_0001.nii p2/y_0000.mha p2/y_0001.nii",
            2,
            "p1:x_0000.nii+x_0001.nii p2:y_0000.mha+y_0001",
            [],
        ),
        ("p1/t1.nii p2/t1.nii p2/seg.nii", 1, "p1:t1.nii", [r"1 folder of volumes that are no case each \(p2\)"]),
        ("p1/t1.nii p2/deep/t1.nii", 1, "p1:t1.nii", [r"1 folder without a volume \(p2\)"]),
        (
            "p1/1.dcm p1/seg.nii p2/t1.nii",
            1,
            "p1:p1 p2:t1.nii",
            [r"1 volume beside the DICOM series of a case \(seg\.nii\)"],
        ),
        ("a.nii out/a_seg.nii", 1, "a:a.nii", []),  # results of an earlier call
    ],
)
def test_a_folder_per_case_is_taken_or_named(
    tmp_path: Path, files: str, in_channels: int, cases: str, passed_over: list[str]
) -> None:
    found = find_inputs(touch(tmp_path, files), in_channels, results=tmp_path / "out")
    of_cases = (f"{name}:{'+'.join(path.name for path in paths)}" for name, paths in found.cases.items())
    assert " ".join(of_cases).removesuffix(".nii") == cases.removesuffix(".nii")
    assert len(found.passed_over) == len(passed_over)
    for text, expected in zip(found.passed_over, passed_over, strict=True):
        assert re.search(expected, text)


def test_channels_of_one_file_name_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "t1/a.nii t2/a.nii")
    first, second = tmp_path / "t1" / "a.nii", tmp_path / "t2" / "a.nii"
    before = input_stamp([first, second])
    assert len(before) == 2
    first.write_bytes(b"changed")
    assert input_stamp([first, second]) != before


def test_cases_of_one_file_name_have_a_segmentation_each(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    voxels = voxels_to_segment(phantom_folder)
    images = {"p1": volume(voxels), "p2": volume(voxels[::-1])}
    for name, image in images.items():
        write(image, tmp_path / "in" / name / "t1.nii.gz")
        write(image, tmp_path / "flat" / f"{name}.nii.gz")
    infer(trained, tmp_path / "in", tmp_path / "out")
    infer(trained, tmp_path / "in" / "{case}" / "t1.nii.gz", tmp_path / "by pattern")
    infer(trained, tmp_path / "flat", tmp_path / "expected")
    for name in images:
        expected = voxels_of(tmp_path / "expected" / f"{name}_seg.nii.gz")
        for out in ("out", "by pattern"):
            assert np.array_equal(voxels_of(tmp_path / out / f"{name}_seg.nii.gz"), expected)


def test_patterns_find_the_channels_of_a_folder_per_case(tmp_path: Path) -> None:
    touch(
        tmp_path, "b2/b2-t1c.nii.gz b2/b2-t2w.nii.gz b1/b1-t1c.nii.gz b1/b1-t2w.nii.gz b1/b1-seg.nii.gz c/other.nii.gz"
    )
    patterns = f"{tmp_path}/{{case}}/{{case}}-t1c.nii.gz,{tmp_path}/{{case}}/{{case}}-t2w.nii.gz"
    found = find_inputs(patterns, 2).cases
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        name: [f"{name}-t1c.nii.gz", f"{name}-t2w.nii.gz"] for name in ("b1", "b2")
    }
    assert list(find_inputs(f"{tmp_path}/*/{{case}}-t1?.nii.gz", 1).cases) == ["b1", "b2"]
    touch(tmp_path, "x/b1-t1c.nii.gz")
    for wrong, sentence in (
        (
            f"{tmp_path}/*/{{case}}-t1c.nii.gz",
            r"b1: expected one file for .*, got .*b1-t1c\.nii\.gz, .*x/b1",
        ),
        (f"{tmp_path}/{{case}}/{{case}}-t3.nii.gz", r"expected --input to find volumes by .*, got none"),
        (f"{tmp_path}/{{case}}/{{case}}-t1c.nii.gz,{tmp_path}/b1", r"expected {case} in each pattern, .* got '.*/b1'"),
        (
            f"{tmp_path}/{{case}}/{{case}}-t1c.nii.gz,{tmp_path}/{{case}}/{{case}}-seg.nii.gz",
            r"b2: expected a file for",
        ),
    ):
        with pytest.raises(DatasetError, match=f"(?i){sentence}"):
            find_inputs(wrong, 2)


def test_numbered_files_are_cases_where_the_training_s_are_or_where_told(
    trained: RunFolder, changed: Callable[..., RunFolder], phantom_folder: Path, tmp_path: Path
) -> None:
    image = volume(voxels_to_segment(phantom_folder))
    for number in range(3):
        write(image, tmp_path / "in" / f"c_{number:04d}.mha")

    def found(run: RunFolder, **options: Any) -> list[str]:
        options |= {"input": tmp_path / "in", "output_dir": tmp_path / "out"}
        return [item["case"] for item in InferenceSetUp(bundle_root=run.root, metadata={}, **options).items_to_do()]

    assert found(changed(training=("amos_0001", "amos_0090"))) == ["c_0000", "c_0001", "c_0002"]
    assert found(trained, channel_files="False") == ["c_0000", "c_0001", "c_0002"]
    with pytest.raises(
        StartUpRefused, match=r"got 3; NAME_0000, .* of one case, or with --channel_files False cases of"
    ):
        found(trained)


def test_names_that_differ_by_the_form_of_unicode_are_one_name(tmp_path: Path) -> None:
    (tmp_path / "Mu\u0308ller_0000.nii").touch()
    (tmp_path / "M\u00fcller_0001.nii").touch()
    assert list(find_inputs(tmp_path, 2).cases) == ["M\u00fcller"]


def test_results_in_the_folder_of_the_images_are_no_images(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(phantom_folder / IMAGE, folder / "a.nii.gz")
    for _ in range(2):
        infer(trained, folder, folder, probabilities=True)
    assert names_in(folder) == {"a.nii.gz", "a_seg.nii.gz", "a_prob.nii.gz"}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.nii", "a.nii.gz"], r"Expected one volume named a, got a\.nii, a\.nii\.gz in"),
        (["a.nrrd", "a.mha"], r"Expected one volume named a, got a\.mha, a\.nrrd in"),
        (["a/1.dcm", "a.mha"], r"Expected one volume named a, got a, a\.mha in"),
        (["1.dcm", "a.mha"], r"hold volumes or one DICOM series, got a\.mha and 1\.dcm in"),
        ([], r"hold files \.nii\.gz, .* or a folder per DICOM series or case, got none in"),
    ],
)
def test_names_that_collide_are_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=sentence):
        find_inputs(tmp_path, 1)


def test_a_missing_channel_is_refused(tmp_path: Path) -> None:
    for name in ("a_0000.nii", "a_0002.nii", "b.nii"):
        (tmp_path / name).touch()
    with pytest.raises(
        DatasetError, match=r"Expected one volume named a or channels a_0000 to a_0001, got a_0000\.nii, "
    ):
        find_inputs(tmp_path, 2)
    (tmp_path / "a_0002.nii").rename(tmp_path / "a_0001.nii")
    assert {name: len(paths) for name, paths in find_inputs(tmp_path, 2).cases.items()} == {"a": 2, "b": 1}


class InvertibleScaling(NormalizeIntensityd, InvertibleTransform):
    """Intensities that leave a trace and can be inverted, as all of MONAI's may be in its next version."""

    inverted = 0

    def __call__(self, data: Any) -> Any:
        changed = super().__call__(data)
        for key in self.key_iterator(changed):
            self.push_transform(changed, key)
        return changed

    def inverse(self, data: Any) -> Any:
        type(self).inverted += 1
        changed = dict(data)
        for key in self.key_iterator(changed):
            self.pop_transform(changed, key)
            offsets = torch.tensor([7.0, -7.0, 0.0])[: len(changed[key])].view(-1, 1, 1, 1)
            changed[key] = changed[key] * -3 + offsets
        return changed


@pytest.mark.parametrize("workers", [0, *slow(1)])
def test_an_intensity_transform_is_never_inverted_on_scores(
    changed: Callable[..., RunFolder],
    phantom_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    run = changed(pixdim=(1.3, 0.9, 2.0))
    image = write(
        volume(voxels_to_segment(phantom_folder), DIRECTIONS["oblique"], spacing=(1, 1.1, 3)), tmp_path / "a.nii"
    )

    def results(name: str) -> tuple[list[np.ndarray], list[dict[str, str]]]:
        infer(run, image, tmp_path / name, probabilities=True, num_workers=workers)
        evaluate(run, output_dir=str(tmp_path / name / "eval"), overlays=False, num_workers=workers)
        files = [tmp_path / name / f"a_{ending}.nii.gz" for ending in ("seg", "prob")]
        return [voxels_of(file) for file in files], table(tmp_path / name / "eval" / "cases.csv")

    plain, plain_table = results("plain")

    def scaling(keys: str, hu_window: Any) -> InvertibleScaling:
        return InvertibleScaling(keys, channel_wise=True)

    monkeypatch.setattr("monai_extra_losses.bundle.components.intensity_scaling", scaling)
    found, found_table = results("invertible")
    assert len(np.unique(plain[0])) > 1
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found_table == plain_table
    assert InvertibleScaling.inverted == 0


def test_what_an_overlay_adds_is_inverted_where_it_moves_voxels(phantom_folder: Path) -> None:
    scaling = InvertibleScaling("image", channel_wise=True)
    parts: list[Any] = [Compose([scaling, Rotate90d("image", k=1, spatial_axes=(0, 1))], map_items=False)]
    parts += [Spacingd("image", pixdim=(2, 1, 3)), scaling]
    transform = Compose([LoadImaged("image", ensure_channel_first=True), *parts])
    item = transform({"image": phantom_folder / IMAGE})
    item["pred"] = MetaTensor(torch.ones(2, *item["image"].shape[1:]), meta=item["image"].meta)
    found = InvertGeometryd("pred", transform, "image")(item)["pred"]
    assert found.shape == (2, 32, 32, 16) != item["pred"].shape
    np.testing.assert_allclose(found.affine, found.meta["original_affine"], atol=1e-6)
    assert InvertibleScaling.inverted == 0


def test_scores_that_stay_off_the_grid_of_the_file_are_refused(phantom_folder: Path) -> None:
    transform = Compose([LoadImaged("image", ensure_channel_first=True), Transposed("image", (0, 3, 2, 1))])
    item = transform({"image": phantom_folder / IMAGE})
    item["pred"] = MetaTensor(torch.ones(2, *item["image"].shape[1:]), meta=item["image"].meta)
    with pytest.raises(
        StartUpRefused, match=r"on the grid of .*phantom_test_000.*, \(32, 32, 16\), got \(16, 32, 32\); a"
    ):
        InvertGeometryd("pred", transform, "image")(item)


# ---- label ids -----------------------------------------------------------------------


def test_the_training_records_the_ids_that_labels_had(phantom_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    declared = json.loads((data / "dataset.json").read_text())

    def recorded(originals: Any) -> dict[int, int]:
        (data / "dataset.json").write_text(json.dumps(declared | {"original_labels": originals}))
        defaults = yaml.safe_load((CONFIGS / "train.yaml").read_text())
        values = {name: defaults[name] for name in defaults["setup"] if name in defaults}
        values |= {"dataset_dir": data, "bundle_root": tmp_path / "run"}
        values["loss"] = DiceLoss(to_onehot_y=True, softmax=True)
        if "device" in values:
            values["device"] = torch.device("cpu")
        return TrainingSetUp(**values).record.original_labels

    assert recorded({"1": 300, "2": 1}) == {1: 300, 2: 1}
    for wrong in ({"one": 1}, {"1": "4"}, {"1": True}, [4]):
        with pytest.raises(StartUpRefused, match=r"expected `original_labels` as \{\"3\": 4, \.\.\.\}"):
            recorded(wrong)


def test_labels_get_the_ids_back_that_they_had(
    changed: Callable[..., RunFolder], phantom_folder: Path, tmp_path: Path
) -> None:
    run = changed(original_labels={1: 300, 2: 1})
    infer(run, phantom_folder / IMAGE, tmp_path / "original")
    infer(run, phantom_folder / IMAGE, tmp_path / "trained", restore_labels="false")
    original, as_trained = (
        nibabel.load(tmp_path / name / "phantom_test_000_seg.nii.gz") for name in ("original", "trained")
    )
    assert (original.get_data_dtype(), as_trained.get_data_dtype()) == (np.uint16, np.uint8)
    values = np.asarray(as_trained.dataobj)
    assert 1 in values
    np.testing.assert_array_equal(np.asarray(original.dataobj), np.array([0, 300, 1])[values])


def test_ids_that_float32_does_not_hold_are_written_exactly(
    changed: Callable[..., RunFolder], phantom_folder: Path, tmp_path: Path
) -> None:
    run = changed(original_labels={1: 2**24 + 1, 2: 2**24 + 3})
    infer(run, phantom_folder / IMAGE, tmp_path / "trained", restore_labels=False)
    trained = nibabel.load(tmp_path / "trained" / "phantom_test_000_seg.nii.gz")
    classes = np.asarray(trained.dataobj)
    assert len(np.unique(classes)) > 1
    for number, (ids, dtype) in enumerate(
        {(2**24 + 1, 2**24 + 3): np.int32, (2**40 + 1, 2**62 + 1): np.int64, (-(2**62) - 1, 5): np.int64}.items()
    ):
        originals = dict(enumerate(ids, start=1))
        dataclasses.replace(RunRecord.read(run.record), original_labels=originals).write(run.record)
        infer(run, phantom_folder / IMAGE, tmp_path / f"out{number}")
        written = nibabel.load(tmp_path / f"out{number}" / "phantom_test_000_seg.nii.gz")
        assert written.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.array([0, *ids])[classes])
        np.testing.assert_array_equal(written.affine, trained.affine)
        assert (written.header["qform_code"], written.header["sform_code"]) == (1, 1)


def test_what_headers_leave_open_is_said_before_the_first_case(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nibabel.load(phantom_folder / IMAGE)
    fields = {"qform_code": 0, "sform_code": 0, "pixdim": [1, 1, 1, 3]}
    for name in "ab":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", np.asarray(image.dataobj), image.affine, fields)
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 28 24 16\nencoding: raw\nendian: little\n\n"
    content = voxels_to_segment(phantom_folder).tobytes(order="F")
    (tmp_path / "in" / "c.nrrd").write_bytes(header.encode() + content)
    infer(trained, tmp_path / "in", tmp_path / "out")
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"{tmp_path / 'in' / 'c.nrrd'} (of 3 files): the header does not say how its axes lie in the patient, so its "
        "coordinates are taken to run to the left, to the back and to the head.",
        f"{tmp_path / 'in' / 'a.nii.gz'} and 1 more (of 3 files): the header gives no orientation (qform_code and "
        "sform_code are 0), so the first axis is taken to run from right to left, the second from back to front and "
        "the third from foot to head, with the spacing of pixdim.",
        f"{tmp_path / 'in' / 'c.nrrd'} (of 3 files): the header gives no spacing, so it is taken as 1 mm.",
    ]
    assert names_in(tmp_path / "out") == {f"{name}_seg.nii.gz" for name in "abc"}


def test_an_image_that_outliers_blank_is_named(
    changed: Callable[..., RunFolder], phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = np.asarray(nibabel.load(phantom_folder / IMAGE).dataobj).astype(np.float32)
    low, high = f"{voxels.min():g}", f"{voxels.max():g}"
    voxels[0, 0, 0] = np.finfo(np.float32).max
    file = write_nifti(tmp_path / "a.nii.gz", voxels, np.eye(4))
    sentence = (
        f"{file}: 99.99% of the voxels, from {low} to {high}, become one grey when the image is normalised, because "
        "others reach 3.40282e+38; replace these."
    )
    run = changed()
    for window, said in ((None, True), ((-100.0, 100.0), False)):
        dataclasses.replace(RunRecord.read(run.record), hu_window=window).write(run.record)
        infer(run, file, tmp_path / "out", overwrite=True)
        assert capsys.readouterr().out.count(sentence) == said


def test_a_record_of_an_earlier_version_is_read(trained: RunFolder, tmp_path: Path) -> None:
    content = json.loads(trained.record.read_text())
    for name in ("original_labels", "regions"):
        del content[name]
    (tmp_path / "run.json").write_text(json.dumps(content))
    record = RunRecord.read(tmp_path / "run.json")
    assert (record.original_labels, record.regions) == ({}, None)
    record = dataclasses.replace(record, original_labels={2: 5}, regions={"whole": (1, 2), "core": (2,)})
    record.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == record
    assert record.num_classes == 2


def test_the_type_of_the_labels_holds_all_of_them(changed: Callable[..., RunFolder], phantom_folder: Path) -> None:
    run = changed(original_labels={2: 70000})

    def set_up(originals: dict[int, int], **options: Any) -> InferenceSetUp:
        dataclasses.replace(RunRecord.read(run.record), original_labels=originals).write(run.record)
        return InferenceSetUp(bundle_root=run.root, metadata={}, input=phantom_folder / IMAGE, **options)

    types = [set_up({2: most}).dtype for most in (255, 256, 70000, -1)]
    assert types == [np.uint8, np.uint16, np.int32, np.int16]
    with pytest.raises(StartUpRefused, match="Expected original label ids that differ, got 1 for organ and lesion"):
        set_up({2: 1})
    assert set_up({2: 1}, restore_labels=False).written_labels == [0, 1, 2]


# ---- probabilities and regions -------------------------------------------------------


def test_probabilities_are_those_of_the_labels(
    changed: Callable[..., RunFolder], phantom_folder: Path, tmp_path: Path
) -> None:
    run = changed(pixdim=(1.3, 0.9, 2.0))
    image = volume(voxels_to_segment(phantom_folder), spacing=(1, 1.1, 3))
    source = write(image, tmp_path / "case.nrrd")
    infer(run, source, tmp_path / "out", probabilities=True)
    labels, found = (nibabel.load(tmp_path / "out" / f"case_{ending}.nii.gz") for ending in ("seg", "prob"))
    assert found.shape == (28, 24, 16, 3)
    assert found.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, labels.affine)
    probabilities = np.asarray(found.dataobj)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    assert probabilities.min() >= 0
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), np.asarray(labels.dataobj))


BRATS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def labels_of(
    regions: dict[str, tuple[int, ...]], labels: list[int], *voxels: str, order: tuple[int, ...] | None = None
) -> list[int]:
    """Label values of voxels that are in the regions marked by 1, as in "110"."""
    inside = torch.tensor([[float(mark) for mark in voxel] for voxel in voxels]).T
    scores = MetaTensor((inside * 4 - 2).reshape(len(regions), -1, 1, 1))
    transform = SegmentationOfScoresd("pred", labels=labels, written=labels, regions=regions, order=order)
    return transform({"pred": scores})["pred"].flatten().int().tolist()


def test_a_voxel_gets_the_label_value_of_its_regions() -> None:
    voxels = ("000", "100", "110", "111")
    assert labels_of(BRATS, [0, 1, 2, 3], *voxels) == [0, 1, 2, 3]
    # what contradicts the nesting: the smallest region decides
    assert labels_of(BRATS, [0, 1, 2, 3], "001", "010", "011", "101") == [3, 2, 3, 3]
    # in whatever order they are listed
    backwards = dict(reversed(BRATS.items()))
    assert labels_of(backwards, [0, 1, 2, 3], "100", "010", "110", "101") == [3, 2, 3, 3]
    # regions that do not nest, and equals: the later one
    apart = {"left": (1,), "right": (2,)}
    assert labels_of(apart, [0, 1, 2], "00", "10", "01", "11") == [0, 1, 2, 2]
    # a value in both has a pattern of its own
    crossing = {"a": (1, 3), "b": (2, 3)}
    assert labels_of(crossing, [0, 1, 2, 3], "10", "01", "11") == [1, 2, 3]
    # two values of one pattern: the smallest
    assert labels_of({"whole": (4, 2), "core": (7,)}, [0, 2, 4, 7], "00", "10", "11", "01") == [0, 2, 7, 7]


def test_regions_paint_in_the_order_of_nnunet_where_it_does_not_contradict_them() -> None:
    voxels = ("000", "100", "110", "111", "011", "101", "010")
    assert labels_of(BRATS, [0, 1, 2, 3], *voxels, order=(1, 2, 3)) == [0, 1, 2, 3, 3, 3, 2]
    # two labels of one pattern: the order chooses, and not the smallest
    assert labels_of({"whole": (4, 2), "core": (7,)}, [0, 2, 4, 7], "10", "01", order=(4, 7)) == [4, 7]
    # the whole listed last paints last
    backwards = dict(reversed(BRATS.items()))
    assert labels_of(backwards, [0, 1, 2, 3], "101", "111", order=(3, 2, 1)) == [1, 3]
    # a value outside its region, as 1 for the core, is none that a voxel of the core can have
    assert labels_of(BRATS, [0, 1, 2, 3], "110", "010", order=(2, 1, 3)) == [2, 2]


def test_a_network_of_regions_writes_labels_and_a_probability_per_region(
    changed: Callable[..., RunFolder], phantom_folder: Path, tmp_path: Path
) -> None:
    regions = {"whole": (1, 2, 9), "core": (2, 9)}
    labels = {0: "background", 1: "edema", 2: "core", 9: "other"}
    run = changed(regions=regions, labels=labels, original_labels={2: 4})
    record = RunRecord.read(run.record)
    torch.manual_seed(0)
    network = UNet(
        3, 1, 2, record.channels, (2,) * (len(record.channels) - 1), num_res_units=record.num_res_units, norm="instance"
    )
    torch.save(network.state_dict(), tmp_path / "model.pt")
    options: dict[str, Any] = {"model_file": str(tmp_path / "model.pt"), "test_time_flips": [0]}
    infer(run, phantom_folder / IMAGE, tmp_path / "out", probabilities=True, **options)
    found = voxels_of(tmp_path / "out" / "phantom_test_000_prob.nii.gz")
    assert found.shape == (32, 32, 16, 2)
    whole, core = found[..., 0] > 0.5, found[..., 1] > 0.5
    assert (whole & ~core).any()
    assert (~whole & core).any()
    expected = np.where(core, 4, np.where(whole, 1, 0))
    np.testing.assert_array_equal(voxels_of(tmp_path / "out" / "phantom_test_000_seg.nii.gz"), expected)


# ---- flips and stitching -------------------------------------------------------------


def random_network(channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return UNet(3, 1, channels, (4, 8), (2,), norm="instance").eval()


def case_inferer(**options: Any) -> CaseInferer:
    window = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=2, overlap=0.5, mode="gaussian")
    return CaseInferer(sliding_window=window, num_channels=3, **options)


@pytest.mark.parametrize(("axes", "sigmoid"), [((0,), False), ((1, 2), True), ((0, 1, 2), False)])
@torch.no_grad()
def test_a_flipped_volume_has_the_flipped_scores(axes: tuple[int, ...], sigmoid: bool) -> None:
    inferer, network = case_inferer(flips=axes, sigmoid=sigmoid), random_network()
    x = torch.randn(1, 1, 10, 12, 9, generator=torch.Generator().manual_seed(1))
    scores = inferer(x, network)
    for axis in axes:
        assert torch.equal(inferer(x.flip(axis + 2), network).flip(axis + 2), scores)
    without = case_inferer()(x, network)
    assert not torch.allclose(without.flip(2 + axes[0]), case_inferer()(x.flip(2 + axes[0]), network), atol=1e-3)


@pytest.mark.parametrize("sigmoid", [False, True])
@torch.no_grad()
def test_flips_average_the_probabilities(sigmoid: bool) -> None:
    def activated(scores: torch.Tensor) -> torch.Tensor:
        return scores.double().sigmoid() if sigmoid else scores.double().softmax(1)

    network, x = random_network(), torch.randn(1, 1, 10, 12, 9, generator=torch.Generator().manual_seed(1))
    single = case_inferer()
    turns = [[axis + 2 for axis in range(3) if number >> axis & 1] for number in range(8)]
    parts = [activated(single(x.flip(turn), network)).flip(turn) for turn in turns]
    found = activated(case_inferer(flips=(0, 1, 2), sigmoid=sigmoid)(x, network))
    torch.testing.assert_close(found, torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)


def test_flips_change_the_labels_of_the_bundle(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    voxels = voxels_to_segment(phantom_folder).astype(np.float32)
    for name, image in {"a": voxels, "b": voxels[::-1]}.items():
        # MONAI leaves volumes whose axes are R, A, S as they are
        nibabel.save(nibabel.Nifti1Image(image, np.diag([1, 1, 3, 1])), tmp_path / f"{name}.nii")
        infer(trained, tmp_path / f"{name}.nii", tmp_path / "flips", test_time_flips=[0], probabilities=True)
        infer(trained, tmp_path / f"{name}.nii", tmp_path / "none", probabilities=True)

    def pair(folder: str) -> tuple[np.ndarray, np.ndarray]:
        first, second = (voxels_of(tmp_path / folder / f"{name}_prob.nii.gz") for name in "ab")
        return first, second[::-1]

    np.testing.assert_allclose(*pair("flips"), atol=1e-5)
    assert np.abs(np.subtract(*pair("none"))).max() > 1e-3


@torch.no_grad()
def test_scores_are_stitched_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 1, 10, 12, 9)
    scores = [case_inferer(stitch_on=place)(x, random_network()) for place in (None, "cpu", "device")]
    assert all(torch.equal(found, scores[0]) for found in scores)

    # the rule: six times the scores of 3 channels, 4 bytes each, on the larger of the two grids
    class OnGpu:
        device = torch.device("cuda", 0)
        shape = torch.Size((1, 1, 20, 24, 13))

    needed = 6 * 4 * 3 * 20 * 24 * 13
    for free, place in ((needed - 1, "cpu"), (needed, "cuda")):
        monkeypatch.setattr("monai_extra_losses.bundle.segmenting._free_memory", lambda _, free=free: free)
        assert case_inferer()._stitching_device(OnGpu()).type == place  # type: ignore[arg-type]
        assert case_inferer(stitch_on="cpu")._stitching_device(OnGpu()).type == "cpu"  # type: ignore[arg-type]
        assert case_inferer(stitch_on="device")._stitching_device(OnGpu()).type == "cuda"  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="windows on a GPU and stitching on the CPU need a GPU")
def test_stitching_on_the_cpu_gives_the_labels_of_the_gpu(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = phantom_folder / IMAGE
    for place in ("cpu", "device"):
        infer(trained, source, tmp_path / place, stitch_on=place, probabilities=True, test_time_flips=True)
    monkeypatch.setattr("monai_extra_losses.bundle.segmenting._free_memory", lambda _: 0)
    infer(trained, source, tmp_path / "automatic", probabilities=True, test_time_flips=True)
    for ending in ("seg", "prob"):
        expected = voxels_of(tmp_path / "device" / f"phantom_test_000_{ending}.nii.gz")
        for place in ("cpu", "automatic"):
            found = voxels_of(tmp_path / place / f"phantom_test_000_{ending}.nii.gz")
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"test_time_flips": [3]}, r"Expected test_time_flips to be True, False or axes .*, got \[3\]"),
        ({"test_time_flips": [0, 0]}, r"Expected test_time_flips to be .*, got \[0, 0\]"),
        ({"test_time_flips": "all"}, "Expected test_time_flips to be .*, got 'all'"),
        ({"probabilities": "some"}, "Expected probabilities to be True or False, got 'some'"),
        ({"restore_labels": 2}, "Expected restore_labels to be True or False, got 2"),
        ({"stitch_on": "gpu"}, 'Expected stitch_on to be "cpu", "device" or null, got \'gpu\''),
    ],
)
def test_an_option_that_cannot_work_is_one_sentence(trained: RunFolder, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartUpRefused, match=sentence):
        InferenceSetUp(bundle_root=trained.root, metadata={}, **options)


def test_flips_are_typed(trained: RunFolder) -> None:
    given = {True: (0, 1, 2), "false": (), None: (), "[1, 0]": (1, 0), 2: (2,)}
    for value, axes in given.items():
        assert InferenceSetUp(bundle_root=trained.root, metadata={}, test_time_flips=value).flips == axes


# ---- restarts, and cases that fail ---------------------------------------------------


def test_finished_cases_are_skipped_and_counted(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = phantom_folder / "imagesTs", tmp_path / "out"
    infer(trained, source, out)
    capsys.readouterr()
    infer(trained, source, out)
    assert f"2 case(s) skipped, finished in {out}: phantom_test_000, phantom_test_001" in capsys.readouterr().out
    # the probabilities are missing
    infer(trained, source, out, probabilities=True)
    assert "skipped" not in capsys.readouterr().out
    assert len(names_in(out)) == 4
    stamps = {out / name: (out / name).stat().st_mtime_ns for name in names_in(out)}
    (out / "phantom_test_001_prob.nii.gz").unlink()
    infer(trained, source, out, probabilities=True)
    assert "1 case(s) skipped" in capsys.readouterr().out
    again = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.name for path in again} == {"phantom_test_001_prob.nii.gz", "phantom_test_001_seg.nii.gz"}


def test_segmentations_of_something_else_are_refused_or_made_anew(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, model = tmp_path / "in", tmp_path / "out", tmp_path / "model.pt"
    source.mkdir()
    for name in ("a", "b"):
        shutil.copy(phantom_folder / IMAGE, source / f"{name}.nii.gz")
    shutil.copy(trained.model, model)
    infer(trained, source, out, model_file=str(model))
    before = {name: (out / name).stat().st_mtime_ns for name in names_in(out)}

    def refused(words: str, **options: Any) -> None:
        with pytest.raises(StartUpRefused, match=rf"a_seg\.nii\.gz to be of .*, got {words}.*; .*--overwrite True"):
            infer(trained, source, out, **({"model_file": str(model)} | options))
        assert {name: (out / name).stat().st_mtime_ns for name in names_in(out)} == before

    refused(r"one of test_time_flips \[\] instead of \[0\] \(and 1 more such\)", test_time_flips=[0])
    refused("one of overlap 0.5 instead of 0.25", **{"inferer::inferer::sliding_window::overlap": 0.25})
    weights = {name: value + 1 for name, value in torch.load(model, weights_only=True).items()}
    torch.save(weights, model)
    refused("one of another model")
    shutil.copy(trained.model, model)
    shutil.copy(phantom_folder / "imagesTs" / "phantom_test_001.nii.gz", source / "a.nii.gz")
    refused("of another image of that name$|of another image")
    infer(trained, source, out, model_file=str(model), overwrite=True)  # the other case is as it would be
    again = {name: (out / name).stat().st_mtime_ns for name in names_in(out)}
    assert again["a_seg.nii.gz"] != before["a_seg.nii.gz"]
    assert again["b_seg.nii.gz"] == before["b_seg.nii.gz"]
    capsys.readouterr()
    infer(trained, source, out, model_file=str(model))
    assert "2 case(s) skipped" in capsys.readouterr().out
    before = again
    shutil.rmtree(out / ".segmentations")
    refused("one without a record of what it was made of")


def test_channel_files_are_one_case_of_too_many_channels(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    image = volume(voxels_to_segment(phantom_folder))
    for channel in range(4):
        write(image, tmp_path / "in" / f"c_{channel:04d}.mha")
    with pytest.raises(StartUpRefused, match=r"expected 1 channel\(s\) as in the run, got 4; NAME_0000"):
        infer(trained, tmp_path / "in", tmp_path / "out")
    for channel in range(1, 4):
        (tmp_path / "in" / f"c_{channel:04d}.mha").unlink()
    assert list(find_inputs(tmp_path / "in", 1).cases) == ["c_0000"]


def bad_files(folder: Path, image: sitk.Image) -> dict[str, str]:
    """Volumes that cannot be segmented, and words of the sentences about them."""
    for name in ("cut.nii.gz", "cut too.nii", "cut.nrrd", "cut series/a"):
        if name.startswith("cut series"):
            series = write_dicom(image, folder / "cut series", leave_out=[3])
            assert series.is_dir()
            continue
        file = write(image, folder / (name if "nrrd" not in name else "cut3.nrrd"))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (folder / "empty.nii.gz").touch()
    (folder / "text.mha").write_text("no volume")
    four = np.zeros((8, 8, 8, 2), np.float32)
    nibabel.save(nibabel.Nifti1Image(four, np.eye(4)), folder / "four.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8, 2)), isVector=True), str(folder / "vector.nrrd"))
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), folder / "nan.nii")
    sitk.WriteImage(image[:, :, 0], str(folder / "flat.mha"))
    ones = np.ones((8, 8, 8))
    write_nifti(folder / "complex.nii.gz", ones.astype(np.complex64), np.eye(4))
    ones[0, 0, 0] = 1e300
    write_nifti(folder / "too bright.nii", ones, np.eye(4))
    ones[0, 0, 0] = -np.inf
    write(volume(ones), folder / "infinite.mha")
    os.mkfifo(folder / "pipe.nii.gz")
    return {
        "cut": "cut.nii.gz: expected a whole gzip file, got a damaged one",
        "cut too": "cut too.nii: expected a whole NIfTI file of",
        "cut3": "cut3.nrrd: expected a whole volume, got one that cannot be read",
        "cut series": "slices are missing",
        "empty": "empty.nii.gz: expected a NIfTI file, got an empty one",
        "text": "text.mha: expected a whole volume, got one that cannot be read",
        "four": "four.nii.gz: expected 1 channel(s) as in the run, got 2.",
        "vector": "vector.nrrd: expected one real number per voxel, got 2",
        "nan": "nan.nii: expected numbers, got 512 voxels of NaN or infinity",
        "flat": "flat.mha: expected a volume of several slices",
        "complex": "complex.nii.gz: expected one real number per voxel, got voxels of type complex64",
        "too bright": "too bright.nii: expected intensities that float32 holds (up to 3.4e+38), got 1e+300",
        "infinite": "infinite.mha: expected numbers, got 1 voxels of NaN or infinity",
        "pipe": "pipe.nii.gz: expected a readable file, got a named pipe",
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_fails_is_named_at_the_end_and_the_others_are_done(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    source, out = tmp_path / "it's a mix, größer", tmp_path / "out"
    image = volume(voxels_to_segment(phantom_folder))
    expected = bad_files(source, write(image, source / "a good one.mha") and image)
    with pytest.raises(CasesFailed) as ended:
        infer(trained, source, out, num_workers=num_workers)
    heading, *lines = str(ended.value.code).splitlines()
    assert heading == f"{len(expected)} of {len(expected) + 1} cases could not be segmented:"
    said = {line.strip().partition(": ")[0]: line for line in lines}
    assert said.keys() == expected.keys()
    for case, words in expected.items():
        assert words in said[case]
    assert names_in(out) == {"a good one_seg.nii.gz"}


def test_one_volume_that_cannot_be_segmented_is_one_sentence(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(StartUpRefused) as ended:
        infer(trained, tmp_path / "a.nii.gz", tmp_path / "out")
    assert str(ended.value.code).startswith(f"{tmp_path / 'a.nii.gz'}: expected a NIfTI file, got an empty")
    assert not (tmp_path / "out").exists()
    write_dicom(volume(np.zeros((8, 8, 8), np.int16)), tmp_path / "series", leave_out=range(1, 8))
    (slice_,) = (tmp_path / "series").iterdir()
    with pytest.raises(StartUpRefused, match="expected the folder of a DICOM series, got one of its files"):
        infer(trained, slice_, tmp_path / "out")


def test_a_volume_too_large_for_the_gpu_does_not_stop_the_others(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferred = CaseInferer.__call__
    calls = iter([True, False])

    def first_fails(self: CaseInferer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inferred(self, *args, **kwargs)

    monkeypatch.setattr(CaseInferer, "__call__", first_fails)
    with pytest.raises(
        CasesFailed, match="phantom_test_000: expected a volume that fits into the GPU; give --stitch_on"
    ):
        infer(trained, phantom_folder / "imagesTs", tmp_path / "out")
    assert names_in(tmp_path / "out") == {"phantom_test_001_seg.nii.gz"}


def test_monai_s_command_runs_it_and_exits_with_1(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(phantom_folder / "imagesTs", tmp_path / "in put")
    whole = (source / "phantom_test_001.nii.gz").read_bytes()
    (source / "phantom_test_001.nii.gz").write_bytes(whole[:-400])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "inference.yaml")]
    command += ["--bundle_root", str(trained.root), "--input", str(source), "--output_dir", str(tmp_path / "out")]
    command += ["--test_time_flips", "[0]", "--probabilities", "True", "--stitch_on", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert "1 of 2 cases could not be segmented:\n  phantom_test_001: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(names_in(tmp_path / "out")) == 2
    assert (ended.stdout + ended.stderr).count("expected a whole gzip file") == 1


def test_a_volume_however_thin_keeps_its_grid(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    shapes = [(1, 1, 1), (1, 20, 30), (20, 1, 30), (20, 30, 1), (1, 1, 9), (2, 2, 2), (1, 9, 1, 1)]
    (tmp_path / "in").mkdir()
    for number, shape in enumerate(shapes):
        voxels = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 2, 3, 1])), tmp_path / "in" / f"{number}.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((0, 4, 4), np.float32), np.eye(4)), tmp_path / "in" / "empty.nii")
    with pytest.raises(CasesFailed, match=r"1 of 8 cases .*\n  empty: .*the shape is \(0, 4, 4\)"):
        infer(trained, tmp_path / "in", tmp_path / "out", probabilities=True)
    for number, shape in enumerate(shapes):
        labels, found = (nibabel.load(tmp_path / "out" / f"{number}_{ending}.nii.gz") for ending in ("seg", "prob"))
        assert labels.shape == shape[:3]
        assert found.shape == (*shape[:3], 3)
        np.testing.assert_allclose(labels.affine, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize("broken", ["the network", "the inverse", "the decision", "the writer", "the record"])
def test_whatever_fails_in_a_case_the_others_are_done(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    owner, name = {
        "the network": (CaseInferer, "__call__"),
        "the inverse": (InvertGeometryd, "__call__"),
        "the decision": (SegmentationOfScoresd, "__call__"),
        "the writer": (nibabel.Nifti1Image, "to_filename"),
        "the record": (SegmentationRecord, "add"),
    }[broken]
    works = getattr(owner, name)
    errors = [PermissionError(errno.EACCES, "Permission denied") if broken == "the writer" else KeyError("unforeseen")]

    def first_fails(*args: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return works(*args, **options)

    monkeypatch.setattr(owner, name, first_fails)
    words = (
        "permission denied" if broken == "the writer" else r"a volume that can be segmented, got KeyError\('unforeseen"
    )
    with pytest.raises(
        CasesFailed, match=rf"1 of 2 cases could not be segmented:\n  phantom_test_000: .*{words}"
    ) as ended:
        infer(trained, phantom_folder / "imagesTs", tmp_path / "out")
    assert str(ended.value.code).count("\n") == 1
    assert names_in(tmp_path / "out") == {"phantom_test_001_seg.nii.gz"}
    infer(trained, phantom_folder / "imagesTs", tmp_path / "out")  # the other one, and all is there
    assert len(names_in(tmp_path / "out")) == 2
    assert not list((tmp_path / "out").glob(".unfinished*"))


def test_a_full_disk_ends_all_cases(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", full)
    with pytest.raises(WritingFailed, match=rf"Expected to write {tmp_path / 'out'}, got: no space left on device"):
        infer(trained, phantom_folder / "imagesTs", tmp_path / "out")


def test_scores_that_are_no_numbers_are_no_background(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferred = SlidingWindowInferer.__call__

    def overflowing(self: SlidingWindowInferer, *args: Any, **options: Any) -> Any:
        scores = inferred(self, *args, **options)
        scores[..., 3, 4, 5] = float("nan")
        return scores

    monkeypatch.setattr(SlidingWindowInferer, "__call__", overflowing)
    words = r"_000\.nii\.gz: expected numbers as scores, got NaN in 1 voxels; half precision may overflow"
    with pytest.raises(CasesFailed, match=words):
        infer(trained, phantom_folder / "imagesTs", tmp_path / "out")
    assert names_in(tmp_path / "out") == set()
    with pytest.raises(CasesFailed, match=r"^/.*\.nii\.gz: expected numbers as scores, got NaN in 1 voxels;"):
        evaluate(trained, output_dir=str(tmp_path / "eval"), split="all")
    assert not (tmp_path / "eval" / "cases.csv").exists()


def test_a_name_with_which_no_result_can_be_written_stops_no_other(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    longest = "ü" * 122  # 244 bytes, and _seg.nii.gz has 11
    for name in (longest, longest + "x", "a", "z"):
        shutil.copy(phantom_folder / IMAGE, source / f"{name}.nii.gz")
    (source / f"{longest}.nii.gz").rename(source / f"{longest}.nii.gz")
    with pytest.raises(
        CasesFailed, match=r"1 of 4 cases .*\n  ü+x: .*x\.nii\.gz: expected a shorter name, got 245 bytes, "
    ):
        infer(trained, source, tmp_path / "out")
    assert names_in(tmp_path / "out") == {f"{name}_seg.nii.gz" for name in ("a", "z", longest)}
    with pytest.raises(StartUpRefused, match="would have 256, and 255 are the most"):
        infer(trained, source / f"{longest}x.nii.gz", tmp_path / "out")


# ---- several processes ---------------------------------------------------------------


@pytest.mark.slow  # what one finds of the other is shown below, in this process
def test_two_processes_segment_into_one_folder(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for part, names in {"one": "abc", "two": "cde"}.items():
        (tmp_path / part).mkdir()
        for name in names:
            shutil.copy2(phantom_folder / IMAGE, tmp_path / part / f"{name}.nii.gz")
    command = [sys.executable, "-m", "monai_extra_losses", "infer", "--run", str(trained.root), "--output", str(out)]
    # as a process that is killed leaves it: its folder, and no lock that is held
    (out / ".unfinished-killed").mkdir(parents=True)
    (out / ".unfinished-killed" / ".lock").touch()
    (out / ".segmentations").mkdir()
    (out / ".segmentations" / ".draft.1.record.json").touch()
    os.utime(out / ".segmentations" / ".draft.1.record.json", (0, 0))
    processes = [
        subprocess.Popen([*command, "--input", str(tmp_path / part)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for part in ("one", "two")
    ]
    said = [process.communicate(timeout=600)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert names_in(out) == {f"{name}_seg.nii.gz" for name in "abcde"}
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".segmentations"}
    assert not list((out / ".segmentations").glob(".draft*"))
    for part in ("one", "two"):
        setup = InferenceSetUp(bundle_root=trained.root, metadata={}, input=tmp_path / part, output_dir=out)
        assert setup.items_to_do() == []


def test_the_unfinished_files_of_a_process_that_lives_are_left_alone(tmp_path: Path) -> None:
    mine, others = tmp_path / ".unfinished-1", tmp_path / ".unfinished-2"
    open_unfinished(mine)
    (mine / "half.nii.gz").touch()
    code = "import sys, pathlib; from monai_extra_losses.bundle.segmentation_record import open_unfinished as o; "
    code += "o(pathlib.Path(sys.argv[1])); import os; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(others)], check=False, timeout=600)
    assert (mine / "half.nii.gz").exists()
    assert others.exists()
    open_unfinished(tmp_path / ".unfinished-3")
    assert {path.name for path in tmp_path.iterdir()} == {".unfinished-1", ".unfinished-3"}
    close_unfinished(mine)
    assert not mine.exists()


def test_what_another_process_made_of_another_model_meanwhile_is_not_replaced(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferred = CaseInferer.__call__
    out = tmp_path / "out"

    def infer_twice(self: CaseInferer, *args: Any, **options: Any) -> torch.Tensor:
        monkeypatch.setattr(CaseInferer, "__call__", inferred)
        infer(trained, phantom_folder / IMAGE, out, test_time_flips=[0])  # another process, say
        return inferred(self, *args, **options)

    monkeypatch.setattr(CaseInferer, "__call__", infer_twice)
    with pytest.raises(CasesFailed, match=r"got one of test_time_flips \[0\] instead of \[\]; give another --output"):
        infer(trained, phantom_folder / "imagesTs", out)
    assert len(names_in(out)) == 2
    with pytest.raises(StartUpRefused, match=r"phantom_test_000_seg.* got one of test_time_flips \[0\] instead"):
        infer(trained, phantom_folder / "imagesTs", out)


def test_a_record_of_an_earlier_version_tells_what_is_done(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    infer(trained, phantom_folder / IMAGE, out)
    (record,) = (path for path in (out / ".segmentations").iterdir() if path.suffix == ".json")
    entry = json.loads(record.read_text())
    former = {"format": 1, "cases": {entry.pop("case"): {name: entry[name] for name in entry if name != "format"}}}
    shutil.rmtree(out / ".segmentations")
    (out / ".segmentations.json").write_text(json.dumps(former))
    capsys.readouterr()
    infer(trained, phantom_folder / IMAGE, out)
    assert "1 case(s) skipped, finished in" in capsys.readouterr().out
    for damaged in (
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 1, "cases": {"a": 1}}',
        '{"format": 1, "cases": {"a": {}}}',
    ):
        (out / ".segmentations.json").write_text(damaged)
        with pytest.raises(StartUpRefused, match=r"Expected the record of earlier segmentations in .*got another file"):
            infer(trained, phantom_folder / IMAGE, out)


# ---- exports -------------------------------------------------------------------------


def test_the_exported_network_gives_the_same_labels(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    exported = tmp_path / "model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=str(exported),
        ckpt_file=str(trained.model),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        bundle_root=str(trained.root),
    )
    infer(trained, phantom_folder / IMAGE, tmp_path / "checkpoint")
    network = f"$torch.jit.load({str(exported)!r}).to(@device)"
    infer(trained, phantom_folder / IMAGE, tmp_path / "exported", network=network)
    found, expected = (
        voxels_of(tmp_path / name / "phantom_test_000_seg.nii.gz") for name in ("exported", "checkpoint")
    )
    assert expected.any()
    np.testing.assert_array_equal(found, expected)
