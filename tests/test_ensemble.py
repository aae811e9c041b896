"""Several runs together: segmentations by the mean of their probabilities, their disagreement, pooled evaluations."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import Compose, MeanEnsemble
from runs import table, train

from monai_extra_losses.bundle.case_tables import summarise
from monai_extra_losses.bundle.ensemble import MeanOverRunsd
from monai_extra_losses.bundle.evaluation_record import EvaluationRecord
from monai_extra_losses.bundle.hysteresis import scores_of_what_is_kept
from monai_extra_losses.bundle.inference import InferenceSetUp
from monai_extra_losses.bundle.networks import network_of_run
from monai_extra_losses.bundle.options import run_folders
from monai_extra_losses.bundle.pooled_evaluation import PooledEvaluation
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.segmenting import InvertGeometryd, scores_of
from monai_extra_losses.bundle.tensor_files import record_checksum
from monai_extra_losses.cli import commands, main
from monai_extra_losses.data.errors import CasesFailed, StartUpRefused
from monai_extra_losses.engines import HalfPrecisionInferer
from monai_extra_losses.report.tables import read_csv

IMAGE = Path("imagesTs") / "phantom_test_000.nii.gz"
OVERLAPPING = {"whole": (1, 2), "organ": (1,), "lesion": (2,)}  # as many regions as classes: the weights fit both
TEXT = ("run", "case", "label")
Change = Callable[..., list[RunFolder]]


@pytest.fixture(scope="module")
def folds(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """Two folds of one short training; do not write into them."""
    root = tmp_path_factory.mktemp("runs")
    return [
        train(phantom_folder, root / f"fold_{fold}", fold=fold, epochs=2, val_interval=2, learning_rate=0.02)
        for fold in (0, 1)
    ]


@pytest.fixture
def copies(folds: list[RunFolder], tmp_path: Path) -> Change:
    """Copies of the folds whose records have other values."""

    def change(**fields: Any) -> list[RunFolder]:
        runs = [RunFolder(Path(shutil.copytree(fold.root, tmp_path / fold.root.name))) for fold in folds]
        for run in runs:
            dataclasses.replace(RunRecord.read(run.record), **fields).write(run.record)
        return runs

    return change


def infer(runs: list[RunFolder], source: Path, output: Path, **options: Any) -> None:
    first, *others = (str(run.root) for run in runs)
    folders = {"bundle_root": first, "input": str(source), "output_dir": str(output)}
    run_configs(("inference",), workflow_type="infer", **folders, **({"ensemble": others} if others else {}), **options)


def found_in(folder: Path, ending: str) -> np.ndarray:
    """Voxels of the result for `IMAGE`, channels last."""
    image = nibabel.load(folder / f"phantom_test_000_{ending}.nii.gz")
    return np.asarray(image.dataobj)


def entropy(p: np.ndarray) -> np.ndarray:
    p = p.astype(np.float64)
    return -p * np.log(np.where(p > 0, p, 1))


# ---- segmentations ----


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"pixdim": (1.5, 1.5, 2.0)}, {"test_time_flips": [0, 1]}),
        ({"regions": OVERLAPPING}, {"amp": "bf16"}),
        ({}, {"hysteresis": [0.2, 0.6]}),
    ],
    ids=["plain", "resampled and flipped", "regions in half precision", "hysteresis"],
)
def test_an_ensemble_writes_the_mean_of_what_its_runs_write(
    copies: Change, phantom_folder: Path, tmp_path: Path, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    runs = copies(**fields)
    for number, run in enumerate(runs):
        infer([run], phantom_folder / IMAGE, tmp_path / f"{number}", probabilities=True, **options)
    infer(runs, phantom_folder / IMAGE, tmp_path / "both", probabilities=True, uncertainty=True, **options)
    single = [found_in(tmp_path / f"{number}", "prob") for number in range(2)]
    assert np.abs(single[0] - single[1]).max() > 0.1
    mean = np.asarray(MeanEnsemble()([torch.from_numpy(p) for p in single]))
    np.testing.assert_allclose(found_in(tmp_path / "both", "prob"), mean, rtol=0, atol=1e-6)

    regions = bool(fields.get("regions"))
    values = scores_of(torch.from_numpy(mean).movedim(-1, 0), regions=regions)
    if "hysteresis" in options:
        values = scores_of_what_is_kept(values, options["hysteresis"], regions=False)
    decided = found_in(tmp_path / "both", "seg")
    if regions:
        np.testing.assert_array_equal(decided > 0, (mean >= 0.5).any(axis=-1))
    else:
        np.testing.assert_array_equal(decided, values.argmax(dim=0))

    both = np.float64(single)
    if regions:
        of_mean, of_each = (entropy(p) + entropy(1 - p) for p in (both.mean(axis=0), both))
        expected = (of_mean - of_each.mean(axis=0)).max(axis=-1)
        assert 0 < expected.max() <= np.log(2)
    else:
        expected = entropy(both.mean(axis=0)).sum(axis=-1) - entropy(both).sum(axis=-1).mean(axis=0)
    written = nibabel.load(tmp_path / "both" / "phantom_test_000_uncertainty.nii.gz")
    image = nibabel.load(phantom_folder / IMAGE)
    assert written.get_data_dtype() == np.float32
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-6)
    np.testing.assert_allclose(np.asarray(written.dataobj), expected, rtol=0, atol=2e-6)


def test_a_run_and_its_copy_agree_everywhere(folds: list[RunFolder], phantom_folder: Path, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(folds[0].root, tmp_path / "copy")))
    infer([folds[0]], phantom_folder / IMAGE, tmp_path / "one")
    infer([folds[0], copy], phantom_folder / IMAGE, tmp_path / "two", uncertainty="True")
    assert not found_in(tmp_path / "two", "uncertainty").any()
    np.testing.assert_array_equal(found_in(tmp_path / "two", "seg"), found_in(tmp_path / "one", "seg"))


def test_runs_of_an_ensemble_may_have_other_networks_and_patches(
    folds: list[RunFolder], copies: Change, phantom_folder: Path, tmp_path: Path
) -> None:
    _, other = copies(channels=(4, 8), num_res_units=0, patch_size=(16, 16, 8))
    record = RunRecord.read(other.record)
    torch.manual_seed(0)
    torch.save(network_of_run(record, in_channels=1, out_channels=3).state_dict(), other.model)
    record_checksum(other.model, other.model)
    for number, run in enumerate((folds[0], other)):
        infer([run], phantom_folder / IMAGE, tmp_path / f"{number}", probabilities=True)
    infer([folds[0], other], phantom_folder / IMAGE, tmp_path / "both", probabilities=True)
    mean = np.mean([found_in(tmp_path / f"{number}", "prob") for number in range(2)], axis=0)
    np.testing.assert_allclose(found_in(tmp_path / "both", "prob"), mean, rtol=0, atol=1e-6)


def test_three_runs_are_averaged_with_equal_weights() -> None:
    volumes = [MetaTensor(torch.randn(2, 3, 4, 5)) for _ in range(3)]
    image = MetaTensor(torch.zeros(1, 3, 4, 5))

    class Member:
        def __init__(self, scores: torch.Tensor) -> None:
            self.network = torch.nn.Identity()
            self.inferer = lambda inputs, network: MetaTensor(scores[None])

    mean = MeanOverRunsd(
        "pred",
        image="image",
        members=[Member(volume) for volume in volumes[1:]],  # type: ignore[misc]
        inversion=InvertGeometryd("pred", Compose([]), orig_keys="image"),
        regions=False,
        uncertainty="disagreement",
    )({"pred": volumes[0], "image": image})
    each = torch.stack([volume.as_tensor().double().softmax(dim=0) for volume in volumes])
    assert torch.allclose(mean["pred"].as_tensor().double().softmax(dim=0), each.mean(dim=0), atol=1e-6)
    divergence = (each * (each / each.mean(dim=0)).log()).sum(dim=1).mean(dim=0)  # another form of mutual information
    assert torch.allclose(mean["disagreement"].as_tensor()[0].double(), divergence, atol=1e-6)


def test_a_further_run_without_room_on_the_gpu_is_told_what_to_do(
    folds: list[RunFolder], phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MeanOverRunsd, "_scores", no_room)
    with pytest.raises(CasesFailed, match=r"phantom_test_000: expected a volume that fits into the GPU; give --stitch"):
        infer(folds, phantom_folder / IMAGE, tmp_path)


def test_finished_cases_are_those_of_the_same_models(
    folds: list[RunFolder], phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    infer(folds, phantom_folder / IMAGE, out)
    infer(folds[::-1], phantom_folder / IMAGE, out)
    assert "1 case(s) skipped, finished in" in capsys.readouterr().out
    (record,) = (out / ".segmentations").glob("*.json")
    assert len(set(json.loads(record.read_text())["model"])) == 2
    infer(folds, phantom_folder / IMAGE, out, uncertainty=True)
    assert (out / "phantom_test_000_uncertainty.nii.gz").exists()
    for others in ([folds[0]], [folds[0], RunFolder(Path(shutil.copytree(folds[0].root, tmp_path / "copy")))]):
        with pytest.raises(StartUpRefused, match=r"to be of this model, .* got one of another model"):
            infer(others, phantom_folder / IMAGE, out)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"labels": {0: "background", 1: "organ", 2: "cyst"}}, r"classes, got .*'lesion'.* in .*'cyst'"),
        ({"regions": OVERLAPPING}, r"regions, got none in .*fold_0 and .*'whole'.* in .*fold_1; leave one"),
        ({"in_channels": 2}, r"number of channels, got 1 in .*fold_0 and 2 in .*fold_1"),
        ({"original_labels": {2: 7}}, r"label ids before `prepare`, got {} in .* and {2: 7} in .*fold_1"),
        ({"pixdim": (1.0, 1.0, 2.0)}, r"pixdim, got none in .*fold_0 and \(1\.0, 1\.0, 2\.0\) in .*fold_1"),
        ({"hu_window": (-100.0, 200.0)}, r"hu_window, got none in .*fold_0 and \(-100\.0, 200\.0\) in"),
    ],
)
def test_runs_that_do_not_fit_are_refused_with_the_first_difference(
    folds: list[RunFolder], copies: Change, phantom_folder: Path, fields: dict[str, Any], sentence: str
) -> None:
    _, other = copies(**fields)
    with pytest.raises(StartUpRefused, match=f"Expected runs of the same {sentence}"):
        set_up_of([folds[0], other], phantom_folder)


def set_up_of(runs: list[RunFolder], data: Path, ensemble: Any = None, **options: Any) -> InferenceSetUp:
    others = [str(run.root) for run in runs[1:]] if ensemble is None else ensemble
    folders = {"bundle_root": str(runs[0].root), "input": str(data / IMAGE), "metadata": {}}
    return InferenceSetUp(**folders, ensemble=others, output_dir=str(runs[0].root.parent / "out"), **options)


def test_channels_in_another_order_are_refused(copies: Change, phantom_folder: Path) -> None:
    runs = copies(in_channels=2)
    for run, names in zip(runs, ({"0": "T1", "1": "T2"}, {"0": "T2", "1": "T1"}), strict=True):
        content = json.loads(run.metadata.read_text())
        content["network_data_format"]["inputs"]["image"]["channel_def"] = names
        run.metadata.write_text(json.dumps(content))
    with pytest.raises(StartUpRefused, match=r"same channels, got \['T1', 'T2'\] in .* and \['T2', 'T1'\] in"):
        set_up_of(runs, phantom_folder)
    runs[1].metadata.unlink()  # which does not tell
    with pytest.raises(StartUpRefused, match=r"expected 2 channel\(s\) as in the run, got 1"):
        set_up_of(runs, phantom_folder)


def test_what_needs_an_ensemble_or_none_is_refused(copies: Change, phantom_folder: Path, tmp_path: Path) -> None:
    runs = copies()
    with pytest.raises(
        StartUpRefused, match=r"Expected several runs with uncertainty, .*, got one; name more by --run"
    ):
        set_up_of(runs[:1], phantom_folder, uncertainty=True)
    with pytest.raises(StartUpRefused, match=r"Expected no model_file with several runs, .*, got a\.pt; leave it out"):
        set_up_of(runs, phantom_folder, model_file="a.pt")
    with pytest.raises(StartUpRefused, match=r"Expected a trained run in .*/nowhere, got a folder without models/run"):
        set_up_of([*runs, RunFolder(tmp_path / "nowhere")], phantom_folder)
    with pytest.raises(StartUpRefused, match=r"Expected each run of an ensemble once, got .*fold_0 twice"):
        set_up_of([*runs, runs[0]], phantom_folder)
    runs[1].model.unlink()
    with pytest.raises(StartUpRefused, match=r"Expected trained weights in .*fold_1.*, got no such file; train first"):
        set_up_of(runs, phantom_folder)


def test_a_pattern_of_a_config_leaves_the_first_run_out(folds: list[RunFolder], phantom_folder: Path) -> None:
    pattern = str(folds[0].root.parent / "fold_?")
    for ensemble in (pattern, str([str(folds[1].root)])):
        (member,) = set_up_of(folds, phantom_folder, ensemble).further_members
        assert member.folder == folds[1]
    assert not set_up_of(folds, phantom_folder, "null").further_members


# ---- the command line ----


def runs_of_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[str, Any]:
    """The options that a command hands to the configs."""
    caught: list[dict[str, Any]] = []
    monkeypatch.setattr(commands, "run_configs", lambda configs, **options: caught.append(options))
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0, ended.value.code
    (options,) = caught
    return options


@pytest.mark.parametrize(
    "words",
    [
        ("--run", "a/f0", "a/f1", "--input", "in", "--output", "out"),
        ("--run", "a/f0", "--run", "a/f1", "--input", "in", "--output", "out"),
        ("--run=a/f0", "a/f1", "--input", "in", "--output", "out"),
        ("--input", "in", "--output", "out", "--bundle_root", "a/f0", "a/f1"),
        ("--run", "a/f?", "--input", "in", "--output", "out"),
        ("--amp", "False", "--run", "a/f0", "a/f1", "--uncertainty", "True", "--input", "in", "--output", "out"),
    ],
)
def test_several_runs_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    for name in ("f0", "f1"):
        (tmp_path / "a" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    options = runs_of_command(monkeypatch, "infer", *words)
    assert options["bundle_root"] == tmp_path / "a" / "f0"
    assert options["ensemble"] == [tmp_path / "a" / "f1"]
    assert options.get("uncertainty") == (True if "--uncertainty" in words else None)


def test_one_run_on_the_command_line_is_none_of_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ensemble" not in runs_of_command(monkeypatch, "infer", "--run", "a", "--input", "in", "--output", "out")


def test_patterns_and_doubled_runs(tmp_path: Path) -> None:
    for name in ("a", "b", "c[1]"):
        (tmp_path / name).mkdir()
    (tmp_path / "d").touch()
    assert run_folders("--run", [tmp_path / "[a-z]"]) == (tmp_path / "a", tmp_path / "b")
    assert run_folders("--run", [tmp_path / "c[1]", tmp_path / "x"]) == (tmp_path / "c[1]", tmp_path / "x")
    with pytest.raises(StartUpRefused, match=r"Expected --run to name folders of runs, got the pattern .*/x\*, which"):
        run_folders("--run", [tmp_path / "x*"])
    with pytest.raises(StartUpRefused, match=r"Expected --run to name each run once, got .*/a twice"):
        run_folders("--run", [tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_what_does_not_go_with_several_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom_folder: Path
) -> None:
    def said(*words: object) -> object:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code

    source = ("--input", phantom_folder, "--output", tmp_path / "out")
    assert said("infer", "--run", "a", "b", *source, "--ensemble", "c") == (
        "Expected the runs of an ensemble behind --run, got --ensemble; name all by --run."
    )
    assert said("evaluate", "--run", "a", "b", "--model_file", "c.pt") == (
        "Expected no model_file with several runs, each of which has its own, got c.pt; leave it out."
    )
    assert str(said("evaluate", "--run", "a", "b", "--overlay", "False")).startswith(
        "There is no option 'overlay' (did"
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert said("evaluate", "--run", "a", "b") == (
        "Expected one process for several runs, got 2 by torchrun; start without it."
    )


# ---- pooled evaluations ----


def evaluate_all(runs: list[RunFolder], *words: object) -> None:
    folders = [str(run.root) for run in runs]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--run", *folders, "--overlays", "False", "--metrics", "lesions", *map(str, words)])
    if ended.value.code:
        raise StartUpRefused(str(ended.value.code))


@pytest.fixture(scope="module")
def pooled(folds: list[RunFolder], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFolder], ResultsFolder]:
    """The folds, evaluated, and the folder of their pooled tables; do not write into them."""
    root = tmp_path_factory.mktemp("pooled")
    runs = [RunFolder(Path(shutil.copytree(fold.root, root / fold.root.name))) for fold in folds]
    evaluate_all(runs)
    return runs, ResultsFolder(root / "eval")


@pytest.fixture
def evaluated(pooled: tuple[list[RunFolder], ResultsFolder], tmp_path: Path) -> tuple[list[RunFolder], ResultsFolder]:
    """A copy to write into."""
    runs, results = pooled
    root = Path(shutil.copytree(results.root.parent, tmp_path / "runs"))
    return [RunFolder(root / run.root.name) for run in runs], ResultsFolder(root / "eval")


def assert_same_numbers(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """Up to the six digits of a table, from which means over lesions are taken."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            exact = isinstance(value, str)
            assert value == (other[name] if exact else pytest.approx(other[name], rel=1e-5, nan_ok=True)), name


