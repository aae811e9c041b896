"""A SLURM cluster of one node on this machine: controller, node daemon and munge, started without systemd."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "setpriv")
_SECONDS = 60

# A requeued job waits until its credential has expired: 120 s unless told otherwise, 5 s at least.
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.txt
SlurmdLogFile={folder}/slurmd.txt
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP
"""


def why_not_here() -> str | None:
    """A sentence where no cluster can be started."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{missing[0]} is not installed; install SLURM (apt-get install slurm-wlm munge) to run this test."
    if os.geteuid() != 0:
        return "SLURM's node daemon needs root; run this test as root."
    return None


@contextlib.contextmanager
def slurm_cluster(folder: Path, *, cpus: int) -> Iterator[None]:
    """Runs a cluster, to which the commands of SLURM in this environment talk.

    Args:
        folder: for its files.
        cpus: that the node says it has, beside 4 GB and two GPUs.
    """
    run = folder / "run"
    for name in ("state", "spool", "run"):
        (folder / name).mkdir()
    run.chmod(0o755)  # munge wants others to reach its socket
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    config = folder / "slurm.conf"
    controller_port, node_port = _free_ports(2)
    config.write_text(
        _CONFIG.format(
            host=socket.gethostname().split(".")[0],
            controller_port=controller_port,
            node_port=node_port,
            folder=folder,
            run=run,
            cpus=cpus,
        )
    )
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    os.environ["SLURM_CONF"] = str(config)
    munge = {"key-file": key, "socket": run / "munge.socket", "pid-file": run / "munged.pid"}
    munge |= {"log-file": folder / "munged.txt", "seed-file": folder / "munge.seed"}
    with contextlib.ExitStack() as daemons:
        daemons.callback(os.environ.pop, "SLURM_CONF")
        daemons.enter_context(_daemon("munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in munge.items())))
        _wait_until(lambda: (run / "munge.socket").exists())
        daemons.enter_context(_daemon("slurmctld", "-D"))
        daemons.enter_context(_daemon("slurmd", "-D"))
        _wait_until(_idle)
        yield
        subprocess.run(["scancel", "--me"], check=True)
        _wait_until(_idle)


@contextlib.contextmanager
def _daemon(*command: str) -> Iterator[None]:
    """Runs a program that ends with this process, however that ends."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(_SECONDS)


def _idle() -> bool:
    return subprocess.run(["sinfo", "-ho", "%t"], capture_output=True, text=True).stdout.split() == ["idle"]


def _wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not what():
        assert time.monotonic() < end, "SLURM is not ready"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
