"""Several runs that segment together: which fit each other, the mean of their probabilities, their disagreement."""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from monai.transforms import MapTransform

from monai_extra_losses.bundle.components import half_precision
from monai_extra_losses.bundle.networks import network_of_run
from monai_extra_losses.bundle.options import run_folders_of_config
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_metadata import channel_names
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.segmenting import CaseInferer, InvertGeometryd, probabilities_of, scores_of
from monai_extra_losses.bundle.weights import state_dict_of, trained_weights, with_weights
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.engines import HalfPrecisionInferer
from monai_extra_losses.file_content import short

SAME_CLASSES = {
    "labels": "classes",
    "regions": "regions",
    "regions_class_order": "order of the regions",
    "in_channels": "number of channels",
    "channel_names": "channels",
}
"""What runs have in common whose results go together: a value of `RunRecord`, or `channel_names`, and its words."""

_SAME_IMAGES = {"pixdim": "pixdim", "hu_window": "hu_window"}
_OF_NETWORK = ("network", "channels", "num_res_units", "kernel_sizes", "strides", "in_channels", "num_classes")


@dataclass(frozen=True)
class EnsembleMember:
    """A trained run.

    Args:
        folder: of it.
        record: of it.
        model_file: its weights.
    """

    folder: RunFolder
    record: RunRecord
    model_file: str


def further_members(ensemble: Any, folder: RunFolder, record: RunRecord, restored: bool) -> tuple[EnsembleMember, ...]:
    """The runs that segment together with a first one.

    Args:
        ensemble: folders of a config, as `run_folders_of_config` takes them; that of the first is passed over where a
            pattern fits it.
        folder, record: of the first run.
        restored: the label ids before `prepare` are written.

    Raises:
        StartUpRefused: a folder without a trained run, or one that does not fit the first.
    """
    listed = isinstance(ensemble, list | tuple)
    members = []
    for root in run_folders_of_config("ensemble", ensemble):
        if root.resolve() == folder.root.resolve():
            if listed:
                raise StartUpRefused(f"Expected each run of an ensemble once, got {root} twice.")
            continue
        own = RunFolder(root)
        members.append(EnsembleMember(own, RunRecord.read(own.record), trained_weights(None, own)))
    shared = SAME_CLASSES | ({"original_labels": "label ids before `prepare`"} if restored else {}) | _SAME_IMAGES
    for member in members:
        refuse_unlike_runs((folder, record), (member.folder, member.record), shared)
        state_dict_of(member.model_file, "model_file")
    return tuple(members)


def refuse_unlike_runs(
    first: tuple[RunFolder, RunRecord], other: tuple[RunFolder, RunRecord], shared: Mapping[str, str]
) -> None:
    """Refuse two runs whose results do not go together, with the first difference.

    Args:
        first, other: folder and record of each.
        shared: what they must share, as `SAME_CLASSES`.

    Raises:
        StartUpRefused: they differ.
    """
    for name, words in shared.items():
        one, another = (_shared_value(name, *run) for run in (first, other))
        unknown = name == "channel_names" and None in (one, another)
        if _in_order(one) != _in_order(another) and not unknown:
            raise StartUpRefused(
                f"Expected runs of the same {words}, got {_shown(one)} in {first[0].root} and {_shown(another)} in "
                f"{other[0].root}; leave one out."
            )


def _shared_value(name: str, folder: RunFolder, record: RunRecord) -> Any:
    if name == "channel_names":
        return channel_names(folder.metadata)
    return getattr(record, name)


