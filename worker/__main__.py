"""`python -m worker`: work off the queue until told to stop. SIGTERM finishes the step and gives the job back."""

import logging
import sys

from jobs.settings import Settings
from jobs.store import open_store
from worker.service import work


def main() -> int:
    """Run the worker. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = Settings()
    work(open_store(settings), settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
