"""The networks of a training, by name: what each is planned from, and how it is built from the record of its run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.nets import DynUNet, SegResNet, UNet

from monai_extra_losses.bundle.pooling import Axes, PoolingPlan, pooling_plan
from monai_extra_losses.bundle.run_record import DEFAULT_CHANNELS, FEWEST_DYNUNET_LEVELS, RunRecord
from monai_extra_losses.bundle.training_options import TrainingOptions
from monai_extra_losses.data.checks import CaseSummary
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.geometry import (
    LARGEST_AUTOMATIC_PATCH,
    SMALLEST_AUTOMATIC_PATCH,
    automatic_patch,
    median_shape,
    median_spacing,
)
from monai_extra_losses.losses import HeadlessNetwork

_DEFAULT_RES_UNITS = 2
_FIRST_AND_MOST_FILTERS = (32, 320)  # of DynUNet, as nnU-Net's


@dataclasses.dataclass(frozen=True)
class KnownNetwork:
    """What is known of a network.

    Args:
        title: its name in sentences.
        build: the record of a run, and arguments of MONAI's class -> the network.
        options: those of `channels`, `num_res_units` and `deep_supervision` that it has.
        levels_by_patch: the patch and its spacing decide how many levels it has, and which axes they halve; else every
            level halves all axes.
        last_convolution: name of the module that makes the scores of features by a convolution of 1 x 1 x 1; None
            where the last convolution is wider.
    """

    title: str
    build: Callable[..., torch.nn.Module]
    options: frozenset[str]
    levels_by_patch: bool
    last_convolution: str | None


@dataclasses.dataclass(frozen=True)
class NetworkPlan:
    """What a network is built from beside its name; values of `RunRecord`."""

    patch_size: Axes
    channels: tuple[int, ...]
    num_res_units: int | None = None
    kernel_sizes: tuple[Axes, ...] | None = None
    strides: tuple[Axes, ...] | None = None


def network_of_run(record: RunRecord, for_training: bool = False, **arguments: Any) -> torch.nn.Module:
    """The network of a run with random weights.

    Args:
        record: of the run.
        for_training: with the heads of deep supervision, where the run has it; only a training reads them, and
            TorchScript does not take those of MONAI 1.6.1.
        arguments: `in_channels` and `out_channels`, and any other of MONAI's class instead of those of the record.
    """
    if record.deep_supervision and for_training:
        # nnU-Net's, which leaves out the two lowest levels
        arguments = {"deep_supervision": True, "deep_supr_num": max(len(record.channels) - 3, 1), **arguments}
    return NETWORKS[record.network].build(record, **arguments)


def headless(network: torch.nn.Module, record: RunRecord) -> HeadlessNetwork:
    """A network whose last convolution is left to `HeadLoss`."""
    try:
        return HeadlessNetwork(network, NETWORKS[record.network].last_convolution or "")
    except ValueError as error:
        raise StartUpRefused(
            f"Expected network_def to be the {NETWORKS[record.network].title} of the run with head_loss, got another: "
            f"{error}"
        ) from None


def _unet(record: RunRecord, **arguments: Any) -> torch.nn.Module:
    halved = (2,) * (len(record.channels) - 1)
    given = {"channels": record.channels, "strides": halved, "num_res_units": record.num_res_units, "norm": "instance"}
    return UNet(**{"spatial_dims": 3, **given, **arguments})


def _dynunet(record: RunRecord, **arguments: Any) -> torch.nn.Module:
    kernel_sizes, strides = record.kernel_sizes or (), record.strides or ()
    given = {
        "spatial_dims": 3,
        "kernel_size": kernel_sizes,
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": record.channels,
    }
    return DynUNet(**{**given, **arguments})


def _segresnet(record: RunRecord, **arguments: Any) -> torch.nn.Module:
    # four levels, as many as channels; its group norm does not depend on the batch
    blocks = {"blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)}
    return SegResNet(**{"spatial_dims": 3, "init_filters": record.channels[0], **blocks, **arguments})


NETWORKS = {
    "unet": KnownNetwork(
        title="U-Net",
        build=_unet,
        options=frozenset({"channels", "num_res_units"}),
        levels_by_patch=False,
        last_convolution=None,
    ),
    "dynunet": KnownNetwork(
        title="DynUNet",
        build=_dynunet,
        options=frozenset({"channels", "deep_supervision"}),
        levels_by_patch=True,
        last_convolution="output_block.conv.conv",
    ),
    "segresnet": KnownNetwork(
        title="SegResNet",
        build=_segresnet,
        options=frozenset(),
        levels_by_patch=False,
        last_convolution="conv_final.2.conv",
    ),
}


def refuse_unfit_options(options: TrainingOptions, patch_given: Any) -> None:
    """Refuse, before the data are read, what the network has no use for and a patch that it cannot halve.

    Args:
        options: of the training.
        patch_given: the patch size as it was given.
    """
    network = NETWORKS[options.network]
    for name in ("channels", "num_res_units", "deep_supervision"):
        value = getattr(options, name)
        if name not in network.options and value is not None and value is not False:
            takers = " and ".join(other for other, known in NETWORKS.items() if name in known.options)
            raise StartUpRefused(
                f"Expected no {name} with the network {options.network}, got {value!r}; it is an option of {takers}."
            )
    if options.head_loss and (network.last_convolution is None or options.deep_supervision):
        able = " and ".join(name for name, known in NETWORKS.items() if known.last_convolution is not None)
        got = (
            f"the network {options.network}, whose last one is wider"
            if network.last_convolution is None
            else "deep_supervision, which has one for each level"
        )
        raise StartUpRefused(
            f"Expected head_loss with a network that ends in a convolution of 1 x 1 x 1 ({able}), got {got}."
        )
    if options.patch_size is None:
        return
    if network.levels_by_patch:
        if any(n % 1 for n in options.patch_size):
            raise StartUpRefused(f"Expected patch_size to be whole numbers of voxels, got {patch_given!r}.")
        return
    step = _step(options)
    # instance norm needs two voxels at the lowest level
    if any(n % step or n < 2 * step for n in options.patch_size):
        raise StartUpRefused(
            f"Expected patch_size to be multiples of {step} (the {network.title} halves volumes that often) of at "
            f"least {2 * step}, got {patch_given!r}."
        )


def plan_network(
    options: TrainingOptions,
    cases: Sequence[CaseSummary],
    training: Sequence[CaseSummary],
    earlier: RunRecord | None = None,
) -> NetworkPlan:
    """What the network is built from.

    Args:
        options: of the training, which `refuse_unfit_options` let pass.
        cases: of the data set.
        training: those of them that train.
        earlier: record of the run whose weights are gone on with; None: there are none, or it is not known.
    """
    patch = None if options.patch_size is None else _whole(options.patch_size)
    if NETWORKS[options.network].levels_by_patch:
        return _plan_by_patch(options, patch, cases, training, earlier)
    units = _DEFAULT_RES_UNITS if options.num_res_units is None else options.num_res_units
    return NetworkPlan(
        patch or automatic_patch(cases, options.pixdim, _step(options)),
        options.channels or DEFAULT_CHANNELS,
        units if "num_res_units" in NETWORKS[options.network].options else None,
    )


def _plan_by_patch(
    options: TrainingOptions,
    patch: Axes | None,
    cases: Sequence[CaseSummary],
    training: Sequence[CaseSummary],
    earlier: RunRecord | None,
) -> NetworkPlan:
    title = NETWORKS[options.network].title
    spacing = options.pixdim or median_spacing(training)
    size = patch or _whole(
        min(max(n, SMALLEST_AUTOMATIC_PATCH), LARGEST_AUTOMATIC_PATCH) for n in median_shape(cases, options.pixdim)
    )
    plan = pooling_plan(size, spacing)
    if earlier is not None and earlier.network == options.network and earlier.kernel_sizes and earlier.strides:
        plan = PoolingPlan(earlier.kernel_sizes, earlier.strides)
    where = f"at a spacing of {' x '.join(f'{mm:.3g}' for mm in spacing)} mm"
    levels = len(plan.strides)
    if levels < FEWEST_DYNUNET_LEVELS:
        raise StartUpRefused(
            f"Expected patch_size to be one that the {title} can halve twice or more {where}, got {_shown(size)}; give "
            "a larger one, or take another --network."
        )
    if patch not in (None, fitting := plan.rounded_up(size)):
        raise StartUpRefused(
            f"Expected patch_size to be multiples of {_listed(plan.multiples)} along the axes, by which the {title} "
            f"divides this one {where}, got {_shown(size)}; {_shown(fitting)} is the next."
        )
    first, most = _FIRST_AND_MOST_FILTERS
    channels = options.channels or tuple(min(first * 2**level, most) for level in range(levels))
    if len(channels) != levels:
        raise StartUpRefused(
            f"Expected channels to be {levels} numbers, one for each level of the {title} of patches of "
            f"{_shown(fitting)} voxels {where}, got {list(channels)}."
        )
    return NetworkPlan(fitting, channels, kernel_sizes=plan.kernel_sizes, strides=plan.strides)


def _step(options: TrainingOptions) -> int:
    return int(2 ** (len(options.channels or DEFAULT_CHANNELS) - 1))


def _whole(numbers: Any) -> Axes:
    first, second, third = map(int, numbers)
    return first, second, third


def _listed(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}, {numbers[1]} and {numbers[2]}"


def _shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
