"""What must be true after any schedule, checked from what was acknowledged and what lies in Redis and in the bucket."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import safetensors.numpy

from jobs import events
from jobs.errors import JobNotFound, ObjectNotFound
from jobs.manifest import MANIFEST_NAME, Manifest
from jobs.record import JobRecord
from jobs.status import Status
from jobs.uri import S3Uri
from tests.chaos.system import MAX_FAILURES, System

Weights = dict[str, bytes]


@dataclass
class Acknowledged:
    """What the system has promised."""

    submitted: dict[str, int] = field(default_factory=dict)  # job id: seed of its spec
    cancelled: dict[str, str] = field(default_factory=dict)  # job id: status in the answer to the cancel


def violations(system: System, told: Acknowledged, reference: dict[int, Weights]) -> Iterator[str]:
    """Every promise that is broken, one sentence each."""
    for job_id, seed in told.submitted.items():
        try:
            record = system.store.get(job_id)
        except JobNotFound:
            yield f"{job_id} was acknowledged and is lost"
            continue
        yield from _of_job(system, record, told, reference.get(seed))
    if held := system.store.running():
        yield f"{sorted(held)} have ended and are still held"


def weights_of(system: System, record: JobRecord) -> Weights:
    """The adapter that a job left, tensor by tensor."""
    folder = S3Uri.parse(record.output_uri)
    manifest = Manifest.model_validate_json(system.storage.read(folder / MANIFEST_NAME))
    (adapter,) = (file for file in manifest.files if file.path == "lora.safetensors")
    data = system.storage.read(folder / adapter.stored_as)
    return {name: tensor.tobytes() for name, tensor in safetensors.numpy.load(data).items()}


def _of_job(system: System, record: JobRecord, told: Acknowledged, reference: Weights | None) -> Iterator[str]:
    if not record.status.final:
        yield f"{record.id} has not ended: {record.status}"
        return
    moves = [event.data["to"] for event in events.read(system.store.redis, record.id) if event.kind == "status"]
    finals = [status for status in moves if Status(str(status)).final]
    if finals != [record.status] or moves[-1] != record.status:
        yield f"{record.id} is {record.status}, but its events say {moves}"
    if [attempt.number for attempt in record.attempts] != list(range(1, len(record.attempts) + 1)):
        yield f"{record.id} has attempts {[attempt.number for attempt in record.attempts]}"
    failures = sum(attempt.outcome == "failed" for attempt in record.attempts)
    if failures > MAX_FAILURES:
        yield f"{record.id} was tried again after {failures} failures, the limit is {MAX_FAILURES}"
    if record.status is Status.FAILED and failures < MAX_FAILURES:
        yield f"{record.id} failed with budget left: {record.failure}"
    if record.status is Status.CANCELLED and record.cancel_requested_at is None:
        yield f"{record.id} is cancelled, and nobody asked for it"
    if told.cancelled.get(record.id) == "cancelled" and record.status is not Status.CANCELLED:
        yield f"{record.id} was acknowledged as cancelled and is {record.status}"
    if record.status is Status.SUCCEEDED:
        yield from _of_output(system, record, reference)


def _of_output(system: System, record: JobRecord, reference: Weights | None) -> Iterator[str]:
    folder = S3Uri.parse(record.output_uri)
    try:
        manifest = Manifest.model_validate_json(system.storage.read(folder / MANIFEST_NAME))
    except ObjectNotFound:
        yield f"{record.id} succeeded and has no manifest"
        return
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
