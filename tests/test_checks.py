import dataclasses
import gzip
import json
import logging
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage, MapLabelValue
from volume_files import write_nifti

from monai_extra_losses.bundle.components import intensity_scaling
from monai_extra_losses.bundle.volumes_to_segment import LabelIdReader
from monai_extra_losses.data import CaseSummaries, ChannelIntensity, DatasetError, check_cases, read_case_list
from monai_extra_losses.data.check_report import data_report
from monai_extra_losses.data.checks import TOLERANCE
from monai_extra_losses.data.nifti import NiftiFile
from monai_extra_losses.data.statistics import data_statistics, measure_cases

IMAGE, LABEL = "imagesTr/phantom_001.nii.gz", "labelsTr/phantom_001.nii.gz"


@pytest.fixture
def broken(phantom_folder: Path, tmp_path: Path) -> Path:
    """A copy of the phantom to break."""
    return shutil.copytree(phantom_folder, tmp_path / "data")


def _check(folder: Path, **options: Any) -> CaseSummaries:
    return check_cases(read_case_list(folder), progress=False, **options)


def _change(folder: Path, file: str, change: Callable[[np.ndarray], np.ndarray | None], affine: Any = None) -> None:
    """Rewrite a volume; `change` returns another array or edits the one given."""
    volume = nib.load(folder / file)
    data = np.asarray(volume.dataobj).copy()
    changed = change(data)
    data = data if changed is None else changed
    nib.save(nib.Nifti1Image(data, volume.affine if affine is None else affine), folder / file)


def _cut(folder: Path, file: str, keep: Callable[[bytes], bytes]) -> None:
    (folder / file).write_bytes(keep((folder / file).read_bytes()))


def _patch(folder: Path, file: str, offset: int, *values: float) -> None:
    """Overwrite numbers of the header, where nibabel would not write such a file."""
    new = struct.pack(f"<{len(values)}f", *values)
    _cut(folder, file, lambda b: gzip.compress((b := gzip.decompress(b))[:offset] + new + b[offset + len(new) :]))


def _moved(folder: Path, voxels: float) -> np.ndarray:
    """The label's affine, moved along x by a fraction of the smallest spacing."""
    affine = nib.load(folder / LABEL).affine.copy()
    affine[0, 3] += voxels * 1.0
    return affine


def _turned(folder: Path) -> np.ndarray:
    return nib.load(folder / LABEL).affine @ np.diag([-1, 1, 1, 1])


def _nan(data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float32)
    data[3, 4, 5:7] = np.nan, np.inf
    return data


