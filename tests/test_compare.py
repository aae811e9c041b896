"""Comparisons: the plan, the trials in processes, what is collected of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import evaluate, table, train

from monai_extra_losses.bundle.calibration_metrics import calibration_errors
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.cli import main
from monai_extra_losses.compare.collection import collect, metrics_of
from monai_extra_losses.compare.comparison import check_plan, number_list, open_comparison
from monai_extra_losses.compare.local import FAILED, FINISHED, last_line, run_locally
from monai_extra_losses.compare.plan import ComparisonPlan, LossChoice, Trial, read_grid, read_losses
from monai_extra_losses.compare.results import MEAN
from monai_extra_losses.compare.trial import (
    ComparisonFolder,
    configs_of,
    evaluation_options_of,
    options_of,
    run_trial,
)
from monai_extra_losses.data.errors import StartUpRefused

QUICK: dict[str, Any] = {"epochs": 1, "num_folds": 3, "channels": [4, 8, 16]}


def plan_of(folder: Path | str, losses: str = "dice_ce,tversky::alpha=0.3", **more: Any) -> ComparisonPlan:
    given = {"folds": (0, 1), "seeds": (0, 1), "options": QUICK, **more}
    return ComparisonPlan(dataset_dir=str(folder), losses=read_losses(losses), **given)


@pytest.fixture(scope="module")
def compared(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComparisonPlan]:
    """Two losses, two folds, one seed, in this process. Do not write into it."""
    out = tmp_path_factory.mktemp("compared")
    plan = plan_of(phantom_folder, seeds=(1,), metrics=("calibration",), options={**QUICK, "surface_tolerance_mm": 2.5})
    plan.write(ComparisonFolder(out).plan)
    for trial in plan.trials:
        run_trial(out, trial.name)
    return out, plan


@pytest.mark.parametrize(
    ("text", "choice", "folder"),
    [
        ("dice_ce", ("dice_ce", {}, ()), "dice_ce"),
        ("focal_tversky::gamma=2", ("focal_tversky", {"gamma": 2}, ()), "focal_tversky_gamma=2"),
        (
            "surface+boundary_maps+boundary_schedule",
            ("surface", {}, ("boundary_schedule", "boundary_maps")),
            "surface_boundary_maps_boundary_schedule",
        ),
        ("my.Loss::weight=[1, 2]", ("my.Loss", {"weight": [1, 2]}, ()), "my.Loss_weight=_1_2_"),
    ],
)
def test_losses_are_read(text: str, choice: tuple[Any, ...], folder: str) -> None:
    loss = LossChoice.read(text)
    assert ((loss.name, loss.options, loss.overlays), loss.folder) == (choice, folder)


def test_commas_in_brackets_part_no_losses() -> None:
    assert [loss.text for loss in read_losses("dice_ce, my.Loss::weight=[1,2],tversky")] == [
        *("dice_ce", "my.Loss::weight=[1,2]", "tversky")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got none"),
        ("dice_ce,dice_ce", "'dice_ce' twice"),
        ("tversky::alpha", "got 'tversky::alpha'"),
        ("::alpha=1", "got '::alpha=1'"),
        ("dice_ce+maps", "got 'maps' in 'dice_ce[+]maps'"),
    ],
)
def test_losses_that_cannot_be_are_refused(text: str, said: str) -> None:
    with pytest.raises(StartUpRefused, match=said):
        read_losses(text)


def test_the_grid_is_every_combination() -> None:
    grid = read_grid(["learning_rate=0.001,0.002", "batch_size=1,2"])
    points = plan_of("x", grid=grid).grid_points
    assert points[:2] == [{"learning_rate": 0.001, "batch_size": 1}, {"learning_rate": 0.001, "batch_size": 2}]
    assert len(points) == 4
    for wrong in (["learning_rate"], ["batch_size=1,1"], ["batch_size=1", "batch_size=2"]):
        with pytest.raises(StartUpRefused):
            read_grid(wrong)


def test_every_loss_has_the_same_trials_and_names_of_its_own() -> None:
    plan = plan_of("x", seeds=(0, 1, 2), grid={"learning_rate": (0.1, 0.2)})
    trials = plan.trials
    assert len(trials) == len({trial.name for trial in trials}) == 2 * 2 * 3 * 2
    of_losses = [[(t.fold, t.seed, t.values) for t in trials if t.loss == loss] for loss in plan.losses]
    assert of_losses[0] == of_losses[1]
    assert [trial.loss for trial in trials[:2]] == list(plan.losses)  # every loss is seen first
    assert plan.trial(trials[5].name) == trials[5]


def test_a_plan_reads_back(tmp_path: Path) -> None:
    plan = plan_of("x", "dice_ce,my.Loss::weight=[1,2]+lesions", grid={"learning_rate": (0.1,)}, metrics=("lesions",))
    plan.write(tmp_path / "plan.json")
    assert not list(ComparisonPlan.read(tmp_path / "plan.json").changes(plan))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(StartUpRefused, match=r"plan.json: expected the plan that compare writes"):
        ComparisonPlan.read(tmp_path / "plan.json")


def test_only_the_loss_differs_within_fold_and_seed() -> None:
    plan = plan_of("x", "dice_ce,tversky::alpha=0.3+lesions")
    first, second = (options_of(plan, Trial(loss, 1, 2)) for loss in plan.losses)
    assert {key for key in {**first, **second} if first.get(key) != second.get(key)} == {"loss", "loss::alpha"}
    assert (first["fold"], first["seed"], first["fold_seed"], first["epochs"]) == (1, 2, 0, 1)
    assert configs_of(plan) == ("train", "losses")
    assert configs_of(plan_of("x", config_files=("own.yaml",))) == ("own.yaml", "losses")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses": read_losses("dice_ec")}, "There is no loss 'dice_ec'"),
        ({"losses": read_losses("dice_ce,tversky::alhpa=1")}, "no option 'alhpa'"),
        ({"options": {"epochz": 1}}, "no option 'epochz'"),
        ({"options": {"fold": 1}}, "got --fold, which a comparison sets itself: --folds"),
        ({"options": {"loss::alpha": 1}}, "options of a loss stand in --losses"),
        ({"grid": {"seed": (1, 2)}}, "got --seed"),
        ({"grid": {"lesion_overlap": (0.1, 0.5)}}, "options of the training, got lesion_overlap, which only measures"),
        ({"options": {"lesion_overlap": 2}}, "lesion_overlap"),
        ({"options": {"hysteresis": [0.7, 0.2]}}, "hysteresis to be two numbers, the lower one first"),
        ({"folds": (0, 5)}, "--folds among 0 to 4, got 5"),
        ({"config_files": ("nowhere.yaml",)}, "--config_file to be a file, got nowhere.yaml"),
    ],
)
def test_a_plan_that_cannot_begin_is_refused(phantom_folder: Path, change: dict[str, Any], said: str) -> None:
    given = {"dataset_dir": str(phantom_folder), "losses": read_losses("dice_ce"), "folds": (0,), "seeds": (0,)}
    with pytest.raises(StartUpRefused, match=said):
        check_plan(ComparisonPlan(**{**given, **change}))


def test_names_of_files_reach_the_trials_as_they_are(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's parser would evaluate the one, and make `::` of the `#` in the other."""
    data, weights = tmp_path / "a#1", "$import os"
    data.symlink_to(phantom_folder)
    (tmp_path / weights).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("monai_extra_losses.cli.comparing.run_comparison", lambda *_: sys.exit(0))
    words = ["compare", "--data", "a#1", "--test", "a#1", "--losses", "dice_ce,tversky", "--pretrained", weights]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", "out"])
    assert ended.value.code == 0
    plan = ComparisonPlan.read(ComparisonFolder(tmp_path / "out").plan)
    options = options_of(plan, plan.trials[0])
    assert (options["dataset_dir"], options["pretrained"]) == (data, tmp_path / weights)
    assert evaluation_options_of(plan)["dataset_dir"] == data


