"""The choice of the network: what each is planned from; a run of any is gone on with, measured and exported."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from loss_list import each
from monai.losses import DeepSupervisionLoss
from monai.networks.nets import DynUNet, SegResNet, UNet
from runs import evaluate, infer, table, train
from torch import nn

import monai_extra_losses
from monai_extra_losses.bundle.networks import NETWORKS, network_of_run, plan_network, refuse_unfit_options
from monai_extra_losses.bundle.options import Network, network_name
from monai_extra_losses.bundle.pooling import pooling_plan
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import config_files
from monai_extra_losses.bundle.training_options import TABLE, TrainingOptions
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.doctor.findings import examine
from monai_extra_losses.engines import LossWithMaps, StackedScoresLoss
from monai_extra_losses.losses import CompoundLoss, CrossEntropyLoss, FusedDiceLoss, SurfaceLoss

CONFIGS = monai_extra_losses.config_dir()
CONFIG: dict[str, Any] = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"network": "unet", "channels": [4, 8], "num_res_units": 0},
    "dynunet": {"network": "DynUNet", "channels": [4, 8, 8]},
    "supervised": {"network": "dynunet", "channels": [4, 8, 8], "deep_supervision": True},
    "segresnet": {"network": "SegResNet", "channels": None},
    "headed": {"network": "dynunet", "channels": [4, 8, 8], "head_loss": True},
}
# In the quick suite what differs in code: SegResNet is built and applied as the U-Net is.
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name == "segresnet" else []) for name in SMALL]
COMMON: dict[str, Any] = {"patch_size": [16, 16, 16], "num_folds": 3, "batch_size": 2, "val_interval": 1}
ONE, THIN, ALL = (1, 1, 1), (2, 2, 1), (2, 2, 2)
FLAT, CUBE = (3, 3, 1), (3, 3, 3)


# ---- levels of the DynUNet, worked by hand ----


@each(
    "size, spacing, kernel_sizes, strides",
    [
        ((96, 96, 96), (1, 1, 1), [CUBE] * 5, [ONE, *[ALL] * 4]),  # 48, 24, 12, 6 voxels
        ((32, 48, 32), (1, 1, 1), [CUBE] * 4, [ONE, *[ALL] * 3]),  # 4, 6, 4 voxels
        # 6 mm against 1 and 2 mm; 4 mm and 6 mm are near
        ((96, 96, 24), (1, 1, 6), [FLAT, FLAT, CUBE, CUBE, CUBE], [ONE, THIN, THIN, ALL, ALL]),
        ((64, 64, 7), (1, 1, 1), [CUBE] * 5, [ONE, *[THIN] * 4]),  # too short to be halved
        ((64, 64, 8), (1, 1, 1), [CUBE] * 5, [ONE, ALL, *[THIN] * 3]),
        ((36, 50, 36), (1, 1, 1), [CUBE] * 4, [ONE, *[ALL] * 3]),  # 18, 9, 5 and 25, 13, 7 voxels
        ((16, 16, 16), (1, 1, 2), [FLAT, CUBE, CUBE], [ONE, THIN, ALL]),  # twice as coarse is coarser
        ((16, 16, 16), (1, 1, 1.99), [CUBE] * 3, [ONE, *[ALL] * 2]),
        ((12, 7, 7), (1, 1, 1), [CUBE, CUBE], [ONE, (2, 1, 1)]),  # alone
        ((11, 7, 7), (1, 1, 1), [CUBE], [ONE]),
    ],
)
def test_kernels_and_strides_follow_from_voxels_and_spacing(
    size: Sequence[int],
    spacing: Sequence[float],
    kernel_sizes: list[tuple[int, ...]],
    strides: list[tuple[int, ...]],
) -> None:
    plan = pooling_plan(size, spacing)
    assert (list(plan.kernel_sizes), list(plan.strides)) == (kernel_sizes, strides)
    assert plan == pooling_plan(plan.rounded_up(size), spacing)
    assert plan.multiples == tuple(np.prod(strides, axis=0))


def test_a_patch_is_rounded_up_to_what_is_halved() -> None:
    assert pooling_plan((36, 50, 36), (1, 1, 1)).rounded_up((36, 50, 36)) == (40, 56, 40)
    assert pooling_plan((96, 95, 22), (1, 1, 6)).rounded_up((96, 95, 22)) == (96, 96, 24)


# ---- the plan ----


def case(*shape: int, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Any:
    return SimpleNamespace(shape=shape, spacing=spacing, affine=np.diag([*spacing, 1.0]).tolist())


def options(**given: Any) -> TrainingOptions:
    defaults = {name: CONFIG.get(name, CONFIG["setup"][name]) for name in TABLE if name != "device"}
    return TrainingOptions.checked({**defaults, "dataset_dir": "data", "bundle_root": "run", **given})


def test_the_names_are_those_of_the_table() -> None:
    assert tuple(NETWORKS) == get_args(Network)
    assert all(network_name("network", known.title.replace("-", "")) == name for name, known in NETWORKS.items())


def test_a_thick_slice_is_left_by_the_automatic_patch() -> None:
    cases = [case(200, 150, 20, spacing=(0.8, 0.8, 6.0)), case(180, 170, 22, spacing=(0.7, 0.9, 5.0))]
    plan = plan_network(options(network="dynunet"), cases, cases[:1])
    assert plan.patch_size == (96, 96, 24)  # the median 190 x 160 x 21, 96 at most, in steps of 16, 16 and 4
    assert plan.strides == (ONE, THIN, THIN, ALL, ALL)
    assert plan.channels == (32, 64, 128, 256, 320)
    at_pixdim = plan_network(options(network="dynunet", pixdim=[1, 1, 1]), [case(64, 64, 64)] * 2, [case(64, 64, 64)])
    assert (at_pixdim.patch_size, at_pixdim.strides) == ((64, 64, 64), (ONE, *[ALL] * 4))


def test_the_spacing_is_that_of_the_training_cases() -> None:
    thick, cubic = case(32, 32, 16, spacing=(1.0, 1.0, 3.0)), case(32, 32, 16)
    plan = plan_network(options(network="dynunet", patch_size=16), [thick, cubic], [cubic])
    assert plan.kernel_sizes == (CUBE,) * 3
    plan = plan_network(options(network="dynunet", patch_size=16), [thick, cubic], [thick])
    assert plan.kernel_sizes == (FLAT, CUBE, CUBE)


def test_other_networks_halve_all_axes() -> None:
    cases = [case(40, 40, 40)]
    unet, segresnet = (plan_network(options(network=name), cases, cases) for name in ("unet", "segresnet"))
    assert unet.patch_size == segresnet.patch_size == (32, 32, 32)
    assert unet.channels == segresnet.channels == (16, 32, 64, 128)
    assert (unet.num_res_units, segresnet.num_res_units) == (2, None)
    assert unet.strides is unet.kernel_sizes is segresnet.strides is None


def start(given: dict[str, Any], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    checked = options(**given)
    refuse_unfit_options(checked, given.get("patch_size"))
    cases = [case(64, 64, 24, spacing=spacing)]
    plan_network(checked, cases, cases)


@each(
    "given, sentence",
    [
        (
            {"network": "dynunett"},
            "Expected network to be unet, dynunet or segresnet, got 'dynunett' (did you mean 'dynunet'?).",
        ),
        (
            {"network": None},
            "Expected network to be unet, dynunet or segresnet, got None; a network of your own is built_network in a "
            "config.",
        ),
        (
            {"network": "segresnet", "channels": [8, 16]},
            "Expected no channels with the network segresnet, got (8, 16); it is an option of unet and dynunet.",
        ),
        (
            {"network": "dynunet", "num_res_units": 0},
            "Expected no num_res_units with the network dynunet, got 0; it is an option of unet.",
        ),
        (
            {"deep_supervision": True},
            "Expected no deep_supervision with the network unet, got True; it is an option of dynunet.",
        ),
        (
            {"network": "segresnet", "patch_size": [32, 32, 12]},
            "Expected patch_size to be multiples of 8 (the SegResNet halves volumes that often) of at least 16, got "
            "[32, 32, 12].",
        ),
        (
            {"network": "dynunet", "patch_size": [60, 64, 24]},
            "Expected patch_size to be multiples of 16, 16 and 4 along the axes, by which the DynUNet divides this one "
            "at a spacing of 1 x 1 x 6 mm, got 60 x 64 x 24; 64 x 64 x 24 is the next.",
        ),
        (
            {"network": "dynunet", "patch_size": [32.5, 32, 24]},
            "Expected patch_size to be whole numbers of voxels, got [32.5, 32, 24].",
        ),
        (
            {"network": "dynunet", "patch_size": 8},
            "Expected patch_size to be one that the DynUNet can halve twice or more at a spacing of 1 x 1 x 6 mm, got "
            "8 x 8 x 8; give a larger one, or take another --network.",
        ),
        (
            {"network": "dynunet", "patch_size": [64, 64, 24], "channels": [4, 8]},
            "Expected channels to be 5 numbers, one for each level of the DynUNet of patches of 64 x 64 x 24 voxels at "
            "a spacing of 1 x 1 x 6 mm, got [4, 8].",
        ),
    ],
)
def test_what_a_network_cannot_do_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartUpRefused) as said:
        start(given, spacing=(1.0, 1.0, 6.0))
    assert str(said.value) == sentence


def test_a_known_name_in_any_letters() -> None:
    for name in ("DynUNet", " dynunet ", "DYNUNET"):
        assert options(network=name).network == "dynunet"


def test_a_mistyped_name_is_refused_by_the_commands(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"dataset_dir": str(phantom_folder), "bundle_root": str(tmp_path / "run")}
    for name, hint in (
        ("segresnett", r" \(did you mean 'segresnet'\?\)\."),
        ("$torch.nn.Identity()", "; a network of"),
    ):
        with pytest.raises(StartUpRefused, match=f"Expected network to be unet, dynunet or segresnet, got .*{hint}"):
            monai.bundle.run(config_file=str(CONFIGS / "train.yaml"), network=name, **places)
    with pytest.raises(SystemExit) as end:
        main(["train", "--data", str(phantom_folder), "--run", str(tmp_path / "run"), "--network", "dynune"])
    assert "got 'dynune' (did you mean 'dynunet'?)." in f"{end.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()


# ---- runs ----


@pytest.fixture(scope="module")
def runs(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Two epochs of each network by MONAI's own command. Do not write into them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, given in SMALL.items():
        monai.bundle.run(
            config_file=str(CONFIGS / "train.yaml"),
            dataset_dir=str(phantom_folder),
            bundle_root=str(folder / name),
            epochs=2,
            **COMMON,
            **{key: value for key, value in given.items() if value is not None},
        )
    return {name: RunFolder(folder / name) for name in SMALL}


@pytest.mark.parametrize("name", EACH)
def test_a_run_is_recorded_measured_and_applied(
    runs: dict[str, RunFolder], phantom_folder: Path, tmp_path: Path, name: str
) -> None:
    run = RunFolder(shutil.copytree(runs[name].root, tmp_path / "run"))
    record = RunRecord.read(run.record)
    assert record.network == SMALL[name]["network"].lower()
    assert record.deep_supervision == (name == "supervised")
    rows = table(run.training_csv)
    assert len(rows) == 2
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    content = json.loads(run.record.read_text())
    assert content["patch_size"] == [16, 16, 16]
    if record.network == "dynunet":  # slices of 3 mm
        assert content["kernel_sizes"] == [[3, 3, 1], [3, 3, 3], [3, 3, 3]]
        assert content["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
    shape = json.loads(run.metadata.read_text())["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert shape == {"unet": ["4*n"] * 3, "segresnet": ["16*n"] * 3}.get(record.network, ["8*n", "8*n", "4*n"])
    evaluate(run, overlays=False)
    assert run.results.cases_csv.exists()
    infer(run, phantom_folder / "imagesTs" / "phantom_test_000.nii.gz", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 1


@pytest.mark.parametrize("name", EACH)
def test_an_export_gives_the_scores_of_the_run(runs: dict[str, RunFolder], tmp_path: Path, name: str) -> None:
    run = runs[name]
    bundle: dict[str, Any] = {"config_file": str(CONFIGS / "inference.yaml"), "bundle_root": str(run.root)}
    monai.bundle.ckpt_export(net_id="network_def", filepath=str(tmp_path / "model.ts"), **bundle)
    network = network_of_run(RunRecord.read(run.record), in_channels=1, out_channels=3).eval()
    network.load_state_dict(torch.load(run.model, weights_only=True))
    x = torch.randn(1, 1, 16, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = network(x)
        assert scores.shape == (1, 3, 16, 32, 16)
        assert torch.allclose(torch.jit.load(tmp_path / "model.ts").eval()(x), scores, atol=1e-5)
    monai.bundle.verify_net_in_out(net_id="network_def", meta_file=str(run.metadata), **bundle)


# Two are quick enough for every run; the slow ones resume by the same code.
@pytest.mark.parametrize(
    "name",
    [
        "supervised",
        "headed",
        pytest.param("segresnet", marks=pytest.mark.slow),
        pytest.param("dynunet", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_goes_on_as_if_it_had_not(
    runs: dict[str, RunFolder], phantom_folder: Path, tmp_path: Path, name: str
) -> None:
    given = {**COMMON, **SMALL[name], "epochs": 2}
    train(phantom_folder, tmp_path / "run", ("train",), **given, **{"train::trainer::max_epochs": 1})
    resumed = train(phantom_folder, tmp_path / "run", ("train",), **given, resume=True)
    ours, theirs = (torch.load(run.last, weights_only=True) for run in (resumed, runs[name]))
    assert ours["epoch"] == theirs["epoch"] == 2
    assert ours["best_metric"] == theirs["best_metric"]
    assert ours["network"].keys() == theirs["network"].keys()
    assert all(torch.equal(tensor, theirs["network"][key]) for key, tensor in ours["network"].items())


def test_a_training_with_head_loss_is_that_without(runs: dict[str, RunFolder]) -> None:
    headed, plain = runs["headed"], runs["dynunet"]
    assert RunRecord.read(headed.record).head_loss
    assert not RunRecord.read(plain.record).head_loss
    for mine, theirs in zip(table(headed.training_csv), table(plain.training_csv), strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)
        assert float(mine["val_mean_dice"]) == pytest.approx(float(theirs["val_mean_dice"]), abs=1e-3)
    ours, others = (torch.load(run.model, weights_only=True) for run in (headed, plain))
    assert list(ours) == list(others)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, others[name], atol=2e-3, rtol=0)


@each(
    "given, match",
    [
        (
            {"network": "unet"},
            r"Expected head_loss with .* \(dynunet and segresnet\), got the network unet, whose",
        ),
        ({"network": "dynunet", "deep_supervision": True}, "got deep_supervision, which has one for each level"),
        (
            {"network": "segresnet", "loss": "lovasz"},
            r"last convolution \(head_loss\), got LovaszLoss",
        ),
    ],
)
def test_what_head_loss_cannot_do_is_refused(
    given: dict[str, Any], match: str, phantom_folder: Path, tmp_path: Path
) -> None:
    options = {"channels": None, **COMMON, **given}
    if "loss" in options:
        options["loss"] = {"_target_": "monai_extra_losses.losses.LovaszLoss", "to_onehot_y": True, "softmax": True}
    with pytest.raises(StartUpRefused, match=match):
        train(phantom_folder, tmp_path / "run", **options, head_loss=True)


def test_a_resume_with_another_network_is_one_sentence(runs: dict[str, RunFolder], phantom_folder: Path) -> None:
    again: dict[str, Any] = {**COMMON, "epochs": 3, "resume": True, "channels": None}
    with pytest.raises(StartUpRefused) as said:
        train(phantom_folder, runs["dynunet"].root, **again, network="segresnet")
    assert str(said.value) == (
        "Expected network 'dynunet' as in the run to resume, got 'segresnet'; choose another --bundle_root (--run on "
        "the short command line) for another training."
    )
    with pytest.raises(StartUpRefused, match="Expected deep_supervision True as in the run to resume, got False; "):
        train(phantom_folder, runs["supervised"].root, **{**again, **SMALL["dynunet"]})


def test_a_record_without_a_network_is_of_a_unet(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    content = json.loads(runs["unet"].record.read_text())
    for name in ("network", "kernel_sizes", "strides", "deep_supervision"):
        content.pop(name)
    (file := tmp_path / "run.json").write_text(json.dumps(content))
    assert RunRecord.read(file) == RunRecord.read(runs["unet"].record)


def test_a_unet_has_the_weights_that_it_always_had(runs: dict[str, RunFolder]) -> None:
    record = RunRecord.read(runs["unet"].record)
    torch.manual_seed(0)
    before = UNet(3, 1, 3, (4, 8), (2,), num_res_units=0, norm="instance").state_dict()
    torch.manual_seed(0)
    now = network_of_run(record, for_training=True, in_channels=1, out_channels=3).state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], tensor) for key, tensor in before.items())


def test_arguments_of_the_class_may_be_given(runs: dict[str, RunFolder]) -> None:
    record = RunRecord.read(runs["unet"].record)
    network = network_of_run(record, in_channels=1, out_channels=3, norm="batch")
    assert any(isinstance(module, nn.BatchNorm3d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("unet", {"network": "vnet"}, "network 'vnet', which should be a network that this version knows"),
        ("unet", {"num_res_units": None}, "num_res_units None, which should be 0 or more"),
        ("unet", {"strides": [[2, 2, 2]]}, r"strides \(\(2, 2, 2\),\), which should be null"),
        ("unet", {"deep_supervision": True}, "deep_supervision True, which should be false"),
        ("dynunet", {"num_res_units": 2}, "num_res_units 2, which should be null"),
        ("dynunet", {"strides": None}, "strides None, which should be 3 numbers for each of 3 levels or more"),
        (
            "dynunet",
            {"kernel_sizes": [[3, 3, 3]] * 2},
            r"kernel_sizes \(\(3.*, which should be 3 numbers for each of 3",
        ),
        (
            "dynunet",
            {"kernel_sizes": [[5, 3, 3]] * 3},
            r"kernel_sizes \(\(5.*, which should be 3 numbers for each of 3",
        ),
        ("dynunet", {"patch_size": [16, 16, 15]}, "patch_size .*, which should be multiples of 4, 4 and 2 of at least"),
        ("segresnet", {"channels": [8, 16, 32, 64]}, r"channels .*, which should be \[16, 32, 64, 128\]"),
    ],
)
def test_a_record_of_no_network_is_one_sentence(
    runs: dict[str, RunFolder], tmp_path: Path, name: str, change: dict[str, Any], sentence: str
) -> None:
    (file := tmp_path / "run.json").write_text(json.dumps({**json.loads(runs[name].record.read_text()), **change}))
    with pytest.raises(StartUpRefused, match=f"run.json: expected the record that training writes, got {sentence}"):
        RunRecord.read(file)


def test_weights_to_start_from_bring_their_levels(
    runs: dict[str, RunFolder], phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 1 mm the rule would halve all axes."""
    given = {**COMMON, **SMALL["dynunet"], "pixdim": [1, 1, 1], "epochs": 1, "limit": 3}
    run = train(phantom_folder, tmp_path / "run", pretrained=str(runs["dynunet"].model), **given)
    assert RunRecord.read(run.record).strides == (ONE, THIN, ALL)
    found = re.search(r"Starting from (\d+) of (\d+) tensors", capsys.readouterr().out)
    assert found is not None
    assert found[1] == found[2]
    with pytest.raises(StartUpRefused, match=r"none of whose tensors fits the .*; give the network, channels and num"):
        train(phantom_folder, tmp_path / "other", pretrained=str(runs["segresnet"].model), **given)


