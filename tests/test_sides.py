"""Names of the left and the right one: who has them, what training, doctor, check and inference do about them."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from runs import table, train

import monai_extra_losses
from monai_extra_losses.bundle.inference import InferenceSetUp
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.sides import bound_to_direction
from monai_extra_losses.doctor.findings import examine

CONFIGS = monai_extra_losses.config_dir()
SIDES = ("kidney_left", "kidney_right")
NOT_MIRRORED = (
    "Training does not mirror patches left to right, which would exchange the look of kidney_left and kidney_r"
)


def write_pairs(
    folder: Path, names: Sequence[str] = SIDES, cases: int = 8, shape: tuple[int, int, int] = (32, 32, 16)
) -> Path:
    """Two balls that are each other's mirror image: where they are is all that tells them apart."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"), axis=-1)
    entries = []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(cases):
        offset, y, z, radius = random.uniform((7, 13, 6, 3.5), (9, 19, 10, 5))
        label = np.zeros(shape, np.uint8)
        for value, side in ((1, -1), (2, 1)):
            centre = ((shape[0] - 1) / 2 + side * offset, y, z)
            label[np.linalg.norm(grid - centre, axis=-1) < radius] = value
        image = np.where(label > 0, 1.0, 0.3) + 0.1 * random.standard_normal(shape)
        entry = {kind: f"{kind}s/{number}.nii.gz" for kind in ("image", "label")}
        for kind, voxels in (("image", image.astype(np.float32)), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / entry[kind])
        entries.append(entry)
    labels = {name: value for value, name in enumerate(("background", *names))}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
    return folder


def declare(folder: Path, **entries: Any) -> Path:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | entries))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases of a left and a right kidney. Do not write into it."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "data", cases=6)


@pytest.fixture
def named(pairs: Path, tmp_path: Path) -> Callable[..., Path]:
    """The same under other names."""

    def write(*names: str, **entries: Any) -> Path:
        folder = shutil.copytree(pairs, tmp_path / "named")
        labels = {"background": 0} | {name: value for value, name in enumerate(names, start=1)}
        return declare(folder, labels=labels, **entries)

    return write


def recorded(data: Path, run: Path, **options: Any) -> RunRecord:
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "losses")]
    workflow = SegmentationWorkflow(files, dataset_dir=str(data), bundle_root=str(run), num_folds=3, **options)
    workflow.initialize()
    return workflow.parser.get_parsed_content("record")


# ---- names ----


