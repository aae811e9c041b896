import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import nibabel
import numpy as np
import pytest
import torch
from marks import slow, slow_but
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.transforms import LoadImage

from monai_extra_losses.bundle.case_report import CaseReport, known_affine
from monai_extra_losses.bundle.run_folder import ResultsFolder
from monai_extra_losses.report import draw_curves, draw_overlay
from monai_extra_losses.report.overlays import sides_of

LABELS = {0: "background", 1: "organ", 2: "lesion"}


pytestmark = pytest.mark.usefixtures("real_pictures")


@pytest.fixture
def drawn(real_pictures: None, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to look at what they hold; any warning of matplotlib fails the test."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(figure, *args, **options)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def _is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def _history(folder: Path, *rows: str) -> Path:
    file = folder / "training.csv"
    header = "epoch,train_loss,learning_rate,val_mean_dice,val_dice_organ,val_dice_lesion,seconds"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_curves_show_loss_and_dice_of_each_class(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = ("1,1.5,0.1,,,,9", "2,1.0,0.1,0.5,0.7,0.3,9", "3,0.8,0.1,,,,9", "4,0.7,0.1,0.4,0.6,0.2,9")
    out = draw_curves(_history(tmp_path, *rows), tmp_path / "new" / "curves.png")
    assert _is_png(out)
    loss, dice = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 1.5], [2, 1.0], [3, 0.8], [4, 0.7]]
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in dice.lines}
    assert lines == {
        "organ": [[2, 0.7], [4, 0.6]],
        "lesion": [[2, 0.3], [4, 0.2]],
        "mean": [[2, 0.5], [4, 0.4]],
        "best mean: 0.500\n(epoch 2)": [[2, 0.5]],
    }
    assert [loss.get_xlabel(), loss.get_ylabel(), dice.get_xlabel(), dice.get_ylabel()] == [
        "epoch",
        "loss (mean of the epoch)",
        "epoch",
        "Dice",
    ]


def test_curves_show_the_parts_of_a_compound_loss(tmp_path: Path, drawn: list[Figure]) -> None:
    file = tmp_path / "training.csv"
    file.write_text("epoch,train_loss,val_mean_dice,train_loss_dice,train_loss_surface\n1,1,,2,-1\n2,0.5,,1,-1\n")
    draw_curves(file, tmp_path / "curves.png")
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines == {"loss": [[1, 1], [2, 0.5]], "dice": [[1, 2], [2, 1]], "surface": [[1, -1], [2, -1]]}
    assert drawn[0].axes[0].get_legend() is not None


