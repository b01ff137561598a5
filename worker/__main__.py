"""`python -m worker`: work off the queue until told to stop. SIGTERM finishes the step and gives the job back.

With --once it takes one job at most and ends: docker/kubernetes/ starts a worker for each job that waits.
"""

import argparse
import logging
import sys

from jobs.settings import Settings
from jobs.store import open_store
from worker.service import work


def main() -> int:
    """Run the worker. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Work off the queue until SIGTERM.")
    parser.add_argument("--once", action="store_true", help="take one job at most, and end")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = Settings()
    work(open_store(settings), settings, options.once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