def _in_order(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value  # which is that of the channels


def _shown(value: Any) -> str:
    return "none" if value is None else short(value)


@dataclass(frozen=True)
class LoadedMember:
    """A run that is ready to segment.

    Args:
        network: with its weights, on its device.
        inferer: with windows of its patch, in its precision.
    """

    network: torch.nn.Module
    inferer: Inferer


def loaded_members(
    members: Sequence[EnsembleMember],
    *,
    record: RunRecord,
    network: torch.nn.Module,
    inferer: CaseInferer,
    amp: Any,
    device: torch.device,
) -> list[LoadedMember]:
    """Load the networks of an ensemble, all of them once.

    Args:
        members: runs beside the first.
        record: of the first.
        network: of the first; a run of the same kind gets a copy of it, with weights of its own.
        inferer: of the first; that of a run has windows of its own patch.
        amp, device: as `half_precision` takes them.
    """
    loaded = []
    for member in members:
        own = member.record
        if all(getattr(own, name) == getattr(record, name) for name in _OF_NETWORK):
            empty = copy.deepcopy(network)
        else:
            empty = network_of_run(own, in_channels=own.in_channels, out_channels=own.num_classes)
        windows = HalfPrecisionInferer(inferer.with_patch(own.patch_size), half_precision(amp, device, own.amp))
        loaded.append(LoadedMember(with_weights(empty, member.model_file, device), windows))
    return loaded


class MeanOverRunsd(MapTransform):
    """Scores (C,X,Y,Z) of one run -> scores of the mean of its probabilities and those of further runs.

    Each run predicts the image, and its scores are brought to the grid of the file; there the probabilities are
    averaged, so that the mean is that of the probabilities which the runs write one by one. One mean is kept: MONAI's
    `EnsembleEvaluator` and `MeanEnsembled` (1.6.1) would hold the scores of all runs at once.

    The disagreement is the mutual information of prediction and model in nats, the entropy of the mean probabilities
    less the mean of the entropies (Depeweg et al. 2018, arXiv:1710.07283; Smith and Gal 2018, arXiv:1803.08533). It is
    0 where all runs agree, and at most the logarithm of the number of runs or of classes, whichever is lower. Of
    regions, each of which is there or not, it is the largest over the regions, at most log 2 = 0.69.

    Args:
        keys: of the scores, on the grid of the file.
        image: key of the image that the network sees, (C,X,Y,Z).
        members: the further runs.
        inversion: brings their scores to the grid of the file; its `keys` are these.
        regions: the channels are regions, and not classes that exclude each other.
        uncertainty: key that the disagreement (1,X,Y,Z) gets; None leaves it out.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        *,
        image: str,
        members: Sequence[LoadedMember],
        inversion: InvertGeometryd,
        regions: bool,
        uncertainty: str | None = None,
    ) -> None:
        super().__init__(keys)
        self.image = image
        self.members = list(members)
        self.inversion = inversion
        self.regions = regions
        self.uncertainty = uncertainty

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the scores of the mean, and the disagreement, into a copy of `data`."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            meta = changed[key].meta
            mean = self._probabilities(changed.pop(key))
            entropies = self._entropies(mean) if self.uncertainty is not None else None
            for member in self.members:
                found = self._probabilities(self._scores(key, data[self.image], member)).to(mean.device)
                mean += found
                if entropies is not None:
                    entropies += self._entropies(found)
            mean /= 1 + len(self.members)
            if entropies is not None:
                entropies /= 1 + len(self.members)
                disagreement = (self._entropies(mean) - entropies).clamp_min(0)  # of rounding
                changed[self.uncertainty] = MetaTensor(disagreement.amax(dim=0, keepdim=True), meta=meta)
            changed[key] = MetaTensor(scores_of(mean, regions=self.regions), meta=meta)
        return changed

    def _scores(self, key: Hashable, image: MetaTensor, member: LoadedMember) -> MetaTensor:
        volume = MetaTensor(image.as_tensor()[None], meta=image.meta)
        with eval_mode(member.network):
            scores = member.inferer(volume, member.network)
        scores = MetaTensor(scores.as_tensor()[0], meta=image.meta)
        found: MetaTensor = self.inversion({self.image: image, key: scores})[key]
        return found

    def _probabilities(self, scores: MetaTensor) -> torch.Tensor:
        return probabilities_of(scores.as_tensor(), regions=self.regions)

    def _entropies(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Of each region (R,X,Y,Z), or of the classes (1,X,Y,Z)."""
        if self.regions:
            return _entr(probabilities) + _entr(1 - probabilities)
        total = torch.zeros_like(probabilities[:1])
        for channel in probabilities:  # one by one, at the memory of one
            total += _entr(channel)
        return total


def _entr(p: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.special.entr(p)  # -p log p
    return result
