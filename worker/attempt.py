"""One attempt at a job: claim, fetch, train, commit. It runs in the horse, and imports no torch.

The job's status follows the work: preparing while files come and are encoded, training, uploading. Whatever ends the
attempt early is told apart in `run_attempt`, and nothing but the manifest, written last, makes an output.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from jobs import events
from jobs.errors import FailureReason, IllegalTransition, StorageError
from jobs.manifest import MANIFEST_NAME, describe_folder
from jobs.record import Failure, JobRecord
from jobs.settings import Settings
from jobs.spec_text import write_spec
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import open_store
from jobs.uri import S3Uri, check_bucket_allowed
from worker.config import Places, trainer_config
from worker.downloads import Downloads
from worker.inputs import InputMissing, Inputs
from worker.lease import Cancelled, Ending, Lease, LeaseLost, Preempted, TimedOut
from worker.loop.config_json import write_config
from worker.process import Fact, TrainerFailed, TrainerProcess

log = logging.getLogger(__name__)

COUNT_EVENT_S = 1.0
"""At most one event a second for steps and encoded pictures: a progress bar needs no more. metrics.jsonl has all."""


def run_attempt(job_id: str) -> None:
    """Deliver a job id: what RQ calls in the horse. Returns whatever happens; the record says how it went."""
    settings = Settings()
    store = open_store(settings)
    record = store.claim(job_id, worker=os.environ.get("RQ_WORKER_ID", f"pid-{os.getpid()}"))
    if record is None:
        log.info("Job %s does not wait for an attempt: this delivery is a duplicate", job_id, extra={"job_id": job_id})
        return
    with Lease(store, record, settings) as lease:
        try:
            _carry_out(record, lease, settings)
            lease.move(Status.SUCCEEDED)
        except LeaseLost as ending:
            log.warning("Gave up job %s: %s", job_id, ending)
        except Cancelled:
            lease.move(Status.CANCELLED)
        except Preempted:
            lease.move(Status.QUEUED)
        except TimedOut as ending:
            _fail(lease, FailureReason.TIMED_OUT, str(ending))
        except (InputMissing, StorageError, TrainerFailed) as error:
            _fail(lease, error.reason, str(error))
        except Exception as error:
            log.exception("The attempt at job %s met a bug of loraq's", job_id)
            _fail(lease, FailureReason.CRASHED, f"loraq itself failed: {type(error).__name__}: {error}")
    log.info("Attempt %d at job %s ended: %s", lease.attempt, job_id, store.get(job_id).status)


def _carry_out(record: JobRecord, lease: Lease, settings: Settings) -> None:
    """Fetch, train and commit. Raises whatever keeps it from a committed output."""
    storage = Storage(settings)
    data_dir = settings.data_dir.expanduser()
    output_uri = S3Uri.parse(record.output_uri)
    check_bucket_allowed(output_uri, settings.buckets)
    storage.check(output_uri.bucket)  # better now than after hours of training
    with (
        _scratch(data_dir / "scratch", f"{record.id}-{lease.attempt}-") as scratch,
        Downloads(data_dir / "downloads", storage, int(settings.cache_max_gib * 2**30)) as downloads,
    ):
        output = scratch / "output"
        output.mkdir()
        inputs = Inputs(settings, storage, downloads)
        lease.event("phase", {"name": "fetching"})
        places = Places(
            dataset=inputs.dataset(record.spec.dataset.uri, lease.check),
            base_model=inputs.base_model(record.spec.base_model, lease.check),
            output=output,
            cache=data_dir / "cache",
        )
        lease.check()
        write_config(trainer_config(record.spec, places, settings), scratch / "config.json")
        try:
            _train(scratch / "config.json", output, lease, settings)
        except Exception:
            _save_log(output, output_uri / f"attempts/{lease.attempt}", storage)
            raise
        lease.move(Status.UPLOADING)
        lease.update(phase="uploading")
        _commit(record, output, output_uri, lease, storage)


def _train(config: Path, output: Path, lease: Lease, settings: Settings) -> None:
    """Run the trainer to its end, passing its facts on. Raises TrainerFailed, or the Ending that came."""
    with TrainerProcess(config, output / "train.log", settings.grace_s, settings.cpu_threads) as trainer:
        lease.update(phase="starting")
        reporter = _Reporter(lease)
        try:
            for fact in trainer.facts(every_s=0.5):
                if fact is not None:
                    reporter.tell(fact)
                lease.check()
        except Ending:
            trainer.stop()
            raise
        if trainer.last is not None and trainer.last["fact"] == "stopped":
            raise Preempted("The trainer itself was told to stop: the machine is shutting down.")


class _Reporter:
    """Turns the trainer's facts into progress, events and the change from preparing to training."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._next_count_event_s = 0.0

    def tell(self, fact: Fact) -> None:
        """One fact, as worker/trainer.py names them."""
        data = {key: value for key, value in fact.items() if key != "fact"}
        match fact["fact"]:
            case "phase":
                self._lease.update(phase=data["name"])
                if data["name"] == "training":
                    self._lease.move(Status.TRAINING)
                self._lease.event("phase", data)
            case "step":
                self._lease.update(
                    step=data["step"],
                    steps=data["steps"],
                    loss=data["loss"],
                    seconds_per_step=data["seconds"],
                    peak_bytes=data["peak_bytes"],
                )
                self._count("step", data, last=data["step"] == data["steps"])
            case "encoded":
                self._count("encoded", data, last=data["done"] == data["total"])
            case "dataset" | "warning" | "sample" | "checkpoint" as kind:
                self._lease.event(kind, data)
            case _:
                pass  # finished, stopped and failed end the trainer, and TrainerProcess tells how

    def _count(self, kind: events.Kind, data: Fact, last: bool) -> None:
        """An event of a kind that comes often: the last one, and now and then one before."""
        if last or time.monotonic() >= self._next_count_event_s:
            self._next_count_event_s = time.monotonic() + COUNT_EVENT_S
            self._lease.event(kind, data)


def _commit(record: JobRecord, output: Path, output_uri: S3Uri, lease: Lease, storage: Storage) -> None:
    """Upload everything, and the manifest last: that is the commit."""
    shutil.rmtree(output / "checkpoints", ignore_errors=True)  # of use only to an attempt that goes on
    (output / "spec.yaml").write_text(write_spec(record.spec), encoding="utf-8")
    manifest = describe_folder(output, record.id, lease.attempt)
    storage.upload_all(((output / file.path, output_uri / file.path) for file in manifest.files), lease.check)
    lease.confirm()
    storage.write(output_uri / MANIFEST_NAME, manifest.model_dump_json(indent=2).encode())


def _save_log(output: Path, folder: S3Uri, storage: Storage) -> None:
    """Leave the trainer's log in a folder of the attempt's own, so that a stale attempt touches nothing committed.

    Best effort: the failure itself matters more.
    """
    try:
        storage.upload(output / "train.log", folder / "train.log")
    except StorageError as error:
        log.warning("The trainer's log was not saved: %s", error)


def _fail(lease: Lease, reason: FailureReason, message: str) -> None:
    log.warning("Job %s failed, %s: %s", lease.job_id, reason, message, extra={"job_id": lease.job_id})
    try:
        lease.move(Status.FAILED, Failure(reason=reason, message=message))
    except (LeaseLost, IllegalTransition) as error:
        log.warning("The failure of job %s was not noted: %s", lease.job_id, error)


@contextmanager
def _scratch(folder: Path, prefix: str) -> Generator[Path]:
    """A folder that is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True) as name:
        yield Path(name)
