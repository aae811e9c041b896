"""Which lesions of a target a prediction finds, and which of its components are none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.bundle.metric_set import Mask
from monai_extra_losses.ops.components import connected_components

BINS_ML = (0.01, 0.1, 1.0)

_Integers = NDArray[np.integer[Any]]
_Reals = NDArray[np.float64]


@dataclass(frozen=True)
class LesionRule:
    """When a lesion is found, and by which volumes lesions are told apart.

    Args:
        overlap: share of the voxels of a lesion that must be predicted, 0 to 1; 0: any voxel. The same share of the
            voxels of a predicted component must lie in lesions.
        bins: edges in ml, from the smallest on; or so many bins of as many lesions each.
    """

    overlap: float = 0.0
    bins: tuple[float, ...] | int = BINS_ML

    def met(self, hit: _Integers, size: _Integers) -> Mask:
        """Whether objects of `size` voxels, `hit` of which lie in the other mask, meet it."""
        return (hit > 0) & (hit / np.maximum(size, 1) >= self.overlap)

    @property
    def sentence(self) -> str:
        """For the legend."""
        share = f"at least {self.overlap:.0%} of its voxels are" if self.overlap else "any voxel of it is"
        lies = f"at least {self.overlap:.0%} of its voxels lie in lesions" if self.overlap else "it touches a lesion"
        return (
            "A lesion is a connected component of the target; voxels that share a corner are connected. It is found if "
            f"{share} predicted, by however many predicted components. A predicted component is a false positive "
            f"unless {lies}. One that touches two lesions may find both and counts as one; two that touch one lesion "
            "count as two. What covers everything finds everything: read it beside the Dice."
        )


@dataclass(frozen=True)
class LesionMatch:
    """Lesions and predicted components, numbered from 1 on in the maps, from 0 on in the rest.

    Args:
        lesions, components: (X, Y, Z) numbers of the lesion and of the predicted component of each voxel, 0 outside.
        voxels: (L,) of each lesion.
        found: (L,) by the rule.
        overlap: (L,) share of its voxels that is predicted.
        dice: (L,) of the lesion and the predicted components that touch it, without what of these lies in other
            lesions; 0 where none does.
        centres: (L, 3) mean voxel indices.
        true: (P,) whether a component is a lesion by the rule; else it is a false positive.
    """

    lesions: _Integers
    components: _Integers
    voxels: _Integers
    found: Mask
    overlap: _Reals
    dice: _Reals
    centres: _Reals
    true: Mask

    @property
    def missed(self) -> Mask:
        """(X, Y, Z): the lesions that are not found."""
        return ~np.append(True, self.found)[self.lesions]

    @property
    def invented(self) -> Mask:
        """(X, Y, Z): the false positives."""
        return ~np.append(True, self.true)[self.components]


def match_lesions(prediction: Mask, target: Mask, rule: LesionRule) -> LesionMatch:
    """Find the lesions of a target in a prediction. Both are split into components of 26 neighbours.

    With `overlap` 0, any voxel, the counts are those of the WMH challenge (Kuijf et al. 2019,
    doi:10.1109/TMI.2019.2905770): sensitivity over the lesions, precision over the predicted components, and F1 of the
    two. Others ask for more: a share of the lesion (MSSEG, Commowick et al. 2018, doi:10.1038/s41598-018-31911-7, with
    limits on what is outside beside it), or an intersection over union and one component for each lesion (Metrics
    Reloaded, Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z). These have no one-to-one matching: a network
    that parts or joins lesions is not punished for it.

    Args:
        prediction, target: bool (X, Y, Z).
        rule: when a lesion is found.

    Raises:
        ImportError: without cc3d.
    """
    lesions, count = connected_components(target, None)
    components, number = connected_components(prediction, None)
    voxels = np.bincount(lesions.ravel(), minlength=count + 1)[1:]
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    both = (lesions > 0) & (components > 0)
    pairs, shared = np.unique(
        np.stack([lesions[both], components[both]]).astype(np.int64) - 1, axis=1, return_counts=True
    )
    of_lesion, of_component = pairs
    hit = np.bincount(of_lesion, shared, minlength=count).astype(np.int64)
    inside = np.bincount(of_component, shared, minlength=number).astype(np.int64)
    own = sizes - inside  # of a component, outside all lesions
    touching = hit + np.bincount(of_lesion, own[of_component], minlength=count)
    return LesionMatch(
        lesions=lesions,
        components=components,
        voxels=voxels,
        found=rule.met(hit, voxels),
        overlap=hit / np.maximum(voxels, 1),
        dice=2 * hit / np.maximum(voxels + touching, 1),
        centres=_centres(lesions, voxels),
        true=rule.met(inside, sizes),
    )


def _centres(lesions: _Integers, voxels: _Integers) -> _Reals:
    at = np.nonzero(lesions)
    numbers = lesions[at] - 1
    sums = [np.bincount(numbers, axis, minlength=len(voxels)) for axis in at]
    centres: _Reals = np.stack(sums, axis=1) / voxels[:, None]
    return centres
