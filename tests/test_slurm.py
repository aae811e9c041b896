"""Trials as jobs of SLURM: the options, and a real cluster of one node, on which jobs are killed in every way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import slurm_cluster, why_not_here

from monai_extra_losses.compare import slurm as slurm_engine
from monai_extra_losses.compare.slurm import run_on_slurm
from monai_extra_losses.compare.slurm_options import SlurmOptions
from monai_extra_losses.data.errors import StartUpRefused

# A trial: the folder says what it does when it is started for the first time. One that another holds refuses.
TRIAL = """
import fcntl, os, signal, sys, time
from pathlib import Path

def stop(number, frame):
    print("stopped", flush=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

signal.signal(signal.SIGTERM, stop)
folder = Path(sys.argv[1])
lock = (folder / "lock").open("w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit("Expected a trial that no other process holds.")
starts = len(list(folder.glob("start_*")))
(folder / f"start_{starts}").write_text(str(os.getpid()))
print("threads", os.environ.get("OMP_NUM_THREADS"), "GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
deed = folder.name.split("_")[0]
if deed == "fails":
    sys.exit("Expected better, got worse.")
if deed == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "waits" and starts == 0:
    end = time.monotonic() + 60
    while time.monotonic() < end and not (folder / "go").exists():
        time.sleep(0.1)
(folder / "trial.json").write_text("{}")
"""

# What waits for the trials, in a process of its own.
WAITER = """
import sys
from pathlib import Path
from monai_extra_losses.compare import slurm
from test_slurm import command_below, OPTIONS

out, *names = sys.argv[1:]
if KILLED_BEFORE_THE_RECORD:
    import os
    slurm.write_whole = lambda *_: os.kill(os.getpid(), 9)
slurm.run_on_slurm(
    Path(out), names, OPTIONS, command=command_below(Path(out)), on_change=lambda _: None, poll_seconds=0.3
)
"""

OPTIONS = SlurmOptions(time=30, cpus_per_trial=1, memory_gb=0.1)


def command_below(out: Path) -> Callable[[str], list[str]]:
    return lambda name: [sys.executable, "-c", TRIAL, str(out / "trials" / name)]


def run(out: Path, *names: str, on_change: Any = lambda _: None, options: SlurmOptions = OPTIONS) -> dict[str, str]:
    return run_on_slurm(out, names, options, command=command_below(out), on_change=on_change, poll_seconds=0.3)


def starts(out: Path, name: str) -> int:
    return len(list((out / "trials" / name).glob("start_*")))


def lines(out: Path, name: str) -> list[str]:
    return [line for line in (out / "trials" / name / "process.txt").read_text().splitlines() if line]


def recorded(out: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((out / "slurm" / "jobs.json").read_text())
    return found


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def let_go(out: Path, *names: str) -> None:
    for name in names:
        (out / "trials" / name / "go").touch()


def once(when: Callable[[], object], what: Callable[[], object]) -> Callable[[Mapping[str, str]], None]:
    """For `on_change`: does something when something has happened, and never again."""
    done: list[object] = []

    def look(states: Mapping[str, str]) -> None:
        if not done and when():
            done.append(what())

    return look


# Options.


def test_options_of_a_file_and_those_given_which_win(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "# of our cluster\npartition: gpu\ntime: 12:00:00\ngpus_per_trial: 1\nmemory_gb: 7.5\naccount:\n"
        "further: {qos: long, exclusive: true, begin: 16:00}\n"
    )
    options = SlurmOptions.read(file, partition="urgent", cpus_per_trial="4", account=None)
    further = {"qos": "long", "exclusive": "true", "begin": "16:00"}
    assert options == SlurmOptions("urgent", None, 720, 1, 4, 7.5, None, further)
    file.write_text("# nothing\n")
    assert SlurmOptions.read(file) == SlurmOptions() == SlurmOptions.read()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        (90, 90),
        ("5:00", 5),
        ("5:01", 6),
        ("1:30:00", 90),
        ("2-00", 2880),
        ("1-12:30", 2190),
        ("1-0:0:1", 1441),
    ],
)
def test_times_as_slurm_writes_them(text: Any, minutes: int) -> None:
    assert SlurmOptions.read(time=text).time == minutes


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"partitoin": "gpu"},
            r"got 'partitoin' \(did you mean 'partition'\?\); an option of sbatch goes below further",
        ),
        ({"time": "soon"}, "Expected time to be minutes or text such as .*, got 'soon'"),
        ({"time": "0:00"}, "Expected time to be a time of at least a minute"),
        ({"time": "1:00:75"}, "Expected time to be a time of at least a minute.*75"),
        ({"gpus_per_trial": -1}, "Expected gpus_per_trial to be a whole number of at least 0, got -1"),
        ({"cpus_per_trial": 0}, "Expected cpus_per_trial to be a whole number of at least 1"),
        ({"memory_gb": "much"}, "Expected memory_gb to be a number above 0, got 'much'"),
        ({"account": ["a"]}, r"Expected account to be a name, got \['a'\]"),
        ({"further": "qos=long"}, "Expected further to be options of sbatch"),
        ({"further": {"mem": "4G"}}, "Expected mem as memory_gb, got it below further; move it"),
        ({"further": {"array": "0-3"}}, "Expected further to leave array to the comparison"),
        ({"further": {"--qos": "long"}}, "long names of options without --, got '--qos'"),
        ({"further": {"qos": ["a", "b"]}}, "one value for qos"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartUpRefused, match=sentence):
        SlurmOptions.read(**given)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("partition: [gpu", "to be a YAML file of SLURM options, got: while parsing"),
        ("gpu", "to hold lines such as `partition: gpu`, got 'gpu'"),
        (
            "gpus_per_tiral: 1",
            r"cluster.yaml to be among partition, .*, got 'gpus_per_tiral' \(did you mean 'gpus_per_trial'",
        ),
        (None, "to be a YAML file of SLURM options, got: No such file"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, content: str | None, sentence: str) -> None:
    file = tmp_path / "cluster.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartUpRefused, match=sentence):
        SlurmOptions.read(file)


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartUpRefused, match="got no sbatch on the path"):
        run(tmp_path, "waits")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(StartUpRefused, match=r"Expected submitit.* pip install submitit, or .* extra \[compare\]"):
        run(tmp_path, "waits")
    assert not list(tmp_path.iterdir())


def test_the_options_that_the_page_shows_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text()
    file = tmp_path / "cluster.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    further = {"qos": "long", "exclude": "node[01-03]", "mail-type": "END,FAIL"}
    assert SlurmOptions.read(file) == SlurmOptions("gpu", "my_project", 720, 1, 8, 32.0, 16, further)


# The cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A node with more cores than this machine has: the trials sleep."""
    if (reason := why_not_here()) is not None:
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), cpus=8):
        yield


def on_the_cluster(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.slurm(pytest.mark.usefixtures("cluster")(test)))


@on_the_cluster
def test_one_array_runs_the_trials_and_one_that_fails_leaves_the_others(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []
    names = ["a/runs_1", "a/fails", "b/runs_2"]
    states = run(tmp_path, *names, on_change=lambda states: seen.append(dict(states)))
    assert states == seen[-1] == {"a/runs_1": "finished", "a/fails": "failed", "b/runs_2": "finished"}
    assert seen[0] == dict.fromkeys(names, "waiting")
    assert lines(tmp_path, "a/fails")[1:] == ["threads 1 GPU None", "Expected better, got worse."]
    array = recorded(tmp_path)["a/runs_1"].split("_")[0]
    assert recorded(tmp_path) == {name: f"{array}_{place}" for place, name in enumerate(names)}

    again = run(tmp_path, *names)  # what failed is tried once more, alone
    assert again == states
    assert [starts(tmp_path, name) for name in names] == [1, 2, 1]


@on_the_cluster
def test_a_trial_that_is_killed_comes_back_and_finishes(tmp_path: Path) -> None:
    """By the system, by SLURM, by the signal before a timeout, by a job that goes before it."""
    ways: dict[str, Callable[[str, str], object]] = {
        "waits_process": lambda job, pid: os.kill(int(pid), signal.SIGKILL),
        "waits_step": lambda job, pid: slurm("scancel", "--signal=KILL", f"{job}.0"),
        "waits_requeue": lambda job, pid: slurm("scontrol", "requeue", job),
        "waits_timeout": lambda job, pid: slurm("scancel", "--signal=USR2", job),
        "dies": lambda job, pid: None,
    }
    left = dict(ways)

    def kill(states: Mapping[str, str]) -> None:
        for name in list(left):
            first = tmp_path / "trials" / name / "start_0"
            if states[name] == "running" and first.exists() and (pid := first.read_text()):
                left.pop(name)(recorded(tmp_path)[name], pid)

    states = run(tmp_path, *ways, on_change=kill)
    assert states == {name: "failed" if name == "dies" else "finished" for name in ways}
    assert {name: starts(tmp_path, name) for name in ways} == {name: 4 if name == "dies" else 2 for name in ways}
    assert lines(tmp_path, "dies")[-1] == "The process was ended by SIGKILL."
    assert "The process was ended by SIGKILL." in lines(tmp_path, "waits_process")
    assert lines(tmp_path, "waits_timeout")[2] == "stopped"  # by its own engine, not by the signal that all get


@on_the_cluster
def test_a_trial_that_is_preempted_comes_back_and_finishes(tmp_path: Path) -> None:
    def preempt(states: Mapping[str, str]) -> None:
        if starts(tmp_path, "waits") == 1 and not list(tmp_path.glob("urgent.txt")):
            script = [
                "sbatch",
                "--partition=urgent",
                "--exclusive",
                f"--output={tmp_path}/urgent.txt",
                "--wrap=sleep 1",
            ]
            slurm(*script)
            (tmp_path / "urgent.txt").touch()

    assert run(tmp_path, "waits", on_change=preempt) == {"waits": "finished"}
    assert starts(tmp_path, "waits") == 2
    assert "SIGKILL" not in " ".join(lines(tmp_path, "waits"))


@on_the_cluster
def test_a_waiter_that_is_killed_and_called_again_submits_nothing_twice(tmp_path: Path) -> None:
    names = ["waits_1", "waits_2"]
    interrupted = waiter(tmp_path, *names)
    wait_for(lambda: starts(tmp_path, "waits_1") and starts(tmp_path, "waits_2"))
    ids = recorded(tmp_path)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=30)
    assert f"end them: scancel {ids['waits_1'].split('_')[0]}\n" in said

    killed = waiter(tmp_path, *names)
    time.sleep(2)
    killed.kill()
    killed.communicate()

    go = once(lambda: True, lambda: let_go(tmp_path, *names))
    assert run(tmp_path, *names, "runs", on_change=go) == dict.fromkeys([*names, "runs"], "finished")
    assert [starts(tmp_path, name) for name in names] == [1, 1]
    assert {name: recorded(tmp_path)[name] for name in names} == ids


@on_the_cluster
def test_jobs_whose_ids_were_not_written_down_are_ended_before_others_come(tmp_path: Path) -> None:
    killed = waiter(tmp_path, "waits_1", "waits_2", killed_before_the_record=True)
    assert killed.wait(60) == -signal.SIGKILL
    wait_for(lambda: starts(tmp_path, "waits_1"))
    assert not (tmp_path / "slurm" / "jobs.json").exists()
    assert run(tmp_path, "waits_1", "waits_2") == {"waits_1": "finished", "waits_2": "finished"}
    assert max(starts(tmp_path, name) for name in ("waits_1", "waits_2")) == 2


def waiter(out: Path, *names: str, killed_before_the_record: bool = False) -> "subprocess.Popen[str]":
    code = f"KILLED_BEFORE_THE_RECORD = {killed_before_the_record}\n{WAITER}"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out), *names],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


