"""A trial of a comparison as a job of SLURM: what runs on the node."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 30
_MOST_REQUEUES = 3

# The end of the batch script. A trial that was killed goes on from its last checkpoint, in the same job. SLURM_JOB_ID
# does not name it: that of the last task of an array is the array's, by which all tasks would be requeued.
AFTER_THE_TRIAL = [
    "status=$?",
    'task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"',
    f"if [ $status -eq {128 + signal.SIGKILL} ] || [ $status -eq {128 + signal.SIGTERM} ]; then",
    f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {_MOST_REQUEUES} ]; then',
    '    scontrol requeue "${task:-$SLURM_JOB_ID}"',
    "  fi",
    "fi",
    "exit $status",
]


@dataclasses.dataclass
class TrialJob:
    """Runs the process of a trial; SLURM may end it at any time and start it again.

    Args:
        command: of the process.
        log: file that takes what it prints, after what is there.
        threads: none: the process decides.
    """

    command: list[str]
    log: Path
    threads: int | None = None
    _process: "subprocess.Popen[bytes] | None" = dataclasses.field(default=None, init=False, repr=False)

    def __call__(self) -> None:
        """Wait for the process, and end as it did.

        Raises:
            SystemExit: the process failed; 128 + the number of a signal that ended it, as shells have it.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        threads = {} if self.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), self.threads)
        with self.log.open("ab") as stream:
            stream.write(f"{start_line(_own_id())}{socket.gethostname()}, {time.ctime()}\n".encode())
            stream.flush()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **{key: str(value) for key, value in threads.items()}, "PYTHONUNBUFFERED": "1"},
                preexec_fn=_leave_the_requeue_to_this_process,
            )
        try:
            while (code := self._process.poll()) is None:  # no wait(), whose lock checkpoint() would meet
                time.sleep(_POLL_SECONDS)
        except Exception as error:  # submitit's, where it requeues no more
            add_line(self.log, str(error))
            raise
        if code < 0:
            code = 128 - code
            add_line(self.log, f"The process was ended by {signal.Signals(code - 128).name}.")
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """Stop the process before SLURM does, and say what to run when the job comes back; submitit calls it."""
        from submitit.core.utils import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_STOP)
            self._process.kill()
        return DelayedSubmission(dataclasses.replace(self))


def start_line(job: str) -> str:
    """How the part of the log begins that a job wrote."""
    return f"--- SLURM job {job} on "


def add_line(log: Path, text: str) -> None:
    """Write a line below what a trial printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{text}\n")


def _own_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def _leave_the_requeue_to_this_process() -> None:
    """SLURM sends its signal before the end to all processes of a job; submitit handles it."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
