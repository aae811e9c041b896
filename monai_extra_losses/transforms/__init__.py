"""MONAI transforms that prepare what a loss reads: targets, and maps beside them."""

from monai_extra_losses.transforms.annotated import AnnotatedClassesD as AnnotatedClassesD
from monai_extra_losses.transforms.annotated import AnnotatedClassesd as AnnotatedClassesd
from monai_extra_losses.transforms.annotated import AnnotatedClassesDict as AnnotatedClassesDict
from monai_extra_losses.transforms.components import ComponentCells as ComponentCells
from monai_extra_losses.transforms.components import ComponentCellsD as ComponentCellsD
from monai_extra_losses.transforms.components import ComponentCellsd as ComponentCellsd
from monai_extra_losses.transforms.components import ComponentCellsDict as ComponentCellsDict
from monai_extra_losses.transforms.components import HysteresisKeep as HysteresisKeep
from monai_extra_losses.transforms.components import HysteresisKeepD as HysteresisKeepD
from monai_extra_losses.transforms.components import HysteresisKeepd as HysteresisKeepd
from monai_extra_losses.transforms.components import HysteresisKeepDict as HysteresisKeepDict
from monai_extra_losses.transforms.components import InverseComponentWeight as InverseComponentWeight
from monai_extra_losses.transforms.components import InverseComponentWeightD as InverseComponentWeightD
from monai_extra_losses.transforms.components import InverseComponentWeightd as InverseComponentWeightd
from monai_extra_losses.transforms.components import InverseComponentWeightDict as InverseComponentWeightDict
from monai_extra_losses.transforms.distance import SignedDistance as SignedDistance
from monai_extra_losses.transforms.distance import SignedDistanceD as SignedDistanceD
from monai_extra_losses.transforms.distance import SignedDistanced as SignedDistanced
from monai_extra_losses.transforms.distance import SignedDistanceDict as SignedDistanceDict
from monai_extra_losses.transforms.regions import LabelsToRegions as LabelsToRegions
from monai_extra_losses.transforms.regions import LabelsToRegionsD as LabelsToRegionsD
from monai_extra_losses.transforms.regions import LabelsToRegionsd as LabelsToRegionsd
from monai_extra_losses.transforms.regions import LabelsToRegionsDict as LabelsToRegionsDict
from monai_extra_losses.transforms.skeleton import Skeleton as Skeleton
from monai_extra_losses.transforms.skeleton import SkeletonD as SkeletonD
from monai_extra_losses.transforms.skeleton import Skeletond as Skeletond
from monai_extra_losses.transforms.skeleton import SkeletonDict as SkeletonDict

__all__ = [
    "AnnotatedClassesD",
    "AnnotatedClassesDict",
    "AnnotatedClassesd",
    "ComponentCells",
    "ComponentCellsD",
    "ComponentCellsDict",
    "ComponentCellsd",
    "HysteresisKeep",
    "HysteresisKeepD",
    "HysteresisKeepDict",
    "HysteresisKeepd",
    "InverseComponentWeight",
    "InverseComponentWeightD",
    "InverseComponentWeightDict",
    "InverseComponentWeightd",
    "LabelsToRegions",
    "LabelsToRegionsD",
    "LabelsToRegionsDict",
    "LabelsToRegionsd",
    "SignedDistance",
    "SignedDistanceD",
    "SignedDistanceDict",
    "SignedDistanced",
    "Skeleton",
    "SkeletonD",
    "SkeletonDict",
    "Skeletond",
]
