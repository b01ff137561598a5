"""Strikes the real system and checks its promises: `python -m tests.chaos.run --schedules N --seed S`."""

import argparse
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.client_errors import ApiError
from tests.chaos.oracle import Acknowledged, Weights, violations, weights_of
from tests.chaos.schedule import SPEC_SEEDS, Action, draw
from tests.chaos.system import LEASE_S, WORKERS, System
from worker.model.tiny import write_tiny_base

PHOTOS = Path(__file__).parents[2] / "jobs" / "examples" / "photos"
ENDS_WITHIN_S = 150.0
TICK_S = 0.1


@contextmanager
def running_system() -> Iterator[System]:
    """A system in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loraq-chaos-", ignore_cleanup_errors=True) as name:
        base = write_tiny_base(Path(name) / "base")["single_file"]
        with System(Path(name) / "system", base, PHOTOS) as system:
            yield system


class Chaos:
    """Many schedules, one after another, on one system."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.seed = seed
        self.outcomes: Counter[str] = Counter()
        self.attempts = 0
        self.reference: dict[int, Weights] = {}

    def learn_reference(self) -> None:
        """What each spec gives when nothing happens."""
        told = Acknowledged()
        for spec_seed in SPEC_SEEDS:
            job = self.system.clients["alice"].submit(self.system.spec(spec_seed))
            told.submitted[job.id] = spec_seed
        self._wait_for_all(told)
        for job_id, spec_seed in told.submitted.items():
            self.reference[spec_seed] = weights_of(self.system, self.system.store.get(job_id))

    def play(self, number: int) -> list[str]:
        """One schedule. Returns what was broken."""
        actions = draw(self.seed, number, WORKERS, LEASE_S)
        told, submitted = Acknowledged(), dict[int, str]()
        started_s = time.monotonic()
        pending = list(actions)
        while pending or not self.system.calm:
            self.system.keep_up()
            while pending and time.monotonic() - started_s >= pending[0].at_s:
                action = pending.pop(0)
                if not self._do(action, number, told, submitted):
                    pending.append(action)  # not acknowledged: the client tries again
                    break
            time.sleep(TICK_S)
        self._wait_for_all(told)
        broken = list(violations(self.system, told, self.reference))
        for job_id in told.submitted:
            record = self.system.store.get(job_id)
            self.outcomes[record.status] += 1
            self.attempts += len(record.attempts)
        if trainers := self._trainers_left():
            broken.append(f"trainers {trainers} are left over")
        return broken

    def _do(self, action: Action, number: int, told: Acknowledged, submitted: dict[int, str]) -> bool:
        """Do it. False if a request was not acknowledged."""
        system = self.system
        try:
            if action.kind == "submit":
                key = f"{self.seed}-{number}-{action.number}-{id(self)}"
                job = system.clients[action.owner].submit(system.spec(action.spec_seed), key)
                told.submitted[job.id] = action.spec_seed
                submitted[action.number] = job.id
            elif action.kind == "cancel":
                job_id = submitted.get(action.number)
                if job_id is None:
                    return False  # its submission is not acknowledged yet
                owner = system.store.get(job_id).owner
                told.cancelled[job_id] = system.clients[owner].cancel(job_id).status
            else:
                system.strike(action.kind, action.number, action.seconds)
        except (ApiError, OSError):
            return False
        except Exception as error:
            if type(error).__module__.startswith("redis"):
                return False
            raise
        return True

    def _wait_for_all(self, told: Acknowledged) -> None:
        deadline = time.monotonic() + ENDS_WITHIN_S
        while time.monotonic() < deadline:
            self.system.keep_up()
            if all(self.system.store.get(job_id).status.final for job_id in told.submitted):
                return
            time.sleep(TICK_S)

    def _trainers_left(self) -> list[int]:
        """Trainers that go on five seconds after the last job has ended."""
        deadline = time.monotonic() + 5
        while (left := self.system.trainers()) and time.monotonic() < deadline:
            time.sleep(TICK_S)
        return left


def main() -> int:
    """Play the schedules. Returns 1 if anything was broken."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same schedules")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to play one again")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the system ends with this process
    failed = 0
    started_s = time.monotonic()
    with running_system() as system:
        chaos = Chaos(system, options.seed)
        chaos.learn_reference()
        for number in range(options.first, options.first + options.schedules):
            at_s = time.monotonic()
            broken = chaos.play(number)
            kinds = ", ".join(action.kind for action in draw(options.seed, number, WORKERS, LEASE_S))
            print(f"{number}: {'BROKEN' if broken else 'ok'} in {time.monotonic() - at_s:.1f} s ({kinds})", flush=True)
            for sentence in broken:
                print(f"    {sentence}", flush=True)
            failed += bool(broken)
    outcomes = ", ".join(f"{count} {status}" for status, count in sorted(chaos.outcomes.items()))
    minutes = (time.monotonic() - started_s) / 60
    print(f"{options.schedules} schedules in {minutes:.1f} min, {failed} broken.")
    print(f"Jobs: {outcomes}, in {chaos.attempts} attempts.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
