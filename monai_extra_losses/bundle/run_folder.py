"""The folder of one run: its files, and the record that evaluation and inference share with the training."""

import contextlib
import dataclasses
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from monai_extra_losses import __version__
from monai_extra_losses.bundle.run_record import read_training_csv
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import remove_drafts, storage_reason, writing
from monai_extra_losses.versions import version_of

if sys.platform != "win32":
    import fcntl


_held_locks: dict[Path, int] = {}  # lock file -> descriptor, open as long as this process lives


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Names of the files of one run, all below `bundle_root`."""

    root: Path

    @property
    def model(self) -> Path:
        """Weights of the best epoch, a plain state dict."""
        return self.root / "models" / "model.pt"

    @property
    def last(self) -> Path:
        """Everything that `--resume True` needs."""
        return self.root / "models" / "last.pt"

    @property
    def previous(self) -> Path:
        """What last.pt was an epoch before, for a last.pt that is damaged; `resuming.checkpoint_of`."""
        return self.root / "models" / "previous.pt"

    @property
    def checksums(self) -> Path:
        """Of model.pt, last.pt and previous.pt; `tensor_files.record_checksum`."""
        return self.root / "models" / "checksums.json"

    @property
    def record(self) -> Path:
        """What evaluation and inference must share with the training."""
        return self.root / "models" / "run.json"

    @property
    def datalist(self) -> Path:
        """The files of the training and validation cases."""
        return self.root / "models" / "datalist.json"

    @property
    def config(self) -> Path:
        """The config as run, merged and with its overrides."""
        return self.root / "models" / "config.yaml"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here; `hold_lock`."""
        return self.root / "models" / ".lock"

    @property
    def environment(self) -> Path:
        """Versions and hardware of the training."""
        return self.root / "models" / "environment.json"

    @property
    def metadata(self) -> Path:
        """metadata.json with the classes and channels of the run, where MONAI's exports look for it.

        Where the run is made in the folder of a bundle, whose configs/ has a metadata.json of its own: in models/.
        """
        of_bundle = any(path.name != "metadata.json" for path in self.root.glob("configs/*.*"))
        return self.root / ("models" if of_bundle else "configs") / "metadata.json"

    @property
    def results(self) -> "ResultsFolder":
        """Folder of tables and pictures."""
        return ResultsFolder(self.root / "eval")

    @property
    def training_csv(self) -> Path:
        """One row per epoch."""
        return self.results.root / "training.csv"

    @property
    def curves(self) -> Path:
        """Picture of training.csv."""
        return self.results.root / "curves.png"

    @property
    def summary(self) -> Path:
        """The training in a few lines."""
        return self.results.root / "summary.txt"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.results.root / "tensorboard"

    @property
    def cache(self) -> Path:
        """Folder of prepared volumes, for a cache on disk."""
        return self.root / "cache"

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume, damaged or not."""
        return self.last.exists() or self.previous.exists()

    def existing_run(self) -> Path | None:
        """A file that shows that somebody trained here, or None."""
        shown_by = (self.last, self.previous, self.model, self.training_csv)
        return next((path for path in shown_by if path.exists()), None)

    def stopped_in_first_epoch(self) -> bool:
        """Whether the files are those of a training that ended before its first checkpoint, with nothing to keep."""
        if self.has_checkpoint() or self.summary.exists() or not self.training_csv.exists():
            return False
        try:
            return all(row["epoch"] == "1" for row in read_training_csv(self.training_csv))
        except StartUpRefused:
            return False

    def remove_first_epoch(self) -> None:
        """Delete what a training wrote that ended before its first checkpoint; the table last, which tells that."""
        for path in (self.model, self.training_csv):
            path.unlink(missing_ok=True)

    def remove_drafts(self) -> None:
        """Delete what killed trainings left half written."""
        remove_drafts(*self._files())

    def remove_run(self) -> None:
        """Delete the files that a training and its evaluation write, and nothing else."""
        for path in (*self._files(), self.results.log):
            path.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        self.results.remove()

    def _files(self) -> tuple[Path, ...]:
        """Those that a training writes as drafts; first what a resume would go on from."""
        weights = (self.last, self.previous, self.model, self.checksums)
        facts = (self.record, self.datalist, self.config, self.environment, self.metadata)
        return (*weights, *facts, self.training_csv, self.curves, self.summary)


@dataclasses.dataclass(frozen=True)
class ResultsFolder:
    """Names of the files of one evaluation."""

    root: Path

    @property
    def cases_csv(self) -> Path:
        """One row per case and class."""
        return self.root / "cases.csv"

    @property
    def summary_csv(self) -> Path:
        """One row per class, and their mean."""
        return self.root / "summary.csv"

    @property
    def lesions_csv(self) -> Path:
        """One row per lesion, with `--metrics lesions`."""
        return self.root / "lesions.csv"

    @property
    def lesions_png(self) -> Path:
        """Picture of the sensitivity over their volume."""
        return self.root / "lesions.png"

    @property
    def record(self) -> Path:
        """What the tables are of; `EvaluationRecord`."""
        return self.root / "evaluation.json"

    @property
    def overlays(self) -> Path:
        """Folder of one picture per case."""
        return self.root / "overlays"

    @property
    def log(self) -> Path:
        """What the training and evaluations said."""
        return self.root / "log.txt"

    @property
    def lock(self) -> Path:
        """Held by the process that evaluates into here; `hold_lock`."""
        return self.root / ".lock"

    def overlay_of(self, rank: str) -> Path:
        """Copy of the picture of the "best", "median" or "worst" case."""
        return self.root / f"overlay_{rank}.png"

    def remove_drafts(self) -> None:
        """Delete what killed evaluations left half written."""
        remove_drafts(self.cases_csv, self.summary_csv, self.lesions_csv, self.record)

    def remove(self) -> None:
        """Delete the tables and pictures of an evaluation, and nothing else."""
        pictures = (*self.overlays.glob("*.png"), *self.root.glob("overlay_*.png"))
        for path in (
            self.cases_csv,  # first: it says that the others are whole
            self.record,
            self.summary_csv,
            self.lesions_csv,
            self.lesions_png,
            *pictures,
        ):
            path.unlink(missing_ok=True)


def longest_name(folder: Path) -> int:
    """Bytes that the name of a file in a folder, which need not be there yet, may have."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        return os.pathconf(existing, "PC_NAME_MAX")
    except (AttributeError, ValueError, OSError):  # Windows; file systems that do not tell
        return 255


