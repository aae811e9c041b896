"""docs/losses/pictures: each loss has its picture, and it shows what the loss does."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from draw_losses import FOLDER, PICTURES, alt_of, left_over, names_of_losses, problems_of, snake_case
from loss_pictures import curves
from loss_pictures.sheet import differing, shown_by
from marks import slow_but

from monai_extra_losses import losses

QUICK = ["focal", "hinge", "huber", "surface", "hausdorff", "component_dice_ce", "partial_label"]


def test_each_loss_has_its_picture_and_its_words() -> None:
    names = sorted(names_of_losses())
    assert {"dice_ce", "head", "kl_divergence", "mean_squared_error"} < set(names)
    assert sorted(file.stem for file in FOLDER.glob("*.svg")) == names
    assert list(alt_of(FOLDER)) == names
    assert list(left_over(FOLDER)) == []


@pytest.mark.parametrize("name", slow_but(QUICK, PICTURES))
def test_a_picture_shows_what_its_loss_does(name: str) -> None:
    assert list(problems_of([name], FOLDER)) == []


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_can_be_read_anywhere(name: str) -> None:
    file = FOLDER / f"{name}.svg"
    text = file.read_text(encoding="utf-8")
    assert file.stat().st_size < 60_000
    assert "fill: #ffffff" in text.partition("axes_1")[0]
    assert all(fonts.endswith("sans-serif") for fonts in re.findall(r"font-family: ([^;\"]*)", text))
    assert min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)) >= 9
    assert "dc:date" not in text
    title, numbers = shown_by(file)
    assert 20 < len(title) < 125
    assert numbers
    assert 60 < len(alt_of(FOLDER)[name]) < 450


@pytest.mark.usefixtures("real_pictures")
def test_drawing_twice_gives_the_same_bytes() -> None:
    assert PICTURES["generalized_cross_entropy"]().svg() == PICTURES["generalized_cross_entropy"]().svg()


def test_a_loss_that_does_something_else_is_told() -> None:
    shown = shown_by(FOLDER / "focal.svg")[1]
    assert differing(shown, curves.voxel(curves.FOCAL).numbers) == []
    other = {**curves.FOCAL.losses, "gamma=2 (default)": losses.FusedFocalLoss(gamma=2.2)}
    changed = curves.voxel(dataclasses.replace(curves.FOCAL, losses=other))
    assert differing(shown, changed.numbers) == ["0 gamma=2 (default)", "1 gamma=2 (default)"]


@pytest.mark.parametrize(
    ("current", "same"),
    [
        ((2.0, [1000, 500]), True),
        ((2.009, [1000, 506]), True),
        ((2.011, [1000, 500]), False),
        ((2.0, [1000, 507]), False),
        ((2.0, [1000]), False),
        (None, False),
    ],
)
def test_how_much_numbers_may_differ(current: tuple[float, list[int]] | None, same: bool) -> None:
    now = {} if current is None else {"curve": current}
    assert (differing({"curve": (2.0, [1000, 500])}, now) == []) is same


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.write_text(file.read_text().replace('"0 hinge":[3.5,', '"0 hinge":[3.6,')), "other numbers"),
        (lambda file: file.write_text(file.read_text().replace('"title":"Every', '"title":"Any')), "another title"),
        (lambda file: file.unlink(), "there is no picture"),
        (lambda file: (file.parent / "alt.yaml").write_text("hinge: no\n"), "another text"),
    ],
)
def test_a_stale_picture_is_told(change: object, problem: str, tmp_path: Path) -> None:
    for name in ("hinge.svg", "alt.yaml"):
        shutil.copy(FOLDER / name, tmp_path)
    assert list(problems_of(["hinge"], tmp_path)) == []
    change(tmp_path / "hinge.svg")  # type: ignore[operator]
    assert [line.partition(problem)[1] for line in problems_of(["hinge"], tmp_path)] == [problem]


def test_a_picture_of_no_loss_is_told(tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("<svg/>")
    assert list(left_over(tmp_path)) == ["old: there is no such loss"]


@pytest.mark.parametrize(
    ("name", "expected"), [("KLDivergence", "kl_divergence"), ("Huber", "huber"), ("LogCosh", "log_cosh")]
)
def test_the_name_of_a_class(name: str, expected: str) -> None:
    assert snake_case(name) == expected