def test_legend_of_the_curves_covers_no_data(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_curves(_history(tmp_path, "1,1.5,0.1,0.5,0.7,0.3,9"), tmp_path / "curves.png")
    dice = drawn[0].axes[1]
    legend = dice.get_legend()
    assert legend is not None
    assert not legend.get_window_extent().overlaps(dice.get_window_extent())


def _many_classes(folder: Path, names: list[str]) -> Path:
    """Two validations; in the second, the better one, class i has a Dice of i / number, and the first none."""
    header = ["epoch", "train_loss", "val_mean_dice", *(f"val_dice_{name}" for name in names)]
    rows = [
        ["5", "1", "0.3", *["0.3"] * len(names)],
        ["10", "1", "0.5", "", *(f"{i / len(names)}" for i in range(1, len(names)))],
    ]
    (folder / "training.csv").write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return folder / "training.csv"


# 650 classes take seconds; their picture is drawn by `test_many_classes_have_a_row_each` too.
@pytest.mark.parametrize("count", [2, 18, *slow(10, 11, 105, 650)])
def test_curves_of_any_number_of_classes_fit_and_cover_nothing(tmp_path: Path, drawn: list[Figure], count: int) -> None:
    names = [f"vertebra_or_rib_with_a_long_name_{i}" for i in range(count - 2)] + ["_hidden", "cost $a_b"]
    draw_curves(_many_classes(tmp_path, names), tmp_path / "curves.png")
    (figure,) = drawn
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(figure.bbox.fully_containsx(edge) for box in boxes for edge in (box.x0, box.x1))
    assert all(figure.bbox.fully_containsy(edge) for box in boxes for edge in (box.y0, box.y1))
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


# All 600 that are shown at most are shown of 650 too.
@pytest.mark.parametrize(
    ("count", "shown"), slow_but([(18, 18), (650, 600)], [(11, 11), (18, 18), (105, 105), (600, 600), (650, 600)])
)
def test_many_classes_have_a_row_each(tmp_path: Path, drawn: list[Figure], count: int, shown: int) -> None:
    names = [f"class {i}" for i in range(count)]
    draw_curves(_many_classes(tmp_path, names), tmp_path / "curves.png")
    _, dice, scale, *columns = drawn[0].axes
    labels = [text.get_text() for axes in columns for text in axes.get_yticklabels()]
    numbers = [text.get_text() for axes in columns for text in axes.child_axes[0].get_yticklabels()]
    # of too many, those with the lowest Dice; the first is undefined
    expected = range(count) if shown == count else range(1, shown + 1)
    assert labels == [f"class {i}" for i in expected]
    assert numbers == ["-" if i == 0 else f"{i / count:.3f}" for i in expected]
    cells = np.ma.concatenate([axes.images[0].get_array() for axes in columns])
    assert cells.shape == (shown, 2)
    assert cells.mask.sum() == (shown == count)
    text = "each class" if shown == count else "the 600 lowest of 650 classes"
    assert scale.get_title() == f"Validation Dice of {text} (numbers: epoch 10; grey, -: undefined)"
    assert [str(line.get_label()) for line in dice.lines] == ["mean", "best mean: 0.500\n(epoch 10)"]
    lowest, highest = (edge(dice.collections[0].get_paths()[0].vertices[:, 1]) for edge in (np.min, np.max))
    assert (lowest, highest) == pytest.approx((1 / count, (count - 1) / count))


def test_names_are_shown_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["_hidden", "a $b_c$ d", "x" * 60]
    draw_curves(_many_classes(tmp_path, names), tmp_path / "curves.png")
    legend = drawn[0].axes[1].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.texts][:3] == ["\u200b_hidden", r"a \$b_c\$ d", "x" * 27 + "…"]


def test_curves_without_any_validation_yet(tmp_path: Path) -> None:
    assert _is_png(draw_curves(_history(tmp_path, "1,1.5,0.1,,,,9", "2,nan,0.1,,,,9"), tmp_path / "curves.png"))
    many = ",".join(f"val_dice_{i}" for i in range(18))
    (tmp_path / "many.csv").write_text(f"epoch,train_loss,val_mean_dice,{many}\n1,0.5,{',' * 18}\n")
    assert _is_png(draw_curves(tmp_path / "many.csv", tmp_path / "curves.png"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"training\.csv: expected one row per epoch .* got no column epoch, train_loss, val_mean_dice"),
        ("epoch,train_loss,val_mean_dice\n", r"got no row"),
        ("epoch,train_loss\n1,2\n", r"got no column val_mean_dice"),
        ("epoch,train_loss,val_mean_dice\n1,x,0.5\n", r"expected numbers or empty cells"),
        ("epoch,train_loss,val_mean_dice\n1\n", None),
    ],
)
def test_history_that_cannot_be_drawn(tmp_path: Path, content: str, match: str | None) -> None:
    file = tmp_path / "training.csv"
    file.write_text(content)
    if match is None:  # a row cut short by a crash holds empty cells
        assert _is_png(draw_curves(file, tmp_path / "curves.png"))
    else:
        with pytest.raises(ValueError, match=match):
            draw_curves(file, tmp_path / "curves.png")


def _ball(centre: tuple[int, int, int], radius: float, value: int = 1) -> np.ndarray:
    distance = np.linalg.norm(np.indices((20, 16, 12)) - np.array(centre)[:, None, None, None], axis=0)
    return (distance < radius) * value


