"""What happens to the files of a case, or of the disk cache, after the data set was checked."""

import errno
import linecache
import os
import pickle
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from marks import slow_but
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, Lambdad, LoadImaged, RandScaleIntensityd, Spacingd
from runs import evaluate, table, train

from monai_extra_losses.bundle.evaluation import EvaluationSetUp
from monai_extra_losses.bundle.loaded_cases import CaseLoader, CheckLoadedCased
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.training import TrainingSetUp
from monai_extra_losses.bundle.training_record import RunCheckpoints
from monai_extra_losses.bundle.volume_cache import prepared_cases
from monai_extra_losses.data.errors import CasesFailed, DatasetError, StartUpRefused, TrainingStopped

TINY: dict[str, Any] = {"channels": [4, 8], "num_res_units": 0, "batch_size": 2}


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One epoch. Do not write into it."""
    return train(phantom_folder, tmp_path_factory.mktemp("runs") / "trained", **TINY)


def results(run: RunFolder) -> list[tuple[str, str]]:
    """Loss and mean Dice of each epoch."""
    return [(row["train_loss"], row["val_mean_dice"]) for row in table(run.training_csv)]


# ---- files of cases ------------------------------------------------------------------


def rewritten(file: Path, change: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> None:
    volume = nibabel.load(file)
    affine = volume.affine.copy()
    affine[0, 3] += shift
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(volume.dataobj).astype(np.float32)), affine), file)


def with_nan(voxels: np.ndarray) -> np.ndarray:
    voxels[3, 4, 5] = np.nan
    return voxels


# what happens to an image or a label after it was checked, and the words about it
ACCIDENTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut off": ("imagesTr", lambda file: file.write_bytes(file.read_bytes()[:-999]), "expected a whole gzip file, got"),
    "label cut off": (
        "labelsTr",
        lambda file: file.write_bytes(file.read_bytes()[:50]),
        "expected a whole gzip file, got",
    ),
    "gone": ("imagesTr", lambda file: file.unlink(), "expected a readable file, got an error .No such file"),
    "NaN": ("imagesTr", lambda file: rewritten(file, with_nan), "got 1 voxels of NaN or infinity; replace them"),
    "channels": ("imagesTr", lambda file: rewritten(file, lambda v: np.stack([v, v], -1)), r"1 channel\(s\), .* got 2"),
    "shape": (
        "labelsTr",
        lambda file: rewritten(file, lambda v: v[:-1]),
        r"expected shape \(32, 32, 16\) of .*, got \(31",
    ),
    "place": ("labelsTr", lambda file: rewritten(file, lambda v: v, 4.0), "affine of .* got corners 4 mm away"),
    "values": (
        "labelsTr",
        lambda file: rewritten(file, lambda v: v * 4),
        "expected the label values 0, 1, 2, got 4, 8 too",
    ),
}


@pytest.mark.parametrize(
    ("accident", "cache", "workers", "part"),
    slow_but(
        [
            ("cut off", "none", 0, "training"),
            ("NaN", "disk", 0, "training"),
            ("gone", "none", 1, "training"),
            ("shape", "none", 0, "validation"),
        ],
        [
            *((accident, "none", 0, "training") for accident in ACCIDENTS),
            *((accident, "disk", 0, "training") for accident in ("cut off", "NaN", "shape", "gone")),
            *((accident, "none", 1, "training") for accident in ("cut off", "NaN", "gone")),
            *((accident, "none", 0, "validation") for accident in ("cut off", "NaN", "shape")),
            ("shape", "none", 1, "validation"),
        ],
    ),
)
def test_a_file_that_changes_in_mid_training_is_named(
    phantom_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accident: str,
    cache: str,
    workers: int,
    part: str,
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / "data"))
    run = RunFolder(tmp_path / "run")
    folder, happens, words = ACCIDENTS[accident]
    saved = RunCheckpoints._save

    def save_and_damage(self: RunCheckpoints, engine: Any) -> None:
        saved(self, engine)
        case = getattr(RunRecord.read(run.record), part)[0]
        if engine.state.epoch == 1:
            happens(data / folder / f"{case}.nii.gz")

    monkeypatch.setattr(RunCheckpoints, "_save", save_and_damage)
    options: dict[str, Any] = {"epochs": 3, "val_interval": 1, "cache": cache, "num_workers": workers}
    with pytest.raises(CasesFailed, match=rf"{folder}/phantom_00\d\.nii\.gz: .*{words}") as ended:
        train(data, run.root, **{**TINY, **options})
    assert str(ended.value.code).count("\n") == 0
    assert torch.load(run.last, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        (
            {"image": torch.full((1, 4, 5, 6), float("inf"))},
            "expected finite intensities, got 120 voxels of NaN",
        ),
        ({"image": torch.ones(2, 4, 5, 6)}, r"image: expected 1 channel\(s\), as the other cases have, got 2"),
        ({"label": torch.ones(1, 4, 6, 6)}, r"label: expected shape \(4, 5, 6\) of image, got \(4, 6, 6\)"),
        (
            {"label": torch.full((1, 4, 5, 6), 2**60 + 1)},
            f"values 0, 1, {2**60}, got {2**60 + 1} too",
        ),
        ({"label": torch.full((1, 4, 5, 6), 0.5)}, r"expected the label values 0, 1, \d+, got 0\.5 too"),
        ({"label": torch.full((1, 4, 5, 6), float("nan"))}, r"expected the label values 0, 1, \d+, got nan too"),
    ],
)
def test_a_case_is_checked_as_it_is_loaded(changes: dict[str, torch.Tensor], sentence: str | None) -> None:
    case: dict[str, torch.Tensor] = {"image": torch.ones(1, 4, 5, 6), "label": torch.ones(1, 4, 5, 6)}
    item = {key: MetaTensor(value) for key, value in {**case, **changes}.items()}
    check = CheckLoadedCased(in_channels=1, label_values=[0, 1, 2**60])
    if sentence is None:
        checked = check(item)
        assert checked["image"] is item["image"]
        assert torch.equal(checked["label"], item["label"])
        moved = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, 1.0, 1.02, 1.0])))
        with pytest.raises(DatasetError, match=r"label: expected the affine of image \(corners within 0\.05 mm\), got"):
            check({**item, "label": moved})
        moved.affine = torch.diag(torch.tensor([1.0, 1.0, 1.009, 1.0]))
        assert torch.equal(check({**item, "label": moved})["label"].affine, item["image"].affine)
        assert moved.affine[2, 2] != 1
    else:
        with pytest.raises(DatasetError, match=sentence):
            check(item)


def damaged_after(patch: pytest.MonkeyPatch, setup: type, method: str, data: Path, accident: str, cases: str) -> str:
    """Let a file of the second of `cases` have an accident once a method of the set-up was called; the sentence."""
    folder, happens, words = ACCIDENTS[accident]
    called = getattr(setup, method)

    def call_and_damage(self: Any) -> None:
        called(self)
        happens(data / folder / f"{getattr(self.record, cases)[1]}.nii.gz")

    patch.setattr(setup, method, call_and_damage)
    return rf"{folder}/phantom_00\d\.nii\.gz: .*{words}"


@pytest.mark.parametrize("accident", ["cut off", "NaN", "place"])
def test_a_file_that_changes_while_it_is_read_is_named_at_the_start(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accident: str
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / "data"))
    sentence = damaged_after(monkeypatch, TrainingSetUp, "open_run", data, accident, "training")
    with pytest.raises(StartUpRefused, match=sentence):
        train(data, tmp_path / "run", **TINY)


@pytest.mark.parametrize("accident", ["cut off", "NaN", "shape"])
def test_a_file_that_changes_before_it_is_evaluated_is_named(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accident: str
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / "data"))
    sentence = damaged_after(monkeypatch, EvaluationSetUp, "open_results", data, accident, "validation")
    with pytest.raises(CasesFailed, match=sentence):
        evaluate(trained, dataset_dir=str(data), output_dir=str(tmp_path / "out"))


def test_what_a_transform_makes_of_a_case_is_not_blamed_on_the_learning_rate(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = RandScaleIntensityd.__call__

    def broken(self: RandScaleIntensityd, data: Any, *args: Any) -> Any:
        changed = scaled(self, data, *args)
        if data["case"] == "phantom_002":
            changed["image"] = changed["image"] / 0
        return changed

    monkeypatch.setattr(RandScaleIntensityd, "__call__", broken)
    with pytest.raises(TrainingStopped, match=r"got NaN or infinity in that of phantom_002 \(epoch 1, iteration \d\)"):
        train(phantom_folder, tmp_path / "run", fold=1, **TINY)


class KilledInLoading(Dataset):
    """Its loader process is ended, as by a system that is out of memory."""

    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_is_killed_is_one_sentence() -> None:
    loader = CaseLoader(KilledInLoading([1, 2]), num_workers=1)
    with pytest.raises(CasesFailed, match=r"got: DataLoader worker .*; lower --num_workers, or make room"):
        list(loader)


# ---- the disk cache ------------------------------------------------------------------


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_no_file_of_a_disk_cache_is_trusted(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"cache": "disk", "cache_dir": str(cache), "val_interval": 1, **TINY}
    clean = results(train(phantom_folder, tmp_path / "clean", **options))
    files = sorted(cache.iterdir())
    assert len(files) == 6
    kept = {file: file.read_bytes() for file in files}
    files[0].write_bytes(kept[files[0]][: len(kept[files[0]]) // 2])  # as a process that is killed may leave it
    flipped = bytearray(kept[files[1]])
    flipped[len(flipped) // 2] ^= 64
    files[1].write_bytes(flipped)
    torch.save(Payload(tmp_path / "ran"), files[2])
    files[3].write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    files[4].write_bytes(kept[files[5]])  # another case
    draft = cache / f".{files[0].name}.killed.draft"
    draft.touch()
    os.utime(draft, (0, 0))
    again = results(train(phantom_folder, tmp_path / "again", **options))
    assert again == clean
    assert not (tmp_path / "ran").exists()
    assert sorted(cache.iterdir()) == files
    assert capsys.readouterr().out.count("is made anew") == 5
    stamps = {file: file.stat().st_mtime_ns for file in files}
    train(phantom_folder, tmp_path / "third", **options)
    assert stamps == {file: file.stat().st_mtime_ns for file in files}


def test_a_volume_of_the_disk_cache_keeps_its_place_and_its_history(phantom_folder: Path, tmp_path: Path) -> None:
    case = {"image": [str(phantom_folder / "imagesTr" / "phantom_000.nii.gz")], "case": "phantom_000"}
    case["label"] = str(phantom_folder / "labelsTr" / "phantom_000.nii.gz")
    keys = ["image", "label"]

    def prepared(cache: Any) -> tuple[dict[str, Any], Spacingd]:
        spacing = Spacingd(keys, pixdim=(2, 1, 3), mode=["bilinear", "nearest"])
        transform = Compose([LoadImaged(keys, ensure_channel_first=True), spacing])
        return prepared_cases([case], transform, cache, tmp_path / "cache")[0], spacing

    (first, _), (second, spacing), (plain, of_plain) = (prepared(kind) for kind in ("disk", "disk", "none"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for key in keys:
        for kept in (first[key], second[key]):
            assert torch.equal(kept, plain[key])
            assert torch.equal(kept.affine, plain[key].affine)
            assert kept.meta.keys() == plain[key].meta.keys()
    inverted = [spacing.inverse(second)["image"], of_plain.inverse(plain)["image"]]
    assert torch.equal(*inverted)
    assert inverted[0].shape == (1, 32, 32, 16)


def test_a_file_of_the_disk_cache_is_found_by_what_made_it_alone(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"image": [str(phantom_folder / "imagesTr" / "phantom_000.nii.gz")], "case": "phantom_000"}
    case["label"] = str(phantom_folder / "labelsTr" / "phantom_000.nii.gz")
    counts = []

    def prepare(more: str = "") -> None:
        module = types.ModuleType("of_a_user")
        monkeypatch.setitem(sys.modules, "of_a_user", module)
        code = "from monai.transforms import Transform\nclass Mine(Transform):\n"
        code += f"    def __call__(self, data): return data{more}\n"
        file = tmp_path / f"of_a_user{len(counts)}.py"
        file.write_text(code)
        exec(compile(code, str(file), "exec"), vars(module))
        module.__file__ = str(file)
        linecache.clearcache()
        transform = Compose([LoadImaged(["image", "label"], ensure_channel_first=True), module.Mine()])
        prepared_cases([case], transform, "disk", tmp_path / "cache")[0]
        counts.append(len(list((tmp_path / "cache").iterdir())))

    prepare()
    prepare()
    prepare(" | {'more': 1}")  # a class of one name that does something else
    with monkeypatch.context() as patch:
        patch.setattr("monai.__version__", "1.6.2")
        prepare()
    prepare()
    assert counts == [1, 1, 2, 3, 3]


def test_a_disk_cache_that_cannot_be_written_costs_time_and_no_more(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = {"image": [str(phantom_folder / "imagesTr" / "phantom_000.nii.gz")]}
    case["label"] = str(phantom_folder / "labelsTr" / "phantom_000.nii.gz")
    transform = Compose([LoadImaged(["image", "label"], ensure_channel_first=True)])
    dataset = prepared_cases([case, case], transform, "disk", tmp_path / "cache")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert [len(item["image"]) for item in dataset] == [1, 1]
    assert caplog.text.count("volumes cannot be kept here ([Errno 28] No space left on device)") == 1
    assert not list((tmp_path / "cache").iterdir())


def test_a_transform_that_no_file_can_be_named_after_is_refused(phantom_folder: Path, tmp_path: Path) -> None:
    transform = Compose([LoadImaged("image"), Lambdad("image", func=lambda image: image)])
    with pytest.raises(
        StartUpRefused, match=r"cannot be pickled .*; make it a class of a module, or give --cache memory"
    ):
        prepared_cases([], transform, "disk", tmp_path / "cache")