def test_numbers_of_folds() -> None:
    assert number_list("--folds", "0, 2") == (0, 2)
    for wrong in ("", "a", "0,0", "-1", "0.5"):
        with pytest.raises(StartUpRefused, match="--folds"):
            number_list("--folds", wrong)


def test_a_folder_takes_one_plan_alone(tmp_path: Path) -> None:
    plan = plan_of("x")
    open_comparison(tmp_path / "out", plan)
    open_comparison(tmp_path / "out", plan)
    for change, said in (
        ({"seeds": (0,)}, r"seeds \[0, 1\] and not \[0\]"),
        ({"options": {**QUICK, "epochs": 2}}, "epochs 1 and not 2"),
        ({"losses": "dice_ce,tversky"}, r'"tversky::alpha=0.3"\] and not \["dice_ce", "tversky"'),
    ):
        with pytest.raises(StartUpRefused, match=said):
            open_comparison(tmp_path / "out", plan_of("x", **change))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(StartUpRefused, match="to be a new folder"):
        open_comparison(tmp_path / "mine", plan)


def test_trials_validate_on_the_same_cases_whatever_the_seed(phantom_folder: Path, tmp_path: Path) -> None:
    runs = [
        RunRecord.read(train(phantom_folder, tmp_path / str(seed), seed=seed, fold_seed=0).record) for seed in (0, 7)
    ]
    assert runs[0].validation == runs[1].validation
    other = RunRecord.read(train(phantom_folder, tmp_path / "other", seed=7).record)
    assert other.validation != runs[0].validation