IMAGE = np.random.default_rng(0).normal(size=(20, 16, 12))
EMPTY = np.zeros(IMAGE.shape, dtype=int)


def _draw(tmp_path: Path, label: np.ndarray, prediction: np.ndarray, **options: Any) -> Path:
    settings: dict[str, Any] = {"spacing": (1.0, 1.0, 3.0), "labels": LABELS, "out": tmp_path / "new" / "case.png"}
    return draw_overlay(IMAGE, label, prediction, **{**settings, **options})


def _indices(figure: Figure) -> list[int]:
    return [int(axes.get_title().split()[-1]) for axes in figure.axes]


def test_overlay_cuts_through_the_target_with_the_right_aspect(tmp_path: Path, drawn: list[Figure]) -> None:
    assert _is_png(_draw(tmp_path, _ball((13, 5, 4), 3), _ball((6, 6, 6), 3), title="case_1"))
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [
        "axial, z index 4",
        "coronal, y index 5",
        "sagittal, x index 13",
    ]
    assert [axes.images[0].get_extent() for axes in figure.axes] == [[0, 20, 0, 16], [0, 20, 0, 36], [0, 16, 0, 36]]
    assert [axes.get_aspect() for axes in figure.axes] == [1.0, 1.0, 1.0]
    assert [axes.get_ylabel() for axes in figure.axes] == ["y (mm)", "z (mm)", "z (mm)"]
    assert figure.get_suptitle() == "case_1"


def test_slice_of_the_smallest_class_wins_over_a_large_one(tmp_path: Path, drawn: list[Figure]) -> None:
    label = np.maximum(_ball((10, 8, 5), 5), _ball((12, 9, 8), 1.5, value=2))
    _draw(tmp_path, label, EMPTY)
    assert _indices(drawn[0]) == [8, 9, 12]


def test_empty_target_falls_back_to_the_prediction_and_then_to_the_middle(tmp_path: Path, drawn: list[Figure]) -> None:
    _draw(tmp_path, EMPTY, _ball((13, 5, 4), 3))
    _draw(tmp_path, EMPTY, EMPTY)
    assert [_indices(figure) for figure in drawn] == [[4, 5, 13], [6, 8, 10]]


def test_contours_lie_on_the_voxel_borders_and_close_at_the_border_of_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, np.ndarray]] = []
    contour = Axes.contour

    def keep(axes: Axes, *args: Any, **options: Any) -> Any:
        lines = contour(axes, *args, **options)
        drawn.append((options["linestyles"], np.concatenate([path.vertices for path in lines.get_paths()])))
        return lines

    monkeypatch.setattr(Axes, "contour", keep)
    label = EMPTY.copy()
    label[0:4, 2:6, 5:7] = 1
    _draw(tmp_path, label, np.ones_like(EMPTY))
    style, corners = drawn[0]
    assert style == "solid"
    np.testing.assert_allclose([corners.min(axis=0), corners.max(axis=0)], [[0, 2], [4, 6]])
    style, corners = drawn[1]
    assert style == "dashed"
    np.testing.assert_allclose([corners.min(axis=0), corners.max(axis=0)], [[0, 0], [20, 16]])
    np.testing.assert_allclose(drawn[2][1].max(axis=0), [4, 21])  # coronal: 7 slices of 3 mm


@pytest.mark.parametrize("count", [1, 7, 20])
def test_each_class_has_a_colour_and_a_legend_entry(tmp_path: Path, drawn: list[Figure], count: int) -> None:
    names = {value: f"class {value}" for value in range(1, count + 1)}
    _draw(tmp_path, np.random.default_rng(1).integers(0, count + 1, IMAGE.shape), EMPTY, labels=names)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.texts] == [*names.values(), "target", "prediction"]
    assert len({str(line.get_color()) for line in legend.get_lines()[:count]}) == count
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in drawn[0].axes)


