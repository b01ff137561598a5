"""A file that is touched as long as a process is well: for health checks of worker and reaper, which have no port.

    python -m jobs.alive FILE      # exit code 0 if FILE was touched within the last STALE_AFTER_S seconds, else 1

The check asks the file and not Redis: an outage of Redis ends no training, and neither may a health check in one.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path

STALE_AFTER_S = 180.0
"""An idle worker comes round every 75 s (RQ's dequeue timeout), and waits for 60 s at most while Redis is gone."""


class Pulse:
    """Touches a file.

    Args:
        file: None for none.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        if file is not None:
            file.unlink(missing_ok=True)  # of a process before this one

    def begin(self) -> None:
        """Ready for work, from now on."""
        if self._file is not None:
            self._file.touch()

    def beat(self) -> None:
        """Still well. Before `begin` it says nothing."""
        if self._file is not None and self._file.exists():
            self._file.touch()


def age_s(file: Path) -> float:
    """Seconds since the last touch; infinite if there was none."""
    with suppress(OSError):
        return time.time() - file.stat().st_mtime
    return float("inf")


if __name__ == "__main__":
    age = age_s(Path(sys.argv[1]))
    if age > STALE_AFTER_S:
        sys.exit(f"{sys.argv[1]} is not there: not ready yet." if age == float("inf") else f"Silent for {age:.0f} s.")
