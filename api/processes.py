"""Child processes that never outlive this one, not even when it is killed, and whose last words can be read."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

_TETHER = Path(__file__).with_name("tether.py")

# The kernel's "parent" is the thread that started a child: a child started by a short-lived thread would be killed when
# that thread ends. So one thread, which lives as long as the process, starts them all.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="launcher")


class ChildFailed(Exception):
    """A child process ended, or did not come up; the message holds the end of its log."""

    def __init__(self, what: str, log: Path) -> None:
        said = last_lines(log)
        super().__init__(f"{what}. The end of {log}:\n{said}" if said else f"{what}, and {log} is empty.")


class Child:
    """One child process in a session of its own, so that a Ctrl-C in the terminal reaches only us.

    Args:
        name: what a person calls it, for messages.
        command: program and arguments. They show in the process list: secrets belong in `env`.
        log: file that its output is appended to.
        env: its whole environment; None for ours.
        cwd: the folder it runs in; None for ours.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        tethered = [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command]
        with log.open("ab") as output:
            start = _launcher.submit(
                subprocess.Popen[bytes],
                tethered,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
            self._process = start.result()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -n when signal n ended it."""
        return self._process.poll()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once `ready()` says so.

        Raises:
            ChildFailed: the process ended before, or `timeout_s` passed.
        """
        deadline = monotonic() + timeout_s
        while not ready():
            self.check()
            if monotonic() > deadline:
                raise ChildFailed(f"{self.name} was not ready after {timeout_s:.0f} s", self.log)
            sleep(0.02)
        self.check()  # what answered may have been another process on the same port

    def check(self) -> None:
        """Raise ChildFailed if it has ended."""
        if (code := self.exit_code) is not None:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise ChildFailed(f"{self.name} ended {how}", self.log)

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and after `grace_s` SIGKILL to it and all that it started. Returns when it has ended."""
        if self.exit_code is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL to it and all that it started in its session. Returns when it has ended."""
        if self.exit_code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def last_lines(log: Path, count: int = 10) -> str:
    """The end of a log file, "" if there is none."""
    if not log.is_file():
        return ""
    with log.open(errors="replace") as lines:
        return "".join(deque(lines, maxlen=count)).rstrip()
