"""A bundle as MONAI's model zoo has them: small, and without a word of this package."""

import json
from pathlib import Path
from typing import Any

_KEYS = ["image", "label"]


def _configuration(data: Path) -> dict[str, Any]:
    case = "{'image': i, 'label': str(i).replace('imagesTr', 'labelsTr')}"
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "dataset_dir": str(data),
        "images": "$sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz'))[:2]",
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": [4, 8],
            "strides": [2],
        },
        "network": "$@network_def.to(@device)",
        "loss": {
            "_target_": "DiceCELoss",
            "to_onehot_y": True,
            "softmax": True,
            "squared_pred": True,
            "batch": True,
        },
        "optimizer": {"_target_": "Novograd", "params": "$@network.parameters()", "lr": 0.002},
        "train": {
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "LoadImaged", "keys": _KEYS, "ensure_channel_first": True},
                    {"_target_": "NormalizeIntensityd", "keys": "image"},
                    {"_target_": "EnsureTyped", "keys": _KEYS},
                ],
            },
            "dataset": {
                "_target_": "Dataset",
                "data": f"$[{case} for i in @images]",
                "transform": "@train::preprocessing",
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": 2, "num_workers": 0},
            "inferer": {"_target_": "SimpleInferer"},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 1,
                "device": "@device",
                "train_data_loader": "@train::dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train::inferer",
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train::trainer.run()"],
        # What a test reads: which class trained, and the loss of the last batch.
        "finalize": ["$print('trained with', type(@loss).__module__, @train::trainer.state.output[0]['loss'])"],
    }


def write_zoo_bundle(folder: Path, data: Path) -> Path:
    """Write configs/train.json and metadata.json; `data` has the Decathlon layout."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(_configuration(data), indent=4), encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text('{"version": "0.1.0"}', encoding="utf-8")
    return folder
