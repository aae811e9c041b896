"""Label ids of structures that overlap: one for each combination that a voxel has, and the structures as regions."""

from collections.abc import Mapping, Sequence

from monai_extra_losses.data.case_sources import CheckedCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.label_ids import name_key
from monai_extra_losses.data.label_plan import LabelPlan, refuse_other_names

_SHOWN = 5  # names in one sentence


def plan_regions(cases: Sequence[CheckedCase], names: Mapping[int, str]) -> LabelPlan:
    """Give each combination of structures an id: first those of one structure, then those of two, and so on.

    Names are equal whatever their case and spaces.

    Args:
        cases: all of them, read as `overlapping`; those without a label are left out.
        names: number -> name, which gives the order of the regions; empty: that of the alphabet.

    Raises:
        DatasetError: no voxel of any structure, or as `refuse_other_names`.
    """
    labelled = [case for case in cases if case.label is not None]
    shown: dict[str, str] = {}
    for case in labelled:
        for parts in case.combinations.values():
            for name in parts:
                shown.setdefault(name_key(name), " ".join(name.split()))
    if not shown:
        raise DatasetError(
            "expected a structure in some label, got the background alone in every voxel of every label."
        )
    given = {name_key(name): name for _, name in sorted(names.items())}
    if given:
        refuse_other_names(shown, given)
    order = list(given or sorted(shown))
    called = {key: given.get(key, shown[key]) for key in order}
    place = {key: number for number, key in enumerate(order)}
    of_case = {
        case.name: {
            value: tuple(sorted(place[key] for key in {*map(name_key, parts)}))
            for value, parts in case.combinations.items()
        }
        for case in labelled
    }
    found = sorted({places for values in of_case.values() for places in values.values()}, key=lambda p: (len(p), p))
    ids = {places: number for number, places in enumerate(found, start=1)}
    regions = {called[key]: tuple(number for places, number in ids.items() if place[key] in places) for key in order}
    labels = {number: " + ".join(called[order[one]] for one in places) for places, number in ids.items()}
    notes = [
        f"{len(regions)} regions ({first_of(list(regions), _SHOWN)}) of {len(labels)} labels, one for each combination "
        "of structures that a voxel has."
    ]
    return LabelPlan(
        new_ids={name: {0: 0, **{value: ids[places] for value, places in of.items()}} for name, of in of_case.items()},
        labels={0: "background", **labels},
        originals={},
        notes=tuple(notes),
        regions=regions,
    )
