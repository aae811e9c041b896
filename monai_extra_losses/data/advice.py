"""What the numbers of a data set speak for: spacing, patch, and losses to try. Starting points, not results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from monai_extra_losses.data.checks import CaseSummaries
from monai_extra_losses.data.geometry import BODY_AXES, Triple, automatic_patch
from monai_extra_losses.data.sides import automatic_flips, mirror_remarks
from monai_extra_losses.data.statistics import ClassStatistics, DataStatistics

SPACING_RATIO = 1.1 / 0.9
"""Spacings that differ by more want resampling: the random zoom of the training covers 10 % either way."""

ANISOTROPY = 3.0
"""Largest over smallest spacing from which slices are thick; nnU-Net's limit (Isensee et al. 2021)."""

IMBALANCE = 100.0
"""Other voxels for each of a class, from which it is rare: never to predict it is right in 99 % of the voxels."""

MISSING = 0.1
"""Share of the cases from which a missing class matters: at 4 patches a step every third step has one, 1 - 0.9^4."""

TINY_VOXELS = 27
"""Voxels below which a component is tiny: a cube of 3, all but one of whose voxels are at its surface."""

LARGE_VOXELS = 1000
"""Voxels from which a component is large: a cube of 10, half of whose voxels are not at its surface."""

VOLUME_RATIO = 10.0
"""Largest over smallest volume from which classes are of different orders."""

_MANY = 4  # classes of which each is named; of more the first

INTENSITY_RATIO = 10.0
"""Brightest over darkest image from which their scales differ: more than contrast makes."""


@dataclass(frozen=True)
class LossAdvice:
    """A loss to try.

    Args:
        loss: name in configs/losses.yaml.
        options: of `monai-extra-losses train`, beside --loss.
        why: what speaks for it.
    """

    loss: str
    options: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class DataAdvice:
    """What the numbers speak for.

    Args:
        pixdim: spacing in mm to resample to (R, A, S); None to leave each volume as it is.
        pixdim_why: the reason.
        patch_size: what training takes by itself with that spacing.
        remarks: what to look at in the data, one sentence each.
        losses: to try, in this order; the first is the baseline to beat.
        against: losses that the numbers speak against, one sentence each.
    """

    pixdim: Triple | None
    pixdim_why: str
    patch_size: tuple[int, int, int]
    remarks: tuple[str, ...]
    losses: tuple[LossAdvice, ...]
    against: tuple[str, ...]


def data_advice(
    summaries: CaseSummaries, statistics: DataStatistics, num_folds: int, regions: Iterable[str] = ()
) -> DataAdvice:
    """Spacing, patch and losses to start from.

    Args:
        summaries: what the check found.
        statistics: of the same data set.
        num_folds: to which a training deals the cases.
        regions: names of the regions that it segments; empty: the classes.
    """
    pixdim, why = _pixdim(statistics)
    return DataAdvice(
        pixdim=pixdim,
        pixdim_why=why,
        patch_size=automatic_patch(summaries.cases, pixdim),
        remarks=(*_remarks(statistics, num_folds), *_about_sides(statistics, tuple(regions))),
        losses=tuple(_losses(statistics)),
        against=tuple(_against(statistics)),
    )


def _pixdim(statistics: DataStatistics) -> tuple[Triple | None, str]:
    ratios = [spread.max / spread.min for spread in statistics.spacing_mm]
    worst = max(ratios)
    if worst <= SPACING_RATIO:
        return None, "all volumes have nearly the same."
    first, second, third = (float(f"{spread.median:.3g}") for spread in statistics.spacing_mm)
    return (
        (first, second, third),
        f"they differ up to {worst:.3g} times ({BODY_AXES[ratios.index(worst)]}); these are the medians.",
    )


