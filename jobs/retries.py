"""How often a job is tried again after a failure that may pass, and how long it waits before."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Two budgets, because a worker that is stopped is no fault of the job."""

    max_failures: int = 3  # a job that failed so often stops there
    max_preemptions: int = 100  # how often its workers may be stopped under it
    wait_s_first: float = 30.0  # doubles with each failure
    wait_s_longest: float = 900.0

    def wait_s(self, failures: int) -> float:
        """Seconds until the next attempt, after so many failures.

        Between half and all of the full wait, at random: jobs that failed together do not come back together.
        """
        full = min(self.wait_s_longest, self.wait_s_first * 2 ** (failures - 1))
        return full * random.uniform(0.5, 1)
