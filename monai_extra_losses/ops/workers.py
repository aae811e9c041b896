"""Slabs on several threads of a CPU, each with one thread for its operations.

An operation that runs on several threads waits for the last of them. On a machine that does something else as well,
loading data say, that is a time slice of the other process at every operation, and a pass over slabs has hundreds.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEWEST_ELEMENTS = 1 << 21  # of the scores of a call; handing smaller ones out takes longer than they do
_MOST = 8  # beyond, they wait for each other in Python; each has several threads then
_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process, since a fork has no threads, and torch's threads


def count(scores: Tensor) -> int:
    """How many slabs of a call with these scores are computed at a time."""
    if scores.device.type != "cpu" or scores.numel() < _FEWEST_ELEMENTS:
        return 1
    return min(torch.get_num_threads(), _MOST)


def each(work: Callable[[Item], Result], items: Sequence[Item], scores: Tensor) -> Iterable[Result]:
    """The results of `work` on the items, in their order; without gradient.

    Args:
        work: computes a slab.
        items: one for each slab.
        scores: of the call.
    """
    if len(items) == 1 or count(scores) == 1:
        return map(work, items)

    inference = torch.is_inference_mode_enabled()

    def apart(item: Item) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # each thread has modes of its own
            return work(item)

    return _pool().map(apart, items)


def _pool() -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    key = os.getpid(), threads
    with _lock:
        if key not in _pools:
            workers = min(threads, _MOST)
            pool = ThreadPoolExecutor(workers, "monai_extra_losses", torch.set_num_threads, (threads // workers,))
            together = threading.Barrier(workers)
            list(pool.map(lambda _: together.wait(), range(workers)))  # all are there, and have said their number
            torch.set_num_threads(threads)  # which torch also keeps as that of threads to come
            _pools[key] = pool
        return _pools[key]
