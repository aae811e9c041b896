"""Where prepared volumes wait for their next epoch: in memory, on disk, or nowhere."""

import contextlib
import enum
import hashlib
import inspect
import logging
import os
import pickle
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.utils import convert_to_tensor, enums

from monai_extra_losses import __version__
from monai_extra_losses.bundle.loaded_cases import sentence_of
from monai_extra_losses.bundle.options import Cache
from monai_extra_losses.bundle.tensor_files import damage
from monai_extra_losses.data.errors import CaseFailed, StartUpRefused

logger = logging.getLogger(__name__)


_FORMAT = 2


_DRAFT_SECONDS = 3600.0  # one that is older was left by a process that was killed


# What the history of a volume holds beside tensors and text, none of which runs code when it is read.
_HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    np.zeros(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgSU"},
    *(of for of in vars(enums).values() if isinstance(of, type) and issubclass(of, enum.Enum)),
]


def prepared_cases(
    data: Sequence[Mapping[str, Any]],
    transform: Callable[..., Any],
    cache: Cache = "none",
    cache_dir: str | Path = "cache",
    progress: bool = False,
) -> Dataset:
    """The cases, of which everything before the first random transform is done once, or in every epoch.

    A case that cannot be loaded raises `CaseFailed`, whose sentence names its file.

    Args:
        data: items with files under `image` (a list) and `label`.
        transform: a `Compose`.
        cache: "memory" keeps the prepared volumes in memory; "disk" in files, each prepared when first asked for;
            "none" reads the files in every epoch.
        cache_dir: of the files of "disk". It may serve several runs: a file is found only by the same transforms, of
            the same versions, and images and labels that have not changed since. It may be deleted at any time. A file
            that is damaged, or holds more than numbers and text, is made again; nothing in it is ever run.
        progress: show a bar while memory is filled.

    Raises:
        StartUpRefused: a case that cannot be loaded into memory, or transforms that files cannot be named after.
    """
    if cache == "none":
        return _ReadCases(data, transform)
    try:
        if cache == "disk":
            return _CasesOnDisk(data, transform, cache_dir)
        # MONAI's NIfTI reader mixes files up when several threads share it (1.6.1, channel files)
        return _CasesInMemory(data, transform, num_workers=1, progress=progress)
    except CaseFailed as failed:
        raise StartUpRefused(str(failed)) from None


@contextlib.contextmanager
def _named(item: Any) -> Iterator[None]:
    """Turns whatever is raised while a case is prepared into a sentence about it."""
    try:
        yield
    except Exception as error:
        logger.debug("The error behind the sentence", exc_info=True)
        raise CaseFailed(sentence_of(error, item)) from error


class _NamedFailures(Dataset):
    """Turns whatever a transform raises into a sentence about the case."""

    def _transform(self, index: int) -> Any:
        with _named(self.data[index]):
            return super()._transform(index)


class _ReadCases(_NamedFailures):
    """No cache."""


class _CasesInMemory(_NamedFailures, CacheDataset):
    def _load_cache_item(self, idx: int) -> Any:
        with _named(self.data[idx]):
            return super()._load_cache_item(idx)


class _CasesOnDisk(_NamedFailures, PersistentDataset):
    """MONAI's cache on disk, whose files are written whole on their own disk, verified, and read without pickle."""

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], cache_dir: str | Path) -> None:
        self._says_it_keeps_nothing = True
        try:
            super().__init__(
                data,
                transform,
                cache_dir=cache_dir,
                hash_func=_key_of_files,
                hash_transform=_key_of_transforms,
                track_meta=True,  # distances are measured in the millimetres of the affine
            )
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise StartUpRefused(
                f"Expected transforms that the files of a disk cache can be named after, got one that cannot be "
                f"pickled ({error}); make it a class of a module, or give --cache memory or none."
            ) from None
        for draft in Path(cache_dir).glob(".*.draft"):
            _remove(draft, older_than=_DRAFT_SECONDS)

    def _cachecheck(self, item_transformed: Any) -> Any:
        name = (self.hash_func(item_transformed) + self.transform_hash.encode()).decode()
        file = Path(self.cache_dir or "") / f"{name}.pt"
        kept = _content_of(file, name)
        if kept is not None:
            return kept
        prepared = convert_to_tensor(
            self._pre_transform(deepcopy(item_transformed)), convert_numeric=False, track_meta=True
        )
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.draft")
        try:
            torch.save({"name": name, "item": prepared}, draft)
            kept = _content_of(draft, name)
            if kept is None:
                raise TypeError("the transforms leave more than numbers and text")
            draft.replace(file)
            return kept
        except Exception as error:
            if self._says_it_keeps_nothing:
                logger.warning(
                    f"{file.parent}: volumes cannot be kept here ({error}); they are prepared in every epoch."
                )
            self._says_it_keeps_nothing = False
            return prepared
        finally:
            _remove(draft)


def _content_of(file: Path, name: str) -> Any:
    """The item in a file; None where there is no such file, or where another one must take its place."""
    if not file.is_file():
        return None
    try:
        if damage(file) is None:
            with torch.serialization.safe_globals(_HARMLESS):
                content = torch.load(file, map_location="cpu", weights_only=True)
            if content["name"] == name:  # else another case's file was moved here
                return content["item"]
    except FileNotFoundError:  # deleted just now
        return None
    except Exception:  # whatever may be in it
        logger.debug("The error behind the warning", exc_info=True)
    logger.warning(f"{file}: this file of the cache is damaged, or not what was kept there, and is made anew.")
    return None


def _remove(draft: Path, older_than: float = 0.0) -> None:
    try:
        if older_than == 0 or time.time() - draft.stat().st_mtime > older_than:
            draft.unlink(missing_ok=True)
    except OSError:
        return


def _key_of_files(item: Mapping[str, Any]) -> bytes:
    files = [*item["image"], item["label"]]
    status = [os.stat(file) for file in files]
    stamps = [(os.path.abspath(file), s.st_size, s.st_mtime_ns) for file, s in zip(files, status, strict=True)]
    # dataset.json says it, and the prepared label has it in its meta data
    return _key((stamps, item["annotated"]) if "annotated" in item else stamps)


def _key_of_transforms(transforms: Sequence[Any]) -> bytes:
    # classes and options of each, as they were pickled; no names alone, which MONAI falls back to
    versions = (_FORMAT, monai.__version__, __version__, torch.__version__, nibabel.__version__)
    return _key((versions, [_code(of) for of in transforms], pickle.dumps(list(transforms))))


def _code(transform: Any) -> str:
    """The source of a transform that no version of MONAI stands for."""
    if type(transform).__module__.startswith("monai."):
        return ""
    try:
        return inspect.getsource(type(transform))
    except (OSError, TypeError):  # made in a notebook
        return ""


def _key(content: Any) -> bytes:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32].encode()
