"""Where prepared volumes wait for their next epoch: in memory, on disk, or nowhere."""

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import monai
from monai.data import CacheDataset, Dataset, PersistentDataset

from monai_extra_losses import __version__
from monai_extra_losses.data.errors import StartUpRefused

Cache = Literal["memory", "disk", "none"]


def cache_kind(value: Any) -> str:
    """`value` as the name of a cache."""
    kind = str(value).strip().lower()
    if kind not in get_args(Cache):
        raise StartUpRefused(f"Expected cache to be {', '.join(get_args(Cache)[:-1])} or none, got {value!r}.")
    return kind


def prepared_cases(
    data: Sequence[Mapping[str, Any]],
    transform: Callable[..., Any],
    cache: Cache,
    cache_dir: str | Path,
    progress: bool = False,
) -> Dataset:
    """The cases, of which everything before the first random transform is done once, or in every epoch.

    Args:
        data: items with files under `image` (a list) and `label`.
        transform: a `Compose`.
        cache: "memory" keeps the prepared volumes in memory; "disk" in files, each prepared when first asked for;
            "none" reads the files in every epoch.
        cache_dir: of the files of "disk". It may serve several runs: a file is found only by the same transforms, of
            the same versions, and images and labels that have not changed since. It may be deleted at any time.
        progress: show a bar while memory is filled.
    """
    if cache == "memory":
        # MONAI's NIfTI reader mixes files up when several threads share it (1.6.1, channel files)
        return CacheDataset(data, transform, num_workers=1, progress=progress)
    if cache == "none":
        return Dataset(data, transform)
    return PersistentDataset(
        data,
        transform,
        cache_dir=cache_dir,
        hash_func=_key_of_files,
        hash_transform=_key_of_transforms,
        track_meta=True,  # distances are measured in the millimetres of the affine
        weights_only=False,  # which has to be so for that; what is read is what this user wrote
    )


def _key_of_files(item: Mapping[str, Any]) -> bytes:
    files = [*item["image"], item["label"]]
    status = [os.stat(file) for file in files]
    return _key([(os.path.abspath(file), s.st_size, s.st_mtime_ns) for file, s in zip(files, status, strict=True)])


def _key_of_transforms(transforms: Sequence[Any]) -> bytes:
    # classes and options of each, as they were pickled; no names alone, which MONAI falls back to
    return _key((monai.__version__, __version__, pickle.dumps(list(transforms))))


def _key(content: Any) -> bytes:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32].encode()
