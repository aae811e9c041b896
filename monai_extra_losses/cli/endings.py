"""How a command ends that is stopped on its way: by Ctrl-C, by SIGTERM as batch systems send it, by a full disk."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from monai_extra_losses.data.errors import history_of
from monai_extra_losses.data.storage import storage_errors_as_sentences, storage_reason


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def stops_in_a_sentence(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Ends the program with a sentence, and with the exit code that shells give a signal, where something stops it.

    Args:
        how_to_go_on: what to do next, as a sentence or "".

    Raises:
        SystemExit: 130 by Ctrl-C, 143 by SIGTERM.
        WritingFailed: the storage took no more.
    """
    try:
        with _sigterm_raises(), _threads_in_a_sentence(), storage_errors_as_sentences():
            yield
    except (KeyboardInterrupt, _Terminated, Exception) as error:
        stop = _stop_behind(error)
        if stop is None:
            raise
        by_person = isinstance(stop, KeyboardInterrupt)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one of the processes that torchrun started says it
            print(f"\nStopped by {'Ctrl-C' if by_person else 'SIGTERM'}. {how_to_go_on()}".rstrip(), file=sys.stderr)
        exec("")  # forgets that Ctrl-C went through eval(), as MONAI's expressions do, else Python kills itself by it
        raise SystemExit(128 + (signal.SIGINT if by_person else signal.SIGTERM)) from None


def _stop_behind(error: BaseException) -> BaseException | None:
    """The signal that an error is, or came of: torch.save, stopped while it writes, says that the file is not whole."""
    return next((cause for cause in history_of(error) if isinstance(cause, KeyboardInterrupt | _Terminated)), None)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends what is running as Ctrl-C does, so that half files go and processes are joined."""

    def stop(number: int, frame: Any) -> None:
        raise _Terminated

    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if alone:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if alone:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _threads_in_a_sentence() -> Iterator[None]:
    """A thread that writes, as TensorBoard's does, hands its error on; its traceback says nothing more."""
    before = threading.excepthook

    def say(ended: threading.ExceptHookArgs) -> None:
        reason = None if ended.exc_value is None else storage_reason(ended.exc_value)
        if reason is None:
            before(ended)
        else:
            print(f"Writing in the background ended: {reason}.", file=sys.stderr)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before