def _remarks(statistics: DataStatistics, num_folds: int) -> Iterable[str]:
    cases = statistics.cases
    if cases < 2:
        yield "One labelled case is too few: a training needs another to validate."
    elif cases < num_folds:
        yield f"{cases} labelled cases are fewer than the {num_folds} folds of a training: give it --num_folds {cases}."
    for channel in statistics.channels:
        brightest = channel.image[-1]
        if brightest.min > 0 and brightest.max / brightest.min >= INTENSITY_RATIO:
            yield (
                f"{channel.name}: some images are {brightest.max / brightest.min:.0f} times as bright as others. "
                "Training normalises each image by itself; an intensity window for all would not fit."
            )
    classes = statistics.classes
    yield from _of_each_or_many(
        [(entry, cases) for entry in classes if entry.volume_ml is None and entry.annotated_cases],
        "{name}: no case has a voxel of it, so it cannot be learned; remove it from dataset.json.",
        "{names}: no case has a voxel of these {count} classes, so they cannot be learned; remove them from "
        "dataset.json.",
    )
    yield from _of_each_or_many(
        [(entry, entry.single_voxels) for entry in classes if entry.single_voxels],
        "{name}: {number} connected components are single voxels; "
        "look whether they are meant or slips of the annotation.",
        "{names}: {total} connected components of these {count} classes are single voxels; "
        "look whether they are meant or slips of the annotation.",
    )
    yield from _of_each_or_many(
        [(entry, entry.border_cases) for entry in classes if entry.border_cases],
        "{name}: reaches the border of the volume in {number} of {cases}; is it cut off, or is the volume a crop?",
        "{names}: these {count} classes reach the border of the volume, in up to {most} of {cases} each; are they cut "
        "off, or is the volume a crop?",
        statistics.cases,
    )


def _of_each_or_many(
    numbers: Sequence[tuple[ClassStatistics, int]], of_one: str, of_many: str, whole: int = 0
) -> Iterable[str]:
    """A sentence per class and its number; or one for many, which names those with the largest numbers.

    Where a sentence counts cases, `whole` is the number of all.
    """
    if len(numbers) <= _MANY:
        for entry, number in numbers:
            yield of_one.format(name=entry.name, number=number, cases=_counted_cases(entry.annotated_cases, whole))
        return
    ordered = sorted(numbers, key=lambda entry: -entry[1])
    counts = [number for _, number in ordered]
    names = _first([entry.name for entry, _ in ordered])
    cases = _counted_cases(ordered[0][0].annotated_cases, whole)
    yield of_many.format(names=names, count=len(counts), total=sum(counts), most=counts[0], cases=cases)


def _counted_cases(annotated: int, whole: int) -> str:
    return f"{annotated} {'' if annotated == whole else 'annotated '}cases"


def _about_sides(statistics: DataStatistics, regions: Sequence[str]) -> Iterable[str]:
    names = regions or [entry.name for entry in statistics.classes]
    return (sentence for _, sentence in mirror_remarks(names, automatic_flips(names)))


def _losses(statistics: DataStatistics) -> Iterable[LossAdvice]:
    found = [entry for entry in statistics.classes if entry.volume_ml is not None]
    rare, missing, tiny = _rare(found), _often_missing(statistics), _tiny(found)
    why = "Dice plus cross-entropy: the default, and the baseline to beat on the same fold and seed."
    if missing:
        why += (
            f" Many cases have no {_names(missing)} ({_cases(missing, statistics)}): the Dice of a class without a "
            "voxel jumps from 0 to 1 with a few false positives, so the option leaves it out there; the cross-entropy "
            "still counts them."
        )
    yield LossAdvice("dice_ce", ("--loss::absent_class skip",) if missing else (), why)
    if rare:
        yield LossAdvice(
            "tversky",
            (),
            f"Rare: {_names(rare)} ({_imbalance(rare)}). Rare classes are missed rather than invented, and here a "
            "missed voxel costs more than a false positive (--loss::alpha 0.2 --loss::beta 0.8 for still more). It has "
            "no cross-entropy: should a class stay at Dice 0, go back to dice_ce.",
        )
    if tiny:
        yield LossAdvice(
            "focal_tversky",
            (),
            f"Half of the components of {_names(tiny)} have fewer than {TINY_VOXELS} voxels, nearly all of them at the "
            "surface. Written for small lesions: the Tversky loss of each class to a power. It has no cross-entropy "
            "either.",
        )
        yield LossAdvice(
            "dice_top_k",
            (),
            f"The same small components of {_names(tiny)}: Dice, and the cross-entropy of the worst tenth of the "
            "voxels alone, in which the many easy ones do not drown them.",
        )
    if lesions := lesion_classes(found):
        yield LossAdvice(
            "component_dice_ce",
            ("--with lesions",),
            f"Scattered: {_names(lesions)} (several components in most cases). The Dice of a class is ruled by its "
            "largest lesions; here each component counts alike, in its own surroundings. blob_dice_ce is the other of "
            "this kind. Both need the extra [lesions].",
        )
    volumes = [entry.volume_ml.median for entry in found if entry.volume_ml is not None]
    if len(found) > 2 and max(volumes) / min(volumes) >= VOLUME_RATIO and not missing:
        yield LossAdvice(
            "generalized_dice",
            (),
            f"The volumes of {len(found)} classes differ {max(volumes) / min(volumes):.0f} times: one Dice over all of "
            "them, weighted by inverse volume, instead of a mean of one noisy Dice per class.",
        )
    if found and all(map(_large_and_whole, found)):
        yield LossAdvice(
            "surface",
            ("--with boundary_maps",),
            f"Every class is large and in one piece (half of the components have {LARGE_VOXELS} voxels or more). Dice "
            "mostly measures the inside then; a boundary loss beside it may improve the Hausdorff distance.",
        )