@on_the_cluster
def test_a_job_that_a_person_ends_fails_its_trial_with_a_word_on_it(tmp_path: Path) -> None:
    cancel = once(lambda: starts(tmp_path, "waits"), lambda: slurm("scancel", recorded(tmp_path)["waits"]))
    assert run(tmp_path, "waits", on_change=cancel) == {"waits": "failed"}
    job = recorded(tmp_path)["waits"]
    assert lines(tmp_path, "waits")[-1] == f"SLURM ended job {job} before the trial was finished (CANCELLED)."
    assert starts(tmp_path, "waits") == 1


@on_the_cluster
def test_trials_have_a_gpu_each_also_when_submitted_from_inside_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")  # srun takes it or the memory of a node
    options = SlurmOptions(time=30, gpus_per_trial=1, cpus_per_trial=2, memory_gb=0.2)
    names = ["waits_1", "waits_2"]

    go = once(lambda: all(starts(tmp_path, name) for name in names), lambda: let_go(tmp_path, *names))
    assert run(tmp_path, *names, options=options, on_change=go) == dict.fromkeys(names, "finished")
    assert {lines(tmp_path, name)[1] for name in names} == {"threads 2 GPU 0", "threads 2 GPU 1"}


@on_the_cluster
def test_a_trial_that_runs_out_of_time_again_and_again_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_engine, "_MOST_TIMEOUTS", 0)

    end_the_time = once(
        lambda: starts(tmp_path, "waits"), lambda: slurm("scancel", "--signal=USR2", recorded(tmp_path)["waits"])
    )
    options = SlurmOptions(time=5)  # below 10 minutes submitit takes every such signal for the end of the time
    assert run(tmp_path, "waits", options=options, on_change=end_the_time) == {"waits": "failed"}
    assert lines(tmp_path, "waits")[-1] == "Job not requeued because: timed-out too many times."
    assert starts(tmp_path, "waits") == 1


