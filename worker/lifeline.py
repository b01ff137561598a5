"""Ends this process when its parent ends, so that no orphan holds a GPU."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when the thread that started it ends. On other systems than Linux: nothing.

    Args:
        parent: process id of the parent that is meant, or None for whichever there is now. If another one is the parent
            by now, it has ended before the kernel could be asked.

    Raises:
        SystemExit: the parent has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    before = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != before:
        raise SystemExit(f"The parent process {before} has ended, so this one ends too.")