@pytest.mark.parametrize(
    "names",
    [
        ("kidney_left", "kidney_right"),
        ("Right kidney", "Left kidney"),
        ("left-Kidney", "kidney.RIGHT"),
        ("LeftKidney", "kidneyRight"),
        ("leftkidney", "rightkidney"),
        ("left", "right"),
        ("L", "R"),
        ("l_kidney", "r_kidney"),
        ("kidney_L", "kidney_R"),
        ("kidneyL", "kidneyR"),
        ("lkidney", "rkidney"),
        ("Lt. kidney", "Rt. kidney"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("LUL", "RUL"),
        ("rib_L1", "rib_R1"),
        ("rib 1 left", "rib 1 right"),
        ("ren dexter", "ren sinister"),
        ("ren dex", "ren sin"),
        ("Niere links", "Niere rechts"),
        ("linke Niere", "rechte Niere"),
        ("rein gauche", "rein droit"),
        ("main_gauche", "main_droite"),
        ("riñón izquierdo", "riñón derecho"),
        ("rene sinistro", "rene destro"),
        ("左肾", "右肾"),
    ],
)
def test_names_in_pairs_are_bound_to_their_side(names: tuple[str, str]) -> None:
    assert bound_to_direction(["background", *names, "spleen"]) == names
    assert bound_to_direction([*names], axis=1) == bound_to_direction([*names], axis=2) == ()


@pytest.mark.parametrize("name", ["kidney_left", "Left atrium", "r_kidney", "lh_insula", "linke Niere", "rein gauche"])
def test_one_side_without_the_other_is_bound_to_it_too(name: str) -> None:
    assert bound_to_direction(["background", name, "spleen"]) == (name,)


@pytest.mark.parametrize(
    "names",
    [
        ("background", "organ", "lesion"),
        ("upper lobe", "lower lobe"),
        ("L1", "L2", "L3"),  # vertebrae
        ("R1", "L2"),
        ("left_and_right_lung",),
        ("lung (both, left+right)", "heart"),
        ("bright", "cleft", "river", "lips"),
        ("sag_sin", "rt_dose"),  # a sinus, and radiotherapy
        ("kidney_1", "kidney_2"),
        ("lung", "tumour"),
        ("",),
    ],
)
def test_other_names_are_of_no_side(names: tuple[str, ...]) -> None:
    assert bound_to_direction(names) == ()


def test_names_are_bound_to_the_other_axes_in_pairs_alone() -> None:
    names = ["Anterior", "Posterior", "lobe_upper", "lobe_lower", "superior", "front_wall"]
    assert [bound_to_direction(names, axis) for axis in range(3)] == [
        (),
        ("Anterior", "Posterior"),
        ("lobe_upper", "lobe_lower"),
    ]


# ---- what training does ----


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({}, ()),
        ({"flip_axes": [0]}, (0,)),
        ({"flip_axes": "[2, 1]"}, (1, 2)),
        ({"flip_axes": 1}, (1,)),
        ({"flip_axes": False}, ()),
        ({"flip_axes": "[]"}, ()),
    ],
)
def test_patches_are_mirrored_along_the_axes_of_the_record(
    pairs: Path, tmp_path: Path, options: dict[str, Any], axes: tuple[int, ...]
) -> None:
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "losses")]
    workflow = SegmentationWorkflow(
        files, dataset_dir=str(pairs), bundle_root=str(tmp_path / "run"), num_folds=3, **options
    )
    workflow.initialize()
    parser = workflow.parser
    assert parser.get_parsed_content("record").flip_axes == axes
    assert RunRecord.read(RunFolder(tmp_path / "run").record).flip_axes == axes
    transforms = parser.get_parsed_content("train::preprocessing").transforms
    flips = [transform for transform in transforms if type(transform).__name__ == "RandFlipd"]
    assert [flip.flipper.spatial_axis for flip in flips] == list(axes)
    assert all(flip.prob == 0.5 and list(flip.keys) == ["image", "label"] for flip in flips)
    dataset = parser.get_parsed_content("train::dataset")
    centres = []
    for number in [*range(len(dataset))] * 4:
        (item,) = dataset[number]
        centres.append([(item["label"][0] == value).nonzero()[:, 0].float().mean().item() for value in (1, 2)])
    on_the_left = [left < right for left, right in centres]
    assert all(on_the_left) == (0 not in axes)


def test_without_sides_left_and_right_are_mirrored_as_ever(named: Callable[..., Path], tmp_path: Path) -> None:
    assert recorded(named("organ", "lesion"), tmp_path / "run").flip_axes == (0,)


@pytest.mark.parametrize(("regions", "axes"), [({"kidneys": [1, 2]}, (0,)), ({"left": [1], "right": [2]}, ())])
def test_the_names_of_what_is_trained_count(
    named: Callable[..., Path], tmp_path: Path, regions: dict[str, list[int]], axes: tuple[int, ...]
) -> None:
    folder = named(*SIDES, regions=regions)
    assert recorded(folder, tmp_path / "run").flip_axes == axes
    assert recorded(folder, tmp_path / "labels", regions=False).flip_axes == ()


@pytest.mark.parametrize("value", [True, [3], [0, 0], "left", [True], 0.5])
def test_axes_that_cannot_be_are_one_sentence(pairs: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(StartUpRefused, match=r'Expected flip_axes to be null, False or axes among .* "\[0, 1\]", got'):
        recorded(pairs, tmp_path / "run", flip_axes=value)


def test_the_log_says_it(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(pairs, tmp_path / "run")
    assert f'{NOT_MIRRORED}ight and not the labels; --flip_axes "[0]" does so all the same.' in capsys.readouterr().out
    train(pairs, tmp_path / "told", flip_axes=[0])
    said = capsys.readouterr().out
    assert "flip_axes exchanges left and right in half of the patches, and so the look of kidney_left and" in said
    assert NOT_MIRRORED not in said


def test_a_resumed_training_mirrors_as_before(pairs: Path, tmp_path: Path) -> None:
    run = train(pairs, tmp_path / "run", flip_axes=[0])
    sentence = r"Expected flip_axes \(0,\) as in the run to resume, got \(\); give --flip_axes \"\[0\]\", or choose"
    with pytest.raises(StartUpRefused, match=sentence):
        train(pairs, run.root, resume=True, epochs=2)
    # the record of a version that mirrored left and right always
    content = json.loads(run.record.read_text())
    del content["flip_axes"]
    run.record.write_text(json.dumps(content))
    assert RunRecord.read(run.record).flip_axes == (0,)
    with pytest.raises(StartUpRefused, match=sentence):
        train(pairs, run.root, resume=True, epochs=2)
    train(pairs, run.root, resume=True, epochs=2, flip_axes=[0])


# ---- what the others say ----


def test_the_doctor_says_it(pairs: Path) -> None:
    def said(level: str, **options: Any) -> list[str]:
        files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "losses")]
        quick: dict[str, Any] = {"num_folds": 3, "channels": [4, 8], "num_res_units": 0, "epochs": 1}
        found = examine(files, dataset_dir=str(pairs), **quick, **options)
        return [finding.text for finding in found if finding.level == level and "look of" in finding.text]

    (text,) = said("ok")
    assert text.startswith(NOT_MIRRORED)
    (text,) = said("warning", flip_axes=[0])
    assert text.endswith("they will be taken for one another. Leave 0 out of flip_axes.")


