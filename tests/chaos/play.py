"""Plays schedules on one system, one after another, and asks the oracle after each."""

import math
import secrets
import time
from collections import Counter

from jobs.record import JobRecord
from jobs.status import Status
from tests.chaos.oracle import Acknowledged, Weights, violations, violations_in_the_end, weights_of
from tests.chaos.people import People
from tests.chaos.schedule import OWNERS, REQUESTS, SPEC_SEEDS, STAGES, draw
from tests.chaos.system import GRACE_S, LEASE_S, WORKERS, System
from tests.chaos.watch import Watch

ENDS_WITHIN_S = 300.0
TICK_S = 0.05
CANCEL_WITHIN_S = GRACE_S + LEASE_S
"""From the answer to a cancel until the job's trainer is gone, counting no time in which a fault goes on. The lease is
for an attempt whose worker was struck just before.
"""


class Chaos:
    """One system, and all that was acknowledged and seen on it; a context manager."""

    def __init__(self, system: System, seed: int, reference: dict[int, Weights] | None = None) -> None:
        self.system = system
        self.seed = seed
        self.reference = {} if reference is None else reference  # weights by seed of the spec, undisturbed
        self.told = Acknowledged()  # of all schedules
        self.outcomes: Counter[str] = Counter()
        self._cancelled_s: dict[str, float] = {}  # job id: when its cancel was answered, in seconds of calm
        self._obeyed: set[str] = set()
        watching = [system.client_of(owner) for owner in OWNERS]
        self.watch = Watch(watching, system.folder / "s3" / "outputs" / "chaos")

    def __enter__(self) -> "Chaos":
        self.watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.__exit__()

    def learn_reference(self) -> None:
        """What each spec gives when nothing happens."""
        for spec_seed in SPEC_SEEDS:
            self.reference[spec_seed] = weights_of(self.system, self.undisturbed(spec_seed))

    def undisturbed(self, spec_seed: int) -> JobRecord:
        """A job that ends while nothing is struck."""
        job = self.system.clients["alice"].submit(self.system.spec(spec_seed))
        self.told.submitted[job.id] = spec_seed
        self._wait_for(Acknowledged(submitted={job.id: spec_seed}))
        return self.system.store.get(job.id)

    def play(self, number: int) -> list[str]:
        """One schedule. Returns what was broken."""
        told = Acknowledged()
        pending = list(draw(self.seed, number, WORKERS, LEASE_S))
        started_s = time.monotonic()
        reached_s: dict[str, float] = {}  # stages, and when the first job came there
        with People(self.system, f"{self.seed}-{number}-{secrets.token_hex(4)}", told) as people:
            while pending or not self.system.calm or not people.answered:
                now_s = time.monotonic()
                for stage in self._stages_reached(told):
                    reached_s.setdefault(stage, now_s)
                for action in [each for each in pending if now_s >= reached_s.get(each.stage, math.inf) + each.at_s]:
                    pending.remove(action)
                    if action.kind in REQUESTS:
                        people.ask(action)
                    else:
                        self.system.strike(action.kind, action.number, action.seconds)
                self._tick(told)
                if time.monotonic() - started_s > ENDS_WITHIN_S:
                    told.broken.append("a request was not answered")
                    break
        self._wait_for(told)
        self._wait_for_strays()
        broken = list(violations(self.system, told, self.watch, self.reference))
        broken += [f"{stray} is left over" for stray in self.system.strays()]
        self.told.submitted |= told.submitted
        self._count(told)
        return broken

    def end(self) -> list[str]:
        """What is broken after all schedules. A last job collects what those that were killed have left."""
        self.undisturbed(SPEC_SEEDS[0])
        self._wait_for_strays()
        return list(violations_in_the_end(self.system, self.told, self.watch))

    def _stages_reached(self, told: Acknowledged) -> set[str]:
        """How far the schedule's jobs have come, all told. One that has ended has come past every stage."""
        reached = {"start"}
        for job_id in list(told.submitted):
            status = self.watch.statuses.get(job_id, Status.QUEUED)
            if status.final or status is Status.UPLOADING:
                return set(STAGES)
            if status is Status.TRAINING:
                reached |= {"preparing", "training"} | ({"checkpoint"} if job_id in self.watch.checkpoints else set())
            elif status is Status.PREPARING:
                reached.add("preparing")
        return reached

    def _tick(self, told: Acknowledged) -> None:
        self.system.keep_up()
        self._check_cancels(told)
        time.sleep(TICK_S)

    def _check_cancels(self, told: Acknowledged) -> None:
        """A job that was to be cancelled has no trainer any more, when its time is over."""
        for job_id in list(told.cancelled):
            since_s = self._cancelled_s.setdefault(job_id, self.system.calm_s)
            if self.system.calm_s - since_s > CANCEL_WITHIN_S and job_id not in self._obeyed:
                self._obeyed.add(job_id)
                if trainers := self.system.trainers(job_id):
                    told.broken.append(f"{job_id} was cancelled, and {trainers} train on after {CANCEL_WITHIN_S} s")

    def _wait_for(self, told: Acknowledged) -> None:
        deadline = time.monotonic() + ENDS_WITHIN_S
        left = set(told.submitted)
        while left and time.monotonic() < deadline:
            self._tick(told)
            left = {job_id for job_id in left if not self.system.store.get(job_id).status.final}

    def _wait_for_strays(self) -> None:
        """Let those go that have just ended their last job."""
        deadline = time.monotonic() + GRACE_S
        while self.system.strays() and time.monotonic() < deadline:
            self.system.keep_up()
            time.sleep(TICK_S)

    def _count(self, told: Acknowledged) -> None:
        for job_id in told.submitted:
            record = self.system.store.get(job_id)
            resumed = [attempt for attempt in record.attempts if attempt.resumed_from_step is not None]
            self.outcomes["jobs"] += 1
            self.outcomes[record.status] += 1
            self.outcomes["attempts"] += len(record.attempts)
            self.outcomes["attempts that went on from a checkpoint"] += len(resumed)
            for attempt in record.attempts:
                if attempt.failure is not None:
                    self.outcomes[f"attempts that ended as {attempt.failure.reason}"] += 1
                elif attempt.outcome == "preempted":
                    self.outcomes["attempts that ended as preempted"] += 1
