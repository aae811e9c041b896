"""Labels that name their structures or keep each in a layer or file: 3D Slicer's .seg.nrrd, one-hot, masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from volume_files import DIRECTIONS, block_label, random_image, volume, write

from monai_extra_losses.cli import main
from monai_extra_losses.data import (
    DatasetError,
    PreparedDataset,
    PrepareOptions,
    check_cases,
    prepare_dataset,
    read_case_list,
)
from monai_extra_losses.data.label_layers import open_label
from monai_extra_losses.data.layouts import organ_mask_patterns

SHAPE = (7, 6, 5)
Segments = Sequence[tuple[str, int, int]]
"""Name, value and layer of each."""


def box(first: int, last: int, value: int = 1) -> NDArray[np.uint8]:
    """Some planes of a volume."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[first:last] = value
    return voxels


def write_segmentation(file: Path, layers: Sequence[NDArray[Any]], segments: Segments = ()) -> Path:
    """A file as 3D Slicer writes it: a layer, or several as the components of a voxel."""
    image = volume(layers[0])
    if len(layers) > 1:
        voxels = np.stack([layer.T for layer in layers], axis=-1)
        several = sitk.GetImageFromArray(voxels, isVector=True)
        several.CopyInformation(image)
        image = several
    for number, (name, value, layer) in enumerate(segments):
        for field, entry in (("ID", f"S_{number}"), ("LabelValue", value), ("Layer", layer), ("Name", name)):
            image.SetMetaData(f"Segment{number}_{field}", str(entry))
    return write(image, file)


def sources(folder: Path, **labels: tuple[Sequence[NDArray[Any]], Segments]) -> Path:
    for seed, (name, (layers, segments)) in enumerate(labels.items()):
        write(volume(random_image(seed)), folder / "images" / f"{name}.nrrd")
        write_segmentation(folder / "labels" / f"{name}.seg.nrrd", layers, segments)
    return folder


def prepare(folder: Path, **options: Any) -> PreparedDataset:
    options = {"images": folder / "images", "labels": folder / "labels", "num_folds": 0, **options}
    return prepare_dataset(PrepareOptions(**options), folder / "out", num_workers=1)


def refused(folder: Path, match: str, **options: Any) -> None:
    with pytest.raises(DatasetError, match=match):
        prepare(folder, **options)
    assert not (folder / "out").exists()


def written(folder: Path, name: str) -> NDArray[Any]:
    return np.asanyarray(nibabel.load(folder / "out" / "labelsTr" / f"{name}.nii.gz").dataobj)


LIVER_1 = ([box(0, 2, 1) + box(4, 7, 2)], [("liver", 1, 0), ("tumour", 2, 0)])
LIVER_2 = ([box(0, 2, 2) + box(4, 7, 1)], [("tumour", 1, 0), ("Liver ", 2, 0)])


def test_names_are_taken_where_the_numbers_agree(tmp_path: Path) -> None:
    prepared = prepare(sources(tmp_path, a=LIVER_1, b=([box(1, 3, 2)], [("tumour", 2, 0), ("liver", 1, 0)])))
    assert prepared.labels == {0: "background", 1: "liver", 2: "tumour"}
    assert read_case_list(tmp_path / "out").labels == prepared.labels
    assert prepared.notes == ()


def test_ids_follow_the_names_where_the_numbers_differ(tmp_path: Path) -> None:
    prepared = prepare(sources(tmp_path, a=LIVER_1, b=LIVER_2))
    assert prepared.labels == {0: "background", 1: "liver", 2: "tumour"}
    for name in "ab":
        assert np.array_equal(written(tmp_path, name), box(0, 2, 1) + box(4, 7, 2))
    (note,) = prepared.notes
    assert note.startswith("ids follow the names of the structures, because 'tumour' is 2 in ")
    assert note in prepared.summary()
    declared = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert "original_labels" not in declared
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"][1]
    assert (record["new_ids"], record["names"]) == ({"1": 2, "2": 1}, {"1": "Liver", "2": "tumour"})


def test_a_name_that_moves_the_ids_of_finished_cases_is_refused(tmp_path: Path) -> None:
    folder = sources(tmp_path, a=LIVER_1, b=LIVER_2)
    prepare(folder)
    sources(folder, c=([box(1, 3, 1)], [("aorta", 1, 0)]))
    with pytest.raises(DatasetError, match=r"a: expected the label ids of the earlier call, got others; .*overwrite"):
        prepare(folder)
    assert np.array_equal(written(folder, "a"), box(0, 2, 1) + box(4, 7, 2))


