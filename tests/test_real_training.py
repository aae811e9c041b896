"""Full trainings on real volumes: 200 hippocampus MRI, as `make demo DATA=...` trains them."""

import csv
from pathlib import Path

import pytest

from monai_extra_losses.cli import main


@pytest.mark.slow
@pytest.mark.usefixtures("real_pictures")
@pytest.mark.parametrize(("loss", "least"), [("dice_ce", 0.87), ("focal_tversky", 0.84)])
def test_a_training_reaches_the_dice_of_a_good_small_network(
    hippocampus: Path, tmp_path: Path, loss: str, least: float
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--data", str(hippocampus), "--loss", loss, "--out", str(tmp_path / "run")])
    assert end.value.code in (0, None)
    with (tmp_path / "run" / "eval" / "summary.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    (mean,) = (float(row["dice_mean"]) for row in rows if row["label"] == "mean")
    assert mean >= least
    assert (tmp_path / "run" / "eval" / "curves.png").stat().st_size > 10_000
    assert len(list((tmp_path / "run" / "eval" / "overlays").glob("*.png"))) == 40
