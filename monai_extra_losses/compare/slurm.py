"""Trials as one array job of a SLURM cluster, through submitit."""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses.compare.held_signals import held_signals
from monai_extra_losses.compare.local import FAILED, FINISHED, RUNNING, WAITING
from monai_extra_losses.compare.slurm_job import AFTER_THE_TRIAL, TrialJob, add_line, start_line
from monai_extra_losses.compare.slurm_options import SlurmOptions
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import write_whole

_MOST_TIMEOUTS = 20  # of one trial; each goes on where the last one stopped
_LOOKS_UNTIL_GONE = 2  # a network file system shows trial.json late
_SECONDS_TO_CANCEL = 120
_SECONDS_TO_ANSWER = 60
_SECONDS_TO_A_SIGNAL = 0.2
# Of a job that waits for a person.
_HOLDING_REASONS = re.compile(
    "JobHeld|held|BadConstraints|Invalid|NotAllowed|PartitionNodeLimit|PartitionTimeLimit|DependencyNeverSatisfied"
)

_logger = logging.getLogger(__name__)


def run_on_slurm(
    out: Path,
    names: Sequence[str],
    options: SlurmOptions,
    *,
    command: Callable[[str], list[str]],
    on_change: Callable[[Mapping[str, str]], None],
    poll_seconds: float = 5,
) -> dict[str, str]:
    """Run trials as one array job, and wait for them.

    A job that is preempted, runs out of its time or is killed comes back and goes on; a trial that fails leaves the
    others alone. The jobs need this process for nothing: called again, it waits for those that are still there, and
    submits what is left. `slurm/` below `out` holds the files of the jobs, `slurm/jobs.json` their ids.

    Args:
        out: folder of the comparison, which the nodes see too; one process at a time.
        names: of the trials: folders below trials/, where trial.json marks a finished one and process.txt takes what
            the process prints.
        options: of the jobs.
        command: of a trial.
        on_change: gets the states after each look at the queue.
        poll_seconds: between two looks.

    Returns:
        Name -> "finished" or "failed".

    Raises:
        StartUpRefused: no submitit, no SLURM, or one that does not take the jobs.
    """
    refuse_without_slurm()
    with held_signals() as sleep:
        jobs = _Jobs(out.absolute(), options, sleep)
        jobs.cancel_unrecorded()
        queued = jobs.queued()
        left = [name for name in names if not jobs.is_finished(name) and jobs.ids.get(name) not in queued]
        if left:
            jobs.submit(left, command)
        return _states_at_the_end(jobs, names, on_change, poll_seconds)


def _states_at_the_end(
    jobs: "_Jobs", names: Sequence[str], on_change: Callable[[Mapping[str, str]], None], poll_seconds: float
) -> dict[str, str]:
    """Look at the queue until no trial is left in it."""
    states = {name: FINISHED if jobs.is_finished(name) else WAITING for name in names}
    unseen = dict.fromkeys(names, 0)
    silent = False
    try:
        on_change(states)
        while open_names := [name for name in names if states[name] in (WAITING, RUNNING)]:
            jobs.sleep(poll_seconds)
            try:
                queued = jobs.queued()
            except StartUpRefused as error:  # it may be back at the next look
                if not silent:
                    _logger.warning(f"{error} Waiting for it.")
                silent = True
                continue
            silent = False
            for name in open_names:
                state = queued.get(jobs.ids[name])
                unseen[name] = unseen[name] + 1 if state is None else 0
                if jobs.is_finished(name):
                    states[name] = FINISHED
                elif state is not None:
                    states[name] = state
                elif unseen[name] == _LOOKS_UNTIL_GONE:
                    states[name] = FAILED
                    jobs.note_end(name)
            on_change(states)
    except BaseException:
        ids = sorted({jobs.ids[name].split("_")[0] for name in names if states[name] in (WAITING, RUNNING)}, key=int)
        if ids:
            print(
                f"\nThe jobs go on without this process: call again to wait for them, or end them: scancel "
                f"{' '.join(ids)}",
                file=sys.stderr,
            )
        raise
    return states


