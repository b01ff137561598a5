"""Every error that a person may meet, and every reason for which a job may fail.

LoraqError                    `code` is stable and may be matched by programs; the message is for people
├── InvalidSpec               the spec cannot be carried out; `problems` lists every field at fault
├── JobNotFound               no such job, or another owner's
├── IdempotencyConflict       the key was used before, with another body
├── IllegalTransition         the status table has no such arrow
├── StaleAttempt              another attempt holds the job now: this one may write no more
├── TooManyJobs               so many jobs of this owner wait that no more are taken
├── NotRetryable              the job has not ended, or ended well: there is nothing to try again
└── StorageError              something about the bucket
    ├── ObjectNotFound        no such object or bucket
    ├── StorageDenied         the credentials are refused
    ├── CredentialsExpired    the credentials were good once
    ├── DiskFull              no room, on this machine or in the object store
    ├── StorageUnavailable    no answer, or only errors, after all retries
    └── UriNotAllowed         the URI lies outside the buckets and folders that the operator opened
"""

from dataclasses import dataclass
from enum import StrEnum


class FailureReason(StrEnum):
    """Why a job failed. The values are part of the API and never change."""

    INVALID_SPEC = "invalid_spec"
    DATASET_INVALID = "dataset_invalid"
    BASE_MODEL_INVALID = "base_model_invalid"
    GPU_MISSING = "gpu_missing"
    OUT_OF_MEMORY_GPU = "out_of_memory_gpu"
    OUT_OF_MEMORY_HOST = "out_of_memory_host"
    NAN_LOSS = "nan_loss"
    STORAGE_NOT_FOUND = "storage_not_found"
    STORAGE_DENIED = "storage_denied"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    DISK_FULL = "disk_full"
    RESUME_REFUSED = "resume_refused"
    TIMED_OUT = "timed_out"
    HUNG = "hung"
    CRASHED = "crashed"
    WORKER_LOST = "worker_lost"
    PREEMPTED = "preempted"

    @property
    def retryable(self) -> bool:
        """Whether the same spec may succeed on another try, with nothing changed by a person."""
        return self in _RETRYABLE


_RETRYABLE = {
    FailureReason.GPU_MISSING,  # another worker may have one that works
    FailureReason.OUT_OF_MEMORY_HOST,  # the kernel may have chosen this job for what a neighbour took
    FailureReason.STORAGE_DENIED,  # credentials may be renewed
    FailureReason.STORAGE_UNAVAILABLE,
    FailureReason.DISK_FULL,  # another worker may have room
    FailureReason.HUNG,
    FailureReason.CRASHED,
    FailureReason.WORKER_LOST,
}


class LoraqError(Exception):
    """Something that a person can act on."""

    code = "error"


@dataclass(frozen=True)
class Problem:
    """One field at fault."""

    field: str  # dotted path into the spec, "lora.rank"; "" for the spec as a whole
    message: str  # what is wrong, which value, which limit, what to do


class InvalidSpec(LoraqError):
    """The spec cannot be carried out as it is."""

    code = "invalid_spec"

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.field}: {p.message}" if p.field else p.message for p in problems))


class JobNotFound(LoraqError):
    """No job of that id is yours."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}. `loraq list` shows yours.")


class IdempotencyConflict(LoraqError):
    """An idempotency key names one submission for ever."""

    code = "idempotency_conflict"

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"This Idempotency-Key was used for job {job_id} with another body. Send a new key with a new body."
        )


class IllegalTransition(LoraqError):
    """The status table has no such arrow."""

    code = "illegal_transition"


class StaleAttempt(LoraqError):
    """Another attempt holds the job now, or the job has ended: this attempt may write no more."""

    code = "stale_attempt"


class TooManyJobs(LoraqError):
    """So many jobs of this owner wait that no more are taken."""

    code = "too_many_jobs"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs of yours wait, the limit (LORAQ_MAX_QUEUED_PER_OWNER). Wait until some have begun, or "
            "cancel some."
        )


class NotRetryable(LoraqError):
    """The job has not ended, or it ended well."""

    code = "not_retryable"


class StorageError(LoraqError):
    """Something about the bucket; `reason` is what it makes of a job that meets it."""

    code = "storage_error"
    reason = FailureReason.STORAGE_UNAVAILABLE


class ObjectNotFound(StorageError):
    """No such object or bucket."""

    code = "object_not_found"
    reason = FailureReason.STORAGE_NOT_FOUND


class StorageDenied(StorageError):
    """The object store refuses these credentials."""

    code = "storage_denied"
    reason = FailureReason.STORAGE_DENIED


class CredentialsExpired(StorageDenied):
    """The object store says that these credentials were good once."""

    code = "credentials_expired"


class DiskFull(StorageError):
    """No room for the bytes, on this machine or in the object store."""

    code = "disk_full"
    reason = FailureReason.DISK_FULL


class StorageUnavailable(StorageError):
    """The object store does not answer, or answers only with errors, after all retries."""

    code = "storage_unavailable"


class UriNotAllowed(StorageError):
    """The URI lies outside the buckets and folders that the operator opened."""

    code = "uri_not_allowed"
    reason = FailureReason.INVALID_SPEC