def test_options_of_the_evaluation_hold_for_every_trial(compared: tuple[Path, ComparisonPlan]) -> None:
    out, plan = compared
    for trial in plan.trials:
        assert "surface_tolerance_mm" not in options_of(plan, trial)
        record = json.loads(ComparisonFolder(out).results(trial.name).record.read_text())
        assert record["options"]["surface_tolerance_mm"] == 2.5


def test_trials_are_collected(compared: tuple[Path, ComparisonPlan]) -> None:
    out, plan = compared
    results = collect(out, plan, {}, "compare")
    assert [one.trial for one in results.finished] == plan.trials
    assert not results.failed
    assert not results.missing
    assert results.labels == ("organ", "lesion")
    assert {metric.name for metric in results.metrics} >= {"dice", "hd95_mm", "average_calibration_error"}
    for one in results.finished:
        assert one.seconds_per_epoch > 0
        assert one.peak_memory_mb > 10
        assert len(one.epochs) == 1
    scores = results.scores(metrics_of(plan)[0])
    cases = {row["case"] for one in results.finished for row in one.cases}
    assert (scores.losses, scores.replicates) == (("dice_ce", "tversky::alpha=0.3"), ("seed 1",))
    assert set(scores.cases) == cases
    case = scores.cases[0]
    own = [
        float(row["dice"])
        for trial in plan.trials[:4]
        if trial.loss.text == "dice_ce"
        for row in table(ComparisonFolder(out).results(trial.name).cases_csv)
        if row["case"] == case
    ]
    np.testing.assert_allclose(scores.values[0, 0, 0], np.mean(own))
    assert scores.label == MEAN
    assert "licence of the data" in results.facts


def test_a_trial_that_is_not_there_is_missing_and_leaves_a_gap(
    compared: tuple[Path, ComparisonPlan], phantom_folder: Path
) -> None:
    out, plan = compared
    larger = plan_of(phantom_folder, seeds=(1, 2), metrics=plan.metrics)
    failing = larger.trials[-1].name
    results = collect(out, larger, {failing: FAILED}, "compare")
    assert set(results.missing) == {trial.name for trial in larger.trials if trial.seed == 2} - {failing}
    assert set(results.failed) == {failing}
    assert results.scores(results.metrics[0]).replicates == ("seed 1",)