class _Jobs:
    """The jobs of a comparison.

    Args:
        out: folder of the comparison.
        options: of the jobs.
        sleep: for so many seconds, or until a signal comes.
    """

    def __init__(self, out: Path, options: SlurmOptions, sleep: Callable[[float], None]) -> None:
        self.out = out
        self.sleep = sleep
        self.options = options
        self.folder = out / "slurm"
        self.record = self.folder / "jobs.json"
        self.ids: dict[str, str] = json.loads(self.record.read_text("utf-8")) if self.record.exists() else {}
        # By it, jobs are found whose ids a killed process did not write down.
        digest = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:8]
        self.job_name = f"compare-{re.sub(r'[^A-Za-z0-9_.-]+', '_', out.name)}-{digest}"
        self._told: set[str] = set()

    def log(self, name: str) -> Path:
        return self.out / "trials" / name / "process.txt"

    def is_finished(self, name: str) -> bool:
        """Whether trial.json is there; the folder is asked: a network file system remembers what was missing."""
        folder = self.out / "trials" / name
        return folder.is_dir() and "trial.json" in os.listdir(folder)

    def queued(self) -> dict[str, str]:
        """Id -> "waiting" or "running".

        Raises:
            StartUpRefused: SLURM does not answer.
        """
        found = {}
        answer = self._answer("squeue", "--me", "--array", "--noheader", f"--name={self.job_name}", "--format=%i|%T|%r")
        for line in answer.splitlines():
            job, state, reason = line.strip().split("|", 2)
            waits = state == "PENDING" or "REQUEUE" in state or "HOLD" in state or state == "SPECIAL_EXIT"
            found[job] = WAITING if waits else RUNNING
            if waits and _HOLDING_REASONS.search(reason) and (key := f"{job} {reason}") not in self._told:
                self._told.add(key)
                _logger.warning(f"SLURM will not start job {job} as it is ({reason}); scontrol show job {job}")
        return found

    def cancel_unrecorded(self) -> None:
        """End what a process that was killed while it submitted has left in the queue."""
        end = time.monotonic() + _SECONDS_TO_CANCEL
        while unknown := set(self.queued()) - set(self.ids.values()):
            with contextlib.suppress(StartUpRefused):  # one that has just ended
                self._answer("scancel", *sorted(unknown))
            if time.monotonic() > end:
                raise StartUpRefused(
                    f"Expected SLURM to end job {sorted(unknown)[0]}, which an earlier call left, got it still there "
                    f"after {_SECONDS_TO_CANCEL} s; call again when it is gone."
                )
            self.sleep(1)

    def submit(self, names: Sequence[str], command: Callable[[str], list[str]]) -> None:
        """Submit trials as one array, in their order, and write the ids down.

        Raises:
            StartUpRefused: SLURM does not take them.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self.folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=_MOST_TIMEOUTS)
        executor.update_parameters(**_parameters(self.options, self.job_name, len(names)))
        trials = [TrialJob(command(name), self.log(name), self.options.cpus_per_trial) for name in names]
        try:
            with _as_outside_of_a_job(), contextlib.redirect_stderr(io.StringIO()):  # the sentence says it
                submitted = executor.submit_array(trials)
        except (FailedJobError, FailedSubmissionError) as error:
            raise StartUpRefused(
                f"Expected SLURM to take the trials, got: {' '.join(str(error).split())}; change the options."
            ) from None
        self.ids |= {name: job.job_id for name, job in zip(names, submitted, strict=True)}
        write_whole(self.record, json.dumps(self.ids, indent=2) + "\n")

    def _answer(self, *command: str) -> str:
        """What a command of SLURM prints.

        Raises:
            StartUpRefused: it fails.
        """
        end = time.monotonic() + _SECONDS_TO_ANSWER
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                try:
                    said, errors = self._said_by(process, end)
                except BaseException:
                    process.kill()
                    raise
        except (OSError, subprocess.SubprocessError) as error:
            raise _no_answer(command[0], str(error)) from None
        if process.returncode:
            raise _no_answer(command[0], errors or f"exit code {process.returncode}")
        return said

    def _said_by(self, process: "subprocess.Popen[str]", end: float) -> tuple[str, str]:
        """Output and errors; a controller that is busy answers late, and a signal is not to wait for it."""
        while True:
            try:
                return process.communicate(timeout=_SECONDS_TO_A_SIGNAL)
            except subprocess.TimeoutExpired:
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired(process.args, _SECONDS_TO_ANSWER) from None
                self.sleep(0)

    def note_end(self, name: str) -> None:
        """Say in the log of a trial how SLURM ended its job, where the trial itself could not."""
        job, log = self.ids[name], self.log(name)
        with contextlib.suppress(StartUpRefused):  # forgotten after some minutes
            found = re.search(r"\bJobState=(\S+)", self._answer("scontrol", "--oneliner", "show", "job", job))
            state = found[1] if found else "unknown"
            if not log.exists() or start_line(job) not in log.read_text(encoding="utf-8", errors="replace"):
                add_line(
                    log, f"SLURM ended job {job} before the trial began ({state}); see {self.folder}/{job}_0_log.err"
                )
            elif state != "FAILED":
                add_line(log, f"SLURM ended job {job} before the trial was finished ({state}).")


def _parameters(options: SlurmOptions, job_name: str, count: int) -> dict[str, Any]:
    """What submitit's executor is given."""
    cpus = options.cpus_per_trial
    further: dict[str, Any] = {key.replace("_", "-"): value for key, value in options.further.items()}
    further = {key: True if value in ("", "true") else value for key, value in further.items()}
    memory = None if options.memory_gb is None else f"{round(options.memory_gb * 1024)}M"
    parameters = {
        "job_name": job_name,
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "gpus_per_node": options.gpus_per_trial or None,
        "cpus_per_task": cpus,
        "mem": memory,
        "array_parallelism": options.array_parallelism or count,
        "additional_parameters": {**further, "requeue": True},
        "srun_args": None if cpus is None else [f"--cpus-per-task={cpus}"],  # newer sruns do not take that of sbatch
        "teardown": AFTER_THE_TRIAL,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def refuse_without_slurm() -> None:
    """Refuse a machine from which no job can be submitted."""
    try:
        importlib.import_module("submitit")
    except ImportError:
        raise StartUpRefused(
            "Expected submitit, which submits the trials to SLURM, got none; install it: pip install submitit, or this "
            "package with its extra [compare]."
        ) from None
    if shutil.which("sbatch") is None:
        raise StartUpRefused(
            "Expected SLURM's commands on this machine, got no sbatch on the path; call from a login node of the "
            "cluster, or run the trials on this machine."
        )


def _no_answer(command: str, said: str) -> StartUpRefused:
    return StartUpRefused(f"Expected an answer from {command}, got: {' '.join(said.split())}.")


@contextlib.contextmanager
def _as_outside_of_a_job() -> Iterator[None]:
    """A job that is submitted inside of another, an interactive one say, would take over what that one has."""
    inside = "SLURM_JOB_ID" in os.environ
    own = {
        key: os.environ.pop(key)
        for key in list(os.environ)
        if inside and key.startswith("SLURM_") and key != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(own)
