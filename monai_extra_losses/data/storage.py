"""Writing to a disk that may be full, read-only or taken away: one sentence instead of a traceback."""

import contextlib
import errno
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from monai_extra_losses.data.errors import WritingFailed, history_of

# What a user can mend, and how.
_REASONS = {
    errno.ENOSPC: ("no space left on device", "make room there"),
    errno.EDQUOT: ("disk quota exceeded", "make room there, or have the quota raised"),
    errno.EFBIG: ("file too large", "raise the limit of file sizes (ulimit -f)"),
    errno.EROFS: ("read-only file system", "make it writable"),
    errno.EACCES: ("permission denied", "give back the permission"),
    errno.EPERM: ("operation not permitted", "give back the permission"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n), or lower --num_workers"),
    errno.ENFILE: ("too many open files on this machine", "close some"),
    errno.EIO: ("input/output error", "look after the disk"),
    errno.ESTALE: ("stale file handle", "mount the network folder anew"),
    errno.ENOENT: ("no such file or folder", "bring it back"),
    errno.ENOTDIR: ("a file where a folder should be", "move it away"),
    errno.EISDIR: ("a folder where a file should be", "move it away"),
    errno.ENAMETOOLONG: ("name too long", "choose a shorter one"),
}
# Nothing but the storage raises these, so that they count wherever in the history of an error they stand.
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
_GO_ON = "What was finished before is whole; the same call goes on from there (a training with --resume True)."


def storage_sentence(error: BaseException, place: str | Path | None = None) -> str | None:
    """The sentence for an error of the storage, or None for any other error.

    Args:
        error: as it was raised; those that it was made of count too.
        place: what was being written, where the error does not name a file.
    """
    number, file = _storage_error(error)
    if number is None:
        return None
    if file is None and "/torch_" in str(error):  # how torch names what loader processes share
        reason, _ = _REASONS[number]
        return (
            f"Expected shared memory (/dev/shm) for the loader processes, got: {reason}; raise it (docker: --shm-size) "
            f"or give --num_workers 0. {_GO_ON}"
        )
    return _sentence(number, file or place or "a file")


def storage_reason(error: BaseException) -> str | None:
    """The words for an error of the storage, or None for any other error."""
    number, _ = _storage_error(error)
    return None if number is None else _REASONS[number][0]


def takes_no_more(error: BaseException) -> bool:
    """Whether the storage is full or closed, so that what comes next will fail too."""
    return _storage_error(error)[0] in _OF_STORAGE


@contextlib.contextmanager
def storage_errors_as_sentences(place: str | Path | None = None) -> Iterator[None]:
    """Ends the program with a sentence where the storage fails.

    Args:
        place: what is written, where the error does not name a file.

    Raises:
        WritingFailed: with the file and the reason.
    """
    try:
        yield
    except Exception as error:
        sentence = storage_sentence(error, place)
        if sentence is None:
            raise
        raise WritingFailed(sentence) from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Ends the program with a sentence where the storage does not take `path`.

    Raises:
        WritingFailed: with the path and the reason.
    """
    try:
        yield
    except Exception as error:
        number, _ = _storage_error(error)
        if number is None:
            raise
        raise WritingFailed(_sentence(number, path)) from None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """As `draft_of`, for a file that the program cannot go on without.

    Raises:
        WritingFailed: the storage does not take it; what was in `path` is as it was.
    """
    with writing(path), draft_of(path) as draft:
        yield draft


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Gives a file beside `path` to write, which takes the place of `path` when it is whole.

    Neither a reader nor a killed process ever leaves half of it; `remove_drafts` finds what a killed one does leave.
    """
    draft = path.with_name(f".draft.{os.getpid()}.{path.name}")  # the ending says how to write it
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def remove_drafts(*paths: Path) -> None:
    """Delete what killed processes left of writing these files; those of a process that lives stay."""
    for path in paths:
        name = re.escape(path.name)
        pattern = re.compile(rf"\.draft\.(\d+)\.{name}|\.{name}\.(?:\d+|draft)")  # the latter of earlier versions
        try:
            found = [(file, match) for file in path.parent.iterdir() if (match := pattern.fullmatch(file.name))]
        except OSError:  # no such folder
            continue
        for file, match in found:
            if match[1] is None or not _lives(int(match[1])):
                with contextlib.suppress(OSError):
                    file.unlink()


def _lives(process: int) -> bool:
    """Whether a process of this machine has this number."""
    if process == os.getpid():
        return False  # an earlier one, for this one removes before it writes
    if sys.platform == "win32":
        return True  # there os.kill(process, 0) would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def _sentence(number: int, file: str | Path) -> str:
    reason, cure = _REASONS[number]
    verb = "write" if number in _OF_STORAGE else "use"
    nothing_done = number in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
    return f"Expected to {verb} {file}, got: {reason}; {cure}.{'' if nothing_done else f' {_GO_ON}'}"


def _storage_error(error: BaseException) -> tuple[int | None, str | None]:
    """Number and file of the error of the storage that `error` is, or was made of."""
    known: tuple[int, ...] = tuple(_REASONS)
    for cause in history_of(error):
        if isinstance(cause, OSError) and cause.errno in known:
            file = cause.filename2 or cause.filename  # of a rename, the name that was wanted
            return cause.errno, os.fsdecode(file) if isinstance(file, str | bytes | os.PathLike) else None
        for number in _OF_STORAGE:  # an error of another process, or of C++, has the words alone
            if os.strerror(number) in str(cause):
                return number, None
        if cause.__cause__ is None:  # what follows was handled, and need not be the reason
            known = _OF_STORAGE
    return None, None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that neither a reader nor a killed process ever leaves half of it."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def sha256(file: str | Path) -> str:
    """Checksum of a file."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