def test_a_class_keeps_its_colour_where_another_is_absent(tmp_path: Path, drawn: list[Figure]) -> None:
    _draw(tmp_path, np.maximum(_ball((6, 8, 6), 3), _ball((14, 8, 6), 3, value=2)), EMPTY)
    _draw(tmp_path, EMPTY, _ball((14, 8, 6), 3, value=2))
    both, one = ([(str(e.get_label()), e.get_color()) for e in f.legends[0].get_lines()] for f in drawn)
    assert [name for name, _ in one] == ["lesion", "target", "prediction"]
    assert one == both[1:]


# The layout of 18 names is that of any number above 7.
@pytest.mark.parametrize("count", [7, 18, *slow(105)])
def test_a_legend_of_long_names_is_whole(tmp_path: Path, drawn: list[Figure], count: int) -> None:
    names = {value: f"WWW_long name of class {value}" + "m" * value for value in range(1, count + 1)}
    label = np.random.default_rng(1).integers(0, count + 1, IMAGE.shape)
    _draw(tmp_path, label, EMPTY, labels=names, title="a case with a long name " * 10 + "$x, mean Dice 0.5")
    (figure,) = drawn
    shown = [figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()]  # type: ignore[attr-defined]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in shown)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in shown)
    assert not any(shown[0].overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert figure.get_suptitle().endswith("mean Dice 0.5")


# ---- sides of the patient ----


def _turned(degrees: float, *axes: int) -> np.ndarray:
    turn = np.eye(4)
    angle = np.deg2rad(degrees)
    turn[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


AFFINES = {
    "RAS": np.diag([1.0, 2, 3, 1]),
    "LPS": np.diag([-1.0, -2, 3, 1]),
    "LAS, no rotation": np.diag([-1.0, 2, 3, 1]),
    "sagittal": np.array([[0.0, 0, -3, 0], [1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]),
    "oblique": _turned(35, 0, 1) @ np.diag([-1.0, 2, 3, 1]),
    "twice oblique": _turned(25, 0, 2) @ _turned(-30, 1, 2) @ np.diag([1.0, -2, -3, 1]),
}


@pytest.mark.parametrize("name", slow_but(["LPS", "sagittal", "twice oblique"], AFFINES))
def test_marks_of_an_evaluation_tell_the_sides_of_the_patient(tmp_path: Path, drawn: list[Figure], name: str) -> None:
    """A ball towards one side of the patient, by its millimetres, lies towards the mark of that side."""
    affine = AFFINES[name]
    ends = np.argwhere(np.ones((20, 16, 12))) @ affine[:3, :3].T  # mm of all voxels
    for axis, (low, high) in enumerate(("LR", "PA", "FH")):
        away = (ends - ends.mean(0)) / np.abs(ends - ends.mean(0)).max(0)
        # far along one axis of the body, in the middle of the others
        centre = np.unravel_index(np.argmax(away[:, axis] - np.abs(np.delete(away, axis, 1)).sum(1)), (20, 16, 12))
        label = _ball(tuple(map(int, centre)), 2)
        volumes = {
            key: MetaTensor(torch.from_numpy(v)[None], affine=affine)
            for key, v in (("label", label), ("picture", IMAGE))
        }
        report = CaseReport(folder=ResultsFolder(tmp_path), labels={1: "ball"}, surface_tolerance_mm=1.0)
        state = SimpleNamespace(batch=[{"case": f"{axis}"}], output=[{**volumes, "pred": volumes["label"]}])
        report._measure(SimpleNamespace(state=state))  # type: ignore[arg-type]
        for panel in drawn[-1].axes:
            marks = {text.get_text(): np.array(text.get_position()) for text in panel.texts}
            ball = panel.transAxes.inverted().transform(panel.transData.transform(_middle_of_contours(panel)))
            near, far = (next((at for text, at in marks.items() if text[0] == side), None) for side in (high, low))
            if near is not None and far is not None:
                assert np.linalg.norm(ball - near) < np.linalg.norm(ball - far), (panel.get_title(), marks)
    found = [{text.get_text()[0] for text in panel.texts} for panel in drawn[-1].axes]
    assert found == [set("RLAP"), set("RLHF"), set("APHF")]  # as the volume is turned to R, A, S


@pytest.mark.parametrize(
    ("name", "axial", "sagittal"),
    [  # left, right, bottom, top of the picture
        ("RAS", "L R P A", "P A F H"),
        ("LPS", "R L A P", "A P F H"),
        ("sagittal", "P A H F", "H F R L"),
        ("oblique", "RA LP PR AL", "PR AL F H"),
    ],
)
def test_marks_are_those_of_the_volume_as_it_is_drawn(
    tmp_path: Path, drawn: list[Figure], name: str, axial: str, sagittal: str
) -> None:
    _draw(tmp_path, EMPTY, EMPTY, affine=AFFINES[name])
    panels = drawn[0].axes
    for panel, marks in ((panels[0], axial), (panels[2], sagittal)):
        at = {text.get_position(): text.get_text() for text in panel.texts}
        assert [at[place] for place in ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))] == marks.split()


def _middle_of_contours(panel: Axes) -> np.ndarray:
    (target, _) = (collection for collection in panel.collections if collection.get_paths())
    corners = np.concatenate([path.vertices for path in target.get_paths()])
    return (corners.min(0) + corners.max(0)) / 2


@pytest.mark.parametrize(
    ("direction", "sides"),
    [
        ((2, 0, 0), ("L", "R")),
        ((-1, 0, 0), ("R", "L")),
        ((0, 1, 0), ("P", "A")),
        ((0, 0, -3), ("H", "F")),
        ((-1, 0.29, 0), ("R", "L")),
        ((-1, 0.32, 0), ("RP", "LA")),
        ((0.5, -0.6, 0.7), ("FAL", "HPR")),
    ],
)
def test_letters_of_a_direction(direction: tuple[float, ...], sides: tuple[str, str]) -> None:
    assert sides_of(direction) == sides


def test_a_volume_of_unknown_orientation_has_no_marks(tmp_path: Path, drawn: list[Figure]) -> None:
    _draw(tmp_path, EMPTY, EMPTY)
    assert not any(panel.texts for panel in drawn[0].axes)
    affine = np.diag([1.0, 2, 3, 1])
    assert known_affine(MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine)) is not None
    for codes in ((0, 0), (1, 0), (0, 2)):
        image = nibabel.Nifti1Image(EMPTY.astype("uint8"), affine)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        nibabel.save(image, tmp_path / "label.nii.gz")
        loaded = LoadImage(ensure_channel_first=True)(tmp_path / "label.nii.gz")
        assert (known_affine(loaded) is not None) is any(codes)