def _set(value: float) -> Callable[[np.ndarray], None]:
    return lambda data: data.__setitem__((0, 0, slice(0, 3)), value)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing image": (lambda f: (f / IMAGE).unlink(), IMAGE, r"expected a file, got an error \(No such file"),
    "missing label": (lambda f: (f / LABEL).unlink(), LABEL, r"expected a file, got an error \(No such file"),
    "folder": (lambda f: ((f / IMAGE).unlink(), (f / IMAGE).mkdir()), IMAGE, r"expected a readable file"),
    "empty": (lambda f: _cut(f, IMAGE, lambda _: b""), IMAGE, r"expected a NIfTI file, got an empty one"),
    "truncated gzip": (
        lambda f: _cut(f, IMAGE, lambda b: b[: len(b) // 2]),
        IMAGE,
        r"whole gzip file, got a damaged one",
    ),
    "checksum cut off": (lambda f: _cut(f, LABEL, lambda b: b[:-4]), LABEL, r"whole gzip file, got a damaged one"),
    "flipped byte": (
        lambda f: _cut(f, IMAGE, lambda b: b[:-2000] + bytes([b[-2000] ^ 255]) + b[-1999:]),
        IMAGE,
        r"whole gzip file, got a damaged one",
    ),
    "truncated volume": (
        lambda f: _cut(f, IMAGE, lambda b: gzip.compress(gzip.decompress(b)[:5000])),
        IMAGE,
        r"whole NIfTI file of 33120 bytes, as its header declares, got 5000; it is cut off",
    ),
    "not a gzip": (
        lambda f: _cut(f, IMAGE, gzip.decompress),
        IMAGE,
        r"expected a gzip, as its name says, got an uncompressed NIfTI file; rename it to phantom_001\.nii\.$",
    ),
    "not a NIfTI": (
        lambda f: _cut(f, LABEL, lambda _: gzip.compress(b"x" * 999)),
        LABEL,
        r"got something else; convert",
    ),
    "other shape": (
        lambda f: _change(f, LABEL, lambda d: d[:, :, 1:]),
        LABEL,
        r"expected shape \(32, 32, 16\) of .*phantom_001.*, got \(32, 32, 15\)",
    ),
    "other affine": (
        lambda f: _change(f, LABEL, lambda d: None, _moved(f, 1.0)),
        LABEL,
        r"expected the affine of .*phantom_001.* \(corners within 0\.05 mm, 5% .*\), got corners 1 mm away",
    ),
    "mirrored": (lambda f: _change(f, LABEL, lambda d: None, _turned(f)), LABEL, r"got corners 62 mm away"),
    "singular affine": (
        lambda f: _patch(f, IMAGE, 312, 0.0, 0.0, 0.0, 0.0),  # srow_z
        IMAGE,
        r"expected an affine that can be inverted",
    ),
    "flat": (
        lambda f: _change(f, IMAGE, lambda d: d[:, :, 0]),
        IMAGE,
        r"volume of three dimensions, got shape \(32, 32\)",
    ),
    "label of 4 dimensions": (
        lambda f: _change(f, LABEL, lambda d: np.stack([d, d], -1)),
        LABEL,
        r"a volume of three dimensions, got shape \(32, 32, 16, 2\); where it has a layer .* prepare` makes",
    ),
    "undeclared label": (
        lambda f: _change(f, LABEL, _set(7)),
        LABEL,
        r"declared label values \(0 background, 1 organ, 2 lesion\), got 7 \(3 voxels\); .*dataset\.json",
    ),
    "image as label": (lambda f: shutil.copy(f / IMAGE, f / LABEL), LABEL, r"declared label values .* and \d+ more"),
    "interpolated label": (
        lambda f: _change(f, LABEL, lambda d: np.where(d == 2, 1.5, d).astype(np.float32)),
        LABEL,
        r"expected whole numbers as label values, got \d+ voxels with others; resample",
    ),
    "NaN label": (lambda f: _change(f, LABEL, _nan), LABEL, r"expected whole numbers as label values, got 2 voxels"),
    "NaN image": (lambda f: _change(f, IMAGE, _nan), IMAGE, r"expected finite intensities, got 2 voxels of NaN"),
    "constant image": (lambda f: _change(f, IMAGE, lambda d: d * 0 + 5), IMAGE, r"got the constant 5 in every voxel"),
    "colour image": (
        lambda f: _change(f, IMAGE, lambda d: np.zeros(d.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        IMAGE,
        r"expected one real number per voxel, got colours \(RGB\); export the intensities",
    ),
    "two channels": (
        lambda f: _change(f, IMAGE, lambda d: np.stack([d, d], -1)),
        IMAGE,
        r"expected 1 channels, .* got 2; every case needs the same channels",
    ),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_bad_file_is_one_sentence_with_its_name(broken: Path, tmp_path: Path, kind: str) -> None:
    breakage, file, match = BREAKAGES[kind]
    breakage(broken)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DatasetError, match=match) as caught:
            _check(broken, cache_dir=tmp_path / "cache")
        (problem,) = caught.value.problems
        assert problem.startswith(f"{broken / file}: expected ")
        assert "\n" not in problem


def test_all_problems_are_listed_at_once(broken: Path) -> None:
    (broken / "imagesTr/phantom_000.nii.gz").unlink()
    _cut(broken, "labelsTr/phantom_000.nii.gz", lambda _: b"")
    _change(broken, "labelsTr/phantom_002.nii.gz", _set(9))
    _change(broken, "labelsTr/phantom_002.nii.gz", lambda d: d[:-1])
    _change(broken, "imagesTs/phantom_test_001.nii.gz", _nan)
    with pytest.raises(DatasetError, match="5 problems") as caught:
        _check(broken)
    assert [Path(problem.split(": ")[0]).relative_to(broken).as_posix() for problem in caught.value.problems] == [
        "imagesTr/phantom_000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_002.nii.gz",
        "labelsTr/phantom_002.nii.gz",
        "imagesTs/phantom_test_001.nii.gz",
    ]


@pytest.mark.parametrize(("factor", "accepted"), [(0.9, True), (1.1, False)])
def test_tolerance_is_a_fraction_of_the_smallest_spacing(broken: Path, factor: float, accepted: bool) -> None:
    _change(broken, LABEL, lambda d: None, _moved(broken, factor * TOLERANCE))
    if accepted:
        assert _check(broken).labels
    else:
        with pytest.raises(DatasetError, match="expected the affine"):
            _check(broken)


def test_summaries(phantom_folder: Path) -> None:
    summaries = _check(phantom_folder)
    assert (summaries.labels, summaries.channels) == ({0: "background", 1: "organ", 2: "lesion"}, ("simulated",))
    assert [case.name for case in summaries.unlabelled] == ["phantom_test_000", "phantom_test_001"]
    for case, summary in zip(read_case_list(phantom_folder).cases, summaries.cases, strict=True):
        image, label = nib.load(case.image[0]).get_fdata(), nib.load(case.label).get_fdata()
        assert (summary.name, summary.shape, summary.spacing) == (case.name, (32, 32, 16), (1.0, 1.0, 3.0))
        assert summary.voxels == {int(v): int((label == v).sum()) for v in np.unique(label)}
        (found,) = summary.intensity
        assert found == ChannelIntensity(image.min(), image.max(), pytest.approx(image.mean()))


def test_scale_factor_of_the_file_is_applied(broken: Path) -> None:
    _patch(broken, IMAGE, 112, -2.0, 3.0)  # scl_slope, scl_inter
    data = nib.load(broken / IMAGE).get_fdata()
    assert data.max() == 3.0
    (found,) = _check(broken).cases[1].intensity
    assert found == ChannelIntensity(data.min(), data.max(), pytest.approx(data.mean()))
    _patch(broken, LABEL, 112, 2.0, 0.0)
    with pytest.raises(DatasetError, match=r"got 4 \(\d+ voxels\)"):
        _check(broken)


def test_one_file_per_channel_or_one_file_for_all(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    volume, label = random.normal(size=(2, 8, 8, 8)).astype(np.float32), np.eye(8, dtype=np.uint8)[None].repeat(8, 0)
    both, single = tmp_path / "both", tmp_path / "single"
    for folder in (both, single):
        (folder / "imagesTr").mkdir(parents=True)
        (folder / "labelsTr").mkdir()
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr/a.nii")
    nib.save(nib.Nifti1Image(np.moveaxis(volume, 0, -1), np.eye(4)), both / "imagesTr/a.nii.gz")
    for i in range(2):
        nib.save(nib.Nifti2Image(volume[i], np.eye(4)), single / f"imagesTr/a_000{i}.nii")
    assert _check(both).channels == _check(single).channels == ("channel_0", "channel_1")
    assert _check(both).cases == _check(single).cases
    nib.save(nib.Nifti1Image(volume[1], np.diag([1, 1, 2, 1])), single / "imagesTr/a_0001.nii")
    with pytest.raises(DatasetError, match=r"a_0001\.nii: expected the affine of .*a_0000\.nii"):
        _check(single)


def test_labels_are_found_without_a_declaration(broken: Path) -> None:
    (broken / "dataset.json").unlink()
    assert _check(broken).labels == {0: "background", 1: "label_1", 2: "label_2"}
    for case in read_case_list(broken).cases:
        _change(broken, f"labelsTr/{case.name}.nii.gz", lambda d: np.where(d == 1, 3, d).astype(np.uint8))
    with pytest.raises(DatasetError, match=r'without a gap, got 0, 2, 3; write a dataset\.json .*"labels"'):
        _check(broken)
    _change(broken, LABEL, lambda d: d.astype(np.int16) - 1)
    with pytest.raises(DatasetError, match=r"phantom_001.*expected label values of 0 and above, got -1"):
        _check(broken)


def test_declared_label_without_a_voxel_is_a_warning(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    declared = json.loads((broken / "dataset.json").read_text())
    declared["labels"]["3"] = "vessel"
    (broken / "dataset.json").write_text(json.dumps(declared))
    with caplog.at_level(logging.WARNING):
        assert _check(broken).labels[3] == "vessel"
    assert "no case has a voxel of the declared label 3 (vessel)" in caplog.text


def test_cache_is_used_until_a_file_changes(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = NiftiFile.read_stored
    monkeypatch.setattr(NiftiFile, "read_stored", lambda self: (read.append(self.path.name), original(self))[1])
    first = _check(broken, cache_dir=tmp_path / "cache")
    assert len(read) == 16
    read.clear()
    assert _check(broken, cache_dir=tmp_path / "cache") == first
    assert read == []
    os.utime(broken / IMAGE, ns=(0, 0))
    assert _check(broken, cache_dir=tmp_path / "cache") == first
    assert read == [Path(IMAGE).name]


def test_cached_facts_are_judged_anew(broken: Path, tmp_path: Path) -> None:
    _check(broken, cache_dir=tmp_path)
    case_list = dataclasses.replace(read_case_list(broken), labels={0: "background", 1: "organ"})
    with pytest.raises(DatasetError, match=r"got 2 \(\d+ voxels\)"):
        check_cases(case_list, cache_dir=tmp_path, progress=False)


def test_default_cache_folder(phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    _check(phantom_folder)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _check(phantom_folder)
    for parent in (tmp_path / "xdg", tmp_path / "home/.cache"):
        (kept,) = (parent / "monai_extra_losses").iterdir()
        assert kept.suffix == ".json"


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 3, "files": {}}'])
def test_unreadable_cache_is_no_error(
    phantom_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    expected = _check(phantom_folder, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(content)
    assert _check(phantom_folder, cache_dir=tmp_path) == expected
    assert "reading every file again" in caplog.text


def test_unreadable_entry_of_the_cache_is_no_error(
    phantom_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _check(phantom_folder, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    stored = json.loads(kept.read_text())
    for entry in stored["files"].values():
        entry[1] = {}
    kept.write_text(json.dumps(stored))
    assert _check(phantom_folder, cache_dir=tmp_path) == expected
    assert "reading every file again" in caplog.text
    assert json.loads(kept.read_text())["files"] != stored["files"]


def test_cache_that_cannot_be_written_is_no_error(
    phantom_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert _check(phantom_folder, cache_dir=tmp_path / "file/cache").labels
    assert "the next start reads every file again" in caplog.text


def test_result_does_not_depend_on_the_number_of_threads(phantom_folder: Path, tmp_path: Path) -> None:
    one, four = (_check(phantom_folder, num_workers=n, cache_dir=tmp_path / str(n)) for n in (1, 4))
    assert one == four


@pytest.mark.slow
def test_hippocampus_is_checked_faster_the_second_time(hippocampus: Path, tmp_path: Path) -> None:
    case_list = read_case_list(hippocampus)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        summaries = check_cases(case_list, cache_dir=tmp_path, progress=False)
        seconds.append(time.perf_counter() - start)
    assert len(summaries.cases) == 200
    assert sum(summary.voxels[1] for summary in summaries.cases) > 0
    assert seconds[1] < seconds[0] / 2  # 3 s and 0.5 s on an idle machine


# ---- label ids of any size -------------------------------------------------------------------------------------------


def _with_ids(folder: Path, ids: Sequence[float], dtype: type, fields: dict[str, Any] | None = None) -> None:
    """Give the phantom's labels 1 and 2 other ids, of which those are declared that are whole numbers."""
    for file in (*(folder / "labelsTr").iterdir(), *(folder / "labelsTs").iterdir()):
        label = nib.load(file)
        table = np.array([0, *ids], dtype)
        write_nifti(file, table[np.asarray(label.dataobj)], label.affine, fields)
    declared = json.loads((folder / "dataset.json").read_text())
    declared["labels"] = {str(round(value)): f"structure {value}" for value in (0, *ids)}
    (folder / "dataset.json").write_text(json.dumps(declared))


def _as_trained(file: Path, ids: Sequence[int]) -> np.ndarray:
    """A label as train.yaml reads and renumbers it."""
    label = LoadImage(reader=LabelIdReader(), dtype=None, image_only=True)(file)
    return np.asarray(MapLabelValue([0, *ids], [0, 1, 2])(label))


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        ((2**24 + 1, 2**24 + 2), np.int32),
        ((2**32 - 2, 2**32 - 1), np.uint32),
        ((2**40 + 1, 2**40 + 2), np.int64),
        ((2**63 - 2, 2**63 - 1), np.int64),
        ((2**63 - 2, 2**63 - 1), np.uint64),
        ((2**53 - 2, 2**53 - 1), np.float64),
        ((2**24 - 2, 2**24 - 1), np.float32),
        ((70, 65535), np.uint16),
    ],
)
def test_label_ids_are_exact(broken: Path, ids: tuple[int, int], dtype: type) -> None:
    expected = {case.name: tuple(case.voxels.values()) for case in _check(broken).cases}
    before = np.asarray(nib.load(broken / LABEL).dataobj)
    _with_ids(broken, ids, dtype)
    report = data_report(broken)  # with the components, and no array as long as the largest id
    assert report.summaries.remarks == ()
    for case in report.summaries.cases:
        assert case.voxels.keys() <= {0, *ids}
        assert tuple(case.voxels.values()) == expected[case.name]
    assert {entry.value: entry.missing_cases for entry in report.statistics.classes} == {ids[0]: 0, ids[1]: 1}
    assert all(measured.components.keys() <= set(ids) for measured in report.measures)
    assert np.array_equal(_as_trained(broken / LABEL, ids), before)


def test_label_ids_beyond_64_bits_are_refused(broken: Path) -> None:
    for value, dtype in ((2**63, np.uint64), (1e300, np.float64), (-(2.0**64), np.float64)):
        label = nib.load(broken / LABEL)
        voxels = np.asarray(label.dataobj).astype(dtype)
        voxels[voxels > 1] = value
        write_nifti(broken / LABEL, voxels, label.affine)
        with pytest.raises(
            DatasetError, match=r"label ids of at most 9223372036854775807 \(64 bits with a sign\), got"
        ):
            _check(broken)
        with pytest.raises(DatasetError, match=r"got larger ones in \d+ voxels; give them smaller ids"):
            _as_trained(broken / LABEL, (1, 2))


@pytest.mark.parametrize(
    ("stored", "dtype", "fields"),
    [
        ((0.9999999993, 2.9999999993), np.float64, {}),
        ((1.0000001, 2.9999998), np.float32, {}),
        ((85, 255), np.uint8, {"scl_slope": 3 / 255}),  # in float32, which gives 1.0000000298
    ],
)
def test_label_values_a_little_off_whole_numbers_count_as_these(
    broken: Path, stored: tuple[float, float], dtype: type, fields: dict[str, Any]
) -> None:
    before = np.asarray(nib.load(broken / LABEL).dataobj)
    _with_ids(broken, stored, dtype, fields)
    declared = json.loads((broken / "dataset.json").read_text())
    declared["labels"] = {"0": "background", "1": "organ", "3": "lesion"}
    (broken / "dataset.json").write_text(json.dumps(declared))
    report = data_report(broken)
    (remark,) = report.summaries.remarks
    assert remark.endswith(
        "label values a little off whole numbers, such as 2.9999999, are taken as the whole numbers."
    )
    assert set(report.summaries.cases[1].voxels) == set(report.measures[1].components) | {0} == {0, 1, 3}
    assert np.array_equal(_as_trained(broken / LABEL, (1, 3)), before)


def test_ids_that_their_type_cannot_tell_apart_are_told(broken: Path) -> None:
    _with_ids(broken, (2**24 + 2, 2**24 + 4), np.float32)
    (remark,) = _check(broken).remarks
    assert "do not hold each of them (float32 above 16777216), so that the program that wrote them may have" in remark


# ---- outliers --------------------------------------------------------------------------------------------------------


def _some(share: float, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Another value in a share of the voxels, in float64."""

    def change(data: np.ndarray) -> np.ndarray:
        data = data.astype(np.float64)
        data.ravel()[: max(1, round(share * data.size))] = value
        return data

    return change


FLOAT_MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("share", "value", "blank"),
    [
        (0, 30.0, False),
        (0, 1e9, True),
        (0, -FLOAT_MAX, True),
        (0.3, -FLOAT_MAX, True),
        (0.3, 1e6, True),
        (0.3, -1024.0, False),
    ],
)
def test_outliers_that_blank_an_image_are_named(
    broken: Path, caplog: pytest.LogCaptureFixture, share: float, value: float, blank: bool
) -> None:
    before = np.asarray(nib.load(broken / IMAGE).dataobj)
    _change(broken, IMAGE, _some(share, value))
    with caplog.at_level(logging.WARNING):
        remarks = _check(broken).remarks
    assert remarks == tuple(caplog.messages)
    image = torch.as_tensor(np.asarray(nib.load(broken / IMAGE).dataobj), dtype=torch.float32)[None]
    others = (image - value).abs() > 1e-3 * abs(value)
    rest = intensity_scaling("image", None)({"image": image.clone()})["image"][others]
    if not blank:
        assert remarks == ()
        assert rest.max() - rest.min() > 0.1
        return
    (sentence,) = remarks
    found = re.fullmatch(
        rf"{broken / IMAGE}: (.*)% of the voxels, from (\S*) to (\S*), become one grey when the image is normalised, "
        r"because others reach (\S*); replace these, or let --hu_window clip them in training\.",
        sentence,
    )
    assert found
    assert float(found[1]) == pytest.approx(min(100 * (1 - share), 99.99), abs=0.02)
    assert float(found[4]) == pytest.approx(value, rel=1e-4)
    assert float(found[2]) >= before.min() - 1e-3
    assert float(found[3]) <= before.max() + 1e-3
    assert not (rest.max() - rest.min() > 0.01)  # or NaN


def test_an_image_of_two_values_is_not_blank(broken: Path) -> None:
    _change(broken, IMAGE, lambda d: (d > d.mean()).astype(np.float32))
    _change(broken, "imagesTr/phantom_002.nii.gz", lambda d: (np.arange(d.size) == 7).reshape(d.shape).astype(np.uint8))
    assert _check(broken).remarks == ()


def test_many_blank_images_are_counted(broken: Path) -> None:
    for name in ("imagesTr", "imagesTs"):
        for file in sorted((broken / name).iterdir()):
            _change(broken, f"{name}/{file.name}", _some(0, 1e12))
    remarks = _check(broken).remarks
    assert len(remarks) == 6
    assert remarks[-1] == "3 more images become one grey when they are normalised."


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_some(0, 1e300), r"expected intensities that float32 holds \(up to 3\.4e\+38\), got 1e\+300; replace such"),
        (_some(0, -3.5e38), r"got -3\.5e\+38; replace such voxels"),
        (
            lambda d: np.where(d > d.mean(), 2**30 + 1, 2**30).astype(np.int32),
            r"expected an image, got intensities from 1073741824 to 1073741825, which are one number in float32",
        ),
    ],
)
def test_intensities_that_float32_does_not_hold(broken: Path, change: Callable[..., np.ndarray], match: str) -> None:
    _change(broken, IMAGE, change)
    with pytest.raises(DatasetError, match=match):
        _check(broken)


def test_a_volume_beyond_memory_is_one_sentence(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("monai_extra_losses.data.checks.deviation", no_memory)
    with pytest.raises(DatasetError, match=rf"{broken / IMAGE}: expected a volume that fits into memory, got a larger"):
        _check(broken)


# ---- classes that a case does not annotate ------------------------------------------------------------------------


def _annotate(folder: Path, number: int, *values: int, **declared: Any) -> Path:
    """The phantom, of which one case annotates some classes only."""
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][number]["annotated"] = list(values)
    (folder / "dataset.json").write_text(json.dumps(content | declared))
    return folder


def test_voxels_of_a_class_that_the_case_does_not_annotate_are_a_problem(broken: Path) -> None:
    lesion = int((np.asarray(nib.load(broken / LABEL).dataobj) == 2).sum())
    assert lesion > 0
    with pytest.raises(DatasetError) as caught:
        _check(_annotate(broken, 1, 1))
    assert caught.value.problems == [
        f"{broken / LABEL}: expected voxels of the classes that the case annotates (1 organ), got 2 lesion ({lesion} "
        f"voxels); add 2 to its `annotated` in {broken / 'dataset.json'}, or remove the voxels from the label map."
    ]
    _check(_annotate(broken, 1, 1, 2))
    _change(broken, LABEL, lambda data: np.where(data == 2, 0, data))
    found = _check(_annotate(broken, 1, 1))  # no voxel of it, and what the check remembers of the file is old
    assert [case.annotated for case in found.cases] == [None, (1,), None, None, None, None]


def test_what_is_undeclared_or_ignored_is_no_class_that_a_case_does_not_annotate(broken: Path) -> None:
    _change(broken, LABEL, lambda data: np.where(data == 2, 0, data))
    _change(broken, LABEL, _set(9))
    with pytest.raises(DatasetError, match=r"expected the declared label values .*, got 9 \(3 voxels\)") as caught:
        _check(_annotate(broken, 1, 1))
    assert len(caught.value.problems) == 1
    _check(_annotate(broken, 1, 1, ignore_label=9))
    # labels of test cases are read by an evaluation
    content = json.loads((broken / "dataset.json").read_text())
    entry = content["test"][0]
    content["test"] = [entry | {"annotated": [1]}] if isinstance(entry, dict) else []
    (broken / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"labelsTs/.*expected voxels of the classes that .*, got 2 lesion \("):
        _check(broken)


def test_a_part_of_the_cases_need_not_annotate_every_class(broken: Path) -> None:
    """A fold or a limit leaves out the cases that annotate it; `check` looks at all."""
    _change(broken, LABEL, lambda data: np.where(data == 2, 0, data))
    case_list = read_case_list(_annotate(broken, 1, 1))
    part = dataclasses.replace(case_list, cases=case_list.cases[1:2], unlabelled=())
    assert check_cases(part, progress=False).labels == {0: "background", 1: "organ", 2: "lesion"}
    summaries, measures = measure_cases(part, progress=False)
    assert [entry.annotated_cases for entry in data_statistics(summaries, measures).classes] == [1, 0]
