"""NIfTI headers that programs read differently: one reading everywhere, or a sentence."""

import gzip
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from loss_list import each
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd
from numpy.typing import NDArray
from volume_files import block_label, random_image, rotation, write_nifti

import monai_extra_losses
from monai_extra_losses.bundle.loaded_cases import CheckLoadedCased
from monai_extra_losses.bundle.volumes_to_segment import AnyVolumeReader, LabelIdReader, find_inputs, refuse_unlike
from monai_extra_losses.data import (
    CaseSummaries,
    DatasetError,
    PreparedDataset,
    PrepareOptions,
    check_cases,
    open_volume,
    prepare_dataset,
    read_case_list,
)

AFFINE = np.eye(4)
AFFINE[:3, :3] = rotation(5, 6, 7) * [-0.7, 1.1, 2.5]
AFFINE[:3, 3] = (3, 4, 5)
SKEWED = AFFINE.copy()
SKEWED[0, 1] += 1e-4
ONLY_QFORM = {"qform_code": 1, "sform_code": 0}
ONLY_SFORM = {"qform_code": 0, "sform_code": 2}
NEITHER = {"qform_code": 0, "sform_code": 0}
NAN = float("nan")

VOXELS = random_image()
LARGE = VOXELS.astype(np.int64) << 40

# name -> voxels, affine, header fields, further options of `write_nifti`
HEADERS: dict[str, tuple[NDArray[Any], NDArray[np.float64], dict[str, Any], dict[str, Any]]] = {
    "both": (VOXELS, AFFINE, {}, {}),
    "qform": (VOXELS, AFFINE, {"qform_code": 1, "sform_code": 0}, {}),
    "qform of qfac 0": (
        VOXELS,
        np.abs(np.diag([2.0, 3, 4, 1])),
        {"qform_code": 1, "sform_code": 0, "pixdim": [0]},
        {},
    ),
    "sform": (VOXELS, AFFINE, ONLY_SFORM, {}),
    "sform off right angles": (VOXELS, SKEWED, ONLY_SFORM, {}),
    "neither": (VOXELS, AFFINE, NEITHER, {}),
    "qform elsewhere": (VOXELS, AFFINE, {"qoffset_x": 40.0}, {}),
    "slope": (VOXELS, AFFINE, {"scl_slope": 2.5, "scl_inter": -100}, {}),
    "intercept": (VOXELS, AFFINE, {"scl_slope": 1, "scl_inter": -1024}, {}),
    "intercept alone": (VOXELS, AFFINE, {"scl_slope": 0, "scl_inter": -1024}, {}),
    "intercept with NaN": (VOXELS, AFFINE, {"scl_slope": NAN, "scl_inter": -1024}, {}),
    "unsigned with slope": (VOXELS.astype(np.uint16), AFFINE, {"scl_slope": 0.1, "scl_inter": 3}, {}),
    "float with slope": (VOXELS.astype(np.float32), AFFINE, {"scl_slope": 0.1, "scl_inter": 3}, {}),
    "64 bits": (LARGE, AFFINE, {}, {}),
    "double": (VOXELS / 3, AFFINE, {}, {}),
    "NIfTI-2": (VOXELS, AFFINE, {}, {"version": 2}),
    "big endian": (VOXELS, AFFINE, {}, {"endian": ">"}),
    "big endian NIfTI-2": (VOXELS, AFFINE, {}, {"endian": ">", "version": 2}),
    "wrong bitpix": (VOXELS, AFFINE, {"bitpix": 32}, {}),
    "no unit": (VOXELS, AFFINE, {"xyzt_units": 0}, {}),
    "a fourth axis of one": (VOXELS, AFFINE, {"dim": [4, 7, 6, 5, 1]}, {}),
}


def write_header(name: str, file: Path) -> Path:
    voxels, affine, fields, options = HEADERS[name]
    return write_nifti(file, voxels, affine, fields, **options)


