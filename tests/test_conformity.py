"""The bundle against MONAI's own tools, and the configs against the traps of YAML."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from runs import evaluate, train

import monai_extra_losses
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_metadata import differs_from_run, metadata_of_run
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused

CONFIGS = monai_extra_losses.config_dir()
METADATA = json.loads((CONFIGS / "metadata.json").read_text())
YAML_FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def run(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("conformity") / "run"
    run_configs(("train",), dataset_dir=str(phantom_folder), bundle_root=str(folder), epochs=1, num_folds=3)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {
            "cache": "disk",
            "amp": "bf16",
            "early_stop_patience": 2,
            "hu_window": [0, 1],
            "device": "$torch.device('cpu')",
        },
        {"cache": "none", "amp": False, "pixdim": [1, 1, 2], "regions": False},
        {"pretrained": True},
    ],
    ids=lambda options: "+".join(options),
)
def test_every_property_is_there_whatever_the_options(
    run: Path, phantom_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "pretrained" in options:
        options = {"pretrained": str(run / "models" / "model.pt")}
    options |= {"dataset_dir": str(phantom_folder), "num_folds": 3, "bundle_root": str(tmp_path / "run")}
    for configs in (("train", "losses"), ("train", "losses", "boundary_schedule", "boundary_maps")):
        files = [str(CONFIGS / f"{name}.yaml") for name in configs]
        workflow = SegmentationWorkflow(files, workflow_type="train", **options)
        workflow.initialize()
        assert workflow.check_properties() == []


@pytest.mark.parametrize(
    ("configs", "workflow_type"),
    [
        (("train",), "train"),
        (("train", "losses"), "train"),
        (("train", "losses", "boundary_schedule"), "train"),
        (("train", "losses", "boundary_schedule", "boundary_maps"), "train"),
        (("train", "losses", "vessels"), "train"),
        (("train", "losses", "lesions"), "train"),
        (("train", "evaluate"), "train"),
        (("train", "losses", "evaluate"), "train"),
        (("inference",), "infer"),
    ],
)
def test_every_property_that_monai_looks_for_is_there(
    run: Path, phantom_folder: Path, tmp_path: Path, configs: tuple[str, ...], workflow_type: str
) -> None:
    options = {
        "evaluate": {"bundle_root": str(run), "output_dir": str(tmp_path / "eval")},
        "inference": {"bundle_root": str(run), "input": str(phantom_folder / "imagesTs")},
    }.get(configs[-1], {"dataset_dir": str(phantom_folder), "num_folds": 3})
    options = {"bundle_root": str(tmp_path / "run"), **options}
    files = [str(CONFIGS / f"{name}.yaml") for name in configs]
    workflow = SegmentationWorkflow(files, workflow_type=workflow_type, **options)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("with_run", [False, True])
def test_the_network_has_the_channels_of_the_metadata(run: Path, tmp_path: Path, with_run: bool) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        bundle_root=str(run if with_run else tmp_path),
    )


def test_a_checkpoint_can_be_exported(run: Path, tmp_path: Path) -> None:
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(run / "models" / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        bundle_root=str(run),
    )
    network = torch.jit.load(tmp_path / "model.ts").eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


# ---- exports and checks of a run that has other classes than metadata.json ----


@pytest.fixture(scope="module")
def other_run(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels, four classes of names that MONAI's parser reads as code, and five levels. Do not write into it."""
    data = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(phantom_folder, data)
    for file in (*data.glob("imagesTr/*"), *data.glob("imagesTs/*")):
        volume = nibabel.load(file)
        voxels = np.asarray(volume.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.stack([voxels, -voxels], axis=-1), volume.affine), file)
    content = json.loads((data / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": f"$open({str(data / 'made')!r}, 'w')", "2": "lesion #2", "9": "@loss"}
    content["modality"] = {"0": "T1", "1": "%T2#"}
    (data / "dataset.json").write_text(json.dumps(content))
    run = data.with_name("run")
    train(data, run, channels=[4, 4, 4, 4, 4], num_res_units=0, patch_size=[32, 32, 32])
    return run


def exported_metadata(file: Path) -> dict[str, Any]:
    files = {"metadata.json": ""}
    torch.jit.load(file, _extra_files=files)
    return json.loads(files["metadata.json"])


def test_an_export_has_the_classes_and_channels_of_the_run(other_run: Path, tmp_path: Path) -> None:
    config = str(CONFIGS / "inference.yaml")
    ckpt_export(
        net_id="network_def", filepath=str(tmp_path / "model.ts"), config_file=config, bundle_root=str(other_run)
    )
    formats = exported_metadata(tmp_path / "model.ts")["network_data_format"]
    assert formats["inputs"]["image"]["num_channels"] == 2
    assert formats["inputs"]["image"]["channel_def"] == {"0": "T1", "1": "_T2_"}
    names = formats["outputs"]["pred"]["channel_def"]
    assert [names[number] for number in ("0", "2", "3")] == ["background", "lesion _2", "_loss"]
    assert names["1"].startswith("_open(")
    assert formats["outputs"]["pred"]["num_channels"] == 4
    assert not (other_run.with_name("data") / "made").exists()  # no name was evaluated


def test_the_network_of_any_run_can_be_verified(other_run: Path) -> None:
    file = str(other_run / "configs" / "metadata.json")
    config = str(CONFIGS / "inference.yaml")
    verify_net_in_out(net_id="network_def", meta_file=file, config_file=config, bundle_root=str(other_run))


@pytest.mark.parametrize("change", ["classes", "channels", "names", "levels"])
def test_an_export_under_other_names_is_refused(run: Path, tmp_path: Path, change: str) -> None:
    metadata = json.loads((run / "configs" / "metadata.json").read_text())
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    if change == "classes":
        pred["channel_def"]["3"] = "more"
    elif change == "channels":
        image["num_channels"] = 2
    elif change == "names":
        pred["channel_def"]["1"] = "liver"
    else:
        image["spatial_shape"] = ["4*n"] * 3
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    words = (
        rf"Expected the metadata\.json of the run in .*, got one of other .*; give --meta_file {run}/configs/metadata"
    )
    with pytest.raises(StartUpRefused, match=words):
        ckpt_export(
            net_id="network_def",
            filepath=str(tmp_path / "model.ts"),
            meta_file=str(tmp_path / "metadata.json"),
            config_file=str(CONFIGS / "inference.yaml"),
            bundle_root=str(run),
        )
    assert not (tmp_path / "model.ts").exists()


def test_regions_are_the_channels_of_an_export() -> None:
    record = RunRecord(
        labels={0: "background", 1: "edema", 2: "core"},
        regions={"whole": (1, 2), "core": (2,)},
        in_channels=1,
        patch_size=(16, 16, 16),
        pixdim=None,
        channels=(4, 8, 16),
        num_res_units=0,
        loss="",
        dataset_dir="",
        num_folds=2,
        fold=0,
        seed=0,
        limit=None,
        training=("a",),
        validation=("b",),
        epochs=1,
        val_interval=1,
        batch_size=1,
        learning_rate=1.0,
    )
    content = metadata_of_run({"authors": "somebody", "network_data_format": METADATA["network_data_format"]}, record)
    pred = content["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], pred["channel_def"]) == (2, {"0": "whole", "1": "core"})
    assert pred["spatial_shape"] == ["8*n"] * 3
    assert content["authors"] == "somebody"
    assert content["pred_classes"] == "one channel of scores per region"
    assert METADATA["network_data_format"]["outputs"]["pred"]["num_channels"] == 3  # the bundle's own is left alone
    assert not differs_from_run(content, record)
    assert differs_from_run(METADATA, record)
    assert not differs_from_run({}, record)


def test_a_run_in_the_folder_of_a_bundle_leaves_its_metadata_alone(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["config-dir", "--copy", str(tmp_path / "bundle")])
    before = (tmp_path / "bundle" / "configs" / "metadata.json").read_bytes()
    train(phantom_folder, tmp_path / "bundle", num_res_units=0)
    assert (tmp_path / "bundle" / "configs" / "metadata.json").read_bytes() == before
    assert json.loads((tmp_path / "bundle" / "models" / "metadata.json").read_text())["network_data_format"]


def test_the_evaluation_of_an_older_run_gives_it_metadata(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "configs")
    evaluate(RunFolder(tmp_path / "old"), overlays=False)
    ours, theirs = (
        json.loads((folder / "configs" / "metadata.json").read_text()) for folder in (tmp_path / "old", run)
    )
    assert ours == theirs


def test_inference_fits_monai_s_own_workflow(run: Path, phantom_folder: Path, tmp_path: Path) -> None:
    options = {"input": str(phantom_folder / "imagesTs"), "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(
        str(CONFIGS / "inference.yaml"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type="infer",
        bundle_root=str(run),
        **options,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 2


# What the continuous integration of MONAI's model zoo asks of a bundle for inference, and where it is looked at:
#   schema, version and changelog of metadata.json, pinned packages   test_the_metadata_*
#   channels and type of network_def                                  test_the_network_has_the_channels_of_the_metadata
#   check_properties and a run on small NIfTI files                   test_inference_fits_monai_s_own_workflow
#   TorchScript                                                       test_a_checkpoint_can_be_exported
#   files and names                                                   the two tests below
# Left out: models/model.pt and its entry in model_info.json (weights are those of a run; the repository ships none),
# large_files.yml (for the same reason there are no large files), black, isort, flake8 and pytype (ruff and mypy look at
# the code), TensorRT (needs a GPU and NVIDIA's compiler; the zoo tests it for bundles that ask for it).


def test_the_bundle_has_the_files_of_the_model_zoo(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["config-dir", "--copy", str(tmp_path / "bundle")])
    files = {str(file.relative_to(tmp_path / "bundle")): file for file in (tmp_path / "bundle").rglob("*.*")}
    assert {"configs/metadata.json", "configs/inference.yaml", "configs/logging.conf"} <= files.keys()
    assert (tmp_path / "bundle" / "LICENSE").is_file()
    assert all(file.stat().st_size < 25e6 for file in files.values())


def test_inference_has_the_keys_of_the_model_zoo() -> None:
    keys = {"bundle_root", "output_dir", "dataset_dir", "device", "network_def", "network", "preprocessing", "dataset"}
    keys |= {"dataloader", "inferer", "postprocessing", "handlers", "evaluator", "initialize", "run"}
    assert keys <= yaml.safe_load((CONFIGS / "inference.yaml").read_text()).keys()


def test_the_metadata_follow_the_schema() -> None:
    named = os.environ.get("MONAI_EXTRA_LOSSES_SCHEMA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "meta_schema_20240725.json"
    schema = Path(named) if named else beside
    if not schema.exists():
        pytest.skip("set MONAI_EXTRA_LOSSES_SCHEMA to a copy of meta_schema_20240725.json to run this test.")
    # MONAI downloads the schema unless it finds it at `filepath`
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_the_metadata_fit_the_package() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["schema"] == "https://project-monai.github.io/schema/meta_schema_20240725.json"
    assert metadata["version"] == monai_extra_losses.__version__
    assert metadata["version"] in metadata["changelog"]
    constraints = CONFIGS.parent / "constraints.txt"
    if constraints.exists():  # in a checkout
        pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(), flags=re.M))
        assert metadata["monai_version"] == pinned["monai"]
        assert metadata["pytorch_version"] == pinned["torch"]
        assert metadata["numpy_version"] == pinned["numpy"]
        required = dict(metadata["required_packages_version"])
        assert required.pop("monai-extra-losses") == metadata["version"]
        assert required == {name: pinned[name] for name in required}


def scalars(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from scalars(value, f"{where}::{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from scalars(value, f"{where}::{index}")
    else:
        yield where, node


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: file.name)
def test_no_number_or_switch_is_read_as_text(file: Path) -> None:
    """YAML takes 1e-4 for text, and Python takes the text "False" for true."""
    words = {"true", "false", "yes", "no", "on", "off", "none", "null"}
    for where, value in scalars(yaml.safe_load(file.read_text())):
        if isinstance(value, str):
            assert value.lower() not in words, f"{file.name}{where}: {value!r}"
            with pytest.raises(ValueError, match="could not convert"):
                float(value)


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: file.name)
def test_no_key_comes_twice(file: Path) -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{file.name}: {keys}"
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert yaml.load(file.read_text(), Strict)


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: file.name)
def test_every_class_is_named_by_its_full_path(file: Path) -> None:
    for where, value in scalars(yaml.safe_load(file.read_text())):
        if where.endswith("::_target_"):
            assert "." in value, f"{file.name}{where}: {value}"


@pytest.mark.parametrize("file", [f for f in YAML_FILES if "multi_gpu" not in f.name], ids=lambda file: file.name)
def test_every_option_at_the_top_has_a_comment(file: Path) -> None:
    for line in file.read_text().splitlines():
        if re.match(r"\w+: +[^{\s]", line) and not re.match(r"\w+: +['\"]?[@$]", line):
            assert " # " in line, f"{file.name}: {line}"