def test_pooled_tables_are_of_all_cases(pooled: tuple[list[RunFolder], ResultsFolder]) -> None:
    runs, results = pooled
    names = [run.root.name for run in runs]
    for file in ("cases.csv", "lesions.csv"):
        together = [
            {"run": name, **row}
            for name, run in zip(names, runs, strict=True)
            for row in read_csv(run.results.root / file, text=TEXT)
        ]
        assert {row["run"] for row in together} == set(names)
        assert_same_numbers(read_csv(results.root / file, text=TEXT), together)
    rows = read_csv(results.cases_csv, text=TEXT)
    assert len({row["case"] for row in rows}) == sum(len(RunRecord.read(run.record).validation) for run in runs) == 4
    measured = [name for name in rows[0] if name not in ("run", "case", "label", "target_ml", "prediction_ml")]
    summary = read_csv(results.summary_csv, text=("label",))
    assert_same_numbers(summary, summarise(rows, ["organ", "lesion"], measured))
    assert results.lesions_png.exists()
    record = EvaluationRecord.read(results.record)
    assert record is not None
    assert record.runs == tuple(str(run.root) for run in runs)
    assert len(set(record.models)) == len(set(record.cases)) == 2


def test_a_finished_evaluation_is_pooled_again_and_not_repeated(
    evaluated: tuple[list[RunFolder], ResultsFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, results = evaluated
    kept = runs[1].results.record
    before = kept.stat().st_mtime_ns
    text = results.cases_csv.read_text()
    results.cases_csv.write_text("")
    runs[0].results.cases_csv.unlink()
    evaluate_all(runs)
    said = capsys.readouterr().out
    assert f"Evaluated before: {runs[1].results.cases_csv}" in said
    assert str(runs[0].results.cases_csv) in said.replace(f"before: {runs[0].results.cases_csv}", "")
    assert "2 runs, each case measured by the one that did not train on it." in said
    assert results.cases_csv.read_text() == text
    assert kept.stat().st_mtime_ns == before
    assert "All" not in (runs[1].results.log.read_text())
    evaluate_all(runs, "--overwrite", "True")
    assert kept.stat().st_mtime_ns > before


def test_bins_of_volume_are_those_of_all_runs(evaluated: tuple[list[RunFolder], ResultsFolder]) -> None:
    runs, results = evaluated
    evaluate_all(runs, "--overwrite", "True", "--lesion_bins", "2")
    volumes = [float(row["volume_ml"]) for row in table(results.lesions_csv)]
    counts = [name for name in table(results.cases_csv)[0] if re.fullmatch(r"lesions_.*_ml", name)]
    edge = float(counts[1].removeprefix("lesions_from_").removesuffix("_ml"))
    of_bins = [sum(int(row[name]) for row in table(results.cases_csv)) for name in counts]
    assert of_bins == [sum(volume < edge for volume in volumes), sum(volume >= edge for volume in volumes)]
    assert abs(of_bins[0] - of_bins[1]) <= 1


def test_every_run_measures_all_cases_of_a_data_set(
    folds: list[RunFolder], phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    for name in ("imagesTs", "labelsTs"):
        shutil.rmtree(data / name, ignore_errors=True)
    content = json.loads((data / "dataset.json").read_text())
    content["training"], content["test"] = content["training"][:2], []
    content.pop("folds", None)
    (data / "dataset.json").write_text(json.dumps(content | {"numTraining": 2, "numTest": 0}))
    words = ("--data", data, "--split", "all")
    with pytest.raises(StartUpRefused, match=r"Expected --output_dir with other cases than those that the runs valid"):
        evaluate_all(folds, *words)
    evaluate_all(folds, *words, "--output_dir", tmp_path / "out")
    rows = table(tmp_path / "out" / "cases.csv")
    assert len(rows) == 2 * 2 * 2  # runs, cases, classes
    assert len({row["case"] for row in rows}) == 2
    for name in ("fold_0", "fold_1"):
        own = read_csv(tmp_path / "out" / name / "cases.csv", text=TEXT)
        pooled = [row for row in read_csv(tmp_path / "out" / "cases.csv", text=TEXT) if row["run"] == name]
        assert_same_numbers(pooled, [{"run": name, **row} for row in own])
        assert not (folds[0].root.parent / name / "eval" / "cases.csv").exists()
    assert table(tmp_path / "out" / "summary.csv")[0]["cases"] == "4"
    assert "2 runs, each of which measured all cases: a case counts once for each run." in capsys.readouterr().out


def test_runs_that_cannot_be_pooled_are_refused_before_anything_is_measured(
    evaluated: tuple[list[RunFolder], ResultsFolder], tmp_path: Path
) -> None:
    runs, results = evaluated
    seed = RunFolder(Path(shutil.copytree(runs[0].root, runs[0].root.parent / "seed_1")))
    case = RunRecord.read(seed.record).validation[0]
    with pytest.raises(StartUpRefused, match=rf"other validation cases, .*, got {case} in fold_0 and in seed_1; leave"):
        evaluate_all([*runs, seed])
    with pytest.raises(StartUpRefused, match=r"other training cases, .* and --split all\."):
        evaluate_all(runs, "--split", "training", "--output_dir", tmp_path / "out")
    elsewhere = RunFolder(Path(shutil.move(seed.root, tmp_path / "elsewhere")))
    with pytest.raises(StartUpRefused, match=r"Expected --output_dir with runs of several folders, got none"):
        evaluate_all([runs[1], elsewhere])
    with pytest.raises(StartUpRefused, match=r"eval/cases\.csv exists, and not of several runs; replace it by"):
        evaluate_all(runs, "--output_dir", elsewhere.results.root)
    shutil.rmtree(results.root)
    other = dataclasses.replace(RunRecord.read(runs[1].record), metrics=("lesions",))
    other.write(runs[1].record)
    plan: dict[str, Any] = {"runs": [run.root for run in runs], "split": "validation"}
    with pytest.raises(StartUpRefused, match=r"runs of the same metrics, got \(\) in .*fold_0 and \('lesions',\) in"):
        PooledEvaluation(**plan)
    assert [run.name for run in PooledEvaluation(**plan, same_metrics=False).runs] == ["fold_0", "fold_1"]
    dataclasses.replace(other, labels={0: "background", 1: "organ", 2: "cyst"}).write(runs[1].record)
    with pytest.raises(StartUpRefused, match=r"runs of the same classes, got .*'lesion'.* in .*'cyst'.* in .*fold_1"):
        PooledEvaluation(**plan, same_metrics=False)
    assert not results.root.exists()


def test_runs_of_several_folders_keep_these_in_their_names(
    evaluated: tuple[list[RunFolder], ResultsFolder], tmp_path: Path
) -> None:
    runs, _ = evaluated
    other = Path(shutil.move(runs[1].root, tmp_path / "other" / "fold_0"))
    evaluation = PooledEvaluation([runs[0].root, other], split="validation", output_dir=tmp_path / "out")
    assert [run.name for run in evaluation.runs] == ["runs/fold_0", "other/fold_0"]
    evaluation.write()
    assert {row["run"] for row in table(tmp_path / "out" / "cases.csv")} == {"runs/fold_0", "other/fold_0"}


def test_tables_of_something_else_are_neither_pooled_nor_replaced(
    evaluated: tuple[list[RunFolder], ResultsFolder], phantom_folder: Path, tmp_path: Path
) -> None:
    runs, _ = evaluated
    results = runs[0].results

    def refused(sentence: str, *words: object) -> None:
        match = rf"fold_0/eval/cases\.csv to be of this evaluation, got one {sentence}; replace it by --overwrite True"
        with pytest.raises(StartUpRefused, match=match):
            evaluate_all(runs, *words)

    refused(r"of surface_tolerance_mm 1\.0 instead of 2\.0", "--surface_tolerance_mm", "2")
    refused(r"of overlap 0\.5 instead of 0\.25", "--validate::inferer::inferer::overlap", "0.25")
    refused(r"of overlays false instead of true", "--overlays", "True")
    lesions = results.lesions_csv.read_bytes()
    results.lesions_csv.unlink()
    refused(r"without lesions\.csv")
    results.lesions_csv.write_bytes(lesions)
    record = results.record.read_text()
    results.record.write_text(json.dumps(json.loads(record) | {"cases": ["of other files"]}))
    refused("of other cases or files")
    results.record.write_text(json.dumps(json.loads(record) | {"models": ["of another"]}))
    refused("of another model")
    for damaged in ("", "[]", record.replace('"format": 1', '"format": 2'), record.replace('"models"', '"modules"')):
        results.record.write_text(damaged)
        assert EvaluationRecord.read(results.record) is None
        refused("without a record of what it is of")
    results.record.unlink()
    with pytest.raises(StartUpRefused, match=r"Expected an evaluation in .*fold_0/eval, got none that is finished"):
        PooledEvaluation([run.root for run in runs], split="validation").write()


def test_the_windows_of_an_evaluation_are_recorded_where_there_are_any() -> None:
    record = EvaluationRecord(("run",), ("model",), ("organ",), ("files",), {"split": "all"})
    window = SlidingWindowInferer(roi_size=8, overlap=(0.5, 0.5, 0.25), mode="gaussian")
    known = record.with_windows(HalfPrecisionInferer(window, None))
    assert known.options == {"split": "all", "overlap": [0.5, 0.5, 0.25], "mode": "gaussian"}
    other = record.with_windows(HalfPrecisionInferer(SimpleInferer(), None))
    assert known.difference(other) == "one of overlap [0.5, 0.5, 0.25] instead of null"
    assert known.difference(record) is None  # before the network is built, nothing is known of them
