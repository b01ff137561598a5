"""SIGTERM to the horse, as a flag: finish the step, then give the job back."""

import signal
import threading
from types import FrameType

requested = threading.Event()


def listen() -> None:
    """Take SIGTERM as a request, from now on, and leave SIGINT to the parent. Main thread only."""
    signal.signal(signal.SIGTERM, _request)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _request(_signum: int, _frame: FrameType | None) -> None:
    requested.set()