@on_the_cluster
def test_a_trial_that_never_began_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "trials" / "runs" / "process.txt"
    log.parent.mkdir(parents=True)
    log.write_text("Expected better, got worse.\n")  # of an earlier job
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no Python starts on the node
    assert run(tmp_path, "runs") == {"runs": "failed"}
    job, errors = recorded(tmp_path)["runs"], tmp_path / "slurm" / f"{recorded(tmp_path)['runs']}_0_log.err"
    assert lines(tmp_path, "runs")[-1] == f"SLURM ended job {job} before the trial began (FAILED); see {errors}"
    assert "encodings" in errors.read_text()


@on_the_cluster
def test_a_controller_that_does_not_answer_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counter, real = tmp_path / "calls", shutil.which("squeue")
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(
        f"#!/bin/sh\necho >> {counter}\n"
        f"case $(wc -l < {counter}) in 3|4) echo Unable to contact slurm controller >&2; exit 1;; esac\n"
        f'exec {real} "$@"\n'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    assert run(tmp_path, "runs", "fails") == {"runs": "finished", "fails": "failed"}
    assert [starts(tmp_path, name) for name in ("runs", "fails")] == [1, 1]
    said = "Expected an answer from squeue, got: Unable to contact slurm controller. Waiting for it."
    assert caplog.messages == [said]


@on_the_cluster
def test_what_slurm_does_not_take_is_refused_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(StartUpRefused, match=r"Expected SLURM to take the trials, got: .*invalid partition.*nowhere"):
        run(tmp_path, "runs", options=SlurmOptions(partition="nowhere"))


@on_the_cluster
def test_a_job_that_waits_for_a_person_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    release = once(lambda: caplog.messages, lambda: slurm("scontrol", "release", recorded(tmp_path)["runs"]))
    options = SlurmOptions(time=30, further={"hold": "true"})
    assert run(tmp_path, "runs", on_change=release, options=options) == {"runs": "finished"}
    assert len(caplog.messages) == 1
    assert "JobHeldUser" in caplog.messages[0]
