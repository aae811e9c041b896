"""Work on many files at a time."""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")


_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[_Item], _Result], items: Collection[_Item], num_workers: int | None, doing: str | None
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `work` makes of it, in order.

    Args:
        work: one item's.
        items: all of them.
        num_workers: threads; default: one per core, at most 8.
        doing: what a progress bar says (on a terminal only); None: no bar.
    """
    if not items:
        return
    pool = ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 8))
    try:
        results = pool.map(work, items)
        bar = tqdm(results, total=len(items), desc=doing, disable=True if doing is None else None)
        yield from zip(items, bar, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted check must not read the rest first
