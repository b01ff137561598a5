"""Becomes another program that the kernel kills when our parent ends. Run as `python tether.py PARENT_PID COMMAND…`.

A small program of its own instead of `preexec_fn`, which may deadlock a parent that has threads. It uses the standard
library only, so that it starts in a few milliseconds with `python -I -S`.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; it outlives execve


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:
            raise SystemExit(f"The parent process {parent} has ended, so this one ends too.")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