def test_the_border_of_the_annotation_is_dotted(tmp_path: Path, drawn: list[Figure]) -> None:
    ignored = np.zeros(IMAGE.shape, dtype=bool)
    _draw(tmp_path, _ball((13, 5, 4), 3), EMPTY, ignored=ignored)
    ignored[:, :, 8:] = True
    _draw(tmp_path, _ball((13, 5, 4), 3), EMPTY, ignored=ignored)
    without, dotted = ([str(line.get_label()) for line in figure.legends[0].get_lines()] for figure in drawn)
    assert (without, dotted) == (["organ", "target", "prediction"], ["organ", "target", "prediction", "not annotated"])
    styles = [[c.get_linestyle()[0][1] is not None for c in f.axes[1].collections] for f in drawn]
    assert styles == [[False], [False, True]]


def test_overlay_of_volumes_that_differ(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"one shape \(X, Y, Z\), got \(20, 16, 12\), \(20, 16, 12\), \(1, 20, 16, 12\)"
    ):
        _draw(tmp_path, EMPTY, EMPTY[None])


def test_drawing_leaves_the_backend_alone(tmp_path: Path) -> None:
    before = matplotlib.rcParams._get_backend_or_none()
    _draw(tmp_path, EMPTY, EMPTY)
    assert matplotlib.rcParams._get_backend_or_none() == before