def as_check_sees(file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    from monai_extra_losses.data.checks import read_voxels

    opened, stored = read_voxels(file, "image")
    return opened.scaled(stored)[..., 0], opened.affine


def as_simpleitk(file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    source = open_volume(file)
    image = source.load()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    assert source.pixel_type == image.GetPixelID()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def as_inference(file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    loaded = LoadImage(reader=AnyVolumeReader(), image_only=True)(file)
    return loaded.numpy(), loaded.affine.numpy()


def as_training(file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """By the first transform of train.yaml, and of evaluate.yaml."""
    found = []
    for config, where in (("train", "preparation"), ("evaluate", "validate::preprocessing")):
        content = ConfigParser.load_config_file(str(monai_extra_losses.config_dir() / f"{config}.yaml"))
        transforms = content[where] if config == "train" else content[where]["transforms"]
        found.append(ConfigParser({"load": transforms[0]}).get_parsed_content("load")({"image": [str(file)]})["image"])
    assert np.array_equal(*found)
    return found[0].numpy()[0], found[0].affine.numpy()


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_command_sees_the_volume_that_nibabel_sees(tmp_path: Path, name: str, suffix: str) -> None:
    file = write_header(name, tmp_path / "images" / f"a{suffix}")
    reference = nibabel.load(file)
    values, affine = np.asanyarray(reference.dataobj).reshape(VOXELS.shape, order="F"), reference.affine
    for read in (as_check_sees, as_simpleitk):
        found, place = read(file)
        assert found.dtype == values.dtype.newbyteorder("=")
        assert np.array_equal(found, values), read
        assert np.allclose(place, affine, rtol=0, atol=1e-12)
    for read in (as_inference, as_training):
        found, place = read(file)
        assert found.dtype == np.float32
        assert np.array_equal(found, values.astype(np.float32)), read
        assert np.array_equal(place, affine)
    monais = LoadImage(image_only=True)(file)
    assert np.array_equal(monais.numpy().reshape(values.shape), values.astype(np.float32))
    assert np.array_equal(monais.affine.numpy(), affine)
    prepared = prepare(tmp_path, label_affine=affine)
    written = nibabel.load(prepared.folder / "imagesTr" / "a.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj).astype(np.float32), values.astype(np.float32))
    assert np.allclose(written.affine, affine, rtol=0, atol=1e-6)


def prepare(folder: Path, label_affine: NDArray[np.float64]) -> PreparedDataset:
    """The image of a folder with a label on that affine, prepared."""
    write_nifti(folder / "labels" / "a.nii.gz", block_label(), label_affine, ONLY_SFORM)
    options = PrepareOptions(images=folder / "images", labels=folder / "labels", num_folds=0)
    return prepare_dataset(options, folder / "out", num_workers=1)


def test_the_sform_counts_where_pixdim_has_another_spacing(tmp_path: Path) -> None:
    """MONAI takes the qform then, which no code declares, and training measured in other millimetres than check."""
    fields = {**ONLY_SFORM, "pixdim": [1, 1, 1, 1]}
    file = write_nifti(tmp_path / "images" / "a.nii.gz", VOXELS, np.diag([2.0, 3, 4, 1]), fields)
    for read in (as_check_sees, as_simpleitk, as_inference, as_training):
        assert np.array_equal(read(file)[1], np.diag([2, 3, 4, 1]))
    assert np.array_equal(LoadImage(image_only=True)(file).affine.numpy(), np.eye(4))
    assert "pixdim has another spacing than the sform, and the sform is taken" in said_by_prepare(tmp_path)


def said_by_prepare(folder: Path) -> str:
    return prepare(folder, nibabel.load(next((folder / "images").iterdir())).affine).summary()


REMARKS = {
    "neither": "the header gives no orientation (qform_code and sform_code are 0), so the first axis is taken to run "
    "from right to left, the second from back to front and the third from foot to head, with the spacing of pixdim.",
    "qform elsewhere": "qform and sform place the volume differently, and the sform is taken.",
    "intercept alone": "the header has an intercept (scl_inter) without a slope (scl_slope), so the voxels are taken",
    "intercept with NaN": "the header has an intercept (scl_inter) without a slope",
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_a_header_leaves_open_is_said_once_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    affine = nibabel.load(write_header(name, tmp_path / "images" / "a.nii.gz")).affine
    images = tmp_path / "data" / "imagesTr"
    for case in "bcd":
        write_header(name, images / f"{case}.nii.gz")
        write_nifti(tmp_path / "data" / "labelsTr" / f"{case}.nii.gz", block_label(), affine, ONLY_SFORM)
    with caplog.at_level(logging.WARNING):
        summaries = check(tmp_path / "data")
    assert summaries.remarks == tuple(caplog.messages)
    found = [remark for remark in summaries.remarks if "become one grey" not in remark]
    if name in REMARKS:
        (sentence,) = found
        assert sentence.startswith(f"{images / 'b.nii.gz'} and 2 more (of 6 files): {REMARKS[name]}")
        assert f"{tmp_path / 'images' / 'a.nii.gz'} (of 2 files): {REMARKS[name]}" in said_by_prepare(tmp_path)
    else:
        assert found == []
        assert "(of 2 files)" not in said_by_prepare(tmp_path)
    refuse_unlike([images / "b.nii.gz"], 1)
    assert "pixdim" not in capfd.readouterr().err  # nibabel's own lines, which name no file


def check(folder: Path) -> CaseSummaries:
    return check_cases(read_case_list(folder), progress=False, cache_dir=folder.parent / "cache")


# ---- no orientation --------------------------------------------------------------------------------------------------


def test_files_without_orientation_lie_as_everywhere_once_prepared(phantom_folder: Path, tmp_path: Path) -> None:
    """SimpleITK would turn the second axis round: what was segmented before would be mirrored after."""
    for kind in ("images", "labels"):
        for file in sorted((phantom_folder / f"{kind}Tr").iterdir()):
            image = nibabel.load(file)
            fields = {**NEITHER, "pixdim": [1, *image.header["pixdim"][1:4]]}
            write_nifti(tmp_path / kind / file.name, np.asanyarray(image.dataobj), image.affine, fields)
    prepare_dataset(
        PrepareOptions(images=tmp_path / "images", labels=tmp_path / "labels", num_folds=0),
        tmp_path / "out",
        num_workers=1,
    )
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    (tmp_path / "labels").rename(tmp_path / "labelsTr")
    before, after = check(tmp_path).cases, check(tmp_path / "out").cases
    assert len(before) == 6
    for case, prepared in zip(before, after, strict=True):
        assert (case.name, case.voxels, case.intensity) == (prepared.name, prepared.voxels, prepared.intensity)
        assert np.allclose(case.affine, prepared.affine, atol=1e-5)
        images = [tmp_path / part / "imagesTr" / f"{case.name}.nii.gz" for part in ("", "out")]
        for read in (as_training, as_inference):
            (voxels, affine), (voxels_after, affine_after) = map(read, images)
            assert np.array_equal(voxels, voxels_after)
            assert np.allclose(affine, affine_after, atol=1e-5)


@pytest.mark.parametrize("without", ["image", "label"])
def test_a_missing_orientation_is_no_misplaced_label(tmp_path: Path, without: str) -> None:
    for kind, voxels in (("images", VOXELS), ("labels", block_label())):
        fields = NEITHER if without in kind else {}
        write_nifti(tmp_path / f"{kind}Tr" / "a.nii.gz", voxels, AFFINE, fields)
    lacking = tmp_path / f"{without}sTr" / "a.nii.gz"
    hint = rf"The header of {lacking} gives no orientation, .* give it the affine of a\.nii\.gz, with nibabel\."
    with pytest.raises(DatasetError, match=rf"got corners .* mm away; resample it onto that grid\. {hint}"):
        check(tmp_path)
    options = PrepareOptions(images=tmp_path / "imagesTr", labels=tmp_path / "labelsTr", num_folds=0)
    with pytest.raises(DatasetError, match=rf"let --resample-labels do it\. {hint}"):
        prepare_dataset(options, tmp_path / "out", num_workers=1)
    with pytest.raises(DatasetError, match=rf"got another; resample it onto that grid\. {hint}"):
        AnyVolumeReader().get_data([tmp_path / "imagesTr" / "a.nii.gz", tmp_path / "labelsTr" / "a.nii.gz"])


def test_two_forms_are_a_hint_where_a_label_lies_elsewhere(tmp_path: Path) -> None:
    write_nifti(tmp_path / "imagesTr" / "a.nii.gz", VOXELS, AFFINE)
    label = write_nifti(tmp_path / "labelsTr" / "a.nii.gz", block_label(), AFFINE, {"srow_x": AFFINE[0] + [0, 0, 0, 9]})
    with pytest.raises(DatasetError, match=rf"In {label} qform and sform differ and the sform is taken: is it the ri"):
        check(tmp_path)


@pytest.mark.parametrize("angles", [(0, 0, 135), (45, 0, 45), (0, 0, 45)])
def test_a_label_is_turned_with_its_image(tmp_path: Path, angles: tuple[float, float, float]) -> None:
    """Between two axes rounding decides, and that of a qform is another than that of an sform."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles)
    files = {
        kind: str(write_nifti(tmp_path / f"{kind}.nii", VOXELS, affine, fields))
        for kind, fields in (("image", ONLY_SFORM), ("label", ONLY_QFORM))
    }
    values = np.unique(VOXELS).tolist()
    turned = Compose(
        [
            LoadImaged(keys="image", reader=AnyVolumeReader(), ensure_channel_first=True),
            LoadImaged(keys="label", reader=LabelIdReader(), dtype=None, ensure_channel_first=True),
            CheckLoadedCased(in_channels=1, label_values=values),
            Orientationd(keys=["image", "label"], axcodes="RAS", labels=None),
        ]
    )(files)
    assert np.array_equal(turned["image"], turned["label"])
    assert np.array_equal(turned["image"].affine, turned["label"].affine)


@pytest.mark.parametrize(("shift", "accepted"), [(0.04, True), (0.06, False)])
def test_channels_need_one_grid_as_check_says(tmp_path: Path, shift: float, accepted: bool) -> None:
    """MONAI asks for equal numbers, so that a training ended where check had no problem."""
    for channel in (0, 1):
        moved = np.eye(4)
        moved[0, 3] = shift * channel
        write_nifti(tmp_path / "imagesTr" / f"a_000{channel}.nii.gz", VOXELS, moved)
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", block_label(), np.eye(4))
    files = sorted((tmp_path / "imagesTr").iterdir())
    if accepted:
        check(tmp_path)
        voxels, header = AnyVolumeReader().get_data(files)
        assert np.array_equal(voxels, [VOXELS, VOXELS])
        assert np.array_equal(header["affine"], np.eye(4))
    else:
        with pytest.raises(DatasetError, match="expected the affine of"):
            check(tmp_path)
        with pytest.raises(DatasetError, match="expected the grid of"):
            AnyVolumeReader().get_data(files)


# ---- what is refused -------------------------------------------------------------------------------------------------


def odd(fields: dict[str, Any], voxels: NDArray[Any] = VOXELS) -> Callable[[Path], Path]:
    return lambda folder: write_nifti(folder / "a.nii.gz", voxels, AFFINE, fields)


def plain(
    name: str, change: Callable[[bytes], bytes] = lambda content: content, version: int = 1
) -> Callable[[Path], Path]:
    """An uncompressed NIfTI file of that name, changed."""

    def make(folder: Path) -> Path:
        content = write_nifti(folder / "a.nii", VOXELS, AFFINE, version=version).read_bytes()
        (folder / "a.nii").unlink()
        (folder / name).write_bytes(change(content))
        return folder / name

    return make


COLOURS = np.zeros(VOXELS.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
ODD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "vox_offset 0": (odd({"vox_offset": 0}), r"expected the voxels from byte 352 on, got vox_offset 0, inside the"),
    "vox_offset 100": (odd({"vox_offset": 100}), r"got vox_offset 100, inside the header"),
    "vox_offset negative": (odd({"vox_offset": -5}), r"got vox_offset -5"),
    "vox_offset NaN": (odd({"vox_offset": NAN}), r"got vox_offset nan"),
    "vox_offset beyond": (odd({"vox_offset": 368}), r"whole NIfTI file of 788 bytes, as its header declares, got 772"),
    "metres": (odd({"xyzt_units": 1}), r"expected millimetres, got a header in metres \(xyzt_units\)"),
    "microns": (odd({"xyzt_units": 3 | 8}), r"expected millimetres, got a header in microns .*set_xyzt_units"),
    "complex": (odd({}, VOXELS.astype(np.complex64)), r"one real number per voxel, got voxels of type complex64"),
    "colours": (odd({}, COLOURS), r"one real number per voxel, got colours \(RGB\); export the intensities or the lab"),
    "unknown type": (odd({"datatype": 0}), r"damaged header \(the voxels have the unknown type 0\)"),
    "dim damaged": (
        odd({"dim": [3, 4000, 4000, 1000]}),
        r"of 32000000352 bytes, as its header declares, got a gzip of \d+, which cannot hold them; .* copy it again",
    ),
    "dim negative": (odd({"dim": [3, -7, 6, 5]}), r"damaged header \(the shape is \(-7, 6, 5\)\); copy it again"),
    "dim zero": (odd({"dim": [3, 7, 0, 5]}), r"damaged header \(the shape is \(7, 0, 5\)\)"),
    "no dimensions": (odd({"dim": [0]}), r"damaged header \(dim\[0\], the number of dimensions, is 0\)"),
    "nine dimensions": (odd({"dim": [9]}), r"damaged header \(dim\[0\], the number of dimensions, is 9\)"),
    "dimensions as of the other byte order": (odd({"dim": [300]}), r"the number of dimensions, is 300\)"),
    "one dimension less": (odd({"dim": [2]}), r"expected a volume of three dimensions, got shape \(7, 6\)"),
    "header of another size": (odd({"sizeof_hdr": 349}), r"damaged header \(sizeof_hdr is not 348\)"),
    "spacing 0": (odd({**ONLY_QFORM, "pixdim": [1, 0]}), r"expected a spacing above 0, got \[0\.0, 1\.1.* correct the"),
    "spacing negative": (odd({**ONLY_QFORM, "pixdim": [1, -0.7]}), r"expected a spacing above 0, got \[-0\.69"),
    "spacing NaN": (odd({**NEITHER, "pixdim": [1, NAN]}), r"expected a spacing above 0, got \[nan"),
    "unknown code": (odd({"sform_code": 7}), r"damaged header \(sform_code is 7\)"),
    "no rotation": (odd({**ONLY_QFORM, "quatern_b": 2}), r"damaged header \(w2 should be positive"),
    "flat affine": (odd({"srow_z": [0, 0, 0, 0]}), r"expected an affine that can be inverted"),
    "no intercept": (odd({"scl_slope": 2, "scl_inter": NAN}), r"damaged header \(Valid slope but invalid intercept"),
    "gzip named .nii": (
        plain("a.nii", gzip.compress),
        r"expected an uncompressed file, as its name says, got a gzip; rename it to a\.nii\.gz\.",
    ),
    "not compressed": (
        plain("a.nii.gz"),
        r"expected a gzip, as its name says, got an uncompressed NIfTI file; rename it to a\.nii\.$",
    ),
    "cut": (plain("a.nii", lambda content: content[:-9]), r"of 772 bytes, as its header declares, got 763; it is cut"),
    "cut in the header": (plain("a.nii", lambda content: content[:200]), r"damaged header \(it ends after 200 bytes\)"),
    "cut in a NIfTI-2 header": (
        plain("a.nii", lambda content: content[:400], version=2),
        r"damaged header \(it ends after 400 bytes\)",
    ),
    "NIfTI-2 header of another size": (
        plain("a.nii", lambda content: b"\x1d" + content[1:], version=2),
        r"damaged header \(sizeof_hdr is not 540\)",
    ),
    "pair": (
        plain("a.nii", lambda content: content[:344] + b"ni1\0" + content[348:]),
        r"got the header of a pair \(\.hdr and \.img\); convert it",
    ),
    "Analyze": (
        plain("a.nii", lambda content: content[:344] + bytes(4) + content[348:]),
        r"got an Analyze header, which knows no orientation; convert it",
    ),
}


def of_check(file: Path) -> None:
    (file.parent / "imagesTr").mkdir()
    file.rename(file.parent / "imagesTr" / file.name)
    write_nifti(file.parent / "labelsTr" / file.name, block_label(), AFFINE)
    check(file.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "prepare": open_volume,
    "infer at the start": lambda file: refuse_unlike([file], 1),
    "infer": lambda file: AnyVolumeReader().get_data([file]),
    "training": lambda file: LabelIdReader().get_data([file]),
    "check": of_check,
}


@pytest.mark.parametrize("kind", ODD_FILES)
@each("reader", READERS)
def test_an_odd_header_is_refused_by_every_command(tmp_path: Path, kind: str, reader: str) -> None:
    make, match = ODD_FILES[kind]
    (tmp_path / reader).mkdir()
    file = make(tmp_path / reader)
    if kind == "vox_offset beyond" and reader == "infer at the start":
        assert refuse_unlike([file], 1)  # the end of a gzip is not looked for
        return
    with pytest.raises(DatasetError, match=match) as refused:
        READERS[reader](file)
    (sentence,) = refused.value.problems
    assert sentence.split(":")[0].endswith(file.name)
    assert sentence.endswith(".")


def test_a_header_that_a_gzip_could_fulfil_takes_no_memory(tmp_path: Path) -> None:
    """A gzip may stand for a thousand times its bytes, so that the end of the data tells."""
    noise = np.random.default_rng(0).integers(-9999, 9999, (60, 60, 60)).astype(np.int16)
    file = write_nifti(tmp_path / "a.nii.gz", noise, AFFINE, {"dim": [3, 500, 500, 500]})
    for read in (open_volume, lambda file: AnyVolumeReader().get_data([file])):
        with pytest.raises(
            DatasetError, match=r"of 250000352 bytes, as its header declares, got 432352; it is cut off"
        ):
            read(file)


# ---- what is no file -------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """A reader that opens a named pipe waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def bound_socket(file: Path) -> None:
    """Names of sockets are short."""
    here = Path.cwd()
    os.chdir(file.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(here)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "named pipe": (os.mkfifo, r"expected a readable file, got a named pipe\."),
    "device": (lambda file: file.symlink_to("/dev/zero"), r"expected a readable file, got a device\."),
    "socket": (bound_socket, r"expected a readable file, got a socket\."),
    "folder": (Path.mkdir, r"got a folder"),
    "link to nothing": (lambda file: file.symlink_to("nowhere"), r"no such file|No such file"),
}


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("kind", NO_FILES)
@each("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, suffix: str) -> None:
    make, match = NO_FILES[kind]
    tmp_path = tmp_path / suffix.strip(".")
    tmp_path.mkdir()
    file = tmp_path / f"a{suffix}"
    make(file)
    for name, read in READERS.items():
        if name != "check" or (suffix.startswith(".nii") and kind != "folder"):
            with pytest.raises(DatasetError, match=match):
                read(file)
    if kind == "folder":
        return
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder / f"b{suffix}")
    write_nifti(folder / "c.nii", VOXELS, AFFINE)
    assert sorted(find_inputs(folder, 1).cases) == ["b", "c"]  # named as one that fails, and not passed over


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(
    ("name", "header"),
    [
        (
            "a.mhd",
            "NDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = data",
        ),
        (
            "a.nhdr",
            "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\ndata file: data\n",
        ),
        (
            "a.nhdr",
            "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n"
            "data file: %s%d.raw 0 5 1\n",
        ),
    ],
)
def test_voxels_beside_a_header_that_are_no_file(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / name).write_text(header.replace("%s", "s"))
    for pipe in ("data", "s0.raw"):
        os.mkfifo(tmp_path / pipe)
    with pytest.raises(DatasetError, match=r"(data|s0\.raw): expected a readable file, got a named pipe"):
        open_volume(tmp_path / name)


@pytest.mark.usefixtures("_no_waiting")
def test_a_named_pipe_among_slices(tmp_path: Path) -> None:
    (tmp_path / "P").mkdir()
    os.mkfifo(tmp_path / "P" / "notes")
    with pytest.raises(DatasetError, match="got a folder without DICOM images"):
        open_volume(tmp_path / "P")
    os.mkfifo(tmp_path / "P" / "1.dcm")
    with pytest.raises(DatasetError, match=r"1\.dcm: expected a readable file, got a named pipe"):
        open_volume(tmp_path / "P")


def test_remarks_survive_the_cache(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data" / "imagesTr" / "a.nii.gz", VOXELS, AFFINE, NEITHER)
    write_nifti(tmp_path / "data" / "labelsTr" / "a.nii.gz", block_label(), AFFINE, NEITHER)
    first = check(tmp_path / "data")
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(json.loads(kept.read_text())["files"]) == 2
    assert check(tmp_path / "data") == first
    assert "and 1 more (of 2 files): the header gives no orientation" in first.remarks[0]
