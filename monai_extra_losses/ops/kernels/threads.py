"""Work in parts on the threads that torch may use, for loops that let go of Python's lock."""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pools: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not live on in a fork


# Parts from which two threads gain: those of torch wait for their next operation by spinning, some milliseconds long
# (libgomp's default), and take a core from one of ours in a call as short as that.
_WORTH_TWO = 32


def spread(work: Callable[[int, int], None], parts: int) -> None:
    """Call work(first, last) so that all parts 0..parts-1 are done; a part takes some tenths of a millisecond.

    A thread takes the next part when it is done with one. So one that another process holds up costs a part, not a
    share of the whole, as it does where the threads of each operation wait for one another.
    """
    threads = min(torch.get_num_threads(), parts)
    if threads < 2 or (threads == 2 and parts < _WORTH_TWO):
        work(0, parts)
        return
    if not _pools:
        _pools.append(ThreadPoolExecutor(thread_name_prefix="monai_extra_losses"))
    places = itertools.count()  # whose next is one step of Python

    def take() -> None:
        while (part := next(places)) < parts:
            work(part, part + 1)

    others = [_pools[0].submit(take) for _ in range(threads - 1)]
    take()
    for other in others:
        if not other.cancel():  # else it has not begun, and there is nothing left
            other.result()