def refuse_unwritable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written; writes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise StartUpRefused(
            f"Expected {option} to be a folder that can be written, got {folder} ({existing}: "
            f"{_why_unwritable(existing)}); choose another one."
        )


def _why_unwritable(existing: Path) -> str:
    if not existing.is_dir():
        return "a file, not a folder"
    if sys.platform != "win32" and os.statvfs(existing).f_flag & os.ST_RDONLY:
        return "read-only file system"
    return "no permission"


def open_folder(option: str, folder: Path) -> None:
    """Make a folder and prove by a file that it can be written (a full or read-only disk shows only so)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StartUpRefused(
            f"Expected {option} to be a folder that can be written, got {folder} ({error.strerror}); "
            "choose another one."
        ) from error


def hold_lock(
    path: Path,
    *,
    folder: Path | None = None,
    rule: str = "a run folder that no other training writes to",
    option: str = "--bundle_root (--run on the short command line)",
) -> None:
    """Keep other processes from working in a folder as long as this one lives, or until `release_lock`.

    The system gives the lock back when the process ends, however it does. The file stays. A file system without locks,
    and Windows, have no such guard.

    Args:
        path: of the lock file; its folder exists.
        folder, rule, option: of the sentence: what is locked (default: the run), what it should be, and what names it.

    Raises:
        StartUpRefused: another process holds it.
    """
    if sys.platform == "win32":
        return
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    held = _held_locks.get(path.resolve())
    if held is not None and os.path.samestat(os.fstat(held), os.fstat(descriptor)):
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip()
        os.close(descriptor)
        raise StartUpRefused(
            f"Expected {rule}, got {folder or path.parent.parent} ({holder}); wait for it or stop it, or choose "
            f"another {option}."
        ) from None
    except OSError:  # a network file system without locks
        os.close(descriptor)
        return
    if held is not None:  # of a folder that was deleted since
        os.close(held)
    with contextlib.suppress(OSError):  # a full disk; the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n".encode())
    _held_locks[path.resolve()] = descriptor


def release_lock(path: Path) -> None:
    """Give back a lock of this process."""
    descriptor = _held_locks.pop(path.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def log_to(path: Path, *, append: bool) -> None:
    """Write what the package says, and warnings of others, to a file too; in place of the file before."""
    with writing(path):
        file = _LogFile(path, mode="a" if append else "w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    for logger in (logging.getLogger(), logging.getLogger("monai_extra_losses")):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).name == path.name:
                logger.removeHandler(handler)
                with contextlib.suppress(OSError):  # what a full disk did not take
                    handler.close()
        logger.addHandler(file)


class _LogFile(logging.FileHandler):
    """A log that a full disk ends, and nothing else; what must be kept says so when it is written."""

    _ended = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        reason = None if error is None else storage_reason(error)
        if reason is None:
            super().handleError(record)
        elif not self._ended:
            self._ended = True
            print(f"The log {self.baseFilename} ends here: {reason}.", file=sys.stderr)


def describe_environment() -> dict[str, Any]:
    """Versions and hardware that a training ran on."""
    used = ("monai", "torch", "pytorch-ignite", "numpy", "nibabel", "edt")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"monai-extra-losses": __version__, **{name: version_of(name) for name in used}},
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
