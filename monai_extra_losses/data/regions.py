"""Which label value a voxel of overlapping regions gets where they paint over each other. Light imports only."""

from collections.abc import Collection, Iterable, Sequence


def painting_order(
    regions: Sequence[Collection[int]], labels: Iterable[int], order: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """The regions in the order in which they paint, each as its number and the label value that it paints.

    Those with most label values come first, equals in their listed order; each paints the value that fewest regions
    hold, the smallest of equals.

    Args:
        regions: label values of each.
        labels: all label values.
        order: `regions_class_order` of nnU-Net, a label value for each region: they paint in their listed order, each
            with its value there where that is one of its own.
    """
    holding = {label: sum(label in region for region in regions) for label in labels}
    painted = [min(region, key=lambda label: (holding[label], label)) for region in regions]
    if order is None:
        return sorted(enumerate(painted), key=lambda pair: -len(regions[pair[0]]))
    given = zip(order, regions, painted, strict=True)
    return list(enumerate(value if value in region else own for value, region, own in given))