def test_the_order_of_the_names_may_be_given(tmp_path: Path) -> None:
    folder = sources(tmp_path, a=LIVER_1, b=LIVER_2)
    refused(folder, r"structures liver, tumour, got no id for tumour; correct --names", names={1: "liver"})
    three = {1: "liver", 2: "tumour", 3: "vessel"}
    refused(folder, r"structures liver, tumour, got an id for vessel, which no label has", names=three)
    refused(folder, r"expected ids 1 to 2 in the names, got 1, 3", names={1: "liver", 3: "tumour"})
    refused(
        folder,
        r"expected no remap of numbers, because 'tumour' is 2 in .*a\.seg\.nrrd and 1 in .*b\.seg\.nrrd",
        remap={2: 0},
    )
    assert prepare(folder, names={1: "TUMOUR", 2: "liver"}).labels == {0: "background", 1: "TUMOUR", 2: "liver"}
    assert np.array_equal(written(folder, "b"), box(0, 2, 2) + box(4, 7, 1))


def test_a_label_without_names_among_such_that_contradict_each_other_is_refused(tmp_path: Path) -> None:
    folder = sources(tmp_path, a=LIVER_1, b=LIVER_2, c=([box(2, 3)], []))
    refused(
        folder,
        r"names of the structures in every label, because 'tumour' is 2 .*, got none in .*c\.seg\.nrrd; save them",
    )
    sources(folder, b=LIVER_1)
    (note,) = prepare(folder).notes
    assert note.startswith("1 of 3 labels do not name their structures (")


def test_one_name_in_many_spellings_is_one_structure_and_one_number_with_two_names_two(tmp_path: Path) -> None:
    other = ([box(0, 2, 1)], [("spleen", 1, 0)])
    prepared = prepare(sources(tmp_path, a=([box(3, 5, 1)], [("LIVER", 1, 0)]), b=other))
    assert prepared.labels == {0: "background", 1: "LIVER", 2: "spleen"}
    assert written(tmp_path, "b").max() == 2
    assert "because 1 is 'LIVER' in " in prepared.notes[0]


@pytest.mark.parametrize(
    ("layers", "segments", "match"),
    [
        (
            [box(0, 3), box(2, 4)],
            [("liver", 1, 0), ("tumour", 1, 1)],
            r"got 30 voxels in 'liver' and 'tumour'; give each",
        ),
        ([box(0, 3), box(2, 4)], [], r"got 30 voxels in 'layer 0' and 'layer 1'; give each voxel to one"),
        (
            [box(0, 3), box(3, 4)],
            [("liver", 1, 0), ("t", 1, 2)],
            r"expected the layers of its segments, got 2, fewer than",
        ),
        ([box(0, 3), box(3, 4, 5)], [("liver", 1, 0), ("t", 1, 1)], r"segments in its header, got the value 5 of none"),
        ([box(0, 3) + box(4, 5, 7)], [("liver", 1, 0)], r"segments in its header, got the value 7 of none; save the"),
        (
            [box(0, 3, 1) + box(3, 5, 2), box(5, 6)],
            [],
            r"layer 0: expected a mask of 0 and one value, got 1 to 2 beside 0",
        ),
        (
            [box(0, 3)],
            [("liver", 1, 0), ("spleen", 1, 0)],
            r"a value of its own for each segment, got one for liver, spleen",
        ),
        ([box(0, 3)], [("liver", 0, 0)], r"a value above 0 of each segment in the header, got 'liver', '0' and '0'"),
        ([box(0, 3)], [("background", 1, 0)], r"expected another name for each label id, got background, background"),
    ],
)
def test_segments_that_make_no_label_map_are_one_sentence(
    tmp_path: Path, layers: list[NDArray[Any]], segments: Segments, match: str
) -> None:
    refused(sources(tmp_path, a=(layers, segments)), match)