def _against(statistics: DataStatistics) -> Iterable[str]:
    found = [entry for entry in statistics.classes if entry.volume_ml is not None]
    rare, missing = _rare(found), _often_missing(statistics)
    if rare:
        yield (
            f"cross_entropy, poly: a network that never predicts {_names(rare)} is right in nearly every voxel "
            f"({_imbalance(rare)})."
        )
    if missing:
        yield (
            f"generalized_dice: in a case without {_names(missing)} ({_cases(missing, statistics)}) the missing class "
            "gets the largest weight of all."
        )
    if statistics.anisotropy >= ANISOTROPY:
        yield (
            f"hausdorff_er: it counts in voxels, which are {statistics.anisotropy:.3g} times as long one way as the "
            "other. The other boundary losses measure in mm (spacing: auto)."
        )


def _rare(classes: Sequence[ClassStatistics]) -> list[ClassStatistics]:
    return [entry for entry in classes if entry.others_per_voxel is not None and entry.others_per_voxel >= IMBALANCE]


def _often_missing(statistics: DataStatistics) -> list[ClassStatistics]:
    found = [entry for entry in statistics.classes if entry.missing_cases < entry.annotated_cases]
    return [entry for entry in found if entry.missing_cases >= MISSING * entry.annotated_cases]


def _tiny(classes: Sequence[ClassStatistics]) -> list[ClassStatistics]:
    return [entry for entry in classes if entry.component_voxels and entry.component_voxels.median < TINY_VOXELS]


def lesion_classes(classes: Iterable[ClassStatistics]) -> list[ClassStatistics]:
    """Those that are scattered in half of the cases that have them, or in more."""
    having = ((entry, entry.annotated_cases - entry.missing_cases) for entry in classes)
    return [entry for entry, cases in having if cases and 2 * entry.scattered_cases >= cases]


def _large_and_whole(entry: ClassStatistics) -> bool:
    assert entry.components is not None  # of a class with voxels
    assert entry.component_voxels is not None
    return entry.components.median <= 1 and entry.component_voxels.median >= LARGE_VOXELS


def _names(classes: Sequence[ClassStatistics]) -> str:
    names = [entry.name for entry in classes]
    return " and ".join(names) if len(names) <= _MANY else _first(names)


def _imbalance(classes: Sequence[ClassStatistics]) -> str:
    return _listed([f"1:{ratio:.0f}" for ratio in _in_order([entry.others_per_voxel or 0 for entry in classes])])


def _cases(classes: Sequence[ClassStatistics], statistics: DataStatistics) -> str:
    wholes = {entry.annotated_cases for entry in classes}
    if len(wholes) == 1:
        counts = _in_order([entry.missing_cases for entry in classes])
        return f"{_listed([f'{count:g}' for count in counts])} of {_counted_cases(wholes.pop(), statistics.cases)}"
    pairs = [(entry.missing_cases, entry.annotated_cases) for entry in classes]
    pairs = pairs if len(pairs) <= _MANY else sorted(pairs, key=lambda pair: pair[0] / pair[1])
    return f"{_listed([f'{missing} of {whole}' for missing, whole in pairs])} annotated cases"


def _in_order(numbers: Sequence[float]) -> Sequence[float]:
    """As they are, or from the smallest to the largest of many."""
    return numbers if len(numbers) <= _MANY else sorted(numbers)


def _listed(numbers: Sequence[str]) -> str:
    """A number per class, or from the first to the last of many."""
    return ", ".join(numbers) if len(numbers) <= _MANY else f"{numbers[0]} to {numbers[-1]}"


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more"
