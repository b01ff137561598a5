"""The job record: the one truth about a job. Redis holds it as JSON; RQ carries nothing but its id."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.errors import FailureReason, IllegalTransition
from jobs.gpu_class import GpuClass
from jobs.needs import needed_class
from jobs.retries import RetryPolicy
from jobs.spec import JobSpec
from jobs.status import Status, check_transition


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def new_job_id(at: datetime) -> str:
    """An id that sorts by time, reads in a folder listing and cannot be guessed: 20261123-234512417-9f2c4ab1d0."""
    return f"{at:%Y%m%d-%H%M%S}{at.microsecond // 1000:03d}-{secrets.token_hex(5)}"


class Failure(BaseModel):
    """Why a job, or one attempt at it, ended other than well."""

    model_config = ConfigDict(frozen=True)

    reason: FailureReason
    message: str = Field(description="One sentence for a person: what went wrong, and what to do.")


class Attempt(BaseModel):
    """One try at a job, on one worker."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(ge=1, description="Counts from 1; it is the fencing token of every write of this attempt.")
    worker: str = Field(description="Name of the worker that holds or held it.")
    started_at: datetime
    resumed_from_step: int | None = Field(default=None, description="Step of the checkpoint it went on from, if any.")
    ended_at: datetime | None = None
    outcome: str | None = Field(
        default=None, description="succeeded, failed, cancelled or preempted; None while it runs."
    )
    failure: Failure | None = None


class Commit(BaseModel):
    """Which manifest is the job's output. Decided once, by the attempt that holds the job, and for ever."""

    model_config = ConfigDict(frozen=True)

    attempt: int = Field(ge=1, description="In whose folder the manifest lies.")
    sha256: str = Field(description="Of the manifest's bytes.")


class JobRecord(BaseModel):
    """A job from acknowledgement to its end. Immutable: every change makes a new record."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    spec: JobSpec
    status: Status = Status.QUEUED
    created_at: datetime
    updated_at: datetime
    attempts: tuple[Attempt, ...] = ()
    not_before: datetime | None = None  # when a job that waits after a failure may be tried again
    cancel_requested_at: datetime | None = None
    failure: Failure | None = None
    commit: Commit | None = None  # from here on the job can but succeed
    retry_of: tuple[str, ...] = ()  # the jobs that this one tries again, the newest first: it may use their checkpoints
    needs: str  # class of GPUs, by name: fixed at submission, because a waiting job lies in the list of its class

    @classmethod
    def create(cls, owner: str, spec: JobSpec, retry_of: tuple[str, ...] = ()) -> Self:
        """A new job in the queue."""
        at = now()
        needs = needed_class(spec).name
        return cls(
            id=new_job_id(at), owner=owner, spec=spec, created_at=at, updated_at=at, retry_of=retry_of, needs=needs
        )

    @model_validator(mode="before")
    @classmethod
    def _needs_from_spec(cls, data: Any) -> Any:
        if isinstance(data, dict) and "needs" not in data and "spec" in data:
            spec = JobSpec.model_validate(data["spec"])
            return cast(dict[str, Any], data) | {"needs": needed_class(spec).name}
        return cast(Any, data)

    @property
    def gpu_class(self) -> GpuClass:
        """What it needs."""
        return GpuClass.parse(self.needs)

    @property
    def output_uri(self) -> str:
        """Where everything that the job leaves lies: `<output.uri>/<job id>/`."""
        return f"{self.spec.output.uri.rstrip('/')}/{self.id}/"

    @property
    def checkpoint_uris(self) -> tuple[str, ...]:
        """Folders whose checkpoints an attempt may go on from, the best first: its own, then those it tries again."""
        return tuple(f"{self.spec.output.uri.rstrip('/')}/{job_id}/" for job_id in (self.id, *self.retry_of))

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt, running or ended."""
        return self.attempts[-1] if self.attempts else None


def advance(record: JobRecord, to: Status, failure: Failure | None = None) -> JobRecord:
    """The record one arrow further in the status table.

    Ends the running attempt when the job leaves the worker: at a final status, and when it goes back to the queue.

    Raises:
        IllegalTransition: the table has no such arrow, or the job has an output and was to end otherwise, or has none.
    """
    check_transition(record.status, to)
    if (record.commit is not None) is not (to is Status.SUCCEEDED):
        has = "has committed its output" if record.commit else "has committed no output"
        raise IllegalTransition(f"Job {record.id} {has}: it cannot become {to}.")
    at = now()
    attempts = record.attempts
    if record.status.running and not to.running:
        outcome = "preempted" if to is Status.QUEUED and failure is None else "failed" if failure else str(to)
        ended = attempts[-1].model_copy(update={"ended_at": at, "outcome": outcome, "failure": failure})
        attempts = (*attempts[:-1], ended)
    return record.model_copy(
        update={
            "status": to,
            "updated_at": at,
            "attempts": attempts,
            "not_before": None,
            "failure": failure if to is Status.FAILED else None,
        }
    )


def begin_attempt(record: JobRecord, worker: str) -> JobRecord:
    """The record claimed by `worker`: preparing, with attempt n + 1 as its fencing token."""
    attempt = Attempt(number=len(record.attempts) + 1, worker=worker, started_at=now())
    return advance(record, Status.PREPARING).model_copy(update={"attempts": (*record.attempts, attempt)})


def commit(record: JobRecord, manifest_sha256: str) -> JobRecord:
    """The record with its output decided; unchanged if a cancel came first.

    A job that has been committed ends well whatever befalls its attempt from here on.

    Args:
        manifest_sha256: of the manifest in the folder of the attempt that holds the job.
    """
    if record.status is not Status.UPLOADING or record.attempt is None:
        raise IllegalTransition(f"Job {record.id} is {record.status}: only one that is uploading is committed.")
    if record.commit is not None or record.cancel_requested_at is not None:
        return record
    decided = Commit(attempt=record.attempt.number, sha256=manifest_sha256)
    return record.model_copy(update={"commit": decided, "updated_at": now()})


def give_back(record: JobRecord, failure: Failure | None, policy: RetryPolicy) -> JobRecord:
    """The record after an attempt that ended early: to be tried again, failed for good, or cancelled; or
    succeeded, if it had committed its output before.

    Args:
        failure: what went wrong; None if its worker was told to stop, which costs the job nothing.
    """
    if record.commit is not None:
        return advance(record, Status.SUCCEEDED)
    if record.cancel_requested_at is not None:
        return advance(record, Status.CANCELLED, failure)
    if failure is None:
        preemptions = 1 + sum(attempt.outcome == "preempted" for attempt in record.attempts)
        if preemptions <= policy.max_preemptions:
            return advance(record, Status.QUEUED)
        message = f"Workers were stopped under it {preemptions} times, the limit is {policy.max_preemptions}."
        return advance(record, Status.FAILED, Failure(reason=FailureReason.PREEMPTED, message=message))
    if not failure.reason.retryable:
        return advance(record, Status.FAILED, failure)
    failures = 1 + sum(attempt.outcome == "failed" for attempt in record.attempts)
    if failures >= policy.max_failures:
        last = f"{failure.message} That was failure {failures} of at most {policy.max_failures}: loraq stops trying."
        return advance(record, Status.FAILED, Failure(reason=failure.reason, message=last))
    waiting = advance(record, Status.QUEUED, failure)
    return waiting.model_copy(update={"not_before": now() + timedelta(seconds=policy.wait_s(failures))})
