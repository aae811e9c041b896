"""RTSTRUCT as labels: contours of shapes that a formula describes, and what cannot be right."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_series import PLANES, ROOT, write_series
from marks import slow_but
from numpy.typing import NDArray
from rtstruct_files import Contours, write_rtstruct
from volume_files import random_image

from monai_extra_losses.data import DatasetError, PreparedDataset, PrepareOptions, prepare_dataset
from monai_extra_losses.data.rtstruct import inside_contours

SHAPE = (26, 22, 12)
ORIGIN = np.array([12.3, -45.6, 78.9])
SPACING = np.array([0.9, 1.2, 2.5])
CENTRE = (np.array(SHAPE) - 1) / 2 * SPACING + [0.13, 0.21, 0.0]  # off the centres of voxels
SIDES = (16.1, 14.3)  # mm of the box
RADIUS = 9.4
LARGEST_ERROR = 0.05  # voxels; contours have corners, and the files six digits

Local = NDArray[np.float64]
"""(N, 3) mm along the axes of the series."""


def placed(points: Local, plane: str) -> NDArray[np.float64]:
    """In the patient."""
    return ORIGIN + points @ PLANES[plane].T


def circle(radius: float, height: float) -> Local:
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    return np.stack(
        [CENTRE[0] + radius * np.cos(angles), CENTRE[1] + radius * np.sin(angles), np.full(720, height)], axis=1
    )


def rectangle(sides: Sequence[float], height: float) -> Local:
    x, y = np.array(sides) / 2
    return np.add([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]], [CENTRE[0], CENTRE[1], height])


def of_heights(draw: Callable[[float], list[Local]]) -> list[Local]:
    return [contour for number in range(SHAPE[2]) for contour in draw(number * SPACING[2])]


def ball(height: float) -> list[Local]:
    squared = RADIUS**2 - (height - CENTRE[2]) ** 2
    return [circle(np.sqrt(squared), height)] if squared > 0 else []


def keyhole(height: float) -> list[Local]:
    """A ring as one contour, with a channel of no width."""
    outer, inner = circle(RADIUS, height), circle(RADIUS / 2, height)[::-1]
    return [np.concatenate([outer, outer[:1], inner[-1:], inner])]


def distance_of_ring(points: Local) -> NDArray[np.float64]:
    radius = np.hypot(*(points - CENTRE)[:, :2].T)
    return np.maximum(radius - RADIUS, RADIUS / 2 - radius)


# contours, and the distance in mm from the surface, below 0 inside
SHAPES: dict[str, tuple[list[Local], Callable[[Local], NDArray[np.float64]]]] = {
    "ball": (of_heights(ball), lambda points: np.linalg.norm(points - CENTRE, axis=1) - RADIUS),
    "box": (
        of_heights(lambda height: [rectangle(SIDES, height)]),
        lambda points: np.max(np.abs(points - CENTRE)[:, :2] - np.array(SIDES) / 2, axis=1),
    ),
    "cylinder": (
        of_heights(lambda height: [circle(RADIUS, height)]),
        lambda points: np.hypot(*(points - CENTRE)[:, :2].T) - RADIUS,
    ),
    "tube": (of_heights(lambda height: [circle(RADIUS, height), circle(RADIUS / 2, height)]), distance_of_ring),
    "keyhole": (of_heights(keyhole), distance_of_ring),
}


def contours_of(shape: str, plane: str) -> Contours:
    return [("CLOSED_PLANAR", placed(contour, plane)) for contour in SHAPES[shape][0]]


def sources(folder: Path, structures: Mapping[str, Contours], plane: str = "axial", **options: Any) -> Path:
    write_series(
        folder / "images" / "P", random_image(shape=SHAPE), plane=plane, spacing=SPACING, origin=ORIGIN, **options
    )
    write_rtstruct(folder / "labels" / "anything.dcm", structures)
    return folder


def prepare(folder: Path, out: str = "out", **options: Any) -> PreparedDataset:
    places = {"images": folder / "images", "labels": folder / "labels"}
    return prepare_dataset(PrepareOptions(**places, num_folds=0, **options), folder / out, num_workers=1)


def label_of(folder: Path, case: str = "P") -> NDArray[Any]:
    return np.asarray(nibabel.load(folder / "out" / "labelsTr" / f"{case}.nii.gz").dataobj)


@pytest.mark.parametrize(
    ("shape", "plane"),
    slow_but(
        [("ball", "axial"), *((shape, "oblique") for shape in SHAPES)],
        [(shape, plane) for shape in SHAPES for plane in PLANES],
    ),
)
def test_a_shape_is_right_to_a_part_of_half_a_voxel(tmp_path: Path, shape: str, plane: str) -> None:
    prepare(sources(tmp_path, {"Thing": contours_of(shape, plane)}, plane, descending=plane == "oblique"))
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    distance = SHAPES[shape][1](index * SPACING).reshape(SHAPE)
    label = label_of(tmp_path)
    wrong = label != (distance < 0)
    assert 300 < label.sum() < label.size - 300
    assert np.abs(distance[wrong]).max(initial=0) < LARGEST_ERROR * SPACING.min()


def test_areas_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    left = np.array([[2, 1], [5, 1], [5, 7], [2, 7]], float)
    right = np.add(left, [3, 0])
    below = np.add(left, [0, 6])
    parts = [inside_contours([part], 16, 12) for part in (left, right, below)]
    assert [int(part.sum()) for part in parts] == [18, 18, 18]
    assert sum(map(np.ndarray.astype, parts, [int] * 3)).max() == 1
    whole = inside_contours([np.array([[2, 1], [8, 1], [8, 7], [2, 7]], float)], 16, 12)
    np.testing.assert_array_equal(parts[0] | parts[1], whole)


@pytest.mark.parametrize("seed", range(4))
def test_random_polygons_are_filled_by_the_rule_of_odd_crossings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contours = [rng.uniform(-4, 20, (rng.integers(3, 9), 2)) for _ in range(3)]
    found = inside_contours(contours, 14, 16)
    for row in range(14):
        for column in range(16):
            crossings = 0
            for points in contours:
                for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                    if (y0 <= row) != (y1 <= row):
                        crossings += x0 + (row - y0) * (x1 - x0) / (y1 - y0) < column
            assert found[row, column] == crossings % 2


def test_structures_go_by_name(tmp_path: Path) -> None:
    inner = [("CLOSED_PLANAR", placed(circle(3, number * 2.5), "axial")) for number in range(4, 7)]
    outer = [("CLOSEDPLANAR_XOR", points) for _, points in contours_of("tube", "axial")]
    marker = [("POINT", placed(np.array([[1.0, 1, 0]]), "axial"))]
    folder = sources(tmp_path, {"Rectum": outer, "GTV ": inner, "Marker": marker, "Empty": []})
    write_rtstruct(
        folder / "labels" / "anything.dcm",
        {"Rectum": outer, "GTV ": inner, "Marker": marker, "Empty": []},
        colors={"GTV ": (9, 8, 7)},
    )
    prepared = prepare(folder, names={1: "gtv", 2: "RECTUM"})
    assert prepared.labels == {0: "background", 1: "gtv", 2: "RECTUM"}
    assert set(np.unique(label_of(folder))) == {0, 1, 2}
    notes = "\n".join(prepared.notes)
    assert "2 structures are left out, because --names does not have them (Marker in 1, Empty in 1 of 1)." in notes
    assert "points and open contours are left out (1 of Marker in anything.dcm)." in notes
    declared = json.loads((folder / "out" / "dataset.json").read_text())
    assert declared["segments"] == {"gtv": {"color": [9, 8, 7]}}
    (case,) = json.loads((folder / "out" / "manifest.json").read_text())["cases"]
    assert case["series"] == [
        {"description": "Portal venous", "uid": f"{ROOT}.4.1"},
        {"description": "Contours", "uid": f"{ROOT}.6.1", "instance": f"{ROOT}.5.1"},
    ]
    assert [Path(file).name for file in case["sources"]][-1] == "anything.dcm"


def test_missing_slices_of_a_structure_are_named(tmp_path: Path) -> None:
    contours = contours_of("cylinder", "axial")
    notes = prepare(sources(tmp_path, {"Thing": [*contours[:3], *contours[5:]]})).notes
    assert any("contours are missing on slices between the first and" in note for note in notes)
    assert any("(Thing in anything.dcm on 2)" in note for note in notes)
    assert not label_of(tmp_path)[..., 3:5].any()
    assert label_of(tmp_path)[..., [2, 5]].any(axis=(0, 1)).all()


REFUSED: dict[str, tuple[Callable[[Local], Local], str]] = {
    "beyond the last slice": (
        lambda points: np.add(points, [0, 0, 30.0]),
        r"contours of 'Thing' on the slices of its series, within half a slice, got 1 of 3 elsewhere; is the series",
    ),
    "oblique": (lambda points: points + np.outer(points[:, 0] - CENTRE[0], [0, 0, 0.4]), r"got 1 of 3 elsewhere"),
    "at another height of the same slice": (
        lambda points: np.stack([*points[:, :2].T, points[:, 2] - 2.5 + 0.8], axis=1),
        r"got contours at several heights for 1 of its 2 slices; were they drawn on thinner slices\?",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_contours_off_the_slices_are_refused(tmp_path: Path, kind: str) -> None:
    change, match = REFUSED[kind]
    contours = [circle(RADIUS, number * SPACING[2]) for number in (3, 4, 5)]
    contours[1] = change(contours[1])
    folder = sources(tmp_path, {"Thing": [("CLOSED_PLANAR", placed(points, "axial")) for points in contours]})
    with pytest.raises(DatasetError, match=match):
        prepare(folder)
    assert not (folder / "out").exists()


def test_a_damaged_object_is_refused(tmp_path: Path) -> None:
    folder = sources(tmp_path, {"Thing": contours_of("ball", "axial")})
    file = folder / "labels" / "anything.dcm"
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(DatasetError, match=r"anything\.dcm: expected"):
        prepare(folder)


def test_overlapping_structures_are_refused_or_kept(tmp_path: Path) -> None:
    folder = sources(tmp_path, {"body": contours_of("cylinder", "axial"), "core": contours_of("ball", "axial")})
    with pytest.raises(DatasetError, match=r"got \d+ voxels in 'body' and 'core'; .* or let --regions do both\."):
        prepare(folder)
    prepared = prepare(folder, regions=True)
    assert prepared.labels == {0: "background", 1: "body", 2: "body + core"}
    declared = json.loads((folder / "out" / "dataset.json").read_text())
    assert declared["regions"] == {"body": [1, 2], "core": [2]}
