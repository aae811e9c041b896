"""Data sets that several test files share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from monai_extra_losses.data import write_phantom

if not torch.cuda.is_available():
    # Read when triton is imported, by whichever test comes first: its kernels then run on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core of its own; so have the processes it starts.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """Take away the log handlers of a test, whose captured streams are closed after it."""
    loggers = (logging.getLogger(), logging.getLogger("monai_extra_losses"))
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The 200 labelled hippocampus MRI of the Medical Segmentation Decathlon."""
    folder = os.environ.get("MONAI_EXTRA_LOSSES_DATA")
    if not folder:
        pytest.skip("set MONAI_EXTRA_LOSSES_DATA to the folder of the Decathlon's Task04_Hippocampus to run this test.")
    return Path(folder)


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled cases (phantom_000 to phantom_005; 004 has no lesion) and two test cases. Do not write into it."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), num_cases=6, num_test=2, shape=(32, 32, 16))
