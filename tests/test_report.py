import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_extra_losses.report import draw_curves, draw_overlay

LABELS = {0: "background", 1: "organ", 2: "lesion"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
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


def test_curves_without_any_validation_yet(tmp_path: Path) -> None:
    assert _is_png(draw_curves(_history(tmp_path, "1,1.5,0.1,,,,9", "2,nan,0.1,,,,9"), tmp_path / "curves.png"))


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
