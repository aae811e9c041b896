"""Which process and device this is, in a distributed run or alone."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import ignite.distributed as idist
import torch

from monai_extra_losses.bundle.options import whole_number
from monai_extra_losses.data.errors import StartUpRefused, TrainingStopped

# Of one process for the others. It may validate a large volume more than they, or read its data from a slower disk. A
# process that died is known at once: its connections close, and torchrun ends the others within 30 s.
_LONGEST_WAIT = datetime.timedelta(minutes=30)

# What gloo, NCCL and torch's store say of a process that is gone or stands still.
_LOST = re.compile(
    r"connection (?:was (?:likely )?)?(?:closed|reset)|broken pipe|connection refused|socket closed|"
    r"timed out waiting|watchdog|remote process exited|network error|failed to recv|store->get",
    re.IGNORECASE,
)


def refuse_machinery(device: Any, num_workers: Any) -> None:
    """Refuse a device that this machine does not have, and a number of loader processes that is none."""
    whole_number("num_workers", num_workers, least=0)
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise StartUpRefused(f"Expected device to be a device such as cpu, cuda or cuda:1, got {device!r}.") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        found = f"torch finds {count} GPU{'s' * (count > 1)}" if count else "torch finds no GPU"
        raise StartUpRefused(
            f"Expected device to be one that this machine has, got {str(wanted)!r}; {found}"
            f"{', from cuda:0 on' if count else ', so leave the option away or give cpu'}."
        )


def is_first_process() -> bool:
    """Whether this process writes files: rank 0 of a distributed training, or the only process."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def wait_for_all_processes() -> None:
    """Wait until each process of a distributed run is here; alone there is nothing to wait for."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def lost_process_sentence(error: BaseException) -> str | None:
    """The sentence for an error that another process of a distributed run left to this one; None for any other."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() < 2:
        return None
    cause: BaseException | None = error
    while cause is not None:
        said = (str(cause).strip().splitlines() or [""])[0].partition(". ")[0]
        if isinstance(cause, distributed.DistError) or (isinstance(cause, RuntimeError) and _LOST.search(said)):
            return (
                f"Expected all {distributed.get_world_size()} processes to go on, got one that ended or stands still "
                f"({said}); look for what it said, or in the system's log for one that was killed. What was finished "
                "before is whole; a training goes on with --resume True."
            )
        cause = cause.__cause__
    return None


@contextlib.contextmanager
def lost_processes_as_sentences() -> Iterator[None]:
    """Ends the program with a sentence where another process of a distributed run is gone.

    Raises:
        TrainingStopped: with what torch says of it.
    """
    try:
        yield
    except Exception as error:
        sentence = lost_process_sentence(error)
        if sentence is None:
            raise
        raise TrainingStopped(sentence) from None


def device_of_process() -> torch.device:
    """The GPU of this process in a distributed run, or the CPU.

    Raises:
        StartUpRefused: more processes on this machine than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= count:
        raise StartUpRefused(
            f"Expected a GPU for each process, got {count} for {index + 1} processes or more on this machine; start "
            "fewer (--nproc_per_node), or give --device cpu."
        )
    return torch.device("cuda", index)


def join_processes(device: Any) -> None:
    """Join the processes that torchrun started; NCCL between GPUs, gloo between CPU processes.

    Args:
        device: of this process, or "cpu".

    Raises:
        StartUpRefused: torchrun did not start this process, or one GPU is given for several.
    """
    refuse_machinery(device, 0)
    device = torch.device(device)
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and not torch.distributed.is_initialized():
        raise StartUpRefused(
            f"Expected a process that torchrun started, got one without {missing[0]} in its environment; start it by "
            "torchrun, or leave multi_gpu_*.yaml away."
        )
    if device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and device != device_of_process():
        raise StartUpRefused(
            f"Expected a GPU for each process, got {str(device)!r} for all; leave --device away, and each process "
            "takes one, or give cpu."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend=backend, timeout=_LONGEST_WAIT)
    # ignite makes a process group when first asked for a rank. All processes must do that together: a handler that is
    # built on rank 0 alone would wait for the others for ever.
    idist.sync()


def refuse_processes(**cases: Sequence[Any]) -> None:
    """Refuse processes that would have no case, and several that nobody joined.

    Args:
        cases: what they are for -> the cases.
    """
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and not joined:
        raise StartUpRefused(
            f"Expected one process, got {started} by torchrun; add configs/multi_gpu_train.yaml (for an evaluation "
            "multi_gpu_evaluate.yaml) to the config files, or start without torchrun."
        )
    count = distributed.get_world_size() if joined else 1
    for purpose, chosen in cases.items():
        if len(chosen) < count:
            raise StartUpRefused(
                f"Expected at least a {purpose} case for each of the {count} processes, got {len(chosen)}; start fewer "
                "(--nproc_per_node)."
            )
