"""One trainer a GPU: torchrun, which dies with the process that starts it and ends as its ranks ended.

    python -m worker.launch CONFIG.json --gpus N --parent PID

torchrun waits for its ranks after SIGTERM for as long as they need for a checkpoint: whoever sends it has a limit of
its own. When a rank fails, it ends the others. SIGUSR1 is passed on, so that every rank writes down where it stands.
"""

import argparse
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from worker.lifeline import die_with_parent

_FOR_AS_LONG_AS_IT_TAKES_S = 30 * 86_400

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run all ranks; return the exit code, or end by the signal that ended the first rank to fail."""
    parser = argparse.ArgumentParser(prog="python -m worker.launch", description="Train one adapter on several GPUs.")
    parser.add_argument("config", type=Path, help="CONFIG.json, a TrainerConfig")
    parser.add_argument("--gpus", type=int, required=True, help="how many ranks")
    parser.add_argument("--parent", type=int, help="process id of the process that is to be obeyed")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGUSR1, lambda *_: _pass_on(signal.SIGUSR1))
    die_with_parent(options.parent)
    try:
        run.main(torchrun_arguments(options.config, options.gpus))
    except SignalException as told:  # what the ranks made of it they have said themselves
        return _end_by(told.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        log.error("Rank %d was the first to fail, with exit code %d.", rank, failure.exitcode)
        return _end_by(-failure.exitcode) if failure.exitcode < 0 else failure.exitcode
    return 0


def torchrun_arguments(config: Path, gpus: int) -> list[str]:
    """All ranks on this machine, talking over its loopback."""
    own = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(gpus), "--max-restarts", "0"]
    patience = ["--shutdown-timeout", str(_FOR_AS_LONG_AS_IT_TAKES_S)]
    return [*own, *patience, "-m", "worker.trainer", str(config), "--parent", str(os.getpid())]


def _pass_on(number: signal.Signals) -> None:
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(pid), number)


def _end_by(number: int) -> int:
    """End by a signal, as a shell does whose command was ended by it, so that the parent can tell it apart."""
    with suppress(OSError):  # SIGKILL has no other handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # only if the signal ends nothing


if __name__ == "__main__":
    sys.exit(main())