def test_layers_that_do_not_overlap_are_one_label(tmp_path: Path) -> None:
    layered = ([box(0, 2), box(4, 7, 3)], [("tumour", 1, 0), ("liver", 3, 1)])
    prepared = prepare(sources(tmp_path, a=LIVER_1, b=layered))
    assert prepared.labels == {0: "background", 1: "liver", 2: "tumour"}
    assert np.array_equal(written(tmp_path, "b"), box(0, 2, 2) + box(4, 7, 1))
    assert "b.seg.nrrd has a layer or a file per structure" in prepared.notes[0]


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_a_layer_per_class_is_one_label(tmp_path: Path, suffix: str, one_hot: bool) -> None:
    label = box(0, 2, 1) + box(4, 7, 2)
    layers = [(label == value).astype(np.uint8) for value in range(0 if one_hot else 1, 3)]
    folder = sources(tmp_path, a=(layers, []))
    if suffix == ".nii.gz":
        affine = open_label(folder / "labels" / "a.seg.nrrd")[0].grid.affine
        (folder / "labels" / "a.seg.nrrd").unlink()
        nibabel.save(nibabel.Nifti1Image(np.stack(layers, axis=-1), affine), folder / "labels" / "a.nii.gz")
    assert prepare(folder).labels == {0: "background", 1: "label_1", 2: "label_2"}
    assert np.array_equal(written(folder, "a"), label)


def test_a_file_of_3d_slicer_is_read(tmp_path: Path) -> None:
    header = """NRRD0004
# Complete NRRD file format specification at:
# http://teem.sourceforge.net/nrrd/format.html
type: unsigned char
dimension: 4
space: left-posterior-superior
sizes: 2 7 6 5
space directions: none (0.7,0,0) (0,1.1,0) (0,0,2.5)
kinds: list domain domain domain
encoding: raw
space origin: (12.3,-45.6,78.9)
Segment0_Color:=0.5 0.68 0.5
Segment0_ID:=Segment_1
Segment0_LabelValue:=1
Segment0_Layer:=0
Segment0_Name:=Gefäß
Segment0_NameAutoGenerated:=0
Segment1_LabelValue:=1
Segment1_Layer:=1
Segment1_Name:=tumour
Segmentation_MasterRepresentation:=Binary labelmap

"""
    voxels = np.stack([box(0, 2), box(4, 7)]).tobytes(order="F")
    (tmp_path / "a.seg.nrrd").write_bytes(header.encode() + voxels)
    label, names = open_label(tmp_path / "a.seg.nrrd")
    assert names == {1: "Gefäß", 2: "tumour"}
    assert label.grid.spacing == (0.7, 1.1, 2.5)
    assert label.grid.origin == (12.3, -45.6, 78.9)
    assert np.array_equal(sitk.GetArrayFromImage(label.load()).T, box(0, 2, 1) + box(4, 7, 2))


def test_a_file_of_mitk_is_read(tmp_path: Path) -> None:
    groups = [
        {"labels": [{"name": 'a "big"\nliver', "value": 2}, {"name": "tumour", "value": 1}]},
        {"labels": None},
        {"labels": [{"name": "vessel", "value": 1}]},
    ]
    layers = [box(0, 1, 1) + box(1, 2, 2), box(0, 0), box(4, 7)]
    file = write_segmentation(tmp_path / "a.nrrd", layers)
    image = sitk.ReadImage(str(file))
    image.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", json.dumps(groups))
    write(image, file)
    label, names = open_label(file)
    assert names == {1: 'a "big" liver', 2: "tumour", 3: "vessel"}
    assert np.array_equal(sitk.GetArrayFromImage(label.load()).T, box(0, 1, 2) + box(1, 2, 1) + box(4, 7, 3))
    image.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", "[3]")
    with pytest.raises(DatasetError, match=r"expected the labels of MITK in its header, got text that is none"):
        open_label(write(image, file))


def test_old_files_have_a_layer_of_0_and_1_per_segment(tmp_path: Path) -> None:
    file = write_segmentation(tmp_path / "a.nrrd", [box(0, 2), box(4, 7)])
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\n\n", b"\nSegment0_Name:=liver\nSegment1_Name:=spleen \\n 2\n\n", 1))
    label, names = open_label(file)
    assert names == {1: "liver", 2: "spleen 2"}
    assert np.array_equal(sitk.GetArrayFromImage(label.load()).T, box(0, 2, 1) + box(4, 7, 2))


