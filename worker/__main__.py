"""`python -m worker`: work off the queue until told to stop. SIGTERM finishes the step and gives the job back."""

import logging
import sys

from redis.exceptions import RedisError

from jobs.settings import Settings
from jobs.store import open_store
from worker.service import open_worker


def main() -> int:
    """Run the worker. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = Settings()
    try:
        worker = open_worker(open_store(settings))
        worker.work(logging_level="WARNING")
    except RedisError as error:
        logging.getLogger(__name__).error("Redis does not answer at LORAQ_REDIS_URL: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
