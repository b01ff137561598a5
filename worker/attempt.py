"""One attempt at a job: claim, fetch, train, commit. It runs in the horse, and imports no torch.

The job's status follows the work: preparing while files come and are encoded, training, uploading. Whatever ends the
attempt early is told apart in `run_attempt`. A manifest that the record names, and nothing else, makes an output.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jobs import logs
from jobs.checkpoint import delete_checkpoints
from jobs.errors import FailureReason, IllegalTransition, ObjectNotFound, StorageError
from jobs.gpu_class import GpuClass
from jobs.manifest import ManifestFile, attempt_folder
from jobs.record import Failure, JobRecord
from jobs.settings import Settings
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import open_store
from jobs.uri import S3Uri, check_writable
from worker import stop, telemetry
from worker.archives import ArchiveInvalid
from worker.checkpoints import (
    CheckpointDamaged,
    CheckpointUploads,
    StoredCheckpoint,
    fetch_checkpoint,
    find_checkpoints,
)
from worker.commit import commit
from worker.config import Places, trainer_config
from worker.downloads import Downloads
from worker.encodings import Encodings
from worker.eviction import make_room
from worker.header import of_job
from worker.inputs import InputMissing, Inputs
from worker.lease import UPLOAD_SHARE_OF_GRACE, Cancelled, Lease, LeaseLost, Preempted, TimedOut
from worker.loop.config_json import write_config
from worker.process import TrainerFailed, TrainerProcess
from worker.reporter import Reporter
from worker.scratch import scratch_folder
from worker.spread import Spread, spread

log = logging.getLogger(__name__)

ENCODINGS_PATIENCE_S = 15.0
"""How long a job waits at its end for encodings that are still being uploaded: most often all are there long before."""

STOP_SHARE_OF_GRACE = 0.5
"""How much of the grace period the trainer may take to finish its step; the rest is for the upload."""


def run_attempt() -> None:
    """Use a ticket: what RQ calls in the horse. Returns whatever happens; the record says how it went."""
    settings = Settings()
    store = open_store(settings)
    gpu_class = GpuClass.parse(settings.worker_class) if settings.worker_class else None  # from the worker's parent
    record = store.next_turn(os.environ.get("RQ_WORKER_ID", f"pid-{os.getpid()}"), gpu_class)
    if record is None:
        log.info("No job may begin now: this ticket was one too many")
        return
    assert record.attempt is not None
    logs.bind(job_id=record.id, attempt=record.attempt.number)
    telemetry.tell("attempt", job_id=record.id, attempt=record.attempt.number)
    with Lease(store, record, settings) as lease:
        try:
            _carry_out(record, lease, settings)
            lease.move(Status.SUCCEEDED)
        except LeaseLost as ending:
            log.warning("Gave up job %s: %s", lease.job_id, ending)
        except Cancelled:
            _end(lease, lambda: lease.move(Status.CANCELLED))
        except Preempted:
            _end(lease, lambda: lease.give_back(None))
        except TimedOut as ending:
            _fail(lease, FailureReason.TIMED_OUT, str(ending))
        except (InputMissing, ArchiveInvalid, StorageError, TrainerFailed) as error:
            _fail(lease, error.reason, str(error))
        except Exception as error:
            log.exception("The attempt at job %s met a bug of loraq's", lease.job_id)
            _fail(lease, FailureReason.CRASHED, f"loraq itself failed: {type(error).__name__}: {error}")
        status = store.get(lease.job_id).status
    log.info("Attempt %d at job %s ended: %s", lease.attempt, lease.job_id, status)
    if status in (Status.SUCCEEDED, Status.CANCELLED):
        _forget_checkpoints(record, settings)


def _carry_out(record: JobRecord, lease: Lease, settings: Settings) -> None:
    """Fetch, train and commit. Raises whatever keeps it from a committed output."""
    storage = Storage(settings, telemetry.moved)
    data_dir = settings.data_dir.expanduser()
    output_uri = S3Uri.parse(record.output_uri)
    check_writable(output_uri, settings, record.owner)
    storage.check(output_uri.bucket)  # better now than after hours of training
    _abort_uploads(storage, output_uri)
    with (
        scratch_folder(data_dir / "scratch", f"{record.id}-{lease.attempt}-") as scratch,
        Downloads(data_dir / "downloads", storage, int(settings.cache_max_gib * 2**30)) as downloads,
    ):
        output = scratch / "output"
        output.mkdir()
        inputs = Inputs(settings, storage, downloads, record.owner)
        lease.event("phase", {"name": "fetching"})
        telemetry.tell("phase", name="fetching")
        folders = {field: inputs.dataset(uri, lease.check, field) for field, uri in record.spec.dataset.uris().items()}
        places = Places(
            dataset=folders["dataset.uri"],
            regularisation=folders.get("dataset.regularisation.uri"),
            base_model=inputs.base_model(record.spec.base_model, lease.check),
            init_from=inputs.adapter(record.spec.lora.init_from, lease.check) if record.spec.lora.init_from else None,
            output=output,
            cache=data_dir / "cache" / record.owner,
        )
        encodings = Encodings(places.cache, storage, _encodings_uri(record, settings), scratch / "answer")
        encodings_max_bytes = int(settings.encodings_max_gib * 2**30)
        make_room(data_dir / "cache", encodings_max_bytes)  # what attempts that were killed have left
        resume_from, samples = _newest_checkpoint(record, storage, scratch, lease)
        lease.check()
        config = trainer_config(record.spec, places, settings)
        config = replace(
            config,
            header=of_job(config.header, record),
            resume_from=resume_from and str(resume_from),
            cache_answer=str(encodings.answer),
        )
        write_config(config, scratch / "config.json")
        keep = record.spec.checkpoints.keep
        with CheckpointUploads(storage, output_uri, lease, output, scratch, keep, samples) as uploads:
            try:
                _train(
                    scratch / "config.json",
                    spread(record.spec.gpus, settings),
                    output,
                    lease,
                    settings,
                    uploads,
                    encodings,
                )
            except Exception:
                _save_log(output, output_uri / attempt_folder(lease.attempt), storage)
                raise
            lease.move(Status.UPLOADING)
            lease.update(phase="uploading")
            telemetry.tell("phase", name="uploading")
            while not uploads.finish(timeout_s=0.5):
                lease.check()
            encodings.finish(timeout_s=ENCODINGS_PATIENCE_S)
            make_room(data_dir / "cache", encodings_max_bytes)
            lease.check()
        commit(record, output, output_uri, lease, storage, uploads.samples)


def _encodings_uri(record: JobRecord, settings: Settings) -> S3Uri | None:
    """Where the owner's encodings lie, and nobody else's."""
    if not settings.encodings_uri:
        return None
    return S3Uri.parse(settings.encodings_uri.replace("{owner}", record.owner)).folder()


def _newest_checkpoint(
    record: JobRecord, storage: Storage, scratch: Path, lease: Lease
) -> tuple[Path | None, tuple[ManifestFile, ...]]:
    """The newest whole checkpoint, on this machine, and the samples drawn before it; None to begin anew."""
    for uri in record.checkpoint_uris:
        tried: set[StoredCheckpoint] = set()
        # Listed anew each time: an attempt that does not know yet that it lost the job may save and prune meanwhile.
        while left := [each for each in find_checkpoints(storage, S3Uri.parse(uri)) if each not in tried]:
            checkpoint = left[0]
            tried.add(checkpoint)
            if checkpoint.step > record.spec.training.steps:  # of a job that is tried again with fewer
                message = f"Passed over the checkpoint of step {checkpoint.step}: this job has fewer steps."
                lease.event("warning", {"message": message})
                continue
            folder = scratch / "resume" / f"step-{checkpoint.step:06d}-{checkpoint.attempt}"
            try:
                marker = fetch_checkpoint(storage, checkpoint, folder, lease)
            except (CheckpointDamaged, ObjectNotFound) as error:
                log.warning("Passing over a checkpoint of job %s: %s", record.id, error)
                lease.event("warning", {"message": f"Passed over the checkpoint of step {checkpoint.step}: {error}"})
                continue
            lease.resumed(marker.step)
            own = uri == record.output_uri  # the samples of another job stay with it
            return folder, marker.samples if own else ()
    return None, ()


def _train(
    config: Path,
    ranks: Spread,
    output: Path,
    lease: Lease,
    settings: Settings,
    uploads: CheckpointUploads,
    encodings: Encodings,
) -> None:
    """Run the trainer to its end, passing its facts on. Raises TrainerFailed, or the Ending that came."""
    with TrainerProcess(config, output / "train.log", settings.cpu_threads, ranks) as trainer:
        lease.update(phase="starting")
        reporter = Reporter(lease, uploads, encodings)
        heard_s = time.monotonic()
        try:
            for fact in trainer.facts(every_s=0.5):
                if fact is not None:
                    reporter.tell(fact)
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > settings.hang_s:
                    raise trainer.hung(settings.hang_s)
                lease.check()
            if trainer.last is None or trainer.last["fact"] != "stopped":
                return
        except Preempted:
            deadline_s = time.monotonic() + settings.grace_s * STOP_SHARE_OF_GRACE - stop.seconds_ago()
            for fact in trainer.stop(deadline_s):
                reporter.tell(fact)
        left_s = settings.grace_s * UPLOAD_SHARE_OF_GRACE - stop.seconds_ago()
        if not uploads.finish(max(1.0, left_s)):
            log.warning("The grace period is over before the checkpoint of job %s was uploaded", lease.job_id)
        raise Preempted("The trainer was told to stop: the machine is shutting down.")


def _abort_uploads(storage: Storage, output_uri: S3Uri) -> None:
    """End what attempts that were killed had begun to upload. Best effort: some servers do not list it."""
    try:
        if aborted := storage.abort_uploads(output_uri):
            log.info("Ended %d uploads below %s, which attempts that were killed have left", aborted, output_uri)
    except StorageError as error:
        log.warning("Uploads that were left below %s are not ended: %s", output_uri, error)


def _save_log(output: Path, folder: S3Uri, storage: Storage) -> None:
    """Leave the trainer's log. Best effort: the failure itself matters more."""
    try:
        storage.upload(output / "train.log", folder / "train.log")
    except StorageError as error:
        log.warning("The trainer's log was not saved: %s", error)


def _fail(lease: Lease, reason: FailureReason, message: str) -> None:
    log.warning("An attempt at job %s failed, %s: %s", lease.job_id, reason, message)
    _end(lease, lambda: lease.give_back(Failure(reason=reason, message=message)))


def _end(lease: Lease, tell: Callable[[], None]) -> None:
    """Tell how the attempt ended, unless the job is another's by now."""
    try:
        tell()
    except (LeaseLost, IllegalTransition) as error:
        log.warning("The end of an attempt at job %s was not noted: %s", lease.job_id, error)


def _forget_checkpoints(record: JobRecord, settings: Settings) -> None:
    try:
        delete_checkpoints(Storage(settings), S3Uri.parse(record.output_uri))
    except StorageError as error:
        log.warning("Checkpoints of job %s were left in the bucket: %s", record.id, error)
