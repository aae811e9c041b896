"""Which loss a trainer of nnU-Net takes, and with which options: an entry of configs/losses.yaml, or a file on top."""

import difflib
import functools
import inspect
import json
import pydoc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from torch import nn

import monai_extra_losses
from monai_extra_losses.bundle.loss_trial import refuse_broken_loss, refuse_loss_of_classes, refuse_raw_scores
from monai_extra_losses.losses import PartialLabelLoss
from monai_extra_losses.losses.base import SegmentationLoss

PREFIX = "nnUNetTrainer_"
OWN_CHOICE = "extra_loss"
"""Name, after the prefix, of the trainer that is told its loss."""

CHOICE_VARIABLE = "nnUNet_extra_loss"
"""Environment variable that tells it: a name of the table, with options or without, or the path of a YAML file."""

_OF_THE_TRIAL = 255  # in a region without annotation; nnU-Net has a channel for it
_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Training:
    """What of a training decides how a loss reads its data, as nnU-Net's own losses do.

    Args:
        regions: the network has a channel per region, and the target too: sigmoid; else labels and softmax.
        ignore_label: of the data set, or None.
        batch_dice: sums of region losses are over the batch, as the plans of low-resolution data say.
        channels: of the network's scores.
        axes: of a patch, 2 or 3.
    """

    regions: bool
    ignore_label: int | None
    batch_dice: bool
    channels: int
    axes: int

    @property
    def references(self) -> dict[str, bool]:
        """What the entries of losses.yaml refer to. nnU-Net's Dice leaves the background of labels out."""
        return {
            "to_onehot_y": not self.regions,
            "softmax": not self.regions,
            "sigmoid": self.regions,
            "include_background": self.regions,
        }


@functools.cache
def table_names() -> tuple[str, ...]:
    """The names in configs/losses.yaml."""
    return tuple(yaml.safe_load(_table().read_text(encoding="utf-8"))["losses"])


def loss_config(choice: str, training: Training) -> dict[str, Any]:
    """The chosen loss as a config without references, every option that the training decides in it.

    Args:
        choice: a name of the table, options behind it: "focal_tversky", "focal_tversky gamma=2 alpha=0.4",
            "centerline_dice weights=[1,0.5] losses::centerline_dice::iterations=5"; or a YAML or JSON file, which goes
            on top of losses.yaml as in a bundle: `loss: '@losses::tversky'`, or a component with `_target_`.
        training: of the loss.

    Raises:
        ValueError: a choice that is neither, a file without a loss, options that cannot be recorded.
    """
    parser = ConfigParser()
    parser.read_config(_table())
    parser.update(dict(training.references))
    parser.update(_from_file(Path(choice)) if choice.endswith(_FILES) else _from_words(choice))
    try:
        config = _plain(parser.get_parsed_content("loss", instantiate=False))
    except (KeyError, ValueError) as error:
        raise ValueError(f"expected a loss with references that exist, got {choice!r}: {error}.") from error
    if not isinstance(config, dict) or "_target_" not in config:
        raise ValueError(
            f"expected `loss` to be a component with _target_, or a reference such as @losses::tversky, got {config!r}."
        )
    for component, cls in _own_losses(config):
        _fit(component, cls, training)
    try:
        json.dumps(config)
    except TypeError as error:
        raise ValueError(
            f"expected options that can be recorded, numbers, words and lists, got {choice!r}: {error}."
        ) from None
    return config


