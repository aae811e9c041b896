"""MONAI transforms that prepare what a loss reads beside the label."""

from monai_extra_losses.transforms.distance import SignedDistance as SignedDistance
from monai_extra_losses.transforms.distance import SignedDistanceD as SignedDistanceD
from monai_extra_losses.transforms.distance import SignedDistanced as SignedDistanced
from monai_extra_losses.transforms.distance import SignedDistanceDict as SignedDistanceDict

__all__ = [
    "SignedDistance",
    "SignedDistanceD",
    "SignedDistanceDict",
    "SignedDistanced",
]
