"""Where a job stands, as one table. docs/lifecycle.md shows the same table, and a test compares them."""

from enum import StrEnum

from jobs.errors import IllegalTransition


class Status(StrEnum):
    """The seven places a job can be."""

    QUEUED = "queued"  # waits for a worker
    PREPARING = "preparing"  # an attempt fetches base model and dataset, and encodes them
    TRAINING = "training"  # optimizer steps run
    UPLOADING = "uploading"  # weights and pictures go to the bucket, then the manifest
    SUCCEEDED = "succeeded"  # the record names its manifest
    FAILED = "failed"  # ended with a reason
    CANCELLED = "cancelled"  # ended because its owner said so

    @property
    def final(self) -> bool:
        """Whether this is an end: nothing changes it any more."""
        return not TRANSITIONS[self]

    @property
    def running(self) -> bool:
        """Whether an attempt holds the job."""
        return self in (Status.PREPARING, Status.TRAINING, Status.UPLOADING)


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.PREPARING, Status.FAILED, Status.CANCELLED}),
    Status.PREPARING: frozenset({Status.TRAINING, Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    Status.TRAINING: frozenset({Status.UPLOADING, Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    Status.UPLOADING: frozenset({Status.SUCCEEDED, Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


def check_transition(current: Status, to: Status) -> None:
    """Raise IllegalTransition unless the table leads from `current` to `to`."""
    if to not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "nothing, it is final"
        raise IllegalTransition(f"A job that is {current} cannot become {to}; allowed: {allowed}.")
