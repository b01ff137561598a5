"""Strikes the real system and checks its promises: `python -m tests.chaos.run --schedules N --seed S`."""

import argparse
import logging
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.oracle import Weights
from tests.chaos.play import Chaos
from tests.chaos.processes import processes_of
from tests.chaos.schedule import draw
from tests.chaos.system import LEASE_S, WORKERS, System
from worker.model.tiny import write_tiny_base

PHOTOS = Path(__file__).parents[2] / "jobs" / "examples" / "photos"
LANES = 2
"""Systems that are struck at once: while one waits for a lease to end, the other has the machine."""


@dataclass
class Report:
    """What all schedules together came to."""

    played: int = 0
    broken: dict[str, list[str]] = field(default_factory=dict)  # by the schedule's number, or the system's
    outcomes: Counter[str] = field(default_factory=Counter)
    strikes: Counter[str] = field(default_factory=Counter)  # by kind of action
    looks: int = 0  # at the statuses of all jobs

    def lines(self) -> Iterator[str]:
        """For people."""
        for name, sentences in self.broken.items():
            yield f"BROKEN, {name}:"
            yield from (f"    {sentence}" for sentence in sentences)
        for counts in (self.outcomes, self.strikes):
            yield ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) + "."
        yield f"{self.looks} looks at the statuses of all jobs."


@contextmanager
def running_system(base_model: Path) -> Iterator[System]:
    """A system in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loraq-chaos-", ignore_cleanup_errors=True) as name:
        with System(Path(name) / "system", base_model, PHOTOS) as system:
            yield system
        if left := list(processes_of(Path(name))):
            raise AssertionError(f"These outlive the system: {left}")


class Run:
    """Schedules, played in lanes: each has a system of its own, and takes the next schedule when it has ended one."""

    def __init__(self, seed: int, numbers: Iterable[int], base_model: Path, say: bool = False) -> None:
        self.report = Report()
        self._seed = seed
        self._numbers = iter(numbers)
        self._base_model = base_model
        self._say = say
        self._reference: dict[int, Weights] = {}
        self._learned = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def play(self, lanes: int = LANES) -> Report:
        """Play them all."""
        with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
            playing = [pool.submit(self._play_lane, lane) for lane in range(lanes)]
            if any(lane.exception() for lane in as_completed(playing)):
                self.stop()  # a lane that fails ends the run: nobody has heard of what it played
        for lane in playing:
            lane.result()
        return self.report

    def stop(self) -> None:
        """Begin no more schedules: what has been played is reported."""
        self._stopping.set()

    def _play_lane(self, lane: int) -> None:
        with running_system(self._base_model) as system, Chaos(system, self._seed, self._reference) as chaos:
            if lane == 0:
                try:
                    chaos.learn_reference()
                finally:
                    self._learned.set()
            self._learned.wait()
            while (number := self._next()) is not None:
                at_s = time.monotonic()
                broken = chaos.play(number)
                kinds = [action.kind for action in draw(self._seed, number, WORKERS, LEASE_S)]
                self._note(f"schedule {number}", broken, f" in {time.monotonic() - at_s:.1f} s ({', '.join(kinds)})")
                self.report.strikes.update(kinds)
            self._note(f"system {lane} in the end", chaos.end())
            with self._lock:
                self.report.outcomes += chaos.outcomes
                self.report.looks += chaos.watch.looks

    def _next(self) -> int | None:
        with self._lock:
            return None if self._stopping.is_set() else next(self._numbers, None)

    def _note(self, name: str, broken: list[str], details: str = "") -> None:
        with self._lock:
            self.report.played += name.startswith("schedule")
            if broken:
                self.report.broken[name] = broken
            if self._say:
                print(f"{name}: {'BROKEN' if broken else 'ok'}{details}", *broken, sep="\n    ", flush=True)


def main() -> int:
    """Play the schedules. Returns 1 if anything was broken."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same schedules")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to play one again")
    parser.add_argument("--lanes", type=int, default=LANES, help="systems that are struck at once")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="loraq-chaos-base-") as name:
        base = write_tiny_base(Path(name), layout="single_file")["single_file"]
        run = Run(options.seed, range(options.first, options.first + options.schedules), base, say=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: run.stop())
        report = run.play(options.lanes)
    minutes = (time.monotonic() - started_s) / 60
    print(f"{report.played} schedules of seed {options.seed} in {minutes:.1f} min, {len(report.broken)} broken.")
    print(*report.lines(), sep="\n", flush=True)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
