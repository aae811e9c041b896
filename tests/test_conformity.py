"""The bundle against MONAI's own tools, and the configs against the traps of YAML."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

import monai_extra_losses
from monai_extra_losses.cli import main
from monai_extra_losses.commands import run_configs
from monai_extra_losses.workflow import SegmentationWorkflow

CONFIGS = monai_extra_losses.config_dir()
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
