"""What must be true after any schedule, checked from what was acknowledged, what was seen on the way, and what lies in
Redis, in the bucket and on the disk. Every promise that is broken is one sentence."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import safetensors.numpy

from jobs import events
from jobs.errors import FailureReason, JobNotFound, ObjectNotFound, StorageError
from jobs.manifest import MANIFEST_NAME, Manifest, read_committed
from jobs.record import JobRecord
from jobs.status import TRANSITIONS, Status
from jobs.uri import S3Uri
from tests.chaos.system import MAX_FAILURES, MAX_PREEMPTIONS, System
from tests.chaos.watch import Watch

Weights = dict[str, bytes]

MAY_PASS = {FailureReason.CRASHED, FailureReason.WORKER_LOST, FailureReason.STORAGE_UNAVAILABLE}
"""Why an attempt may fail under chaos: nothing that is struck makes a picture bad or a spec wrong."""


@dataclass(frozen=True)
class Cancel:
    """The answer to a cancel."""

    status: Status
    at: datetime


@dataclass
class Acknowledged:
    """What the system has promised."""

    submitted: dict[str, int] = field(default_factory=dict)  # job id: seed of its spec
    cancelled: dict[str, Cancel] = field(default_factory=dict)  # by job id: the first answer
    broken: list[str] = field(default_factory=list)  # what an answer itself has broken


def violations(system: System, told: Acknowledged, watch: Watch, reference: dict[int, Weights]) -> Iterator[str]:
    """After a schedule whose jobs have ended."""
    yield from told.broken
    yield from watch.broken
    for job_id, seed in told.submitted.items():
        try:
            record = system.store.get(job_id)
        except JobNotFound:
            yield f"{job_id} was acknowledged and is lost"
            continue
        watch.saw(job_id, record.status)
        if not record.status.final:
            yield f"{job_id} has not ended: {record.status}"
            continue
        yield from _of_history(system, record)
        yield from _of_budgets(record)
        cancel = told.cancelled.get(job_id)
        yield from _of_cancel(record, cancel)
        yield from _of_output(system, record, cancel, watch, reference.get(seed))
    if held := system.store.running():
        yield f"{sorted(held)} have ended and are still held"


def violations_in_the_end(system: System, told: Acknowledged, watch: Watch) -> Iterator[str]:
    """After all schedules and one last job that nothing disturbed.

    Args:
        told: of all schedules together.
    """
    watch.look_at_commits()
    for job_id in told.submitted:
        status = system.store.get(job_id).status
        watch.saw(job_id, status)  # still what it was
        if status is Status.SUCCEEDED and job_id not in watch.commits:
            yield f"{job_id} succeeded, and nobody has published its manifest"
    yield from watch.broken
    if unknown := _all_jobs(system) - told.submitted.keys():
        yield f"{sorted(unknown)} are there, and nobody was told of them"
    if left := sorted(path.name for path in (system.settings.data_dir / "scratch").iterdir()):
        yield f"scratch folders are left over: {left}"
    if count := _uploads_left(system):
        yield f"{count} multipart uploads are left over"
    if strays := system.strays():
        yield f"processes are left over: {strays}"


def weights_of(system: System, record: JobRecord) -> Weights:
    """The adapter that a job left, tensor by tensor."""
    folder = S3Uri.parse(record.output_uri)
    manifest = Manifest.model_validate_json(read_committed(system.storage, record))
    (adapter,) = (file for file in manifest.files if file.path == "lora.safetensors")
    data = system.storage.read(folder / adapter.stored_as)
    return {name: tensor.tobytes() for name, tensor in safetensors.numpy.load(data).items()}


def _of_history(system: System, record: JobRecord) -> Iterator[str]:
    """The events tell the same story as the record, along the arrows of the table."""
    told = [event for event in events.read(system.store.redis, record.id) if event.kind == "status"]
    moves = [Status(str(event.data["to"])) for event in told]
    if moves[:1] != [Status.QUEUED] or moves[-1] is not record.status:
        yield f"{record.id} is {record.status}, but its events say {moves}"
    if any(after not in TRANSITIONS[before] for before, after in itertools.pairwise(moves)):
        yield f"{record.id} went a way that the table does not have: {moves}"
    if [attempt.number for attempt in record.attempts] != list(range(1, len(record.attempts) + 1)):
        yield f"{record.id} has attempts {[attempt.number for attempt in record.attempts]}"
    if open_ones := [attempt.number for attempt in record.attempts if attempt.outcome is None]:
        yield f"{record.id} has ended, and attempts {open_ones} have not"


def _of_budgets(record: JobRecord) -> Iterator[str]:
    failed = [attempt.failure for attempt in record.attempts if attempt.outcome == "failed"]
    preemptions = sum(attempt.outcome == "preempted" for attempt in record.attempts)
    if len(failed) > MAX_FAILURES:
        yield f"{record.id} was tried again after {len(failed)} failures, the limit is {MAX_FAILURES}"
    if preemptions > MAX_PREEMPTIONS:
        yield f"{record.id} was tried again after {preemptions} preemptions, the limit is {MAX_PREEMPTIONS}"
    if record.status is Status.FAILED and len(failed) < MAX_FAILURES:
        yield f"{record.id} failed with budget left: {record.failure}"
    for failure in failed:
        if failure is None or failure.reason not in MAY_PASS:
            yield f"{record.id} had an attempt that failed for what cannot be: {failure}"


def _of_cancel(record: JobRecord, cancel: Cancel | None) -> Iterator[str]:
    if record.status is Status.CANCELLED and record.cancel_requested_at is None:
        yield f"{record.id} is cancelled, and nobody asked for it"
    if cancel is not None and cancel.status.final and record.status is not cancel.status:
        yield f"{record.id} was acknowledged as {cancel.status} and is {record.status}"
    if cancel is not None and not cancel.status.final and record.status is Status.FAILED:
        yield f"{record.id} was to be cancelled, and failed"


def _of_output(
    system: System, record: JobRecord, cancel: Cancel | None, watch: Watch, reference: Weights | None
) -> Iterator[str]:
    folder = S3Uri.parse(record.output_uri)
    published = _published(system, record)
    try:
        content = read_committed(system.storage, record)
    except ObjectNotFound:
        if record.status is Status.SUCCEEDED:
            yield f"{record.id} succeeded and has no manifest"
        if published is not None:
            yield f"{record.id} is {record.status}, has committed nothing, and has a manifest"
        return
    if published not in (None, content):  # None: the mirror has yet to come round
        yield f"{record.id}: another manifest than the committed one is published"
    manifest = Manifest.model_validate_json(content)
    seen = watch.commits.get(record.id)
    if seen is not None and seen.sha256 != hashlib.sha256(content).hexdigest():
        yield f"{record.id} has another manifest than was seen before"
    if record.status is not Status.SUCCEEDED:
        yield f"{record.id} is {record.status}, and attempt {manifest.attempt} has committed an output"
    if cancel is not None and manifest.committed_at > cancel.at:
        yield f"{record.id} was committed at {manifest.committed_at}, and its cancel acknowledged at {cancel.at}"
    for file in manifest.files:
        try:
            data = system.storage.read(folder / file.stored_as)
        except ObjectNotFound:
            yield f"{record.id}: {file.stored_as} is in the manifest and not in the bucket"
            continue
        if (len(data), hashlib.sha256(data).hexdigest()) != (file.size_bytes, file.sha256):
            yield f"{record.id}: {file.stored_as} is not what the manifest says"
    if reference is not None and weights_of(system, record) != reference:
        yield f"{record.id}: the weights differ from those of the undisturbed run"


def _published(system: System, record: JobRecord) -> bytes | None:
    try:
        return system.storage.read(S3Uri.parse(record.output_uri) / MANIFEST_NAME)
    except ObjectNotFound:
        return None


def _uploads_left(system: System) -> int:
    try:
        return system.storage.abort_uploads(S3Uri.parse("s3://outputs/"))
    except StorageError as error:
        if "NoSuchUpload" in str(error):  # what rclone says of a bucket that never had one
            return 0
        raise


def _all_jobs(system: System) -> set[str]:
    """Every job that an owner sees, page by page."""
    found: set[str] = set()
    for client in system.clients.values():
        cursor: str | None = None
        while True:
            page = client.list(limit=200, cursor=cursor)
            found |= {job.id for job in page.jobs}
            if (cursor := page.next_cursor) is None:
                break
    return found