def test_the_point_of_the_grid_that_validates_best_is_taken(phantom_folder: Path, tmp_path: Path) -> None:
    plan = plan_of(phantom_folder, "dice_ce", folds=(0,), seeds=(0,), grid={"learning_rate": (1e-9, 0.02)})
    plan.write(ComparisonFolder(tmp_path).plan)
    for trial in plan.trials:
        run_trial(tmp_path, trial.name)
    results = collect(tmp_path, plan, {}, "compare")
    best = max(results.finished, key=lambda one: one.epochs[0]["val_mean_dice"])
    assert results.chosen == {"dice_ce": best.trial.values}
    assert results.of_loss("dice_ce") == [best]


def test_results_of_other_cases_are_not_compared(
    compared: tuple[Path, ComparisonPlan], phantom_folder: Path, tmp_path: Path
) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    file = ComparisonFolder(out).results(compared[1].trials[1].name).cases_csv
    file.write_text(file.read_text().replace("phantom_", "other_"))
    with pytest.raises(StartUpRefused, match="to have measured the same cases"):
        collect(out, compared[1], {}, "compare")


def command_line(*words: object) -> list[str]:
    return [sys.executable, "-m", "monai_extra_losses", *map(str, words)]


def words_of(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    quick = ("--epochs", 2, "--num_folds", 3, "--channels", "[4, 8, 16]", "--metrics", "[]", "--jobs", 2)
    return ("compare", "--data", folder, "--losses", "dice_ce,tversky", "--seeds", 2, "--out", out, *quick, *more)


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("seconds_per_epoch", "peak_memory_mb")} for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_comparison_goes_on_and_ends_as_one_that_was_not(phantom_folder: Path, tmp_path: Path) -> None:
    """Killed again and again, a few seconds later each time, until it comes to its end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    whole = subprocess.run(command_line(*words_of(phantom_folder, tmp_path / "whole")), env=environment, check=False)
    assert whole.returncode == 0
    for seconds in range(6, 120, 7):
        process = subprocess.Popen(command_line(*words_of(phantom_folder, tmp_path / "killed")), env=environment)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            break
    assert process.returncode == 0
    results = [table(tmp_path / name / "results.csv") for name in ("whole", "killed")]
    assert len(results[0]) == 2 * 2 * 2 * 2  # losses, seeds, cases, classes
    assert without_times(results[0]) == without_times(results[1])
    again = subprocess.run(
        command_line(*words_of(phantom_folder, tmp_path / "killed", "--learning_rate", 0.1)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert again.stderr.startswith("Expected learning_rate null and not 0.1 as in the comparison")


def test_a_dry_run_trains_nothing(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words_of(phantom_folder, tmp_path / "out", "--dry-run")])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.splitlines()[:4] == [f"{loss}/fold0_seed{seed}" for seed in (0, 1) for loss in ("dice_ce", "tversky")]
    assert re.search(r"4 trials take about \d+ (s|min), 2 at a time", said)
    assert not (tmp_path / "out").exists()


def test_every_fold_is_trained_below_one_folder(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs"
    words = ["train", "--data", str(phantom_folder), f"--run={run}", "--fold", "all", "--num_folds", "2"]
    quick = ["--epochs", "1", "--channels", "[4, 8, 16]", "--jobs", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *quick])
    assert ended.value.code == 0
    assert f"evaluate --run {run}/fold_*" in capsys.readouterr().out
    records = [RunRecord.read(RunFolder(run / f"fold_{fold}").record) for fold in (0, 1)]
    assert [record.fold for record in records] == [0, 1]
    assert set(records[0].validation) == set(records[1].training)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fold", "all", "--epochz", "1"), "no option 'epochz'"),
        (("--fold", "al"), "Expected fold to be a whole number of at least 0, got 'al'"),
        (("--jobs", "2"), "--jobs with --fold all alone"),
    ],
)
def test_folds_that_cannot_be_are_refused(
    phantom_folder: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises((StartUpRefused, SystemExit), match=said):
        main(["train", "--data", str(phantom_folder), "--run", str(tmp_path / "run"), *words])


SCRIPT = """
import sys, time, pathlib
out, name = pathlib.Path(sys.argv[1]), sys.argv[2]
print("begins", name)
if "slow" in name:
    time.sleep(60)
