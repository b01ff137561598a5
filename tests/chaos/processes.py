"""Finds processes by what /proc says of them, also those that have lost their parents."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that runs, or that is frozen."""

    pid: int
    command: str

    @property
    def is_trainer(self) -> bool:
        """Whether it trains."""
        return " -m worker.trainer " in self.command

    @property
    def is_worker(self) -> bool:
        """Whether it is a worker, or a worker's horse: a fork, which looks the same."""
        return self.command.endswith(" -m worker")


def processes_of(folder: Path) -> Iterator[Process]:
    """Every process that was told of `folder`, by its arguments or by its environment."""
    needle = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended, or it is not ours
                command = (entry / "cmdline").read_bytes()
                if command and (needle in command or needle in (entry / "environ").read_bytes()):  # a zombie has none
                    yield Process(int(entry.name), command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace"))


def child_of(pid: int | None) -> int | None:
    """The first child of a process, if there are both."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def send(pid: int | None, number: signal.Signals) -> bool:
    """Send a signal, if the process is there; whether it was."""
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