def test_check_says_it(pairs: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def remarks(folder: Path) -> list[str]:
        with pytest.raises(SystemExit):
            main(["check", str(folder), "--json"])
        return json.loads(capsys.readouterr().out)["advice"]["remarks"]

    assert any(remark.startswith(NOT_MIRRORED) for remark in remarks(pairs))
    assert not any("mirror" in remark for remark in remarks(phantom_folder))


@pytest.mark.parametrize(
    ("names", "given", "flips", "sentence"),
    [
        (SIDES, True, (1, 2), r"test_time_flips leaves axis 0 out: .* the look of kidney_left and kidney_right\."),
        (("Anterior", "Posterior"), True, (0, 2), "leaves axis 1 out: a mirror image exchanges front and back, and"),
        (SIDES, [0], (0,), "averages over mirror images that exchange left and right, .*: leave axis 0 out"),
        (SIDES, [1], (1,), None),
        (SIDES, False, (), None),
        (("organ", "lesion"), True, (0, 1, 2), None),
    ],
)
def test_flips_at_test_time_spare_what_names_tell_apart(
    named: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, str],
    given: Any,
    flips: tuple[int, ...],
    sentence: str | None,
) -> None:
    run = RunFolder(tmp_path / "run")
    recorded(named(*names), run.root)  # an initialised training leaves its record
    torch.save({}, run.model)
    set_up = InferenceSetUp(bundle_root=run.root, metadata={}, test_time_flips=given, output_dir=tmp_path / "out")
    assert set_up.flips == flips
    capsys.readouterr()
    set_up.open_output()
    said = capsys.readouterr().out
    assert ("test_time_flips" in said) == (sentence is not None)
    assert sentence is None or re.search(sentence, said)


@pytest.mark.slow
def test_sides_are_learned_without_mirror_images_alone(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data")
    options: dict[str, Any] = {"epochs": 40, "val_interval": 40, "learning_rate": 0.01, "batch_size": 2}
    options |= {"num_folds": 4, "channels": [8, 16, 32]}

    def dice(name: str, **more: Any) -> list[float]:
        row = table(train(data, tmp_path / name, **options, **more).training_csv)[-1]
        return [float(row[f"val_dice_{side}"]) for side in SIDES]

    assert min(dice("automatic")) > 0.9
    assert max(dice("mirrored", flip_axes=[0])) < 0.7
    # and flips at test time would undo it
    record = RunRecord.read(RunFolder(tmp_path / "automatic").record)
    volume = data / "images" / f"{record.validation[0]}.nii.gz"
    truth = np.asarray(nibabel.load(data / "labels" / volume.name).dataobj)
    found = {}
    for name, flips in {"spared": True, "told": [0]}.items():
        run_configs(
            ("inference",),
            workflow_type="infer",
            bundle_root=str(tmp_path / "automatic"),
            input=str(volume),
            output_dir=str(tmp_path / name),
            test_time_flips=flips,
        )
        label = np.asarray(nibabel.load(tmp_path / name / f"{record.validation[0]}_seg.nii.gz").dataobj)
        found[name] = 2 * ((label == 1) & (truth == 1)).sum() / ((label == 1).sum() + (truth == 1).sum())
    assert found["told"] < 0.7 < found["spared"]
