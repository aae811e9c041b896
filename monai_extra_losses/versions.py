"""Versions of the packages that this one stands on; imports nothing heavy unless it must."""

import importlib
from importlib import metadata

_MODULES = {"monai-extra-losses": "monai_extra_losses", "pytorch-ignite": "ignite"}  # where the names differ


def version_of(package: str) -> str:
    """The version of a package, also where it is installed under another name, as MONAI's weekly build is.

    Args:
        package: its usual name, such as "monai".

    Returns:
        The version of that name, else what the module says of itself, "unknown" where it says nothing.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        module = importlib.import_module(_MODULES.get(package, package))
        return str(getattr(module, "__version__", "unknown"))


class PackageMissing(ImportError):
    """A package of an extra is not installed; the text is a sentence that says what to install."""