if "bad" in name:
    print("ValueError: no such thing")
    sys.exit(3)
(out / f"{name}.done").touch()
"""


def test_a_failing_trial_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "trial.py").write_text(SCRIPT)
    seen: list[dict[str, str]] = []
    states = run_locally(
        ["one", "bad", "two"],
        command=lambda name: [sys.executable, str(tmp_path / "trial.py"), str(tmp_path), name],
        log=lambda name: tmp_path / name / "process.txt",
        jobs=2,
        gpus=(),
        on_change=lambda states: seen.append(dict(states)),
    )
    assert states == {"one": FINISHED, "bad": FAILED, "two": FINISHED}
    assert last_line(tmp_path / "bad" / "process.txt") == "ValueError: no such thing"
    assert last_line(tmp_path / "nowhere.txt") == ""
    assert all(sum(state == "running" for state in states.values()) <= 2 for states in seen)
    assert seen[-1] == states


def test_each_trial_has_its_gpu_and_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))"
    states = run_locally(
        ["a", "b"],
        command=lambda name: [sys.executable, "-c", words],
        log=lambda name: tmp_path / name,
        jobs=2,
        gpus=("4", "7"),
        on_change=lambda _: None,
    )
    assert set(states.values()) == {FINISHED}
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert {(tmp_path / name).read_text().strip() for name in "ab"} == {f"{threads} 4", f"{threads} 7"}


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_trials_end_with_a_killed_comparison(tmp_path: Path) -> None:
    waits = "from monai_extra_losses.compare.local import *; end_with_stdin(); import time; time.sleep(60)"
    starts = f"""
import os, sys, pathlib
from monai_extra_losses.compare.local import run_locally
run_locally(["a"], command=lambda name: [sys.executable, "-c", {waits!r}],
            log=lambda name: pathlib.Path({str(tmp_path)!r}, name),
            jobs=1, gpus=(), on_change=lambda states: None)
"""
    process = subprocess.Popen([sys.executable, "-c", starts], cwd=Path(__file__).parents[1])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{found[0]}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{found[0]}").exists()


def test_calibration_errors_are_those_of_monai() -> None:
    from monai.metrics import CalibrationErrorMetric

    generator = torch.Generator().manual_seed(0)
    p = torch.rand(1, 1, 9, 10, 11, generator=generator)
    g = (torch.rand(p.shape, generator=generator) < p.square()).float()
    for place, kind in enumerate(("expected", "average")):
        metric = CalibrationErrorMetric(calibration_reduction=kind)
        metric(y_pred=p, y=g)
        theirs = metric.aggregate()
        assert isinstance(theirs, torch.Tensor)
        np.testing.assert_allclose(calibration_errors(p.numpy(), g.numpy() > 0)[place], theirs.item(), rtol=1e-5)
    assert np.isnan(calibration_errors(np.zeros(0), np.zeros(0, dtype=bool))).all()
    assert calibration_errors(np.array([1.0, 0.0]), np.array([True, False])) == (0.0, 0.0)


def test_an_evaluation_measures_calibration(phantom_folder: Path, tmp_path: Path) -> None:
    run = train(phantom_folder, tmp_path / "run")
    evaluate(run, overlays=False, metrics="[calibration]")
    rows = table(run.results.cases_csv)
    assert all(0 < float(row["expected_calibration_error"]) < 1 for row in rows)
    assert all(0 < float(row["average_calibration_error"]) < 1 for row in rows)


def test_a_finished_trial_is_not_run_again(compared: tuple[Path, ComparisonPlan]) -> None:
    out, plan = compared
    before = json.loads(ComparisonFolder(out).summary(plan.trials[0].name).read_text())
    run_trial(out, plan.trials[0].name)
    assert json.loads(ComparisonFolder(out).summary(plan.trials[0].name).read_text()) == before
