"""Data sets that several test files share."""

import copy
import gc
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Read when triton is imported, by whichever import comes first: its kernels then run on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import HealthCheck, Phase, settings
from matplotlib.figure import Figure
from monai.bundle import ComponentLocator, ConfigParser

from monai_extra_losses import config_dir
from monai_extra_losses.data import write_phantom

# The same few calls each time; HYPOTHESIS_PROFILE=long draws many, and others each time.
_DRAWN: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=60, derandomize=True, phases=[Phase.generate], **_DRAWN)
settings.register_profile("long", max_examples=5000, print_blob=True, **_DRAWN)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core of its own; so have the processes it starts.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what was imported and collected, which lives as long as the session."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


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


@pytest.fixture(scope="session", autouse=True)
def _configs_parsed_once() -> Iterator[None]:
    """Parse each file of `config_dir()` once: PyYAML takes longer over them than a small training does over a case."""
    parse, parsed = ConfigParser.load_config_file, dict[Path, Any]()

    def load(filepath: Any, **options: Any) -> Any:
        file = Path(filepath)
        if options or file.parent != config_dir():
            return parse(filepath, **options)
        if file not in parsed:
            parsed[file] = parse(filepath)
        return copy.deepcopy(parsed[file])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigParser, "load_config_file", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def _monai_searched_once() -> Iterator[None]:
    """Look for MONAI's classes once for all parsers: each would go through all of its modules."""
    search, found = ComponentLocator._find_classes_or_functions, dict[tuple[str, ...], Any]()

    def search_once(self: ComponentLocator, modnames: Any) -> Any:
        names = tuple(modnames)
        if names not in found:
            found[names] = search(self, names)
        return found[names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComponentLocator, "_find_classes_or_functions", search_once)
        yield


_SAVE = Figure.savefig


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


_ONE_PIXEL = b"\x89PNG\r\n\x1a\n" + b"".join(
    (
        _chunk(b"IHDR", (1).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])),
        _chunk(b"IDAT", zlib.compress(bytes(2))),
        _chunk(b"IEND", b""),
    )
)


def _save_a_pixel(figure: Figure, file: Any, **_: Any) -> None:
    Path(file).write_bytes(_ONE_PIXEL)


@pytest.fixture(scope="session", autouse=True)
def _pictures_of_one_pixel() -> Iterator[None]:
    """Make every figure, but save a pixel of it: drawing takes longer than a small training; see `real_pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _save_a_pixel)
        yield


@pytest.fixture
def real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of pictures."""
    monkeypatch.setattr(Figure, "savefig", _SAVE)


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