# ---- the last convolution ----


@pytest.mark.parametrize("name", [name for name, known in NETWORKS.items() if known.last_convolution])
def test_the_last_convolution_makes_the_scores(runs: dict[str, RunFolder], name: str) -> None:
    network = network_of_run(RunRecord.read(runs[name].record), in_channels=1, out_channels=3).eval()
    last = network.get_submodule(NETWORKS[name].last_convolution or "")
    assert isinstance(last, nn.Conv3d)
    assert last.kernel_size == (1, 1, 1)
    made = []
    last.register_forward_hook(lambda _, __, output: made.append(output))
    scores = network(torch.randn(1, 1, 16, 16, 16))
    assert torch.equal(made[0], scores)


def test_a_network_is_the_class_of_its_title(runs: dict[str, RunFolder]) -> None:
    classes = {"unet": UNet, "dynunet": DynUNet, "segresnet": SegResNet}
    for name, expected in classes.items():
        network = network_of_run(RunRecord.read(runs[name].record), in_channels=1, out_channels=3)
        assert type(network) is expected


# ---- deep supervision ----


def test_the_weights_of_the_levels_are_those_of_nnunet() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(2, 3, 4, 6, 6, 6, generator=generator, requires_grad=True)
    label = torch.randint(0, 4, (2, 1, 6, 6, 6), generator=generator)
    loss = FusedDiceLoss(to_onehot_y=True, softmax=True)
    value = StackedScoresLoss(loss)(stack, label)
    theirs = DeepSupervisionLoss(loss, weights=[4 / 7, 2 / 7, 1 / 7])(list(stack.unbind(1)), label)  # MONAI 1.6.1
    assert value.item() == pytest.approx(theirs.item(), rel=1e-6)
    value.backward()
    assert stack.grad is not None
    assert all(stack.grad[:, level].abs().max() > 0 for level in range(3))
    plain = stack[:, 0].detach()
    assert StackedScoresLoss(loss)(plain, label) == loss(plain, label)


