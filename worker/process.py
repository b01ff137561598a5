"""The trainer as a child process: started without secrets, listened to line by line, stopped in two steps.

It runs in its own process, so that a CUDA error, the kernel's OOM killer or a hang ends it and not the attempt, and
the GPU's memory is always freed. Why it ended is told apart here.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import FailureReason
from worker.spread import Spread

Fact = dict[str, Any]

LAST_FACTS = ("finished", "stopped", "failed")

# What the trainer has no business with: it knows no bucket, no Redis and no hub.
_SECRET_PREFIXES = ("LORAQ_", "AWS_", "HF_TOKEN", "HUGGING_FACE", "RQ_", "REDIS_")

_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")


class TrainerFailed(Exception):
    """The trainer ended without a result; `reason` says why, the message says it to a person."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class TrainerProcess:
    """One run of `python -m worker.trainer`, or of one a GPU; a context manager that leaves no process behind."""

    def __init__(self, config: Path, log_file: Path, cpu_threads: int, spread: Spread | None = None) -> None:
        self._log_file = log_file
        self._oom_kills_before = _oom_kills()
        self._facts: queue.Queue[Fact | None] = queue.Queue()
        self.last: Fact | None = None  # the newest fact, or the failure
        with log_file.open("ab") as log:
            # The trainer dies with the thread that starts it (PR_SET_PDEATHSIG): this is the horse's main thread.
            program = [*(spread or Spread(1)).program(), str(config)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", *program, f"--parent={os.getpid()}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=trainer_environment(cpu_threads),
                process_group=0,
            )
        self._reader = threading.Thread(target=self._read, name="facts", daemon=True)
        self._reader.start()

    def __enter__(self) -> "TrainerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join()  # the pipe has no other writer, so it is at its end
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Process id, and id of the process group that whatever the trainer starts belongs to."""
        return self._process.pid

    def facts(self, every_s: float) -> Iterator[Fact | None]:
        """Facts as they come, and a None whenever none came for `every_s` seconds; ends when the trainer does.

        Raises:
            TrainerFailed: it ended without a result.
        """
        while True:
            try:
                fact = self._facts.get(timeout=every_s)
            except queue.Empty:
                yield None
                continue
            if fact is None:
                break
            self._note(fact)
            yield fact
        exit_code = self._process.wait()
        if self.last is None or self.last["fact"] not in LAST_FACTS:
            if exit_code != -signal.SIGTERM:
                raise self._explain(exit_code)
            # It was told to stop before it could listen: a machine that shuts down.
            self.last = {"fact": "stopped", "step": None, "path": None}
        if self.last["fact"] == "failed":
            raise TrainerFailed(FailureReason(self.last["reason"]), str(self.last["message"]))

    def stop(self, deadline_s: float) -> Iterator[Fact]:
        """Ask it to finish its step and end, and give the facts that still come; kill it at `deadline_s`, monotonic."""
        self._process.terminate()
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                fact = self._facts.get(timeout=left_s)
            except queue.Empty:
                break
            if fact is None:
                return
            self._note(fact)
            yield fact
        self.kill()

    def hung(self, hang_s: float) -> TrainerFailed:
        """What to say of a trainer that says nothing. It writes where it stands into its log, then it is killed."""
        os.kill(self.pid, signal.SIGUSR1)  # faulthandler's, see worker/trainer.py
        time.sleep(1)
        self.kill()
        phase = self.last["fact"] if self.last else "its start"
        return TrainerFailed(
            FailureReason.HUNG,
            f"The trainer made no progress for {hang_s:.0f} s (LORAQ_HANG_S) after {phase}, and was ended. "
            "attempts/<number>/train.log in the output folder says where it stood.",
        )

    def kill(self) -> None:
        """End it and whatever it started, now."""
        if self._process.poll() is None:  # once it is waited for, its number may be another's
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _note(self, fact: Fact) -> None:
        """Remember the newest fact; but a failure stays, for another rank may not know of it yet, and go on."""
        if self.last is None or self.last["fact"] != "failed":
            self.last = fact

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._facts.put({"fact": "unnamed"} | json.loads(line))
            except (ValueError, TypeError):
                self._facts.put({"fact": "warning", "message": f"The trainer wrote to standard output: {line[:200]!r}"})
        self._facts.put(None)

    def _explain(self, exit_code: int) -> TrainerFailed:
        if exit_code == -signal.SIGKILL and _oom_kills() > self._oom_kills_before:
            return TrainerFailed(
                FailureReason.OUT_OF_MEMORY_HOST,
                "The kernel killed the trainer because the worker's memory (RAM) ran out. Give the worker more memory, "
                "or lower training.batch_size or training.resolution.",
            )
        if exit_code < 0:
            name = signal.Signals(-exit_code).name
            hint = " When memory (RAM) runs out, the kernel does this." if exit_code == -signal.SIGKILL else ""
            return TrainerFailed(
                FailureReason.CRASHED,
                f"The trainer was ended by signal {name}.{hint} See attempts/<number>/train.log in the output folder.",
            )
        return TrainerFailed(
            FailureReason.CRASHED, f"The trainer ended with code {exit_code} and no result: {self._last_log_line()}"
        )

    def _last_log_line(self) -> str:
        lines = self._log_file.read_text(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else "it wrote no log."


def trainer_environment(cpu_threads: int) -> dict[str, str]:
    """This process's own, without what is none of a trainer's business."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SECRET_PREFIXES)}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment["OMP_NUM_THREADS"] = str(cpu_threads)
    return environment


def _oom_kills() -> int:
    """How often the kernel killed something of this cgroup (v2) for want of memory."""
    try:
        events = dict(line.split() for line in _CGROUP_EVENTS.read_text().splitlines())
        return int(events["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0
