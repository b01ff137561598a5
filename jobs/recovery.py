"""Rebuilds the records that Redis has lost, from their copies, checkpoints and manifests in the bucket."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs import archive_index
from jobs.errors import JobNotFound, StorageError
from jobs.manifest import MANIFEST_NAME, Manifest, own_manifest
from jobs.mirror import RECORD_NAME
from jobs.record import Attempt, Commit, JobRecord, now
from jobs.settings import Settings
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import Store
from jobs.uri import S3Uri

_ATTEMPT = re.compile(r"attempts/(\d{1,6})/")


class Recovered(BaseModel):
    """What was done about one job's folder."""

    model_config = ConfigDict(frozen=True)

    folder: str
    state: Literal["recovered", "known", "unreadable"] = Field(description="known: Redis has it, and nothing was done.")
    job_id: str = ""
    owner: str = ""
    status: Status | None = Field(default=None, description="In Redis, from now on.")
    message: str = ""


def recover(store: Store, storage: Storage, settings: Settings, dry_run: bool = False) -> Iterator[Recovered]:
    """Look at every job's folder below LORAQ_WRITABLE, and write what Redis lacks.

    A job whose manifest is published has succeeded, whatever its copy says; one that had ended stays as it was; any
    other waits in the queue again, cancelled if that was asked for. Attempts count on behind every one that wrote into
    the bucket, so that one which still runs somewhere can write no more.
    """
    for folder, names in _job_folders(storage, settings).items():
        try:
            yield _recover(store, storage, folder, names, dry_run)
        except (ValidationError, StorageError, ValueError) as error:
            yield Recovered(folder=str(folder), state="unreadable", message=str(error))


def _recover(store: Store, storage: Storage, folder: S3Uri, names: list[str], dry_run: bool) -> Recovered:
    record = JobRecord.model_validate_json(storage.read(folder / RECORD_NAME))
    if record.output_uri != str(folder):
        raise ValueError(f"It is the record of another folder, {record.output_uri}: it was copied here.")
    if archived := archive_index.find(store.redis, record.owner, record.id):
        return Recovered(
            folder=str(folder), state="known", job_id=record.id, owner=record.owner, status=archived.status
        )
    new = _restored(record, names, record.commit or _published(storage, folder, names, record.id))
    known = _known(store, record.id) if dry_run else not store.restore(new)
    status = store.get(record.id).status if known else new.status
    state = "known" if known else "recovered"
    return Recovered(folder=str(folder), state=state, job_id=record.id, owner=record.owner, status=status)


def _job_folders(storage: Storage, settings: Settings) -> dict[S3Uri, list[str]]:
    """The names below each folder that has a record."""
    folders: defaultdict[S3Uri, list[str]] = defaultdict(list)
    for root in sorted({writable.partition("{owner}")[0] for writable in settings.writable}):
        uris = [each.uri for each in storage.list(S3Uri.parse(root))]
        found = {uri.key.removesuffix(RECORD_NAME) for uri in uris if uri.key.endswith(f"/{RECORD_NAME}")}
        for uri in uris:
            parts = uri.key.split("/")
            for depth in range(1, len(parts)):
                if (key := "/".join(parts[:depth]) + "/") in found:
                    folders[S3Uri(uri.bucket, key)].append(uri.key.removeprefix(key))
    return folders


def _restored(record: JobRecord, names: list[str], commit: Commit | None) -> JobRecord:
    status = record.status
    if commit:
        status = Status.SUCCEEDED
    elif not status.final:
        status = Status.QUEUED if record.cancel_requested_at is None else Status.CANCELLED
    outcome = "succeeded" if commit else "preempted"
    attempts = [
        attempt if attempt.ended_at else attempt.model_copy(update={"ended_at": now(), "outcome": outcome})
        for attempt in record.attempts
    ]
    wrote = max((int(found[1]) for name in names if (found := _ATTEMPT.match(name))), default=0)
    # One more than is known: an attempt may have begun that has written nothing yet, and the copy may not know it.
    last = wrote if status.final else max(wrote, len(attempts)) + 1
    for number in range(len(attempts) + 1, last + 1):
        attempts.append(
            Attempt(number=number, worker="unknown", started_at=record.updated_at, ended_at=now(), outcome=outcome)
        )
    updated_at = record.updated_at if record.status.final else now()  # of one that had ended, it says when
    changes = {"status": status, "attempts": tuple(attempts), "not_before": None, "commit": commit}
    changes |= {"updated_at": updated_at, "failure": None if commit else record.failure}
    return record.model_copy(update=changes)


def _published(storage: Storage, folder: S3Uri, names: list[str], job_id: str) -> Commit | None:
    """What was committed, where a manifest of this job is published. What is no manifest, no attempt wrote."""
    if MANIFEST_NAME not in names:
        return None
    raw = storage.read(folder / MANIFEST_NAME)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError:
        return None
    if manifest.job_id != job_id or own_manifest(manifest.attempt) not in names:
        return None
    return Commit(attempt=manifest.attempt, sha256=hashlib.sha256(raw).hexdigest())


def _known(store: Store, job_id: str) -> bool:
    try:
        store.get(job_id)
    except JobNotFound:
        return False
    return True