def test_the_parts_of_a_compound_are_those_of_the_finest_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(1, 2, 3, 4, 4, 4, generator=generator)
    label = torch.randint(0, 3, (1, 1, 4, 4, 4), generator=generator)
    read = {"to_onehot_y": True, "softmax": True}
    compound = CompoundLoss({"dice": FusedDiceLoss(**read), "ce": CrossEntropyLoss(**read)})
    stacked = StackedScoresLoss(compound)
    stacked(stack, label)
    shown = {name: value.item() for name, value in stacked.components.items()}
    compound(stack[:, 0], label)
    assert shown == {name: value.item() for name, value in compound.components.items()}
    assert StackedScoresLoss(FusedDiceLoss()).components == {}


def test_every_level_reads_the_maps() -> None:
    stack = torch.randn(1, 2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    target = {"label": torch.ones(1, 1, 4, 4, 4), "distance": torch.randn(1, 2, 4, 4, 4)}
    loss = LossWithMaps(SurfaceLoss(to_onehot_y=True, softmax=True))
    value = StackedScoresLoss(loss)(stack, target)
    assert value.item() == pytest.approx((2 * loss(stack[:, 0], target) + loss(stack[:, 1], target)).item() / 3)


def test_heads_of_the_lower_levels_are_for_the_training(runs: dict[str, RunFolder]) -> None:
    run = runs["supervised"]
    record = RunRecord.read(run.record)
    state = torch.load(run.last, weights_only=True)["network"]
    heads = [name for name in state if "deep_supervision_heads" in name]
    assert len(heads) == 2  # weight and bias of one head
    assert not any("head" in name for name in torch.load(run.model, weights_only=True))
    trained = network_of_run(record, for_training=True, in_channels=1, out_channels=3)
    x = torch.zeros(1, 1, 16, 16, 16)
    assert trained.train()(x).shape == (1, 2, 3, 16, 16, 16)
    assert trained.eval()(x).shape == (1, 3, 16, 16, 16)


@pytest.mark.slow
def test_deep_supervision_goes_with_maps_and_ramps(phantom_folder: Path, tmp_path: Path) -> None:
    configs = ("train", "losses", "boundary_schedule", "boundary_maps")
    given = {**COMMON, **SMALL["supervised"], "epochs": 2, "loss_weights::dice_ce::last_epoch": 2}
    run = train(phantom_folder, tmp_path / "run", configs, **given)
    rows = table(run.training_csv)
    assert len(rows) == 2
    assert float(rows[0]["weight_surface"]) < float(rows[1]["weight_surface"])


# ---- the doctor ----


@pytest.mark.parametrize("name", ["supervised", "segresnet"])
def test_the_doctor_examines_the_network(phantom_folder: Path, name: str) -> None:
    given = {**COMMON, **SMALL[name], "epochs": 1}
    found = list(examine(config_files(("train", "losses")), dataset_dir=str(phantom_folder), **given))
    text = "\n".join(finding.text for finding in found)
    assert not [finding.text for finding in found if finding.level == "problem"], text
    title = NETWORKS[given["network"].lower()].title
    assert f"4 cases would train a {title} and 2 validate it, in patches of 16 x 16 x 16 voxels" in text
    assert "Each label value (0 background, 1 organ, 2 lesion) has its channel of the network" in text
    assert "ln 3 + Dice" in text or "Dice 0." in text  # the loss of equal scores is known


@pytest.mark.slow
def test_117_classes_train_with_the_head(phantom_folder: Path, tmp_path: Path) -> None:
    """20 steps on the phantom, whose foreground is cut into blocks of a label each."""
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    blocks = [index * 5 // side for index, side in zip(np.indices((32, 32, 16)), (32, 32, 16), strict=True)]
    parcels = 1 + np.ravel_multi_index(tuple(blocks), (5, 5, 5)) % 116
    for file in data.glob("labelsT[rs]/*.nii.gz"):
        label = nib.load(file)
        parts = np.where(np.asarray(label.dataobj) > 0, parcels, 0)
        if "Tr/phantom_000" in str(file):  # every label has a voxel
            parts[:, :, 0].flat[:116] = range(1, 117)
        nib.save(nib.Nifti1Image(parts.astype(np.uint8), label.affine), file)
    description = json.loads((data / "dataset.json").read_text())
    description["labels"] = {str(label): f"part {label}" if label else "background" for label in range(117)}
    (data / "dataset.json").write_text(json.dumps(description))
    options = {**COMMON, "network": "segresnet", "channels": None, "patch_size": [32, 32, 16], "val_interval": 10}
    run = train(data, tmp_path / "run", ("train",), **options, epochs=10, head_loss=True)
    rows = table(run.training_csv)
    assert len(rows) == 10  # of two steps
    assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])
    assert RunRecord.read(run.record).num_classes == 117
    assert torch.load(run.model, weights_only=True)["conv_final.2.conv.weight"].shape[0] == 117
    evaluate(run, overlays=False)
    assert run.results.cases_csv.exists()
