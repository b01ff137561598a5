"""SIGTERM to the horse, as a flag: finish the step, then give the job back."""

import signal
import threading
import time
from types import FrameType

requested = threading.Event()
_requested_at = 0.0


def listen() -> None:
    """Take SIGTERM as a request, from now on, and leave SIGINT to the parent. Main thread only."""
    signal.signal(signal.SIGTERM, _request)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def seconds_ago() -> float:
    """How long ago the first request came; 0 before one."""
    return time.monotonic() - _requested_at if requested.is_set() else 0.0


def _request(_signum: int, _frame: FrameType | None) -> None:
    global _requested_at
    if not requested.is_set():
        _requested_at = time.monotonic()
    requested.set()
