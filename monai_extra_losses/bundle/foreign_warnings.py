"""MONAI's warnings that tell nobody anything who runs this bundle."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

POINTLESS_WARNINGS = (
    "GHSA-873f-pvrv-4x83",  # of configs from strangers, where these are our own
    "nvImageCodec decoder plugin",  # of LoadImage, wherever pydicom is: a decoder of DICOM on GPUs is not
)
"""Parts of their texts."""


@contextlib.contextmanager
def without_pointless_warnings() -> Iterator[None]:
    """Neither as warnings nor as lines of the log."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for part in POINTLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=f".*{part}", category=UserWarning)
        yield
