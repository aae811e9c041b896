"""Libraries that read files, without what they say beside the errors they raise; threads may read at once."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, ExitStack

import SimpleITK as sitk


class _Shared(ContextDecorator):
    """A context of the whole process: the first thread to enter sets it up, the last one to leave takes it back."""

    def __init__(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._context = context
        self._lock, self._entered, self._inside = threading.Lock(), ExitStack(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._entered.enter_context(self._context())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._entered.close()


@_Shared
@contextlib.contextmanager
def quiet_itk() -> Iterator[None]:
    """Without ITK's warnings on stderr, which speak of its own source files."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(before)


@_Shared
@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without the warnings of pydicom and highdicom, which name no file, and which pydicom logs too."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)\b")
        yield
    logger.disabled = before
