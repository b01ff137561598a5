"""Checkpoints in the bucket: put there in the background while training goes on, and found again by the next attempt.

A checkpoint is whole once its marker lies there, which is written last and names every file with its sha256. Each
attempt writes below its own folder. One that cannot be had whole is passed over for the one before.
"""

import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from jobs.checkpoint import MARKER_NAME, CheckpointMarker, is_marker
from jobs.errors import LoraqError
from jobs.manifest import ManifestFile, attempt_folder, describe_file, describe_folder, sha256_of
from jobs.storage import Storage, StoredObject
from jobs.uri import S3Uri
from worker.lease import Lease

log = logging.getLogger(__name__)


class CheckpointDamaged(LoraqError):
    """A checkpoint in the bucket is not what its marker says."""

    code = "checkpoint_damaged"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose marker lies in the bucket."""

    folder: S3Uri
    step: int
    attempt: int


def find_checkpoints(storage: Storage, output_uri: S3Uri) -> list[StoredCheckpoint]:
    """Every checkpoint below a job's output folder that has its marker, the newest first."""
    found = [_stored(each) for each in storage.list(output_uri / "attempts/") if is_marker(each)]
    return sorted(found, key=lambda each: (each.step, each.attempt), reverse=True)


def fetch_checkpoint(storage: Storage, checkpoint: StoredCheckpoint, to: Path, lease: Lease) -> CheckpointMarker:
    """Download a checkpoint into `to` and check every byte.

    Raises:
        CheckpointDamaged: it is not what its marker says; `to` may hold a part of it.
        StorageError, Ending.
    """
    try:
        marker = CheckpointMarker.model_validate_json(storage.read(checkpoint.folder / MARKER_NAME))
    except ValidationError as error:
        raise CheckpointDamaged(f"{checkpoint.folder}{MARKER_NAME} is damaged: {error}") from error
    if any("/" in file.path or file.path in ("", ".", "..") for file in marker.files):
        raise CheckpointDamaged(f"{checkpoint.folder}{MARKER_NAME} names a file outside its folder.")
    storage.download_all(((checkpoint.folder / file.path, to / file.path) for file in marker.files), lease.check)
    damaged = [file.path for file in marker.files if sha256_of(to / file.path) != file.sha256]
    if damaged:
        raise CheckpointDamaged(f"{checkpoint.folder} is damaged: {', '.join(damaged)}.")
    return marker


class CheckpointUploads:
    """Uploads what the trainer saves, in a thread of its own; a context manager.

    Args:
        samples: pictures of the job's output that earlier attempts have put into the bucket.
    """

    def __init__(
        self,
        storage: Storage,
        output_uri: S3Uri,
        lease: Lease,
        output: Path,
        scratch: Path,
        keep: int,
        samples: tuple[ManifestFile, ...],
    ) -> None:
        self.samples = samples
        self._storage = storage
        self._output_uri = output_uri
        self._lease = lease
        self._output = output
        self._scratch = scratch
        self._keep = keep
        self._work: queue.Queue[tuple[str, int, Path] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._upload_until_closed, name="checkpoints", daemon=True)

    def __enter__(self) -> "CheckpointUploads":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._work.put(None)

    def checkpoint(self, path: str, step: int) -> None:
        """Upload a folder of the trainer's. It is linked at once, because the trainer will delete it."""
        copy = self._scratch / f"upload-{step:06d}"
        try:
            copy.mkdir()
            for file in (self._output / path).iterdir():
                os.link(file, copy / file.name)
        except OSError as error:
            log.info("Checkpoint %s is not uploaded, a newer one has taken its place: %s", path, error)
            return
        self._work.put(("checkpoint", step, copy))

    def sample(self, path: str, step: int) -> None:
        """Upload a sample picture."""
        self._work.put(("sample", step, self._output / path))

    def finish(self, timeout_s: float) -> bool:
        """Wait until all is uploaded; whether it was within `timeout_s`."""
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _upload_until_closed(self) -> None:
        while (item := self._work.get()) is not None:
            kind, step, path = item
            try:
                if kind == "sample":
                    self._upload_sample(path)
                elif self._work.qsize() == 0 or not self._newer_waits():
                    self._upload_checkpoint(path, step)
            except (LoraqError, OSError) as error:  # the next one may come through; training goes on
                log.warning("The %s of step %d was not uploaded: %s", kind, step, error)
                self._lease.event("warning", {"message": f"The {kind} of step {step} was not uploaded: {error}"})

    def _newer_waits(self) -> bool:
        with self._work.mutex:
            return any(item is not None and item[0] == "checkpoint" for item in self._work.queue)

    def _upload_sample(self, path: Path) -> None:
        name = path.relative_to(self._output).as_posix()
        stored_as = f"{attempt_folder(self._lease.attempt)}/{name}"
        self._storage.upload(path, self._output_uri / stored_as)
        self.samples = (
            *(file for file in self.samples if file.path != name),
            describe_file(path, name, stored_as),
        )

    def _upload_checkpoint(self, path: Path, step: int) -> None:
        started = time.monotonic()
        stored_as = f"{attempt_folder(self._lease.attempt)}/checkpoints/step-{step:06d}"
        files = describe_folder(path, stored_as)
        self._storage.upload_all((path / file.path, self._output_uri / file.stored_as) for file in files)
        marker = CheckpointMarker(
            job_id=self._lease.job_id,
            attempt=self._lease.attempt,
            step=step,
            files=files,
            samples=tuple(file for file in self.samples if _step_of(file.path) <= step),
        )
        self._storage.write(self._output_uri / f"{stored_as}/{MARKER_NAME}", marker.model_dump_json(indent=2).encode())
        self._lease.event("checkpoint", {"step": step, "seconds": round(time.monotonic() - started, 3)})
        self._prune()

    def _prune(self) -> None:
        """Delete all but the newest, marker first, so that none is ever half there and looks whole."""
        objects = self._storage.list(self._output_uri / "attempts/")
        markers = sorted(filter(is_marker, objects), key=lambda each: _stored(each).step, reverse=True)
        for marker in markers[self._keep :]:
            folder = _stored(marker).folder
            inside = [each.uri for each in objects if each.uri.key.startswith(folder.key) and each is not marker]
            self._storage.delete([marker.uri])
            self._storage.delete(inside)


def _stored(marker: StoredObject) -> StoredCheckpoint:
    folder = marker.uri.key.removesuffix(MARKER_NAME)
    attempt, _, step = folder.rstrip("/").split("/")[-3:]
    return StoredCheckpoint(S3Uri(marker.uri.bucket, folder), int(step.removeprefix("step-")), int(attempt))


def _step_of(sample: str) -> int:
    """samples/step-000250-0.png -> 250."""
    return int(sample.rpartition("/")[2].split("-")[1])
