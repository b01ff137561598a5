"""`python -m worker`: work off the queue until told to stop. SIGTERM finishes the step and gives the job back.

With --once it takes one job at most and ends: docker/kubernetes/ starts a worker for each job that waits.
"""

import argparse
import logging
import os
import sys

from jobs.logs import set_up_logging
from jobs.settings import Settings
from jobs.store import open_store
from worker.gpu_claim import NoGpu, take_gpus
from worker.own_class import ClassTooLarge
from worker.service import work

log = logging.getLogger(__name__)


def main() -> int:
    """Run the worker. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Work off the queue until SIGTERM.")
    parser.add_argument("--once", action="store_true", help="take one job at most, and end")
    options = parser.parse_args()
    set_up_logging()
    settings = Settings()
    try:
        take_gpus(settings)
    except NoGpu as error:
        log.error("No job can be taken here. %s", error)
        return 1
    try:
        return work(open_store(settings), settings, options.once)
    except ClassTooLarge as error:
        log.error("No job can be taken here. %s", error)
        return os.EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
