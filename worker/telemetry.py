"""What a horse tells its parent for the metrics: one JSON line a fact, through a pipe that the fork inherits.

    {"tell": "attempt", "job_id": "...", "attempt": 2}             it holds a job now
    {"tell": "step", "step": 1, "steps": 100, "loss": 0.12, "seconds": 0.3, "peak_bytes": 5573000000 | null}
    {"tell": "phase", "name": "training"}
    {"tell": "moved", "direction": "up" | "down", "bytes": 1048576}   from and to the bucket
    {"tell": "cache", "hit": true}                                 a base model or dataset was here already, or was not
    {"tell": "ended"}                                              told by the parent: the horse is gone

Not by way of Redis, which may be gone. A parent that does not read loses facts and holds up no training.
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

MOVED_EVERY_S = 0.5
"""Bytes come in small pieces from several threads: they are summed up for so long."""

_end: int | None = None  # of the pipe, to write to
_moved: Counter[str] = Counter()
_moved_told_s = 0.0
_lock = threading.Lock()


def open_pipe() -> int:
    """In the parent, before any fork: open the pipe. Returns the end to read from."""
    global _end
    reading, _end = os.pipe()
    os.set_blocking(_end, False)
    return reading


def tell(what: str, **data: Any) -> None:
    """Tell the parent, if there is one that listens."""
    if _end is not None:
        line = json.dumps({"tell": what, **data}) + "\n"
        with suppress(OSError):  # full, or nobody reads: a line shorter than PIPE_BUF is written whole or not at all
            os.write(_end, line.encode())


def moved(direction: str, count: int) -> None:
    """Tell of bytes that went `up` or `down`; 0 tells what was kept back."""
    global _moved_told_s
    with _lock:
        if count:
            _moved[direction] += count
        if count and time.monotonic() - _moved_told_s < MOVED_EVERY_S:
            return
        _moved_told_s = time.monotonic()
        told = dict(_moved)
        _moved.clear()
    for each, total in told.items():
        tell("moved", direction=each, bytes=total)


def lines(reading: int) -> Iterator[dict[str, Any]]:
    """In the parent: every fact, as it comes."""
    with os.fdopen(reading, encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError):
                yield json.loads(line)