def test_a_mask_per_structure_is_one_label(tmp_path: Path) -> None:
    for case in ("s0", "s1"):
        write(volume(random_image()), tmp_path / case / "ct.nii.gz")
        write(volume(box(0, 2)), tmp_path / case / "masks" / "spleen.nii.gz")
        write(volume(box(4, 7)), tmp_path / case / "masks" / "liver.nii.gz")
    write(volume(box(0, 0)), tmp_path / "s1" / "masks" / "spleen.nii.gz")  # not in this image
    options = {"images": tmp_path / "{case}" / "ct.nii.gz", "labels": tmp_path / "{case}" / "masks" / "{label}.nii.gz"}
    prepared = prepare(tmp_path, **options)
    assert prepared.labels == {0: "background", 1: "liver", 2: "spleen"}
    assert np.array_equal(written(tmp_path, "s0"), box(0, 2, 2) + box(4, 7, 1))
    assert np.array_equal(written(tmp_path, "s1"), box(4, 7, 1))
    assert prepare(tmp_path, **options).written == 0
    assert len(prepared.cases[0].sources) == 3
    write(volume(box(0, 5)), tmp_path / "s0" / "masks" / "liver.nii.gz")
    with pytest.raises(DatasetError, match=r"s0/masks: expected structures .* got 60 voxels in 'liver' and 'spleen'"):
        prepare(tmp_path, **options)
    write(volume(box(4, 7), DIRECTIONS["straight"]), tmp_path / "s0" / "masks" / "liver.nii.gz")
    with pytest.raises(DatasetError, match=r"spleen\.nii\.gz: expected the grid of .*liver\.nii\.gz, got another"):
        prepare(tmp_path, **options)


# ---- masks that say what is annotated ----


PLANES = {"liver": (0, 2), "kidney": (2, 4), "spleen": (4, 6), "cyst": (0, 0)}
MASKS = {"s0": "liver kidney spleen cyst", "s1": "spleen liver", "s2": "kidney", "s3": "kidney spleen liver"}


def organ_masks(folder: Path, masks: dict[str, str] = MASKS, image: str = "ct.nii.gz") -> Path:
    """As TotalSegmentator has it; in s3 the spleen is absent."""
    for case, names in masks.items():
        write(volume(random_image()), folder / case / image)
        for name in names.split():
            mask = box(0, 0) if (case, name) == ("s3", "spleen") else box(*PLANES[name])
            write(volume(mask), folder / case / "segmentations" / f"{name}.nii.gz")
    return folder


def prepare_masks(folder: Path, **options: Any) -> PreparedDataset:
    images, labels = organ_mask_patterns(folder / "in")
    return prepare(folder, **{"images": images, "labels": labels, "organ_masks": True, **options})


