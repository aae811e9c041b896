"""Checkpoints and weights: read, checked, and given to a network."""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import copy_model_state

from monai_extra_losses.bundle.networks import headless
from monai_extra_losses.bundle.options import file_or_folder_or_none
from monai_extra_losses.bundle.processes import is_first_process
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.tensor_files import damage, not_finite, refuse_changed
from monai_extra_losses.data.errors import FileRefused, StartUpRefused
from monai_extra_losses.file_content import short, typed

logger = logging.getLogger(__name__)

# what is in last.pt and previous.pt
_CHECKPOINT: dict[str, Any] = {
    "epoch": int,
    "best_metric": float,
    "best_metric_epoch": int,
    "validations_since_best": int,
    "empty_validations": dict[str, int],
    "network": dict[str, Any],
    "loss": dict[str, Any],
    "optimizer": dict[str, Any],
    "lr_scheduler": dict[str, Any],
    "scaler": dict[str, Any],
}


# of MONAI's DynUNet: heads of deep supervision, which a training alone reads
_OF_TRAINING = re.compile(r"(^|\.)(deep_supervision_heads|super_head)\.")


_ADDED_LATER = ("validations_since_best", "empty_validations", "scaler")


# what torch.load raises of bytes that are no file of its own
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of last.pt or previous.pt; another or a damaged one is refused with a sentence."""
    train_again = "train again with --overwrite True"
    refuse_changed(file, f"bring back that of this run, or {train_again}", written_as="last.pt")
    content = _content_of(file, file.name, train_again)
    problem = None if isinstance(content, dict) else f"{type(content).__name__} content"
    for name, hint in _CHECKPOINT.items():
        if problem is None:
            problem = _problem_of(name, hint, content)
    if problem is None and content["epoch"] < 1:
        problem = f"epoch {short(content['epoch'])}"
    if problem is not None:
        raise FileRefused(
            f"{file}: expected a checkpoint of a training, got {problem}",
            f"bring back the file as it was, or {train_again}",
        )
    _refuse_not_finite(content["network"], file, file.name, train_again)
    return dict(content)


def _problem_of(name: str, hint: Any, content: Mapping[str, Any]) -> str | None:
    if name not in content:
        return None if name in _ADDED_LATER else f"none of its {name}"
    try:
        typed(hint, content[name])
    except TypeError as error:
        return f"a value of another type: {name} should be {error}"
    return None


def _content_of(file: str | Path, name: str, hint: str) -> Any:
    try:
        if (problem := damage(file)) is not None:
            raise FileRefused(f"Expected {name} to be a whole file, got {file}, which is damaged: {problem}", hint)
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StartUpRefused(f"Expected {name} to be a file of weights, got {file}, which does not exist.") from None
    except _UNREADABLE as error:
        raise FileRefused(
            f"Expected {name} to be a file of tensors alone, got {file}, which torch does not load with "
            f"weights_only=True ({first_line(error)})",
            hint,
        ) from None


def state_dict_of(file: str | Path, name: str = "pretrained") -> dict[str, torch.Tensor]:
    """The tensors of a file of weights: a state dict, or a checkpoint that holds one; also of a parallel network."""
    hint = "save a state dict" if name == "pretrained" else "give another file or train again"
    content = _content_of(file, name, hint)
    for key in ("network", "state_dict", "model", "model_state_dict"):  # last.pt, and what others call it
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {str(name).removeprefix("module."): value for name, value in tensors if isinstance(value, torch.Tensor)}
    _refuse_not_finite(state, file, name, "give another file")
    return state


def _refuse_not_finite(tensors: Mapping[str, Any], file: str | Path, name: str, hint: str) -> None:
    broken = not_finite(tensors)
    if broken:
        raise FileRefused(
            f"Expected {name} to hold finite numbers, got {file} with NaN or infinity in {len(broken)} of "
            f"{len(tensors)} tensors ({broken[0]} the first)",
            hint,
        )


def trained_weights(model_file: Any, folder: RunFolder) -> str:
    path = file_or_folder_or_none("model_file", model_file) or folder.model
    if not path.is_file():
        raise StartUpRefused(f"Expected trained weights in {path}, got no such file; train first.")
    if model_file is None:
        refuse_changed(path, f"bring back that of this run, or name weights of your own as such: --model_file {path}")
    return str(path)


def without_training_heads(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a network without those that a training alone reads."""
    return {name: tensor for name, tensor in state.items() if not _OF_TRAINING.search(name)}


def network_at_start(
    network: torch.nn.Module, pretrained: str | None, device: torch.device, record: RunRecord | None = None
) -> torch.nn.Module:
    """The network on the device, with the tensors of a file of weights that fit: other classes or channels do not.

    Args:
        network: with random weights.
        pretrained: file of weights; None: there are none.
        device: of the training.
        record: of the run; one with `head_loss` gets the network without its last convolution.
    """
    if pretrained is not None:
        names = network.state_dict().keys()
        _, loaded, left = copy_model_state(network, state_dict_of(pretrained))
        if not loaded:
            raise StartUpRefused(
                f"Expected pretrained to be weights of this network, got {pretrained}, none of whose tensors fits the "
                f"{len(names)} of the network; give the network, channels and num_res_units of the training that made "
                "them."
            )
        if is_first_process():
            logger.info(
                f"Starting from {len(loaded)} of {len(names)} tensors of {pretrained}"
                + (f"; random are {', '.join(left)}" if left else "")
            )
    network = network.to(device)
    return network if record is None or not record.head_loss else headless(network, record)


def with_weights(network: torch.nn.Module, model_file: str, device: torch.device) -> torch.nn.Module:
    """The network with trained weights, on the device."""
    state = state_dict_of(model_file, "model_file")
    try:
        network.load_state_dict(without_training_heads(state))
    except RuntimeError:
        _, loaded, unchanged = copy_model_state(network, state, inplace=False)
        raise StartUpRefused(
            f"{model_file}: expected weights of this network, got others ({len(loaded)} of "
            f"{len(loaded) + len(unchanged)} tensors fit); pass the network options of the training."
        ) from None
    return network.to(device)
