"""What `monai-extra-losses train --help` prints of every option of a training."""

import json
from collections.abc import Collection
from typing import Any

import yaml

import monai_extra_losses
from monai_extra_losses.bundle.training_options import TABLE


def rows_of_training(leave_out: Collection[str] = ()) -> list[tuple[str, str]]:
    """Each option as it is given with its default in configs/train.yaml, and its meaning; in the order of that file."""
    text = (monai_extra_losses.config_dir() / "train.yaml").read_text(encoding="utf-8")
    # libyaml is four times as fast, where PyYAML has it
    config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    setup = config["setup"]
    rows = []
    for name in dict.fromkeys((*config, *setup)):
        if name in TABLE and name not in leave_out:
            key, default = (name, config[name]) if name in config else (f"setup::{name}", setup[name])
            rows.append((f"--{key} {_shown(default)}".rstrip(), TABLE[name].meaning))
    return rows


def _shown(default: Any) -> str:
    """A default as the command line takes it; "" for an expression, of which the meaning tells."""
    if isinstance(default, str):
        return "" if default.startswith("$") else default
    return f'"{default}"' if isinstance(default, list) else json.dumps(default)
