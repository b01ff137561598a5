"""One trainer a GPU: torchrun, which dies with the process that starts it and ends as its ranks ended.

    python -m worker.launch CONFIG.json --gpus N --parent PID
    python -m worker.launch CONFIG.json --gpus N --machines M --rendezvous HOST:PORT --parent PID

The second form is of M machines with N ranks each, of which this is the first; worker/joining.py starts the others with
their number besides. The ranks take SIGTERM, not torchrun: they agree on a step, save after it and end well, so all
machines end alike. When a rank fails, torchrun ends the others. SIGUSR1 makes every rank write down where it stands.
"""

import argparse
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from worker.lifeline import die_with_parent
from worker.meeting_point import Job, MeetingPoint

WAIT_FOR_MACHINES_S = 600.0
CONNECT_S = 120
"""torchrun's own wait for machines that have all come before: longer than any takes to import torch."""

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run all ranks; return the exit code, or end by the signal that ended the first rank to fail."""
    parser = argparse.ArgumentParser(prog="python -m worker.launch", description="Train one adapter on several GPUs.")
    parser.add_argument("config", type=Path, help="CONFIG.json, a TrainerConfig")
    parser.add_argument("--gpus", type=int, required=True, help="how many ranks on this machine")
    parser.add_argument("--machines", type=int, default=1, help="how many machines, all with as many ranks")
    parser.add_argument("--machine", type=int, default=0, help="the number of this one; 0 trains rank 0")
    parser.add_argument("--rendezvous", help="HOST:PORT where the first machine listens to the others")
    parser.add_argument("--parent", type=int, help="process id of the process that is to be obeyed")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, _pass_on)
    die_with_parent(options.parent)
    meeting_point = None
    if options.machines > 1 and options.machine == 0:
        meeting_point = MeetingPoint.open(options.rendezvous, Job(str(options.config), options.gpus, options.machines))
        if not _all_come(meeting_point, options.machines):
            return 1
    try:
        run.main(torchrun_arguments(options))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        log.error("Rank %d was the first to fail, with exit code %d.", rank, failure.exitcode)
        return _end_by(-failure.exitcode) if failure.exitcode < 0 else failure.exitcode
    finally:
        del meeting_point  # torchrun uses its store, which lives as long as this
    return 0


def torchrun_arguments(options: argparse.Namespace) -> list[str]:
    """All ranks on this machine, talking over its loopback; or those of several, which meet where the first listens."""
    if options.machines == 1:
        where = ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        host, _, port = options.rendezvous.rpartition(":")
        where = ["--nnodes", str(options.machines), "--node-rank", str(options.machine)]
        where += ["--master-addr", host, "--master-port", port, "--rdzv-conf", f"timeout={CONNECT_S}"]
    ranks = ["--nproc-per-node", str(options.gpus), "--max-restarts", "0", "--signals-to-handle", "SIGHUP"]
    return [*where, *ranks, "-m", "worker.trainer", str(options.config), "--parent", str(os.getpid())]


def _all_come(meeting_point: MeetingPoint, machines: int) -> bool:
    end_s = time.monotonic() + WAIT_FOR_MACHINES_S
    while (here := meeting_point.machines()) < machines:
        if time.monotonic() > end_s:
            log.error(
                "%d of %d machines came within %.0f s: `python -m worker.joining` is to run on each but the first.",
                here,
                machines,
                WAIT_FOR_MACHINES_S,
            )
            return False
        time.sleep(0.2)
    return True


def _pass_on(number: int, _frame: object) -> None:
    ranks = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(int(pid), number)
    if not ranks and number == signal.SIGTERM:
        _end_by(number)


def _end_by(number: int) -> int:
    """End by a signal, as a shell does whose command was ended by it, so that the parent can tell it apart."""
    with suppress(OSError):  # SIGKILL has no other handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # only if the signal ends nothing


if __name__ == "__main__":
    sys.exit(main())
