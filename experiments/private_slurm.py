"""A private SLURM of two nodes on this machine, to try and test batch scripts: `python -m experiments.private_slurm`.

It needs slurmctld and slurmd (Debian: `apt-get install --no-install-recommends slurm-wlm`), no root, no database, no
daemon that is running already. Without a command it waits for Ctrl-C and says what to set; with one it runs that.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel")
NODES = ("127.0.0.1", "127.0.0.2")
"""The nodes' names, which are addresses of this machine, so that they resolve anywhere."""
PATIENCE = 60.0

CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/run/spool-%n
SlurmctldPidFile={place}/run/slurmctld.pid
SlurmdPidFile={place}/run/slurmd-%n.pid
SlurmctldLogFile={place}/log/slurmctld.log
SlurmdLogFile={place}/log/slurmd-%n.log
PlugStackConfig={place}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdTimeout=10
KillWait={kill_wait}
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes[0]} NodeHostname={host} NodeAddr={nodes[0]} Port={ports[1]} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr={nodes[1]} Port={ports[2]} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes={nodes[0]},{nodes[1]} PriorityTier=10 PreemptMode=off State=UP
"""


def missing() -> list[str]:
    """Return the programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


class PrivateSlurm:
    """Two nodes of `cpus` CPUs each, in a folder that nobody else uses. `environment` is what its commands need.

    `kill_wait`: seconds between SIGTERM and SIGKILL at the end of a job.
    """

    def __init__(self, place: Path, *, cpus: int = 4, kill_wait: int = 30) -> None:
        self.place = place.resolve()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment = kept | {"PATH": _path(), "SLURM_CONF": str(self.place / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "run", "log"):
            (self.place / name).mkdir(parents=True)
        (self.place / "plugstack.conf").touch()
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            host=host,
            ports=_free_ports(3),
            user=getpass.getuser(),
            place=self.place,
            nodes=NODES,
            cpus=cpus,
            kill_wait=kill_wait,
        )
        (self.place / "slurm.conf").write_text(text)

    def start(self) -> None:
        """Start the daemons and wait for both nodes.

        Raises:
            RuntimeError: they did not come up; with the end of their logs.
        """
        self._start_daemon("slurmctld", ["slurmctld", "-D", "-c"])
        for node in NODES:
            self.start_node(node)
        end = time.monotonic() + PATIENCE
        while set(self.idle_nodes()) != set(NODES):
            if time.monotonic() > end:
                logs = [path.read_text()[-1000:] for path in sorted((self.place / "log").iterdir())]
                self.stop()
                raise RuntimeError("the private SLURM did not come up:\n" + "\n".join(logs))
            time.sleep(0.1)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._start_daemon(node, ["slurmd", "-D", "-N", node])

    def stop(self) -> None:
        """Cancel all jobs, wait for their end, and stop the daemons."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("scancel", f"--user={getpass.getuser()}", check=False)
            end = time.monotonic() + 15
            while self.run("squeue", "--noheader", check=False) and time.monotonic() < end:
                time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(
        self,
        *command: str,
        check: bool = True,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command of SLURM to its end, with more environment variables, and return what it printed.

        Raises:
            subprocess.CalledProcessError: it failed, and `check` is true.
        """
        done = subprocess.run(
            command,
            cwd=folder,
            env={**self.environment, **(variables or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=check,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip()

    def idle_nodes(self) -> list[str]:
        """Return the nodes that are up and without a job."""
        return self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", check=False).split()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job, by its own words (JobState, Restarts, ...)."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _start_daemon(self, name: str, command: Sequence[str]) -> None:
        with (self.place / "log" / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )


@contextlib.contextmanager
def private_slurm(place: Path, **options: Any) -> Iterator[PrivateSlurm]:
    """Give a private SLURM that is up, and stop it afterwards."""
    cluster = PrivateSlurm(place, **options)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _settings(environment: Mapping[str, str]) -> str:
    return f"export SLURM_CONF={environment['SLURM_CONF']} PATH=$PATH:/usr/sbin GLOO_SOCKET_IFNAME=lo"


def main() -> int:
    """Read the command line, start the cluster, run the command in it or wait."""
    parser = argparse.ArgumentParser(prog="python -m experiments.private_slurm", description=__doc__)
    parser.add_argument(
        "--cpus", type=int, default=os.cpu_count() or 1, help="CPUs of each node [those of the machine]"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run with the cluster up")
    options = parser.parse_args()
    if missing():
        print(f"error: no {', '.join(missing())} here (Debian: the package slurm-wlm)", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as place,
        private_slurm(Path(place) / "cluster", cpus=options.cpus) as cluster,
    ):
        if options.command:
            variables = cluster.environment | {"GLOO_SOCKET_IFNAME": "lo"}
            return subprocess.run(options.command, env=variables, check=False).returncode
        print(f"two nodes are up; in another shell:\n{_settings(cluster.environment)}\nCtrl-C stops them", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