def built_loss(config: Mapping[str, Any], training: Training, *, ranks: bool, partly: bool) -> nn.Module:
    """The loss of a config of `loss_config`, after a trial on a few voxels.

    Args:
        config: of the loss.
        training: of the loss.
        ranks: it is one of several processes, over which sums of the batch are added, where the loss can.
        partly: its cases annotate some of the classes only: it is wrapped in `PartialLabelLoss`.

    Raises:
        ValueError: an option that the loss does not take, what is no loss of one value, one with weights to be learnt.
        TypeError: a loss that cannot be wrapped.
        StartUpRefused: a loss that cannot train these classes or regions, or counts ignored voxels.
    """
    config = _plain(config)
    for component, cls in _own_losses(config):
        if ranks and component.get("batch") and cls.unsyncable is None:
            component.setdefault("sync_batch", True)
    try:
        loss = ConfigParser({"loss": config}).get_parsed_content("loss")
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError is MONAI's, around those of the loss
        reason = error.__cause__ or error
        raise ValueError(f"expected a loss that can be made, got {config['_target_']}: {reason}") from error
    if not isinstance(loss, nn.Module) or getattr(loss, "reduction", "mean") == "none":
        raise ValueError(f"expected a loss with one value, reduction 'mean' or 'sum', got {loss!r}.")
    if any(parameter.requires_grad for parameter in loss.parameters()):
        raise ValueError(f"expected a loss that learns nothing, for nnU-Net optimizes the network alone, got {loss!r}.")
    _try(loss, training)
    wraps = partly and not isinstance(loss, PartialLabelLoss)
    return PartialLabelLoss(loss, mode="sigmoid" if training.regions else "marginal") if wraps else loss


def _try(loss: nn.Module, training: Training) -> None:
    refuse_raw_scores(loss)
    if training.regions:
        in_channel = None if training.ignore_label is None else _OF_THE_TRIAL
        instead = "declare labels instead of regions in dataset.json"
        refuse_loss_of_classes(loss, training.channels, in_channel, training.axes, instead)
    else:
        refuse_broken_loss(loss, training.channels, training.ignore_label, training.axes)


def _table() -> Path:
    return monai_extra_losses.config_dir() / "losses.yaml"


def _from_words(choice: str) -> dict[str, Any]:
    name, *options = choice.split() or [""]
    names = table_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(
            f"expected {CHOICE_VARIABLE} to be a name of `monai-extra-losses list`, options such as gamma=2 behind it, "
            f"or the path of a YAML file, got {choice!r}{hint}"
        )
    changes: dict[str, Any] = {"loss": f"@losses::{name}"}
    for option in options:
        path, equals, value = option.partition("=")
        if not equals or not path:
            raise ValueError(f"expected options as name=value, without blanks, got {option!r} in {choice!r}.")
        changes[f"losses::{name}::{path}"] = yaml.safe_load(value)
    return changes


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"expected {CHOICE_VARIABLE} to be an existing file, got {str(path)!r}.")
    content = ConfigParser.load_config_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"expected {path} to hold `loss`, got a {type(content).__name__}.")
    if "_target_" in content:
        return {"loss": content}
    if "loss" not in content:
        raise ValueError(f"expected {path} to hold `loss`, or a component with _target_, got {', '.join(content)}.")
    return content


def _plain(value: Any) -> Any:
    """A config as dicts and lists alone."""
    value = value.get_config() if hasattr(value, "get_config") else value
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if key != "_desc_"}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value


def _own_losses(config: Any) -> Iterator[tuple[dict[str, Any], type[SegmentationLoss]]]:
    """The components of a config that are losses of this package, with their classes."""
    if isinstance(config, dict):
        cls = _located(config.get("_target_"))
        if isinstance(cls, type) and issubclass(cls, SegmentationLoss):
            yield config, cls
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _own_losses(part)


def _located(target: Any) -> Callable[..., Any] | None:
    found = pydoc.locate(target) if isinstance(target, str) else None
    return found if callable(found) else None


def _fit(component: dict[str, Any], cls: type[SegmentationLoss], training: Training) -> None:
    taken = inspect.signature(cls).parameters
    if "batch" in taken:
        component.setdefault("batch", training.batch_dice)
    if "ignore_index" in taken and not training.regions and training.ignore_label is not None:
        component.setdefault("ignore_index", training.ignore_label)