def test_a_structure_without_a_file_is_not_annotated_and_one_of_an_empty_file_absent(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in")
    prepared = prepare_masks(tmp_path)
    assert prepared.labels == {0: "background", 1: "kidney", 2: "liver", 3: "spleen"}
    found = read_case_list(tmp_path / "out")
    assert {case.name: case.annotated for case in found.cases} == {"s0": None, "s1": (2, 3), "s2": (1,), "s3": None}
    assert not written(tmp_path, "s3")[slice(*PLANES["spleen"])].any()
    check_cases(found, progress=False)
    follow, empty, missing = prepared.notes
    assert follow.startswith("ids follow the names")
    assert empty == "1 structures are no labels, because no case has a voxel of them (cyst)."
    assert missing == (
        "2 of 4 cases have no file of some structure (kidney in 1, liver in 1, spleen in 1), which counts as not "
        "annotated there."
    )
    declared = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert "annotated" not in declared
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["options"]["organ_masks"] is True
    assert [case["annotated"] for case in record["cases"]] == [None, [2, 3], [1], None]
    assert prepare_masks(tmp_path).written == 0
    with pytest.raises(DatasetError, match=r"got organ_masks None instead of True"):
        prepare_masks(tmp_path, organ_masks=False)


def test_the_order_of_the_names_holds_for_what_is_annotated(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in")
    prepare_masks(tmp_path, names={1: "spleen", 2: "Liver", 3: "kidney"})
    assert [case.annotated for case in read_case_list(tmp_path / "out").cases] == [None, (1, 2), (3,), None]


def test_masks_of_every_structure_in_every_case_say_nothing(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in", {"s0": "liver kidney", "s1": "kidney liver"})
    prepared = prepare_masks(tmp_path)
    assert len(prepared.notes) == 1
    assert not read_case_list(tmp_path / "out").partly_annotated
    assert "annotated" not in (tmp_path / "out" / "dataset.json").read_text()


def test_voxels_that_are_ignored_are_no_class_that_a_mask_annotates(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in", {"s0": "liver kidney", "s1": "liver"})
    write(volume(box(6, 7)), tmp_path / "in" / "s1" / "segmentations" / "ignore.nii.gz")
    assert prepare_masks(tmp_path).labels == {0: "background", 1: "ignore", 2: "kidney", 3: "liver"}
    found = read_case_list(tmp_path / "out")
    assert (found.ignore_label, [case.annotated for case in found.cases]) == (1, [None, (3,)])


def test_a_case_of_whose_masks_no_structure_is_left_is_refused(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in", {**MASKS, "s4": "cyst"})
    match = (
        r"s4/segmentations: expected a mask of a structure that some case has \(kidney, liver, spleen\), got none; l"
    )
    with pytest.raises(DatasetError, match=match):
        prepare_masks(tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_organ_masks_a_structure_without_a_file_is_absent_and_a_note_says_so(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in")
    prepared = prepare_masks(tmp_path, organ_masks=False)
    assert not read_case_list(tmp_path / "out").partly_annotated
    assert prepared.notes[-1] == (
        "2 of 4 cases have no file of some structure (kidney in 1, liver in 1, spleen in 1), which counts as absent "
        "there; if nobody has looked for it, --organ-masks DIR takes it for not annotated."
    )


def test_a_segment_that_a_layered_label_lacks_is_no_missing_file(tmp_path: Path) -> None:
    layered = ([box(0, 2), box(4, 7)], [("tumour", 1, 0), ("liver", 1, 1)])
    prepared = prepare(sources(tmp_path, a=LIVER_1, b=layered, c=([box(0, 2), box(3, 3)], [("liver", 1, 0)])))
    assert len(prepared.notes) == 1
    assert [case.annotated for case in prepared.cases] == [None, None, None]


def test_names_that_no_label_has_are_for_other_data_sets_to_annotate(tmp_path: Path) -> None:
    folder = sources(tmp_path, a=LIVER_1, b=LIVER_2)
    three = {1: "vessel", 2: "tumour", 3: "liver"}
    prepared = prepare(folder, names=three, annotated=(2, 3))
    assert prepared.labels == {0: "background", **three}
    assert np.array_equal(written(folder, "b"), box(0, 2, 3) + box(4, 7, 2))
    assert prepared.notes[-1].startswith("no case annotates 1 vessel; a training needs")
    match = r"b\.seg\.nrrd: expected voxels of the classes .* annotates \(1 vessel, 3 liver\), got 2 tumour \(90 "
    with pytest.raises(DatasetError, match=match):
        prepare_dataset(
            PrepareOptions(folder / "images", folder / "labels", num_folds=0, names=three, annotated=(1, 3)),
            folder / "other",
        )


def test_ids_that_a_new_structure_moves_are_not_mixed_with_those_written(tmp_path: Path) -> None:
    """A label map that is there keeps its ids, and `dataset.json` would name others."""
    organ_masks(tmp_path / "in", {"s0": "liver kidney", "s1": "liver"})
    prepare_masks(tmp_path)
    organ_masks(tmp_path / "in", {"s2": "liver spleen"})  # the last one of the alphabet moves none
    assert prepare_masks(tmp_path).written == 1
    write(volume(box(6, 7)), tmp_path / "in" / "s2" / "segmentations" / "aorta.nii.gz")
    before = (tmp_path / "out" / "dataset.json").read_text()
    with pytest.raises(DatasetError, match=r"s0: expected the label ids of the earlier call, got others; choose"):
        prepare_masks(tmp_path)
    assert (tmp_path / "out" / "dataset.json").read_text() == before


def test_images_of_organ_masks(tmp_path: Path) -> None:
    folder = organ_masks(tmp_path / "in", {"s0": "liver"})
    masks = folder / "{case}" / "segmentations" / "{label}.nii.gz"
    assert organ_mask_patterns(folder) == (folder / "{case}" / "ct.nii.gz", masks)
    assert organ_mask_patterns(folder, Path("I"), Path("M")) == (Path("I"), Path("M"))
    organ_masks(folder, {"s1": "liver", "s2": "liver"}, image="mri.nii.gz")
    match = (
        r"the same in all, got ct\.nii\.gz in 1 \(s0\) and mri\.nii\.gz in 2 \(s1, s2\); name the images by a pattern"
    )
    with pytest.raises(DatasetError, match=match):
        organ_mask_patterns(folder)
    (folder / "s0" / "ct.nii.gz").unlink()
    assert organ_mask_patterns(folder)[0].name == "mri.nii.gz"
    with pytest.raises(
        DatasetError, match=r"segmentations: expected ct\.nii\.gz or mri\.nii\.gz in .*, got none; name"
    ):
        organ_mask_patterns(folder / "s0" / "segmentations")
    with pytest.raises(DatasetError, match=r"a folder with a folder per case, got .*no, which does not exist; correct"):
        organ_mask_patterns(tmp_path / "no")


def test_the_command_takes_organ_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    organ_masks(tmp_path / "in")
    for name, changes in (("out", []), ("same", ["--images", tmp_path / "in" / "{case}" / "ct.nii.gz"])):
        call = ["prepare", "--organ-masks", tmp_path / "in", *changes, "--out", tmp_path / name, "--folds", 0]
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in call])
        assert ended.value.code == 0
        assert "which counts as not annotated there." in capsys.readouterr().out
    first, second = ((tmp_path / name / "dataset.json").read_text() for name in ("out", "same"))
    assert second.replace('"same"', '"out"') == first


# ---- what overlaps, as regions ------------------------------------------------------------------------------------


def test_layers_and_masks_that_overlap_are_regions(tmp_path: Path) -> None:
    layered = ([box(0, 4), box(2, 5)], [("Liver", 1, 0), ("tumour", 1, 1)])
    folder = sources(tmp_path, a=layered, b=([box(0, 2), box(5, 6)], [("liver", 1, 0), ("vessel", 1, 1)]))
    prepared = prepare(folder, regions=True)
    assert prepared.labels == {0: "background", 1: "Liver", 2: "tumour", 3: "vessel", 4: "Liver + tumour"}
    assert np.array_equal(written(folder, "a"), box(0, 2) + box(2, 4, 4) + box(4, 5, 2))
    assert np.array_equal(written(folder, "b"), box(0, 2) + box(5, 6, 3))
    found = read_case_list(folder / "out")
    assert found.regions == {"Liver": (1, 4), "tumour": (2, 4), "vessel": (3,)}
    with pytest.raises(
        DatasetError, match=r"structures Liver, tumour, vessel, got an id for spleen, which no label has"
    ):
        prepare_dataset(
            PrepareOptions(
                folder / "images",
                folder / "labels",
                num_folds=0,
                regions=True,
                names={1: "liver", 2: "tumour", 3: "vessel", 4: "spleen"},
            ),
            folder / "other",
        )


def test_masks_that_overlap_are_regions(tmp_path: Path) -> None:
    organ_masks(tmp_path / "in", {"s0": "liver kidney"})
    write(volume(box(0, 7)), tmp_path / "in" / "s0" / "segmentations" / "body.nii.gz")
    prepared = prepare_masks(tmp_path, organ_masks=False, regions=True)
    assert list(prepared.labels.values())[1:] == ["body", "body + kidney", "body + liver"]
    assert list(read_case_list(tmp_path / "out").regions or ()) == ["body", "kidney", "liver"]


# ---- what another grid leaves out ---------------------------------------------------------------------------------


def test_what_a_label_has_outside_its_image_is_counted_and_said(tmp_path: Path) -> None:
    for name in "ab":
        write(volume(random_image()), tmp_path / "images" / f"{name}.nrrd")
    spread = np.zeros((9, 6, 5), np.uint8)
    spread[2:9, 1:3] = 1  # two of its seven planes lie beyond the image
    spread[8, 4] = 2
    write_segmentation(tmp_path / "labels" / "a.nrrd", [spread], [("liver", 1, 0), ("tumour", 2, 0)])
    write_segmentation(tmp_path / "labels" / "b.nrrd", *LIVER_1)
    prepared = prepare(tmp_path, resample_labels=True)
    assert prepared.cases[0].outside == {"liver": [20, 70], "tumour": [5, 5]}
    assert prepared.cases[0].vanished == ["tumour"]
    assert prepared.cases[1].outside == {}
    outside, vanished = prepared.notes
    assert outside.startswith(
        "label voxels outside their image are passed over in 1 of 2 cases (a: 100% of tumour, a: 29% of liver)"
    )
    assert vanished == "1 structures have no voxel left on the grid of their image (a: tumour)"
    assert np.array_equal(written(tmp_path, "a"), np.where(spread[:7] == 1, 1, 0))


def test_a_label_turned_but_inside_leaves_nothing_out(tmp_path: Path) -> None:
    write(volume(random_image()), tmp_path / "images" / "a.nrrd")
    turned = volume(block_label()[:, :, ::-1], DIRECTIONS["oblique"] @ np.diag([1, 1, -1]))
    turned.SetOrigin(volume(block_label()).TransformIndexToPhysicalPoint((0, 0, 4)))
    write(turned, tmp_path / "labels" / "a.nrrd")
    prepared = prepare(tmp_path, resample_labels=True)
    assert (prepared.cases[0].resampled, prepared.notes) == (True, ())
