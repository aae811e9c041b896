"""The rows of the benchmark compare like with like, and no loss is left out of it."""

import csv
from pathlib import Path

import bench_losses
import pytest
import torch
from bench_losses import HEADLINES, ROWS, STRUCTURE, softmax_alone
from loss_list import LOSSES, each, labels_like, value_and_gradient

SHAPES = {"random": (3, 4, 5, 7, 9), "blocks_3d": (2, 2, 9, 5, 7), "blocks_1d_one_class_absent": (1, 4, 121)}


def labels_for(scores: torch.Tensor, name: str) -> torch.Tensor:
    """Random labels, or as many slabs as classes are present, so that an object has an inside."""
    if name == "random":
        return labels_like(scores, dtype=torch.float32)
    length = scores.shape[2]
    present = min(scores.shape[1], 3)
    slabs = torch.arange(length) * present // length
    return slabs.view(1, 1, -1, *[1] * (scores.ndim - 3)).expand(len(scores), 1, *scores.shape[2:]).float()


@pytest.mark.parametrize("row", [name for name, (_, baseline) in ROWS.items() if baseline is not softmax_alone])
@each("name", SHAPES)
def test_the_baseline_of_a_row_is_the_same_loss(row: str, name: str) -> None:
    ours, baseline = ROWS[row]
    scores = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = labels_for(scores, name)
    value, gradient = value_and_gradient(ours, scores, labels)
    expected, expected_gradient = value_and_gradient(baseline, scores, labels)
    torch.testing.assert_close(value, expected.to(value), rtol=1e-5, atol=0)
    largest = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * largest)


def test_every_loss_has_a_row() -> None:
    names = {entry.name for entry in LOSSES if not entry.measures}  # those have benchmarks/bench_boundary.py
    assert {type(ours).__name__ for ours, _ in ROWS.values()} == names
    assert STRUCTURE == (
        "CorrelationMaximizedStructuralSimilarityLoss",
        "LovaszLoss",
        "CenterlineDiceLoss",
        "SkeletonRecallLoss",
        "ComponentDiceCELoss",
        "BlobDiceCELoss",
        "AverageCalibrationLoss",
    )
    assert set(HEADLINES) <= ROWS.keys()


def test_a_loss_without_other_code_is_measured_beside_a_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "NewLoss", (ROWS["PolyLoss"][0], softmax_alone))
    assert bench_losses.baselines("NewLoss", ["MONAI", "textbook"]) == {"softmax": softmax_alone}
    assert list(bench_losses.baselines("PolyLoss", ["MONAI", "textbook"])) == ["textbook"]
    assert list(bench_losses.baselines("FusedDiceLoss", ["MONAI", "softmax"])) == ["MONAI", "softmax"]


def test_the_benchmark_writes_its_rows_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, rows = tmp_path / "table.md", tmp_path / "rows.csv"
    losses = ["--only", "LovaszLoss", "PolyLoss", "CrossEntropyLoss", "FusedDiceLoss"]
    shapes = ["--shapes", "1x2x4x4x4", "1x15x4x4x4", "--label-dtype", "uint8", "int64"]
    files = ["--csv", str(rows), "--markdown", str(table)]
    monkeypatch.setattr("sys.argv", ["bench_losses.py", "--device", "cpu", "--rounds", "1", *losses, *shapes, *files])
    monkeypatch.setattr("gc.collect", lambda: 0)  # takes longer than a step, in a process of many modules
    bench_losses.main()
    with rows.open() as file:
        written = [(row["loss"], row["shape"], row["labels"], row["baseline"]) for row in csv.DictReader(file)]
    assert written[:4] == [
        ("LovaszLoss", "1x2x4x4x4", "uint8", "textbook"),
        ("PolyLoss", "1x2x4x4x4", "uint8", "textbook"),
        ("CrossEntropyLoss", "1x2x4x4x4", "uint8", "textbook"),
        ("FusedDiceLoss", "1x2x4x4x4", "uint8", "MONAI"),
    ]
    assert len(written) == 2 * 4 + 2 * 3, "losses of structure are left out above 14 classes"
    lines = table.read_text().splitlines()[2:]
    assert lines[0] == "| loss | baseline | 1x2x4x4x4 | 1x15x4x4x4 |"
    baselines = [line.split(" | ")[:2] for line in lines[2:]]
    assert baselines == [["| FusedDiceLoss", "MONAI"], ["| CrossEntropyLoss", "textbook"]]
